"""Where alerts fire: the steps of panels, read from the rules themselves so that the two cannot differ."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from grafana.builder.colours import BLUE, DARK_RED, ORANGE, RED, YELLOW
from prometheus.source import api, kubernetes, processes, slo, tasks
from prometheus.source.model import Alert

_COLOURS: Final = {"critical": RED, "warning": ORANGE, "info": BLUE}
# The right side of a comparison, where it is a number and nothing more.
_COMPARED: Final = re.compile(r"[<>]=?\s*([0-9.]+)(?=\s*(?:$|[,)]|\b(?:and|or|unless)\b))", re.MULTILINE)
_ALERTS: Final = {
    rule.name: rule
    for module in (api, kubernetes, processes, tasks)
    for group in module.GROUPS
    for rule in group.rules
    if isinstance(rule, Alert)
}


@dataclass(frozen=True, slots=True)
class Step:
    """A value from which on a colour holds.

    Attributes:
        value: in the panel's unit.
        colour: of the severity.
        alert: the alert that fires beyond it; empty where none does.
    """

    value: float
    colour: str
    alert: str = ""


def fires(name: str) -> Step:
    """Return the number that an alert compares with: the first one of its expression.

    Raises:
        LookupError: there is no such alert, or it compares with no number.

    Example:
        >>> fires("FacialServiceOldestTaskTooOld").colour
        'red'
    """
    alert = _ALERTS[name]
    found = _COMPARED.search(alert.expr)
    if found is None:
        raise LookupError(f"{name} compares with no number: {alert.expr}")
    return Step(float(found[1]), _COLOURS[alert.severity], name)


def counts(name: str) -> Step:
    """Return the first whole number at which an alert fires that wants more than a number."""
    step = fires(name)
    return Step(step.value + 1, step.colour, name)


def burns(objective: slo.Objective) -> tuple[Step, ...]:
    """Return the rates of an objective's budget, as multiples of the sustainable one, at which its alert fires."""
    colours = (DARK_RED, RED, ORANGE, YELLOW)
    steps = (Step(float(burn.factor), colour, objective.alert) for burn, colour in zip(slo.BURNS, colours, strict=True))
    return tuple(sorted(steps, key=lambda step: step.value))


FILES = Step(processes.FILES_A_PROCESS, ORANGE, "FacialServiceMetricFilesGrowing")
BYTES = Step(processes.BYTES_A_PROCESS, ORANGE, "FacialServiceMetricFilesGrowing")
# Share of the error budget below which numbers turn orange; no alert looks at it.
BUDGET_LOW: Final = 0.25
