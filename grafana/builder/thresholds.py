"""Thresholds of panels, read from the alerting rules so that panels and alerts cannot differ."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from grafana.builder.colours import BLUE, DARK_RED, ORANGE, RED, YELLOW
from prometheus.source import api, kubernetes, processes, slo, tasks
from prometheus.source.model import Alert

_COLOURS: Final = {"critical": RED, "warning": ORANGE, "info": BLUE}
# The right-hand side of a comparison, if it is a plain number.
_COMPARISON: Final = re.compile(r"[<>]=?\s*([0-9.]+)(?=\s*(?:$|[,)]|\b(?:and|or|unless)\b))", re.MULTILINE)
_ALERTS: Final = {
    rule.name: rule
    for module in (api, kubernetes, processes, tasks)
    for group in module.GROUPS
    for rule in group.rules
    if isinstance(rule, Alert)
}


@dataclass(frozen=True, slots=True)
class Threshold:
    """A lower bound with a colour.

    Attributes:
        value: bound, in the unit of the panel.
        colour: colour of values at or above the bound.
        alert: alert with this threshold, or empty.
    """

    value: float
    colour: str
    alert: str = ""


def alert_threshold(name: str) -> Threshold:
    """Return the threshold of an alert: the first number that its expression compares with.

    Raises:
        LookupError: the alert does not exist, or does not compare with a number.

    Example:
        >>> alert_threshold("FacialServiceOldestTaskTooOld").colour
        'red'
    """
    alert = _ALERTS[name]
    match = _COMPARISON.search(alert.expr)
    if match is None:
        raise LookupError(f"{name}: expected a comparison with a number, got {alert.expr}")
    return Threshold(float(match[1]), _COLOURS[alert.severity], name)


def count_threshold(name: str) -> Threshold:
    """Return the smallest integer at which an alert of the form `count > number` fires."""
    threshold = alert_threshold(name)
    return Threshold(threshold.value + 1, threshold.colour, name)


def burn_rate_thresholds(objective: slo.Objective) -> tuple[Threshold, ...]:
    """Return the burn rates at which the alert of an objective fires."""
    colours = (DARK_RED, RED, ORANGE, YELLOW)
    thresholds = (
        Threshold(float(burn.factor), colour, objective.alert)
        for burn, colour in zip(slo.BURN_RATES, colours, strict=True)
    )
    return tuple(sorted(thresholds, key=lambda threshold: threshold.value))


METRIC_FILES = Threshold(processes.FILES_PER_PROCESS, ORANGE, "FacialServiceMetricFilesGrowing")
METRIC_FILE_BYTES = Threshold(processes.BYTES_PER_PROCESS, ORANGE, "FacialServiceMetricFilesGrowing")
# Remaining error budget below which values are orange; no alert uses it.
LOW_BUDGET: Final = 0.25
