"""Several instances as one: rates and observations added up, what the queue says taken once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Final, TypeVar

from app.cli.monitor.figures import ErrorKind, Flow, Latency, Requests, Route, Step, Tasks
from app.cli.monitor.rates import merge_buckets, quantile
from app.cli.monitor.samples import known, rows
from app.observability.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from app.cli.monitor.instance import Instance
    from app.cli.monitor.samples import Buckets, Labels

K = TypeVar("K", bound=Hashable)

# As the dashboards and the alerts have it: the product is what is under /api/, and its work is what is posted.
API_PREFIX: Final = "/api/"
WORK_METHOD: Final = "POST"

REQUESTS: Final = known("api_requests_total", "counter", "method", "endpoint", "status")
DURATION: Final = known("api_request_duration_seconds", "histogram", "method", "endpoint")
IN_PROGRESS: Final = known("api_requests_in_progress", "gauge", "method", "endpoint")
ERRORS: Final = known("errors_total", "counter", "type", "component")
STEPS: Final = known("image_processing_duration_seconds", "histogram", "operation")

SUBMISSIONS: Final = known("task_submissions_total", "counter", "type")
COMPLETIONS: Final = known("task_completions_total", "counter", "type", "status")
REDELIVERIES: Final = known("task_redeliveries_total", "counter", "type")
DEAD: Final = known("task_dead_total", "counter", "type")
WORK: Final = known("task_processing_duration_seconds", "histogram", "type")
WAIT: Final = known("task_wait_seconds", "histogram", "type")

QUEUE_UP: Final = known("queue_up", "gauge")
WAITING: Final = known("task_queue_size", "gauge", "type")
ACTIVE: Final = known("active_tasks_count", "gauge", "type")
OLDEST: Final = known("task_oldest_age_seconds", "gauge", "type")
DEAD_KEPT: Final = known("task_dead_kept", "gauge")
STORAGE: Final = known("queue_storage_bytes", "gauge")
STORAGE_LIMIT: Final = known("queue_storage_limit_bytes", "gauge")
HAS_LEADER: Final = known("queue_cluster_has_leader", "gauge")

_OPERATIONS: Final = tuple(next(spec.labels["operation"] for spec in METRICS if spec.name == STEPS))
_FIRST_ERROR: Final = "400"  # statuses have three digits, and so compare as text


def flows(instances: Sequence[Instance], name: str, of: Callable[[Labels], K | None]) -> dict[K, Flow]:
    """Add up a counter over instances, by group; the busiest group comes first.

    Args:
        instances: those watched; one that is away has no rate, but is not forgotten.
        name: the metric.
        of: the group that a series belongs to; None where it does not count.
    """
    rates: dict[K, float] = {}
    seen: dict[K, float] = {}
    totals: dict[K, float] = {}
    for instance in instances:
        _add(totals, rows(instance.samples.counters, name), of)
        _add(seen, rows(instance.seen, name), of)
        if instance.window.seconds > 0:
            _add(rates, instance.window.counter(name), of, 1 / instance.window.seconds)
    is_timed = _is_timed(instances)
    found = {
        key: Flow(per_s=rates.get(key, 0.0) if is_timed else None, seen=seen.get(key, 0.0), total=totals.get(key, 0.0))
        for key in {**totals, **seen}
    }
    return dict(sorted(found.items(), key=lambda item: (-(item[1].per_s or 0.0), -item[1].seen, -item[1].total)))


def flow(instances: Sequence[Instance], name: str, of: Callable[[Labels], bool] = lambda _: True) -> Flow:
    """Add up a counter over instances, those of its series that count."""
    found = flows(instances, name, lambda labels: True if of(labels) else None)
    nothing = Flow(per_s=0.0 if _is_timed(instances) else None, seen=0.0, total=0.0)
    return found.get(True, nothing)


def _is_timed(instances: Sequence[Instance]) -> bool:
    return any(instance.window.seconds > 0 for instance in instances)


def _add(
    into: dict[K, float], series: Mapping[Labels, float], of: Callable[[Labels], K | None], factor: float = 1.0
) -> None:
    for labels, value in series.items():
        if (key := of(labels)) is not None:
            into[key] = into.get(key, 0.0) + factor * value


def latency_of(observed: Iterable[Buckets]) -> Latency:
    """Put observations together and estimate their quantiles."""
    merged = merge_buckets(observed)
    return Latency(
        p50_s=quantile(0.5, merged),
        p95_s=quantile(0.95, merged),
        p99_s=quantile(0.99, merged),
        count=merged.counts[-1] if merged is not None and merged.counts else 0.0,
        bound_s=merged.bounds[-2] if merged is not None and len(merged.bounds) > 1 else None,
    )


def latencies(instances: Sequence[Instance], name: str, of: Callable[[Labels], K | None]) -> dict[K, Latency]:
    """Estimate quantiles over all instances, by group."""
    parts: dict[K, list[Buckets]] = {}
    for instance in instances:
        for labels, buckets in instance.window.histogram(name):
            if (key := of(labels)) is not None:
                parts.setdefault(key, []).append(buckets)
    return {key: latency_of(observed) for key, observed in parts.items()}


def is_work(labels: Labels) -> bool:
    """Tell whether a method and route are requests for work, rather than questions after it."""
    method, endpoint = labels[:2]
    return method == WORK_METHOD and endpoint.startswith(API_PREFIX)


def is_product(labels: Labels) -> bool:
    """Tell whether a method and route are of the API, rather than probes, scrapes and what no route matches."""
    return labels[1].startswith(API_PREFIX)


def requests_of(instances: Sequence[Instance]) -> Requests:
    """Sum up requests to the API."""
    here = [instance for instance in instances if not instance.is_away]
    running = [
        value
        for instance in here
        for labels, value in rows(instance.samples.gauges, IN_PROGRESS).items()
        if is_product(labels)
    ]
    work = latencies(instances, DURATION, lambda labels: True if is_work(labels) else None)
    by_status = flows(instances, REQUESTS, lambda labels: labels[2] if is_product(labels) else None)
    return Requests(
        flow=flow(instances, REQUESTS, is_product),
        in_progress=sum(running) if here else None,
        latency=work.get(True, latency_of([])),
        by_status=dict(sorted(by_status.items())),
    )


def routes_of(instances: Sequence[Instance]) -> list[Route]:
    """Sum up requests by method and route, the busiest first."""
    errors = flows(instances, REQUESTS, lambda labels: labels[:2] if labels[2] >= _FIRST_ERROR else None)
    times = latencies(instances, DURATION, lambda labels: labels)
    nothing = flow(instances, REQUESTS, lambda _: False)
    return [
        Route(
            method=key[0],
            endpoint=key[1],
            flow=found,
            errors=errors.get(key, nothing),
            latency=times.get(key, latency_of([])),
        )
        for key, found in flows(instances, REQUESTS, lambda labels: labels[:2]).items()
    ]


def errors_of(instances: Sequence[Instance]) -> list[ErrorKind]:
    """Sum up errors by code and component, the most frequent of late first."""
    found = flows(instances, ERRORS, lambda labels: labels)
    return [ErrorKind(type=labels[0], component=labels[1], flow=each) for labels, each in found.items()]


def steps_of(instances: Sequence[Instance]) -> list[Step]:
    """Sum up the steps of the work on images that were taken within the window, in the table's order."""
    found = latencies(instances, STEPS, lambda labels: labels[0])
    rates: dict[str, float] = {}
    for instance in instances:
        for (operation,), buckets in instance.window.histogram(STEPS):
            rates[operation] = rates.get(operation, 0.0) + buckets.counts[-1] / instance.window.seconds
    ordered = [*(name for name in _OPERATIONS if name in found), *(found.keys() - set(_OPERATIONS))]
    return [Step(operation=name, per_s=rates[name], latency=found[name]) for name in ordered]


