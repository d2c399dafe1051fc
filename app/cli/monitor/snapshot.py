"""Snapshot of all instances, which the screen shows and ``--json`` prints: sums of metrics, state and problems."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

from app.cli.monitor.formatting import format_percent, format_span, printable
from app.cli.monitor.instance import EXITS, MEMORY, RECENT_S, merge_buckets, process_kind, quantile, require_metric
from app.observability.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from app.cli.monitor.instance import Buckets, Increase, Labels, TrackedInstance, TrackedProcess

READY: Final = "ready"
DEGRADED: Final = "degraded"
NOT_READY: Final = "not_ready"
DRAINING: Final = "draining"
UNREACHABLE: Final = "away"


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterStats:
    """A counter, summed over all instances."""

    per_s: float | None  # rate over the window; None until an instance has been scraped twice in a row
    seen: float  # increase since the monitor started, outages excluded
    total: float  # increase since the instances started
    age_s: float | None = None  # time since the last increase that the monitor saw; None if it saw none


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyStats:
    """Quantiles of the observations in the window, in seconds; None without observations."""

    p50_s: float | None  # median
    p95_s: float | None  # 95th percentile
    p99_s: float | None  # 99th percentile
    count: float  # number of observations
    bound_s: float | None  # highest finite bucket bound; a quantile above it is reported as this value


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStats:
    """Requests to ``/api/``. Latency covers POST requests only, because clients choose how long a status poll waits."""

    flow: CounterStats
    in_progress: float | None
    latency: LatencyStats
    by_status: dict[str, CounterStats]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStats:
    """Requests of one method and route, including routes outside ``/api/``."""

    method: str
    endpoint: str
    flow: CounterStats
    errors: CounterStats
    latency: LatencyStats


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorStats:
    """Errors with one code in one component."""

    type: str
    component: str
    flow: CounterStats


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStats:
    """State of the queue, as reported by the first instance that reaches it, and task counters of all instances."""

    queue_up: bool | None  # whether all instances reach the queue; None if tasks are disabled
    waiting: float | None  # tasks that wait for a worker
    active: float | None  # tasks that a worker has not acknowledged yet
    oldest_age_s: float | None  # age of the oldest unfinished task; 0 if there is none
    dead_kept: float | None  # stored dead letters
    storage_bytes: float | None  # storage that the queue uses
    storage_limit_bytes: float | None  # storage that the queue may use
    has_leader: bool | None  # whether the cluster of queue servers has a leader; None for a single server
    submitted: CounterStats  # tasks accepted
    succeeded: CounterStats  # tasks that finished with a result
    failed: CounterStats  # tasks that finished with an error
    cancelled: CounterStats
    redelivered: CounterStats
    dead: CounterStats
    wait: LatencyStats  # time from submission to the first attempt
    work: LatencyStats  # processing time of each attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """One step of image processing."""

    operation: str
    per_s: float | None
    latency: LatencyStats


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """One process; ``kind`` is api, tasks or other, ``state`` is starting, ready, draining, up or gone."""

    name: str
    kind: str
    pid: int | None
    state: str
    last_beat_s: float | None
    changed_s: float | None
    cpu_percent: float | None
    memory_bytes: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceStatus:
    """One instance."""

    name: str  # host and port
    state: str  # ready, not_ready, draining or away (unreachable)
    away_s: float | None  # duration of the current outage; None if the instance is reachable
    reason: str  # why the instance is unreachable
    version: str | None  # version of the service
    scraped_s: float | None  # age of the last successful scrape
    scrape_ms: float | None  # duration of that scrape
    queue_up: bool | None  # whether the instance reaches the queue; None if tasks are disabled
    processes: list[ProcessStatus]  # workers first


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem in one sentence; ``is_severe`` if it degrades the service, otherwise it is a notice."""

    is_severe: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """State of all instances after one round of scrapes."""

    time: str  # time of the scrapes, in UTC and ISO 8601
    view_s: float  # time since the monitor started
    interval_s: float  # time between scrapes
    window_s: float  # look-back window for rates and quantiles
    state: str  # ready, degraded, not_ready or away (no instance is reachable)
    problems: list[Problem]  # severe ones first
    instances: list[InstanceStatus]  # one per URL
    requests: RequestStats
    routes: list[RouteStats]  # busiest first
    errors: list[ErrorStats]  # errors by code and component; the highest current rate first
    rejections: dict[str, CounterStats]  # requests rejected before processing, by reason
    worker_exits: dict[str, CounterStats]  # exits of worker processes, by reason
    tasks: TaskStats
    steps: list[StepStats]  # steps of image processing, in order of execution
    cpu_percent: float | None  # CPU usage of all processes, in percent of one core
    memory_bytes: float | None


