"""Where panels stand, and what all dashboards share: variables, annotations, links, time."""

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
from grafana.builder.queries import ours, series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from grafana_foundation_sdk.cog.builder import Builder

    from grafana.builder.panels import AnyPanel

TAG: Final = "facial-service"
WIDTH: Final = 24
# Rows of Grafana's grid (38 pixels each) that a screen of 1080 lines shows below the variables.
SCREEN: Final = 22
ALL = models.VariableOption(selected=True, text="All", value="$__all")


@dataclass(frozen=True, slots=True)
class Line:
    """Panels side by side, of one height; they share the width evenly.

    Attributes:
        height: in rows of the grid.
        panels: as many as divide the width.
    """

    height: int
    panels: Sequence[AnyPanel]


@dataclass(frozen=True, slots=True)
class Section:
    """Lines under a title that folds them away.

    Attributes:
        title: empty for the part at the top, which has none.
        lines: from the top down.
        is_folded: whether it is folded at first, so that its queries only run when somebody looks.
    """

    title: str
    lines: Sequence[Line]
    is_folded: bool = False


def headline(*panels: AnyPanel) -> Line:
    """Put numbers side by side."""
    return Line(4, panels)


def row(*panels: AnyPanel) -> Line:
    """Put graphs side by side."""
    return Line(8, panels)


def section(title: str, *lines: Line) -> Section:
    """Put lines under a title."""
    return Section(title, lines)


def folded(title: str, *lines: Line) -> Section:
    """Put lines under a title that has to be opened."""
    return Section(title, lines, is_folded=True)


@dataclass(frozen=True, slots=True)
class Page:
    """A dashboard.

    Attributes:
        uid: what links and alerts know it by; never changed.
        title: after the service's name.
        about: what it is for.
        sections: from the top down.
    """

    uid: str
    title: str
    about: str
    sections: Sequence[Section]

    def render(self) -> str:
        """Write it as Grafana reads it: the same for the same page, key by key."""
        made = _head(self).build()
        for link in made.links or ():
            link.placement = None  # type: ignore[assignment] # beside the variables: the SDK knows only the menu
        made.panels = _place(self.sections)
        return json.dumps(made, cls=JSONEncoder, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def _head(page: Page) -> dashboard.Dashboard:
    made = dashboard.Dashboard(f"facial-service / {page.title}").uid(page.uid).description(page.about)
    made.tags([TAG]).readonly().timezone("utc").refresh("30s").time("now-3h", "now")
    made.tooltip(models.DashboardCursorSync.CROSSHAIR).variables(_variables())
    made.annotations(_annotations())
    link = dashboard.DashboardLink("facial-service").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    return made.link(link.as_dropdown(True).include_vars(True).keep_time(True).icon("external link"))


def _variables() -> list[Builder[models.VariableModel]]:
    default = models.VariableOption(selected=True, text="default", value="default")
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus").current(default)
    job = models.VariableOption(selected=True, text=["facial-service"], value=["facial-service"])
    return [
        source,
        _variable("namespace", "Namespace", "app_build_info").include_all(True).all_value(".*").current(ALL),
        # No "All" here: `.+` would let in whatever else has an `errors_total`, and every target with `up`.
        _variable("job", "Job", 'app_build_info{namespace=~"$namespace"}').include_all(False).current(job),
        _variable("pod", "Pod", 'app_build_info{namespace=~"$namespace", job=~"$job"}')
        .include_all(True)
        .all_value(".*")
        .current(ALL),
        _variable("instance", "Instance", 'app_build_info{namespace=~"$namespace", job=~"$job", pod=~"$pod"}')
        .include_all(True)
        .all_value(".+")
        .current(ALL),
    ]


def _variable(name: str, label: str, metric: str) -> dashboard.QueryVariable:
    query = f"label_values({metric}, {name})"
    asked: dict[str, object] = {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"}
    made = dashboard.QueryVariable(name).label(label).query(asked).definition(query).datasource(DATASOURCE)
    made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.NATURAL_ASC)
    return made.multi(True).regex("")


def _annotations() -> list[Builder[models.AnnotationQuery]]:
    seen = f"count by (version) ({series('app_build_info')})"
    before = f"count by (version) ({series('app_build_info')} offset $__interval)"
    changed = ours("kube_deployment_status_observed_generation", "deployment", over="changes")
    alerts = 'ALERTS{alertname=~"FacialService.+", alertstate="firing", namespace=~"$namespace"}'
    return [
        _annotation("New version", BLUE, f"{seen} unless on (version) {before}")
        .title_format("Version {{version}}")
        .tag_keys("version"),
        _annotation(
            "Deployment changed (needs kube-state-metrics)",
            ORANGE,
            f"({changed}) > 0",
        )
        .title_format("{{deployment}} was changed or scaled")
        .tag_keys("namespace,deployment"),
        _annotation("Alert firing", RED, alerts).title_format("{{alertname}}").tag_keys("severity,namespace"),
    ]


def _annotation(name: str, colour: str, expr: str) -> dashboard.AnnotationQuery:
    made = dashboard.AnnotationQuery().name(name).datasource(DATASOURCE).enable(True).hide(False)
    return made.icon_color(colour).expr(expr).step("60s").use_value_for_time(False)


def _place(sections: Sequence[Section]) -> list[models.Panel | models.RowPanel]:
    placed: list[models.Panel | models.RowPanel] = []
    number, y = itertools.count(1), 0
    for section in sections:
        if section.title:
            title = dashboard.Row(section.title).id(next(number)).collapsed(section.is_folded).build()
            title.grid_pos = models.GridPos(h=1, w=WIDTH, x=0, y=y)
            placed.append(title)
            y += 1
        inner = list(_place_lines(section.lines, number, y))
        if section.is_folded:
            title.panels = inner  # they take no room: what comes next stands right under the title
        else:
            placed.extend(inner)
            y += sum(line.height for line in section.lines)
    return placed


def _place_lines(lines: Sequence[Line], number: Iterator[int], y: int) -> Iterator[models.Panel]:
    for line in lines:
        width = WIDTH // len(line.panels)
        for at, panel in enumerate(line.panels):
            made = panel.id(next(number)).build()
            made.grid_pos = models.GridPos(h=line.height, w=width, x=at * width, y=y)
            yield made
        y += line.height
