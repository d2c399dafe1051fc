"""Data model of rules, and the PromQL and text fragments that rules share.

Every selector includes the job, because other applications may use metric names such as ``queue_up``. Every result is
grouped by `LABELS`, so that releases in one namespace, and clusters in one Prometheus, are evaluated separately.
Outside Kubernetes most of these labels are absent, and the same rules apply.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Severity = Literal["critical", "warning", "info"]
"""critical pages the on-call engineer, warning creates a ticket, info gives context for the other two."""

Dashboard = Literal[
    "facial-service-overview", "facial-service-tasks", "facial-service-images", "facial-service-resources"
]

JOB = "facial-service"
LABELS = ("cluster", "namespace", "release", "job")
"""Labels that identify a release. Rules aggregate and join by them, and dashboards have a variable for each."""


def by(*labels: str) -> str:
    """Return the grouping by release, and by more labels.

    Example:
        >>> by("type")
        'by (cluster, namespace, release, job, type)'
    """
    return f"by ({', '.join((*LABELS, *labels))})"


def level(*labels: str) -> str:
    """Return the first part of the name of a recording rule that is grouped by release, and by more labels."""
    return "_".join((*LABELS, *labels))


BY = by()
ON = BY.replace("by", "on", 1)

# API routes only; excludes probes, scrapes and requests that match no route.
API = 'endpoint=~"/api/.+"'
# Processing requests. Excludes task status requests, whose duration depends on the client's `wait` parameter.
WORK = f'method="POST", {API}'
SUBMIT = "/api/v1/frontal/crop/submit"

# Template fragments for descriptions: the value with its unit, and the location, which follows a noun.
NUMBER = "{{ $value | humanize }}"
COUNT = '{{ $value | printf "%.0f" }}'
PERCENT = "{{ $value | humanizePercentage }}"
DURATION = "{{ $value | humanizeDuration }}"
INSTANCE = "{{ $labels.instance }}{{ with $labels.pod }} (pod {{ . }}){{ end }}"
CLUSTER = "{{ with $labels.cluster }} of cluster {{ . }}{{ end }}"
LOCATION = (
    "{{ with $labels.release }} of release {{ . }}{{ end }}"
    f"{{{{ with $labels.namespace }}}} in namespace {{{{ . }}}}{{{{ end }}}}{CLUSTER}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alerting rule.

    Attributes:
        name: name with the prefix FacialService; the runbook has the same name.
        expr: PromQL expression, formatted over several lines.
        hold: the `for` duration.
        severity: see `Severity`.
        summary: one constant sentence, so that notifications can be grouped by it.
        description: description with the current value and its unit.
        dashboard: dashboard to open first.
        labels: additional labels.
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
    """A recording rule, named ``level:metric:operations``."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group of rules that are evaluated sequentially.

    Attributes:
        name: name; ends in ``.rules`` if the group contains recording rules.
        rules: rules in evaluation order.
        interval: evaluation interval. If None, the default of Prometheus.
    """

    name: str
    rules: tuple[Alert | Recording, ...]
    interval: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The release that rules are limited to.

    Attributes:
        namespace: namespace of the release.
        release: name of the release.
        fullname: prefix of the names of its objects.
        cluster: additional matcher with a leading comma, for targets with the label ``cluster``; or empty.
    """

    namespace: str
    release: str
    fullname: str
    cluster: str = ""

    def apply(self, expr: str) -> str:
        """Add the labels of the release to every selector of the service."""
        selected = f'job="{JOB}", namespace="{self.namespace}", release="{self.release}"{self.cluster}'
        return expr.replace(f'job="{JOB}"', selected)


def series(name: str, *matchers: str) -> str:
    """Return a selector for a metric of the service, or for a recorded series.

    Example:
        >>> series("queue_up")
        'queue_up{job="facial-service"}'
    """
    joined = ", ".join((f'job="{JOB}"', *matchers))
    return f"{name}{{{joined}}}"