K = TypeVar("K", bound=Hashable)

# As in the dashboards and alerts: API requests have this prefix, and only POST requests process images.
API_PREFIX: Final = "/api/"
WORK_METHOD: Final = "POST"

REQUESTS: Final = require_metric("api_requests_total", "counter", "method", "endpoint", "status")
DURATION: Final = require_metric("api_request_duration_seconds", "histogram", "method", "endpoint")
IN_PROGRESS: Final = require_metric("api_requests_in_progress", "gauge", "method", "endpoint")
REJECTIONS: Final = require_metric("api_rejections_total", "counter", "reason")
ERRORS: Final = require_metric("errors_total", "counter", "type", "component")
STEPS: Final = require_metric("image_processing_duration_seconds", "histogram", "operation")
CPU: Final = require_metric("cpu_usage_percent", "gauge", "process")
BUILD: Final = require_metric("app_build_info", "gauge", "version", "python")

SUBMISSIONS: Final = require_metric("task_submissions_total", "counter", "type")
COMPLETIONS: Final = require_metric("task_completions_total", "counter", "type", "status")
REDELIVERIES: Final = require_metric("task_redeliveries_total", "counter", "type")
DEAD: Final = require_metric("task_dead_total", "counter", "type")
WORK: Final = require_metric("task_processing_duration_seconds", "histogram", "type")
WAIT: Final = require_metric("task_wait_seconds", "histogram", "type")

QUEUE_UP: Final = require_metric("queue_up", "gauge")
WAITING: Final = require_metric("task_queue_size", "gauge", "type")
ACTIVE: Final = require_metric("active_tasks_count", "gauge", "type")
OLDEST: Final = require_metric("task_oldest_age_seconds", "gauge", "type")
DEAD_KEPT: Final = require_metric("task_dead_kept", "gauge")
STORAGE: Final = require_metric("queue_storage_bytes", "gauge")
STORAGE_LIMIT: Final = require_metric("queue_storage_limit_bytes", "gauge")
HAS_LEADER: Final = require_metric("queue_cluster_has_leader", "gauge")

HEARTBEAT_LATE_S: Final = 5.0  # workers send a heartbeat once a second
STORAGE_NEARLY_FULL: Final = 0.9
HISTORY_LENGTH: Final = 600  # more columns than a terminal has
_FIRST_ERROR: Final = "400"  # statuses have three digits, so they compare as text
_STEP_ORDER: Final = tuple(next(spec.labels["operation"] for spec in METRICS if spec.name == STEPS))
_PROCESS_ORDER: Final = {"api": 0, "tasks": 1, "other": 2}
_FAULTY_EXITS: Final = {
    "killed": "was killed",
    "timeout": "was replaced after a heartbeat timeout",
    "crashed": "crashed",
}


