"""Dashboard layout, and the variables, annotations and links that all dashboards share."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

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
LOGS_VARIABLE: Final = "loki"
LOGS_LINK: Final = "Logs"
TRACES_VARIABLE: Final = "tempo"
TRACES_LINK: Final = "Traces"
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

    def build(self, *, has_logs: bool, has_traces: bool) -> models.Dashboard:
        """Return the dashboard.

        Args:
            has_logs: whether it has a link to the logs in Loki, and a variable for their data source.
            has_traces: whether it has such a link and variable for the traces in Tempo.
        """
        built = _head(self, has_logs=has_logs, has_traces=has_traces).build()
        for link in built.links or ():
            # None places the link next to the variables; the type of the SDK allows only the menu.
            link.placement = None  # type: ignore[assignment]
        built.panels = _arrange(self.sections)
        return built


def render(document: models.Dashboard) -> str:
    """Return a dashboard as JSON for Grafana, with a stable order of keys."""
    return json.dumps(document, cls=JSONEncoder, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def all_panels(document: models.Dashboard) -> Iterator[models.Panel]:
    """Yield the panels of a dashboard, including those of collapsed sections."""
    for entry in document.panels or ():
        if isinstance(entry, models.RowPanel):
            yield from entry.panels
        else:
            yield entry


def _head(spec: DashboardSpec, *, has_logs: bool, has_traces: bool) -> dashboard.Dashboard:
    builder = dashboard.Dashboard(f"facial-service / {spec.title}").uid(spec.uid).description(spec.description)
    builder.tags([TAG]).readonly().timezone("utc").refresh("30s").time("now-3h", "now")
    builder.tooltip(models.DashboardCursorSync.CROSSHAIR)
    sources = [_logs_variable()] if has_logs else []
    sources += [_traces_variable()] if has_traces else []
    builder.variables([*_variables(), *sources])
    builder.annotations(_annotations())
    link = dashboard.DashboardLink("facial-service").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    builder.link(link.as_dropdown(True).include_vars(True).keep_time(True).icon("external link"))
    if has_logs:
        builder.link(_logs_link())
    return builder.link(_traces_link()) if has_traces else builder


def _logs_variable() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable(LOGS_VARIABLE).label("Logs").type("loki")


def _logs_link() -> dashboard.DashboardLink:
    """Return the link to the logs of the selected pods, for the time range of the dashboard.

    The names of pods and namespaces need no escaping, and containers are those of the chart, because Loki requires a
    selector that does not match everything.
    """
    selector = '{namespace=~"${namespace:pipe}", pod=~"${pod:pipe}", container=~"api|worker"}'
    pane = {
        "datasource": f"${{{LOGS_VARIABLE}}}",
        "queries": [{"refId": "A", "expr": selector, "datasource": {"type": "loki", "uid": f"${{{LOGS_VARIABLE}}}"}}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    # Grafana replaces variables before the browser decodes the rest.
    panes = quote(json.dumps({"logs": pane}), safe="${}:_")
    link = dashboard.DashboardLink(LOGS_LINK).type(models.DashboardLinkType.LINK).icon("doc")
    return link.url(f"/explore?schemaVersion=1&panes={panes}").tooltip("Logs of the selected pods, in Loki")


def _traces_variable() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable(TRACES_VARIABLE).label("Traces").type("tempo")


def _traces_link() -> dashboard.DashboardLink:
    """Return the link to the traces of the selected pods, for the time range of the dashboard.

    The chart sets the attributes of the resource that the query selects.
    """
    query = '{resource.k8s.namespace.name=~"${namespace:pipe}" && resource.k8s.pod.name=~"${pod:pipe}"}'
    source = f"${{{TRACES_VARIABLE}}}"
    pane = {
        "datasource": source,
        "queries": [
            {"refId": "A", "queryType": "traceql", "query": query, "datasource": {"type": "tempo", "uid": source}}
        ],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    panes = quote(json.dumps({"traces": pane}), safe="${}:_")
    link = dashboard.DashboardLink(TRACES_LINK).type(models.DashboardLinkType.LINK).icon("bolt")
    return link.url(f"/explore?schemaVersion=1&panes={panes}").tooltip("Traces of the selected pods, in Tempo")


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
