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
    """A counter, summed over all instances."""

    per_s: float | None  # rate over the window; None until an instance has been scraped twice in a row
    seen: float  # increase since the monitor started, outages excluded
    total: float  # increase since the instances started


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
