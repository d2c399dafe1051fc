"""An exposition as it was scraped: the series of the table, by the values of their labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from app.observability.metrics import METRICS, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client.samples import Sample

T = TypeVar("T")

Labels = tuple[str, ...]
"""Values of a metric's labels, in the table's order."""

_SPECS: Final = {spec.name: spec for spec in METRICS}
_LABELS: Final = {spec.name: tuple(spec.labels) for spec in METRICS}
_SIMPLE: Final = {spec.name: spec.kind for spec in METRICS if spec.kind != "histogram"}
_BUCKETS: Final = {f"{spec.name}_bucket": spec.name for spec in METRICS if spec.kind == "histogram"}


class ExpositionError(ValueError):
    """What was scraped is not what the service writes."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram's buckets.

    Attributes:
        bounds: upper bounds, ascending, ``+Inf`` the last.
        counts: observations up to each bound: never falling, so that the last is all of them.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Samples:
    """One scrape; or by how much counters and histograms grew between two, without gauges.

    Each maps a metric's name in the table to its series, and these by the values of their labels.
    """

    counters: dict[str, dict[Labels, float]] = field(default_factory=dict)
    gauges: dict[str, dict[Labels, float]] = field(default_factory=dict)
    histograms: dict[str, dict[Labels, Buckets]] = field(default_factory=dict)


def known(name: str, kind: Kind, *labels: str) -> str:
    """Return a metric's name once the table has it as the caller takes it to be.

    Args:
        name: of the metric.
        kind: counter, gauge or histogram.
        labels: in the order in which the values of a series are taken apart.

    Raises:
        ValueError: the table does not have it so.

    Example:
        >>> known("api_rejections_total", "counter", "reason")
        'api_rejections_total'
        >>> known("api_rejections_total", "counter", "cause")
        Traceback (most recent call last):
        ValueError: api_rejections_total: expected a counter of ('cause',), the table has a counter of ('reason',)
    """
    if name not in _SPECS:
        raise ValueError(f"{name}: no such metric in the table")
    there = _SPECS[name].kind, _LABELS[name]
    if there != (kind, labels):
        raise ValueError(f"{name}: expected a {kind} of {labels}, the table has a {there[0]} of {there[1]}")
    return name


def rows(series: Mapping[str, Mapping[Labels, T]], name: str) -> Mapping[Labels, T]:
    """Return the series of one metric; none where it was not there."""
    return series.get(name, {})


def parse_exposition(text: str) -> Samples:
    """Read the metrics of the table from Prometheus's text format; others, and values that are no number, are left out.

    Labels that the table does not have are ignored, and what then falls together is added up; one that is missing
    reads as empty, as Prometheus has it.

    Raises:
        ExpositionError: it is not in that format, or none of the table's metrics is in it.
    """
    found = Samples()
    buckets: dict[str, dict[Labels, dict[float, float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                _take(sample, found, buckets)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:  # the parser has no error of its own
        raise ExpositionError("expected Prometheus's text format, got something else") from error
    for name, by_labels in buckets.items():
        found.histograms[name] = {labels: _order(by_bound) for labels, by_bound in by_labels.items()}
    if not (found.counters or found.gauges or found.histograms):
        raise ExpositionError("expected the metrics of facial-service, got none of them")
    return found


def _take(sample: Sample, found: Samples, buckets: dict[str, dict[Labels, dict[float, float]]]) -> None:
    if not math.isfinite(sample.value):
        return
    if (kind := _SIMPLE.get(sample.name)) is not None:
        labels = _values(sample.name, sample)
        series = (found.counters if kind == "counter" else found.gauges).setdefault(sample.name, {})
        series[labels] = series.get(labels, 0.0) + sample.value
    elif (name := _BUCKETS.get(sample.name)) is not None:
        bound = float(sample.labels["le"])
        if not math.isnan(bound):
            by_bound = buckets.setdefault(name, {}).setdefault(_values(name, sample), {})
            by_bound[bound] = by_bound.get(bound, 0.0) + sample.value


def _values(name: str, sample: Sample) -> Labels:
    return tuple(sample.labels.get(label, "") for label in _LABELS[name])


def _order(by_bound: Mapping[float, float]) -> Buckets:
    bounds = tuple(sorted(by_bound))
    counts, highest = [], 0.0
    for bound in bounds:
        highest = max(highest, by_bound[bound])
        counts.append(highest)
    return Buckets(bounds, tuple(counts))
