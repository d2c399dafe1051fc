"""Dashboard layout, and the variables, annotations and links that all dashboards share."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from grafana.builder.colours import BLUE, ORANGE, RED
from grafana.builder.panels import DATASOURCE
from grafana.builder.queries import ALERT_SELECTOR, own_objects, series
from prometheus.source.model import LABELS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from grafana_foundation_sdk.cog.builder import Builder

    from grafana.builder.panels import AnyPanel

TAG: Final = "facial-service"
WIDTH: Final = 24
# Grid rows (38 pixels each) that fit on a screen of 1080 pixels below the variables.
SCREEN: Final = 22
ALL = models.VariableOption(selected=True, text="All", value="$__all")


@dataclass(frozen=True, slots=True)
class PanelRow:
    """Panels of equal height and width, side by side.

    Attributes:
        height: height in grid rows.
        panels: panels; their number must divide the grid width.
    """

    height: int
    panels: Sequence[AnyPanel]


@dataclass(frozen=True, slots=True)
class Section:
    """A collapsible section of a dashboard.

    Attributes:
        title: title; empty for the top section, which has none.
        rows: panel rows.
        is_collapsed: whether it is collapsed by default, so that its queries run only after a user expands it.
    """

    title: str
    rows: Sequence[PanelRow]
    is_collapsed: bool = False


def stat_row(*panels: AnyPanel) -> PanelRow:
    """Create a row of stat panels, high enough for Grafana to draw a sparkline below the value."""
    return PanelRow(5, panels)


def panel_row(*panels: AnyPanel) -> PanelRow:
    """Create a row of graphs."""
    return PanelRow(8, panels)


def section(title: str, *rows: PanelRow) -> Section:
    """Create a section."""
    return Section(title, rows)


def collapsed_section(title: str, *rows: PanelRow) -> Section:
    """Create a section that is collapsed by default."""
    return Section(title, rows, is_collapsed=True)


@dataclass(frozen=True, slots=True)
class DashboardSpec:
    """A dashboard.

    Attributes:
        uid: identifier that links and alerts use; it must not change.
        title: title, without the service name.
        description: purpose of the dashboard.
        sections: sections, from top to bottom.
    """

    uid: str
    title: str
    description: str
    sections: Sequence[Section]

    def render(self) -> str:
        """Return the dashboard as JSON for Grafana, with a stable order of keys."""
        built = _head(self).build()
        for link in built.links or ():
            # None places the link next to the variables; the type of the SDK allows only the menu.
            link.placement = None  # type: ignore[assignment]
        built.panels = _arrange(self.sections)
        return json.dumps(built, cls=JSONEncoder, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def _head(spec: DashboardSpec) -> dashboard.Dashboard:
    builder = dashboard.Dashboard(f"facial-service / {spec.title}").uid(spec.uid).description(spec.description)
    builder.tags([TAG]).readonly().timezone("utc").refresh("30s").time("now-3h", "now")
    builder.tooltip(models.DashboardCursorSync.CROSSHAIR).variables(_variables())
    builder.annotations(_annotations())
    link = dashboard.DashboardLink("facial-service").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    return builder.link(link.as_dropdown(True).include_vars(True).keep_time(True).icon("external link"))


def _variables() -> list[Builder[models.VariableModel]]:
    default = models.VariableOption(selected=True, text="default", value="default")
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus").current(default)
    job = models.VariableOption(selected=True, text=["facial-service"], value=["facial-service"])
    return [
        source,
        # No "All" option for the job: `.+` would match `errors_total` of other applications, and `up` of every target.
        *(
            _variable(name, LABELS[:at]).include_all(False).current(job)
            if name == "job"
            else _variable(name, LABELS[:at]).include_all(True).all_value(".*").current(ALL)
            for at, name in enumerate(LABELS)
        ),
        _variable("pod", LABELS).include_all(True).all_value(".*").current(ALL),
        _variable("instance", (*LABELS, "pod")).include_all(True).all_value(".+").current(ALL),
    ]


def _variable(name: str, earlier: tuple[str, ...]) -> dashboard.QueryVariable:
    label, matchers = name.title(), ", ".join(f'{label}=~"${label}"' for label in earlier)
    query = f"label_values(app_build_info{f'{{{matchers}}}' if matchers else ''}, {name})"
    model: dict[str, object] = {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"}
    variable = dashboard.QueryVariable(name).label(label).query(model).definition(query).datasource(DATASOURCE)
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.NATURAL_ASC)
    return variable.multi(True).regex("")


def _annotations() -> list[Builder[models.AnnotationQuery]]:
    current = f"count by (version) ({series('app_build_info')})"
    previous = f"count by (version) ({series('app_build_info')} offset $__interval)"
    changes = own_objects("kube_deployment_status_observed_generation", "deployment", over="changes")
    alerts = f'ALERTS{{alertname=~"FacialService.+", alertstate="firing", {ALERT_SELECTOR}}}'
    return [
        _annotation("New version", BLUE, f"{current} unless on (version) {previous}")
        .title_format("Version {{version}}")
        .tag_keys("version"),
        _annotation(
            "Deployment changed (requires kube-state-metrics)",
            ORANGE,
            f"({changes}) > 0",
        )
        .title_format("{{deployment}} was changed or scaled")
        .tag_keys("namespace,deployment"),
        _annotation("Alert firing", RED, alerts).title_format("{{alertname}}").tag_keys("severity,namespace,release"),
    ]


def _annotation(name: str, colour: str, expr: str) -> dashboard.AnnotationQuery:
    annotation = dashboard.AnnotationQuery().name(name).datasource(DATASOURCE).enable(True).hide(False)
    return annotation.icon_color(colour).expr(expr).step("60s").use_value_for_time(False)


def _arrange(sections: Sequence[Section]) -> list[models.Panel | models.RowPanel]:
    arranged: list[models.Panel | models.RowPanel] = []
    ids, y = itertools.count(1), 0
    for section in sections:
        if section.title:
            title = dashboard.Row(section.title).id(next(ids)).collapsed(section.is_collapsed).build()
            title.grid_pos = models.GridPos(h=1, w=WIDTH, x=0, y=y)
            arranged.append(title)
            y += 1
        panels = list(_arrange_rows(section.rows, ids, y))
        if section.is_collapsed:
            title.panels = panels  # they use no space: the next section follows directly below the title
        else:
            arranged.extend(panels)
            y += sum(row.height for row in section.rows)
    return arranged


def _arrange_rows(rows: Sequence[PanelRow], ids: Iterator[int], y: int) -> Iterator[models.Panel]:
    for row in rows:
        width = WIDTH // len(row.panels)
        for column, panel in enumerate(row.panels):
            built = panel.id(next(ids)).build()
            built.grid_pos = models.GridPos(h=row.height, w=width, x=column * width, y=y)
            yield built
        y += row.height
