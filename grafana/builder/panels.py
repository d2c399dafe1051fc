"""The panels' common look: one function a kind of panel, which asks for nothing that all of its kind share."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana.builder.colours import GREEN, NONE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grafana.builder.limits import Step

AnyPanel = stat.Panel | timeseries.Panel | heatmap.Panel | table.Panel
P = TypeVar("P", stat.Panel, timeseries.Panel, heatmap.Panel, table.Panel)

DATASOURCE: Final = kinds.DataSourceRef(type_val="prometheus", uid="${datasource}")

# What a metric's name begins with, and who exports it: not this service, and not everywhere.
SOURCES: Final = {
    "namespace_job:": "the recording rules",
    "kube_": "kube-state-metrics",
    "container_": "cAdvisor",
    "kubelet_": "the kubelet",
}
_METRIC = re.compile(r"([a-zA-Z_:][\w:]*)[{]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query of a panel.

    Attributes:
        expr: PromQL.
        legend: what its series are called, with labels in double braces.
        colour: of all its series; None leaves it to the palette.
        is_dashed: whether it is drawn as a bound rather than as a measurement.
        steps: instead of the panel's, where it shows numbers.
    """

    expr: str
    legend: str = ""
    colour: str | None = None
    is_dashed: bool = False
    steps: Sequence[Step] | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """What a value means.

    Attributes:
        unit: Grafana's name of it.
        steps: values from which on another colour holds, rising: where alerts fire.
        base: the colour below the first step.
        most: the top of the axis; None lets it follow the data.
        decimals: how many are shown; None leaves it to Grafana.
    """

    unit: str
    steps: Sequence[Step] = ()
    base: str = GREEN
    most: float | None = None
    decimals: int | None = None


def sources(expressions: Sequence[str]) -> list[str]:
    """Name who else has to export something for these queries."""
    names = {metric for expression in expressions for metric in _METRIC.findall(expression)}
    return sorted({source for prefix, source in SOURCES.items() for name in names if name.startswith(prefix)})


def number(
    title: str,
    about: str,
    scale: Scale,
    *queries: Query,
    link: str = "",
    none: str = "no data",
    words: Mapping[str, tuple[str, str]] | None = None,
) -> stat.Panel:
    """Show the newest value large, in the colour of its step, over a small graph of its past.

    Args:
        title: of the panel.
        about: what it shows, and what is good.
        scale: the unit and the steps.
        queries: one number each.
        link: the uid of the dashboard with more.
        none: what stands there where there is no value.
        words: values that are shown as a word, and its colour.
    """
    panel = stat.Panel().graph_mode(kinds.BigValueGraphMode.AREA).color_mode(kinds.BigValueColorMode.VALUE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    panel.text_mode(kinds.BigValueTextMode.VALUE_AND_NAME if len(queries) > 1 else kinds.BigValueTextMode.VALUE)
    panel.justify_mode(kinds.BigValueJustifyMode.AUTO).orientation(kinds.VizOrientation.AUTO)
    panel.thresholds(_steps(scale, scale.base)).color_scheme(_colour(models.FieldColorModeId.THRESHOLDS))
    panel.unit(scale.unit).no_value(none)
    if link:
        panel.links([_link(link)])
    if scale.decimals is not None:
        panel.decimals(scale.decimals)
    if words:
        results = {
            value: models.ValueMappingResult(text=text, color=colour, index=at)
            for at, (value, (text, colour)) in enumerate(words.items())
        }
        panel.mappings([models.ValueMap(options=results)])
    for letter, query in zip(string.ascii_uppercase, queries, strict=False):
        if query.steps is not None:
            steps = _steps(Scale("", query.steps), GREEN).build()
            panel.override_by_query(letter, [models.DynamicConfigValue(id_val="thresholds", value=steps)])
    return _describe(panel, title, _name_alerts(about, scale.steps), queries)


def graph(
    title: str,
    about: str,
    scale: Scale,
    *queries: Query,
    colours: Mapping[str, str] | None = None,
    is_stacked: bool = False,
    is_wide: bool = False,
) -> timeseries.Panel:
    """Draw series over time, with a dashed line at each step.

    Args:
        title: of the panel.
        about: what it shows, and what is good.
        scale: the unit and the steps.
        queries: any number of series each.
        colours: regular expressions for names of series, and their colours.
        is_stacked: whether the series are parts of a whole.
        is_wide: whether there is room for a table of the series on the right.
    """
    panel = timeseries.Panel().line_width(1).fill_opacity(60 if is_stacked else 8)
    panel.show_points(kinds.VisibilityMode.AUTO).span_nulls(False).axis_soft_min(0)
    panel.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
    panel.legend(_legend(is_wide=is_wide)).unit(scale.unit)
    panel.color_scheme(_colour(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    if is_stacked:
        panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if scale.most is not None:
        panel.max(scale.most)
    if scale.steps:
        style = common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        panel.thresholds(_steps(scale, NONE)).thresholds_style(style)
    for pattern, colour in (colours or {}).items():
        panel.override_by_regexp(f"/{pattern}/", [_fixed(colour)])
    _mark(panel, queries)
    return _describe(panel, title, _name_alerts(about, scale.steps), queries)


def heat(title: str, about: str, unit: str, query: Query) -> heatmap.Panel:
    """Draw a histogram over time: how many observations fell into which bucket.

    Args:
        title: of the panel.
        about: what it shows, and what is good.
        unit: of the buckets' bounds.
        query: counts by ``le``.
    """
    colour = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64).exponent(0.5)
    panel = heatmap.Panel().calculate(False).color(colour.fill("dark-orange").reverse(False)).cell_gap(1)
    panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(kinds.AxisPlacement.LEFT))
    panel.cell_values(heatmap.CellValues().unit("short").decimals(0)).show_value(kinds.VisibilityMode.NEVER)
    tooltip = heatmap.HeatmapTooltip().mode(kinds.TooltipDisplayMode.SINGLE).y_histogram(True).show_color_scale(True)
    panel.tooltip(tooltip).hide_legend().unit(unit)
    return _describe(panel, title, about, [query], PromQueryFormat.HEATMAP)


def listing(title: str, about: str, query: Query, columns: Mapping[str, str]) -> table.Panel:
    """List series as they are now, one a line, by their labels.

    Args:
        title: of the panel.
        about: what it shows.
        query: the series; what their value is does not matter.
        columns: labels in their order, and what stands above each.
    """
    panel = table.Panel().unit("none").show_header(True).filterable(True)
    order = {label: at for at, label in enumerate(columns)}
    options = {"excludeByName": {"Time": True, "Value": True}, "indexByName": order, "renameByName": dict(columns)}
    panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=options))
    return _describe(panel, title, about, [query], PromQueryFormat.TABLE)


