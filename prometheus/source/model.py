"""What a rule is, and the few pieces of PromQL and text that rules share.

Every selector of ours names the job, for names such as ``queue_up`` are anybody's, and every result is grouped by
namespace and job: where Prometheus knows of no namespaces the label is empty, and the rules are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Severity = Literal["critical", "warning", "info"]
"""Critical wakes somebody, warning is a ticket, info is context for the other two."""

Dashboard = Literal[
    "facial-service-overview", "facial-service-tasks", "facial-service-images", "facial-service-resources"
]

JOB = "facial-service"
BY = "by (namespace, job)"

# The product is what is under /api/: neither probes and scrapes, nor what no route matches.
API = 'endpoint=~"/api/.+"'
# What is asked for work. A status is left out: asked with `wait`, it takes as long as the caller wishes.
WORK = f'method="POST", {API}'
SUBMIT = "/api/v1/frontal/crop/submit"

# For descriptions: the value with its unit, and where, after the noun.
NUMBER = "{{ $value | humanize }}"
COUNT = '{{ $value | printf "%.0f" }}'
PERCENT = "{{ $value | humanizePercentage }}"
DURATION = "{{ $value | humanizeDuration }}"
INSTANCE = "{{ $labels.instance }}{{ with $labels.pod }} (pod {{ . }}){{ end }}"
PLACE = "{{ with $labels.namespace }} in namespace {{ . }}{{ end }}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alerting rule.

    Attributes:
        name: begins with FacialService; its runbook has the same name.
        expr: PromQL, laid out for people.
        hold: how long it has to be true before anybody is told.
        severity: see `Severity`.
        summary: one sentence that is always the same, so that notifications can be grouped by it.
        description: what is the case, with its value and unit.
        dashboard: where to look first.
        labels: beside the severity.
    """

    name: str
    expr: str
    hold: str
    severity: Severity
    summary: str
    description: str
    dashboard: Dashboard
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording rule; the name is ``level:metric:operations``."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rules that are evaluated one after the other.

    Attributes:
        name: ends in ``.rules`` where it records.
        rules: in the order of their evaluation.
        interval: how often; None leaves it to Prometheus.
    """

    name: str
    rules: tuple[Alert | Recording, ...]
    interval: str | None = None


def series(name: str, *matchers: str) -> str:
    """Write the selector of a metric of ours.

    Example:
        >>> series("queue_up")
        'queue_up{job="facial-service"}'
    """
    inside = ", ".join((f'job="{JOB}"', *matchers))
    return f"{name}{{{inside}}}"