def build_snapshot(
    instances: Sequence[TrackedInstance],
    *,
    at: float,
    time: datetime,
    started_at: float,
    interval_s: float,
    window_s: float,
) -> Snapshot:
    """Build the snapshot of a round of scrapes.

    `at` and `started_at` are on the clock of the scrapes; `time` is the time of the round with its time zone.
    """
    statuses = [_instance_status(instance, at) for instance in instances]
    tasks = _task_stats(instances)
    problems = sorted(_find_problems(instances, tasks, at, time), key=lambda problem: not problem.is_severe)
    processes = [process for status in statuses if status.state != UNREACHABLE for process in status.processes]
    cpu = [process.cpu_percent for process in processes if process.cpu_percent is not None]
    memory = [process.memory_bytes for process in processes if process.memory_bytes is not None]
    return Snapshot(
        time=time.astimezone(UTC).isoformat(timespec="milliseconds"),
        view_s=round(at - started_at, 3),
        interval_s=interval_s,
        window_s=window_s,
        state=_overall_state(statuses, problems),
        problems=problems,
        instances=statuses,
        requests=_request_stats(instances),
        routes=_route_stats(instances),
        errors=[
            ErrorStats(type=labels[0], component=labels[1], flow=stats)
            for labels, stats in _group_counter(instances, ERRORS, lambda labels: labels).items()
        ],
        rejections=_group_counter(instances, REJECTIONS, lambda labels: labels[0]),
        worker_exits=_group_counter(instances, EXITS, lambda labels: labels[0]),
        tasks=tasks,
        steps=_step_stats(instances),
        cpu_percent=sum(cpu) if cpu else None,
        memory_bytes=sum(memory) if memory else None,
    )


def _overall_state(statuses: Sequence[InstanceStatus], problems: Sequence[Problem]) -> str:
    states = {status.state for status in statuses}
    if states == {UNREACHABLE}:
        return UNREACHABLE
    if states & {NOT_READY, DRAINING}:
        return NOT_READY
    return DEGRADED if any(problem.is_severe for problem in problems) else READY


def _group_counter(
    instances: Sequence[TrackedInstance], name: str, group: Callable[[Labels], K | None]
) -> dict[K, CounterStats]:
    """Sum a counter over all instances, by group, the busiest group first.

    An instance that is unreachable has no rate, but keeps its counts. `group` returns None to skip a series.
    """
    rates: dict[K, float] = {}
    seen: dict[K, float] = {}
    totals: dict[K, float] = {}

    def add(sums: dict[K, float], series: Mapping[Labels, float], factor: float = 1.0) -> None:
        for labels, value in series.items():
            if (key := group(labels)) is not None:
                sums[key] = sums.get(key, 0.0) + factor * value

    ages: dict[K, float] = {}
    now = max((instance.latest.at for instance in instances if instance.latest is not None), default=0.0)
    for instance in instances:
        for (counter, labels), at in instance.increased_at.items():
            if counter == name and (key := group(labels)) is not None:
                ages[key] = min(now - at, ages.get(key, math.inf))
        add(totals, instance.samples.counters.get(name, {}))
        add(seen, instance.seen.get(name, {}))
        if instance.window.seconds > 0:
            add(rates, instance.window.counter(name), 1 / instance.window.seconds)
    nothing = _no_events(instances)
    found = {
        key: CounterStats(
            per_s=None if nothing.per_s is None else rates.get(key, 0.0),
            seen=seen.get(key, 0.0),
            total=totals.get(key, 0.0),
            age_s=ages.get(key),
        )
        for key in {**totals, **seen}
    }
    return dict(sorted(found.items(), key=lambda item: (-(item[1].per_s or 0.0), -item[1].seen, -item[1].total)))


def _no_events(instances: Sequence[TrackedInstance]) -> CounterStats:
    """Return the statistics of a counter without series; its rate is unknown until two scrapes have succeeded."""
    has_rates = any(instance.window.seconds > 0 for instance in instances)
    return CounterStats(per_s=0.0 if has_rates else None, seen=0.0, total=0.0)