def queue_gauge(instance: Instance, name: str) -> float | None:
    """Add up the series of one of the queue's gauges as one instance tells it; None where it tells nothing."""
    series = rows(instance.samples.gauges, name)
    return sum(series.values()) if series else None


def tasks_of(instances: Sequence[Instance]) -> Tasks:
    """Sum up tasks; what the queue's server says is one thing, whoever was asked, and so it is taken once."""
    told = [queue_gauge(instance, QUEUE_UP) for instance in instances if not instance.is_away]
    asked = [answer for answer in told if answer is not None]
    here = (one for one in instances if not one.is_away and queue_gauge(one, QUEUE_UP))
    teller = next(here, None)

    def gauge(name: str) -> float | None:
        return queue_gauge(teller, name) if teller is not None else None

    def ended(status: str) -> Flow:
        return flow(instances, COMPLETIONS, lambda labels: labels[1] == status)

    leader = gauge(HAS_LEADER)
    return Tasks(
        queue_up=all(asked) if asked else None,
        waiting=gauge(WAITING),
        active=gauge(ACTIVE),
        oldest_age_s=gauge(OLDEST),
        dead_kept=gauge(DEAD_KEPT),
        storage_bytes=gauge(STORAGE),
        storage_limit_bytes=gauge(STORAGE_LIMIT),
        has_leader=None if leader is None else bool(leader),
        submitted=flow(instances, SUBMISSIONS),
        succeeded=ended("SUCCESS"),
        failed=ended("FAILURE"),
        cancelled=ended("CANCELLED"),
        redelivered=flow(instances, REDELIVERIES),
        dead=flow(instances, DEAD),
        wait=latencies(instances, WAIT, lambda _: True).get(True, latency_of([])),
        work=latencies(instances, WORK, lambda _: True).get(True, latency_of([])),
    )
