"""Panel builders: one function per panel type, with the options that all panels of the type share."""

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

    from grafana.builder.thresholds import Threshold

AnyPanel = stat.Panel | timeseries.Panel | heatmap.Panel | table.Panel
P = TypeVar("P", stat.Panel, timeseries.Panel, heatmap.Panel, table.Panel)

DATASOURCE: Final = kinds.DataSourceRef(type_val="prometheus", uid="${datasource}")

# Sources of metrics that the service does not export, by the prefix of the metric name.
SOURCES: Final = {
    "cluster_namespace_release_job": "the recording rules",
    "kube_": "kube-state-metrics",
    "container_": "cAdvisor",
    "kubelet_": "the kubelet",
}
# Units of values that are normally 0, with the least maximum of their axis.
_SMALL_VALUES: Final = {"percentunit": 0.01, "reqps": 0.1, "ops": 0.1, "short": 1.0}
_THRESHOLDS = re.compile(r" Threshold: ([\w, ]+)\.")
# In the dashboards of the chart, a name may contain a token.
_METRIC = re.compile(r"([a-zA-Z_:][\w:@]*)[{]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query of a panel.

    Attributes:
        expr: PromQL expression.
        legend: legend format, with labels in double braces.
        colour: colour of its series. If None, from the palette.
        is_dashed: whether to draw a dashed line, for limits.
        is_in_legend: whether the legend has an entry for each series.
        thresholds: thresholds of this query in a stat panel. If None, those of the panel.
    """

    expr: str
    legend: str = ""
    colour: str | None = None
    is_dashed: bool = False
    is_in_legend: bool = True
    thresholds: Sequence[Threshold] | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """Unit, thresholds and range of a panel's values.

    Attributes:
        unit: Grafana unit.
        thresholds: thresholds, in ascending order.
        base: colour of values below the first threshold.
        maximum: maximum of the axis. If None, the axis follows the data.
        decimals: number of decimals. If None, Grafana decides.
    """

    unit: str
    thresholds: Sequence[Threshold] = ()
    base: str = GREEN
    maximum: float | None = None
    decimals: int | None = None


def sources(expressions: Sequence[str]) -> list[str]:
    """Return the sources, other than the service, whose metrics the queries use."""
    names = {metric for expression in expressions for metric in _METRIC.findall(expression)}
    return sorted({source for prefix, source in SOURCES.items() for name in names if name.startswith(prefix)})


def stat_panel(
    title: str,
    description: str,
    scale: Scale,
    *queries: Query,
    no_value: str = "no data",
    value_texts: Mapping[str, tuple[str, str]] | None = None,
) -> stat.Panel:
    """Create a stat panel, which shows the latest value in the colour of its threshold, with a sparkline.

    Args:
        title: title.
        description: meaning of the value, and its normal range.
        scale: unit and thresholds.
        queries: queries, each with one value.
        no_value: text to show if there is no value.
        value_texts: text and colour to show instead of certain values.
    """
    panel = stat.Panel().graph_mode(kinds.BigValueGraphMode.AREA).color_mode(kinds.BigValueColorMode.VALUE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    panel.text_mode(kinds.BigValueTextMode.VALUE_AND_NAME if len(queries) > 1 else kinds.BigValueTextMode.VALUE)
    panel.justify_mode(kinds.BigValueJustifyMode.AUTO).orientation(kinds.VizOrientation.AUTO)
    panel.thresholds(_thresholds(scale, scale.base)).color_scheme(_colour(models.FieldColorModeId.THRESHOLDS))
    panel.unit(scale.unit).no_value(no_value)
    if scale.decimals is not None:
        panel.decimals(scale.decimals)
    if value_texts:
        results = {
            value: models.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(value_texts.items())
        }
        panel.mappings([models.ValueMap(options=results)])
    for letter, query in zip(string.ascii_uppercase, queries, strict=False):
        if query.thresholds is not None:
            thresholds = _thresholds(Scale("", query.thresholds), GREEN).build()
            panel.override_by_query(letter, [models.DynamicConfigValue(id_val="thresholds", value=thresholds)])
    return _finish(panel, title, _add_alert_names(description, scale.thresholds), queries)


def timeseries_panel(
    title: str,
    description: str,
    scale: Scale,
    *queries: Query,
    colours: Mapping[str, str] | None = None,
    is_stacked: bool = False,
) -> timeseries.Panel:
    """Create a time series panel, with a dashed line at each threshold.

    Args:
        title: title.
        description: meaning of the series, and their normal range.
        scale: unit and thresholds.
        queries: queries, each with any number of series.
        colours: colours by regular expression for the series name.
        is_stacked: whether to stack the series.
    """
    panel = timeseries.Panel().line_width(1).fill_opacity(60 if is_stacked else 8)
    panel.show_points(kinds.VisibilityMode.AUTO).span_nulls(False).axis_soft_min(0)
    panel.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
    panel.legend(_legend()).unit(scale.unit)
    panel.color_scheme(_colour(models.FieldColorModeId.PALETTE_CLASSIC))
    if is_stacked:
        panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if scale.maximum is not None:
        panel.max(scale.maximum)
    elif (top := _soft_maximum(scale)) is not None:
        panel.axis_soft_max(top)
    if scale.thresholds:
        style = common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        panel.thresholds(_thresholds(scale, NONE)).thresholds_style(style)
    for pattern, colour in (colours or {}).items():
        panel.override_by_regexp(f"/{pattern}/", [_fixed(colour)])
    _style_series(panel, queries)
    return _finish(panel, title, _add_alert_names(description, scale.thresholds), queries)


def heatmap_panel(title: str, description: str, unit: str, query: Query) -> heatmap.Panel:
    """Create a heatmap panel of a histogram.

    Args:
        title: title.
        description: meaning of the histogram, and its normal shape.
        unit: unit of the bucket bounds.
        query: query for the observations by ``le``.
    """
    colour = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64).exponent(0.5)
    panel = heatmap.Panel().calculate(False).color(colour.fill("dark-orange").reverse(False)).cell_gap(1)
    panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(kinds.AxisPlacement.LEFT))
    panel.cell_values(heatmap.CellValues().unit("short").decimals(0)).show_value(kinds.VisibilityMode.NEVER)
    tooltip = heatmap.HeatmapTooltip().mode(kinds.TooltipDisplayMode.SINGLE).y_histogram(True).show_color_scale(True)
    panel.tooltip(tooltip).hide_legend().unit(unit)
    return _finish(panel, title, description, [query], PromQueryFormat.HEATMAP)


def table_panel(
    title: str, description: str, query: Query, columns: Mapping[str, str], widths: Mapping[str, int]
) -> table.Panel:
    """Create a table panel with one line per current series.

    Args:
        title: title.
        description: meaning of the lines.
        query: query for the series; their values are not shown.
        columns: column titles by label, in display order.
        widths: widths in pixels, by title; the other columns share the rest.
    """
    panel = table.Panel().unit("none").show_header(True).filterable(True)
    order = {label: index for index, label in enumerate(columns)}
    options = {"excludeByName": {"Time": True, "Value": True}, "indexByName": order, "renameByName": dict(columns)}
    panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=options))
    for name, width in widths.items():
        panel.override_by_name(name, [models.DynamicConfigValue(id_val="custom.width", value=width)])
    return _finish(panel, title, description, [query], PromQueryFormat.TABLE)


def _finish(
    panel: P,
    title: str,
    description: str,
    queries: Sequence[Query],
    kind: PromQueryFormat = PromQueryFormat.TIME_SERIES,
) -> P:
    required = sources([query.expr for query in queries])
    panel.title(title).datasource(DATASOURCE)
    panel.description(f"{description} Requires {' and '.join(required)}." if required else description)
    for letter, query in zip(string.ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expr).format(kind).datasource(DATASOURCE)
        target.legend_format("{{le}}" if kind is PromQueryFormat.HEATMAP else query.legend)
        panel.with_target(target.instant() if kind is PromQueryFormat.TABLE else target.range())
    return panel


def threshold_alerts(description: str) -> list[str]:
    """Return the alerts of the thresholds that a description names."""
    found = _THRESHOLDS.search(description)
    return found[1].split(", ") if found else []


def _add_alert_names(description: str, thresholds: Sequence[Threshold]) -> str:
    """Add the alerts of the thresholds to a description; a test compares them with the rules."""
    names = list(dict.fromkeys(threshold.alert for threshold in thresholds if threshold.alert))
    return f"{description} Threshold: {', '.join(names)}." if names else description


def _style_series(panel: timeseries.Panel, queries: Sequence[Query]) -> None:
    for letter, query in zip(string.ascii_uppercase, queries, strict=False):
        properties = [_fixed(query.colour)] if query.colour else []
        if query.is_dashed:
            dashes = {"fill": "dash", "dash": [8, 8]}
            properties.append(models.DynamicConfigValue(id_val="custom.lineStyle", value=dashes))
            properties.append(models.DynamicConfigValue(id_val="custom.fillOpacity", value=0))
            # Limits are not stacked.
            properties.append(models.DynamicConfigValue(id_val="custom.stacking", value={"mode": "none"}))
        if not query.is_in_legend:
            hidden = {"legend": True, "tooltip": False, "viz": False}
            properties.append(models.DynamicConfigValue(id_val="custom.hideFrom", value=hidden))
        if properties:
            panel.override_by_query(letter, properties)


def _fixed(colour: str) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})


def _colour(mode: models.FieldColorModeId) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(mode)


def _thresholds(scale: Scale, base: str) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(None, base)]
    steps += [models.Threshold(threshold.value, threshold.colour) for threshold in scale.thresholds]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().show_legend(True).calcs([])
    return legend.display_mode(kinds.LegendDisplayMode.LIST).placement(kinds.LegendPlacement.BOTTOM)


def _soft_maximum(scale: Scale) -> float | None:
    """Return what the axis shows at least: the first threshold, or a small value.

    If all values are 0, Grafana would draw the axis to 100, which is 10000% for a ratio.
    """
    if scale.thresholds:
        return scale.thresholds[0].value
    return _SMALL_VALUES.get(scale.unit)