def _sum_counter(
    instances: Sequence[TrackedInstance], name: str, select: Callable[[Labels], bool] = lambda _: True
) -> CounterStats:
    """Sum the selected series of a counter over all instances."""
    found = _group_counter(instances, name, lambda labels: select(labels) or None)
    return found.get(True, _no_events(instances))


def _latency(observations: Iterable[Buckets]) -> LatencyStats:
    merged = merge_buckets(observations)
    return LatencyStats(
        p50_s=quantile(0.5, merged),
        p95_s=quantile(0.95, merged),
        p99_s=quantile(0.99, merged),
        count=merged.counts[-1] if merged is not None and merged.counts else 0.0,
        bound_s=merged.bounds[-2] if merged is not None and len(merged.bounds) > 1 else None,
    )


def _group_latency(
    instances: Sequence[TrackedInstance], name: str, group: Callable[[Labels], K | None]
) -> dict[K, LatencyStats]:
    """Estimate the quantiles of a histogram over all instances, by group; None skips a series."""
    parts: dict[K, list[Buckets]] = {}
    for instance in instances:
        for labels, buckets in instance.window.histogram(name):
            if (key := group(labels)) is not None:
                parts.setdefault(key, []).append(buckets)
    return {key: _latency(observations) for key, observations in parts.items()}


def _sum_latency(
    instances: Sequence[TrackedInstance], name: str, select: Callable[[Labels], bool] = lambda _: True
) -> LatencyStats:
    """Estimate the quantiles of the selected series of a histogram over all instances."""
    return _group_latency(instances, name, lambda labels: select(labels) or None).get(True, _latency([]))


def is_work(labels: Labels) -> bool:
    """Return whether a method and route process images, in contrast to status polls."""
    method, endpoint = labels[:2]
    return method == WORK_METHOD and endpoint.startswith(API_PREFIX)


def _is_api(labels: Labels) -> bool:
    """Return whether a method and route belong to the API, in contrast to probes, scrapes and unmatched paths."""
    return labels[1].startswith(API_PREFIX)


def _request_stats(instances: Sequence[TrackedInstance]) -> RequestStats:
    reachable = [instance for instance in instances if not instance.is_unreachable]
    in_progress = sum(
        value
        for instance in reachable
        for labels, value in instance.samples.gauges.get(IN_PROGRESS, {}).items()
        if _is_api(labels)
    )
    by_status = _group_counter(instances, REQUESTS, lambda labels: labels[2] if _is_api(labels) else None)
    return RequestStats(
        flow=_sum_counter(instances, REQUESTS, _is_api),
        in_progress=in_progress if reachable else None,
        latency=_sum_latency(instances, DURATION, is_work),
        by_status=dict(sorted(by_status.items())),
    )


def _route_stats(instances: Sequence[TrackedInstance]) -> list[RouteStats]:
    errors = _group_counter(instances, REQUESTS, lambda labels: labels[:2] if labels[2] >= _FIRST_ERROR else None)
    latency = _group_latency(instances, DURATION, lambda labels: labels)
    return [
        RouteStats(
            method=route[0],
            endpoint=route[1],
            flow=stats,
            errors=errors.get(route, _no_events(instances)),
            latency=latency.get(route, _latency([])),
        )
        for route, stats in _group_counter(instances, REQUESTS, lambda labels: labels[:2]).items()
    ]


def _step_stats(instances: Sequence[TrackedInstance]) -> list[StepStats]:
    latency = _group_latency(instances, STEPS, lambda labels: labels[0])
    rates: dict[str, float] = {}
    for instance in instances:
        for (operation,), buckets in instance.window.histogram(STEPS):
            rates[operation] = rates.get(operation, 0.0) + buckets.counts[-1] / instance.window.seconds
    ordered = [*(name for name in _STEP_ORDER if name in latency), *(latency.keys() - set(_STEP_ORDER))]
    return [StepStats(operation=name, per_s=rates[name], latency=latency[name]) for name in ordered]