def _describe(
    panel: P, title: str, about: str, queries: Sequence[Query], kind: PromQueryFormat = PromQueryFormat.TIME_SERIES
) -> P:
    needed = sources([query.expr for query in queries])
    panel.title(title).datasource(DATASOURCE)
    panel.description(f"{about} Needs {' and '.join(needed)}." if needed else about)
    for letter, query in zip(string.ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expr).format(kind).datasource(DATASOURCE)
        target.legend_format("{{le}}" if kind is PromQueryFormat.HEATMAP else query.legend)
        panel.with_target(target.instant() if kind is PromQueryFormat.TABLE else target.range())
    return panel


def _name_alerts(about: str, steps: Sequence[Step]) -> str:
    """Say which alerts the steps are of; a test reads it, and compares them with the rules."""
    names = list(dict.fromkeys(step.alert for step in steps if step.alert))
    return f"{about} Threshold: {', '.join(names)}." if names else about


def _mark(panel: timeseries.Panel, queries: Sequence[Query]) -> None:
    for letter, query in zip(string.ascii_uppercase, queries, strict=False):
        properties = [_fixed(query.colour)] if query.colour else []
        if query.is_dashed:
            dashes = {"fill": "dash", "dash": [8, 8]}
            properties.append(models.DynamicConfigValue(id_val="custom.lineStyle", value=dashes))
            properties.append(models.DynamicConfigValue(id_val="custom.fillOpacity", value=0))
            # A bound is no part of a stack.
            properties.append(models.DynamicConfigValue(id_val="custom.stacking", value={"mode": "none"}))
        if properties:
            panel.override_by_query(letter, properties)


def _fixed(colour: str) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})


def _colour(mode: models.FieldColorModeId) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(mode)


def _steps(scale: Scale, base: str) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(None, base), *(models.Threshold(step.value, step.colour) for step in scale.steps)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _legend(*, is_wide: bool) -> common.VizLegendOptions:
    legend = common.VizLegendOptions().show_legend(True)
    if not is_wide:
        return legend.display_mode(kinds.LegendDisplayMode.LIST).placement(kinds.LegendPlacement.BOTTOM).calcs([])
    legend.display_mode(kinds.LegendDisplayMode.TABLE).placement(kinds.LegendPlacement.RIGHT)
    return legend.calcs(["mean", "max", "lastNotNull"]).sort_by("Max").sort_desc(True)


def _link(uid: str) -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("More").type(models.DashboardLinkType.LINK)
    return link.url(f"/d/{uid}?${{__all_variables}}&${{__url_time_range}}")
