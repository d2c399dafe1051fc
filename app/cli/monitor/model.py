"""Data model of a snapshot, which the screen shows and ``--json`` prints. None means that a value is unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

READY: Final = "ready"
DEGRADED: Final = "degraded"
NOT_READY: Final = "not_ready"
DRAINING: Final = "draining"
UNREACHABLE: Final = "away"


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterStats:
    """A counter, summed over all instances.

    Attributes:
        per_s: rate over the window; None until an instance has been scraped twice in a row.
        seen: increase since the monitor started, outages excluded.
        total: increase since the instances started.
    """

    per_s: float | None
    seen: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyStats:
    """Quantiles of the observations in the window, in seconds; None without observations.

    Attributes:
        p50_s: median.
        p95_s: 95th percentile.
        p99_s: 99th percentile.
        count: number of observations.
        bound_s: highest finite bucket bound; a quantile above it is reported as this value.
    """

    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    count: float
    bound_s: float | None


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
    """State of the queue, as reported by the first instance that reaches it, and task counters of all instances.

    Attributes:
        queue_up: whether all instances reach the queue; None if tasks are disabled.
        waiting: tasks that wait for a worker.
        active: tasks that a worker has not acknowledged yet.
        oldest_age_s: age of the oldest unfinished task; 0 if there is none.
        dead_kept: stored dead letters.
        storage_bytes: storage that the queue uses.
        storage_limit_bytes: storage that the queue may use.
        has_leader: whether the cluster of queue servers has a leader; None for a single server.
        submitted: tasks accepted.
        succeeded: tasks that finished with a result.
        failed: tasks that finished with an error.
        cancelled: tasks that a client cancelled.
        redelivered: repeated deliveries of a task.
        dead: dead-lettered tasks.
        wait: time from submission to the first attempt.
        work: processing time of each attempt.
    """

    queue_up: bool | None
    waiting: float | None
    active: float | None
    oldest_age_s: float | None
    dead_kept: float | None
    storage_bytes: float | None
    storage_limit_bytes: float | None
    has_leader: bool | None
    submitted: CounterStats
    succeeded: CounterStats
    failed: CounterStats
    cancelled: CounterStats
    redelivered: CounterStats
    dead: CounterStats
    wait: LatencyStats
    work: LatencyStats


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
    """One instance.

    Attributes:
        name: host and port.
        state: ready, not_ready, draining or away (unreachable).
        away_s: duration of the current outage; None if the instance is reachable.
        reason: why the instance is unreachable.
        version: version of the service.
        scraped_s: age of the last successful scrape.
        scrape_ms: duration of that scrape.
        queue_up: whether the instance reaches the queue; None if tasks are disabled.
        processes: workers first.
    """

    name: str
    state: str
    away_s: float | None
    reason: str
    version: str | None
    scraped_s: float | None
    scrape_ms: float | None
    queue_up: bool | None
    processes: list[ProcessStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem in one sentence; ``is_severe`` if it degrades the service, otherwise it is a notice."""

    is_severe: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """State of all instances after one round of scrapes.

    Attributes:
        time: time of the scrapes, in UTC and ISO 8601.
        view_s: time since the monitor started.
        interval_s: time between scrapes.
        window_s: look-back window for rates and quantiles.
        state: ready, degraded, not_ready or away (no instance is reachable).
        problems: severe ones first.
        instances: one per URL.
        requests: requests to the API.
        routes: busiest first.
        errors: errors by code and component; the highest current rate first.
        rejections: requests rejected before processing, by reason.
        worker_exits: exits of worker processes, by reason.
        tasks: tasks and their queue.
        steps: steps of image processing, in order of execution.
        cpu_percent: CPU usage of all processes, in percent of one core.
        memory_bytes: memory of all processes.
    """

    time: str
    view_s: float
    interval_s: float
    window_s: float
    state: str
    problems: list[Problem]
    instances: list[InstanceStatus]
    requests: RequestStats
    routes: list[RouteStats]
    errors: list[ErrorStats]
    rejections: dict[str, CounterStats]
    worker_exits: dict[str, CounterStats]
    tasks: TaskStats
    steps: list[StepStats]
    cpu_percent: float | None
    memory_bytes: float | None