def _sum_gauge(instance: TrackedInstance, name: str) -> float | None:
    """Sum the series of a gauge of one instance; None if it has none."""
    series = instance.samples.gauges.get(name)
    return sum(series.values()) if series else None


def _task_stats(instances: Sequence[TrackedInstance]) -> TaskStats:
    # All instances report the same queue, so its gauges come from one of them and are not summed.
    reachable = [instance for instance in instances if not instance.is_unreachable]
    reports = [up for instance in reachable if (up := _sum_gauge(instance, QUEUE_UP)) is not None]
    source = next((instance for instance in reachable if _sum_gauge(instance, QUEUE_UP)), None)

    def gauge(name: str) -> float | None:
        return _sum_gauge(source, name) if source is not None else None

    def completed(status: str) -> CounterStats:
        return _sum_counter(instances, COMPLETIONS, lambda labels: labels[1] == status)

    leader = gauge(HAS_LEADER)
    return TaskStats(
        queue_up=all(reports) if reports else None,
        waiting=gauge(WAITING),
        active=gauge(ACTIVE),
        oldest_age_s=gauge(OLDEST),
        dead_kept=gauge(DEAD_KEPT),
        storage_bytes=gauge(STORAGE),
        storage_limit_bytes=gauge(STORAGE_LIMIT),
        has_leader=None if leader is None else bool(leader),
        submitted=_sum_counter(instances, SUBMISSIONS),
        succeeded=completed("SUCCESS"),
        failed=completed("FAILURE"),
        cancelled=completed("CANCELLED"),
        redelivered=_sum_counter(instances, REDELIVERIES),
        dead=_sum_counter(instances, DEAD),
        wait=_sum_latency(instances, WAIT),
        work=_sum_latency(instances, WORK),
    )


def _instance_status(instance: TrackedInstance, at: float) -> InstanceStatus:
    latest = instance.latest
    up = _sum_gauge(instance, QUEUE_UP)
    processes = sorted(instance.processes.values(), key=lambda process: _PROCESS_ORDER[process_kind(process.name)])
    return InstanceStatus(
        name=instance.name,
        state=_instance_state(instance),
        away_s=None if instance.unreachable_since is None else round(at - instance.unreachable_since, 3),
        reason=instance.reason,
        version=next((version for version, _ in instance.samples.gauges.get(BUILD, {})), None),
        scraped_s=None if latest is None else round(at - latest.at, 3),
        scrape_ms=None if latest is None else round(1000 * latest.took_s, 1),
        queue_up=None if up is None else bool(up),
        processes=[_process_status(instance, process, at) for process in processes],
    )


def _instance_state(instance: TrackedInstance) -> str:
    if instance.is_unreachable or instance.latest is None:
        return UNREACHABLE
    health = instance.latest.health
    if health.draining:
        return DRAINING
    return READY if health.ready else NOT_READY


def _process_status(instance: TrackedInstance, process: TrackedProcess, at: float) -> ProcessStatus:
    gauges, labels = instance.samples.gauges, (process.name,)
    return ProcessStatus(
        name=process.name,
        kind=process_kind(process.name),
        pid=process.pid or None,
        state=process.state,
        last_beat_s=process.last_beat_s,
        changed_s=None if process.changed_at is None else round(at - process.changed_at, 3),
        cpu_percent=gauges.get(CPU, {}).get(labels),
        memory_bytes=gauges.get(MEMORY, {}).get(labels),
    )


