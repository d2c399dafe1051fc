"""Thresholds of panels, read from the alerting rules so that panels and alerts cannot differ."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from grafana.builder.colours import BLUE, DARK_RED, ORANGE, RED, YELLOW
from prometheus.source import processes, slo
from prometheus.source.generate import FILES
from prometheus.source.model import Alert

if TYPE_CHECKING:
    from prometheus.source.objectives import Texts

_COLOURS: Final = {"critical": RED, "warning": ORANGE, "info": BLUE}
# The right-hand side of a comparison, if it is a plain number.
_COMPARISON: Final = re.compile(r"[<>]=?\s*([0-9.]+)(?=\s*(?:$|[,)]|\b(?:and|or|unless)\b))", re.MULTILINE)
_ALERTS: Final = {
    rule.name: rule for groups in FILES.values() for group in groups for rule in group.rules if isinstance(rule, Alert)
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


def burn_rate_thresholds(objective: slo.Objective, texts: Texts) -> tuple[Threshold, ...]:
    """Return the burn rates at which the alert of an objective fires, in ascending order."""
    colours = (DARK_RED, RED, ORANGE, YELLOW)
    thresholds = [
        Threshold(number(burn.factor(texts)), colour, objective.alert)
        for burn, colour in zip(slo.BURN_RATES, colours, strict=True)
    ]
    return tuple(reversed(thresholds))


def number(text: str) -> float:
    """Return the number of a text of an objective.

    In the dashboards of the chart, the text is a token, which stays a string until the chart replaces it.
    """
    return cast("float", text) if text.startswith("@") else float(text)


METRIC_FILES = Threshold(processes.FILES_PER_PROCESS, ORANGE, "FacialServiceMetricFilesGrowing")
METRIC_FILE_BYTES = Threshold(processes.BYTES_PER_PROCESS, ORANGE, "FacialServiceMetricFilesGrowing")
# Remaining error budget below which values are orange; no alert uses it.
LOW_BUDGET: Final = 0.25