def _find_problems(
    instances: Sequence[TrackedInstance], tasks: TaskStats, at: float, time: datetime
) -> Iterator[Problem]:
    for instance in instances:
        prefix = f"{instance.name}: " if len(instances) > 1 else ""
        if instance.unreachable_since is not None:
            outage_s = at - instance.unreachable_since
            since = datetime.fromtimestamp(time.timestamp() - outage_s, time.tzinfo)
            text = f"unreachable since {since:%H:%M:%S} ({format_span(outage_s)}): {instance.reason}"
            yield Problem(is_severe=True, text=f"{instance.name}: {text}")
        else:
            for is_severe, text in (*_health_problems(instance), *_process_problems(instance, at)):
                yield Problem(is_severe=is_severe, text=prefix + text)
    if tasks.storage_bytes is not None and tasks.storage_limit_bytes:
        share = tasks.storage_bytes / tasks.storage_limit_bytes
        if share > STORAGE_NEARLY_FULL:
            yield Problem(is_severe=False, text=f"the queue storage is {format_percent(100 * share)} full")


def _health_problems(instance: TrackedInstance) -> Iterator[tuple[bool, str]]:
    state = _instance_state(instance)
    if state == DRAINING:
        yield True, "the service is shutting down and accepts no new requests"
    elif state == NOT_READY:
        yield True, "the service is not ready"
    if instance.latest is not None and instance.latest.samples is None:
        yield False, "metrics are disabled (ENABLE_METRICS=false); only health is shown"
    if _sum_gauge(instance, QUEUE_UP) == 0:
        yield True, "the queue is unreachable"
    if _sum_gauge(instance, HAS_LEADER) == 0:
        yield True, "the queue cluster has no leader"


def _process_problems(instance: TrackedInstance, at: float) -> Iterator[tuple[bool, str]]:
    for process in instance.processes.values():
        name = printable(process.name)
        if process.state == "gone" and process.changed_at is not None:
            yield True, f"{name} has been gone for {format_span(at - process.changed_at)}"
        elif process.last_beat_s is not None and process.last_beat_s > HEARTBEAT_LATE_S:
            yield True, f"{name} has sent no heartbeat for {format_span(process.last_beat_s)}"
    for reason, exited_at in instance.exits.items():
        if reason in _FAULTY_EXITS and at - exited_at < RECENT_S:
            yield False, f"a worker process {_FAULTY_EXITS[reason]} {format_span(at - exited_at)} ago"
    if instance.restarted_at is not None and at - instance.restarted_at < RECENT_S:
        yield False, f"the service restarted {format_span(at - instance.restarted_at)} ago"
    if instance.swapped_at is not None and at - instance.swapped_at < RECENT_S:
        yield False, f"another instance took over this address {format_span(at - instance.swapped_at)} ago"


def _series() -> deque[float | None]:
    return deque(maxlen=HISTORY_LENGTH)


@dataclass(frozen=True, slots=True)
class History:
    """Values of past rounds for the charts; None if a value is missing."""

    rate: deque[float | None] = field(default_factory=_series)  # API requests per second, between two scrapes
    # 95th percentile of the latency of requests that process images, between two scrapes.
    p95_s: deque[float | None] = field(default_factory=_series)
    waiting: deque[float | None] = field(default_factory=_series)  # tasks that wait for a worker
    cpu_percent: deque[float | None] = field(default_factory=_series)  # CPU usage of all processes

    def add(self, snapshot: Snapshot, instances: Sequence[TrackedInstance]) -> None:
        """Append the values of a round."""
        increases = [instance.last_increase for instance in instances if instance.last_increase is not None]
        self.rate.append(_request_rate(increases) if increases else None)
        self.p95_s.append(_work_p95_s(increases))
        self.waiting.append(snapshot.tasks.waiting)
        self.cpu_percent.append(snapshot.cpu_percent)


def _request_rate(increases: Sequence[Increase]) -> float:
    return sum(
        value / increase.seconds
        for increase in increases
        for labels, value in increase.samples.counters.get(REQUESTS, {}).items()
        if _is_api(labels)
    )


def _work_p95_s(increases: Sequence[Increase]) -> float | None:
    observations = (
        buckets
        for increase in increases
        for labels, buckets in increase.samples.histograms.get(DURATION, {}).items()
        if is_work(labels)
    )
    return quantile(0.95, merge_buckets(observations))
