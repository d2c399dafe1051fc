"""The figures of a moment, as the screen shows them and ``--json`` prints them. None is what there is no value for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A counter, over all instances.

    Attributes:
        per_s: rate over the window; None until an instance was scraped twice in a row.
        seen: how many since the view began, absences of an instance left out.
        total: how many since the instances started.
    """

    per_s: float | None
    seen: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Quantiles of what was observed in the window, in seconds; None where nothing was.

    Attributes:
        p50_s: median.
        p95_s: 95th percentile.
        p99_s: 99th percentile.
        count: how many were observed.
        bound_s: the highest finite bucket; a quantile beyond it is told as this.
    """

    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    count: float
    bound_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests to ``/api/``; latency is that of requests for work (POST), for questions after a task wait at will."""

    flow: Flow
    in_progress: float | None
    latency: Latency
    by_status: dict[str, Flow]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method and route, those outside ``/api/`` included."""

    method: str
    endpoint: str
    flow: Flow
    errors: Flow
    latency: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorKind:
    """One error code and the component that met it."""

    type: str
    component: str
    flow: Flow


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """The queue, as the first instance says that reaches it; and what all instances did with tasks.

    Attributes:
        queue_up: whether every instance reaches the queue; None where none takes tasks.
        waiting: tasks that no worker has.
        active: tasks that a worker has.
        oldest_age_s: age of the oldest task that is not done; 0 where there is none.
        dead_kept: tasks that were given up on and are kept aside.
        storage_bytes: what the queue takes.
        storage_limit_bytes: what it may take.
        has_leader: whether the cluster of queue servers has one; None of a server alone.
        submitted: taken.
        succeeded: ended with a result.
        failed: ended with an error.
        cancelled: ended by the caller.
        redelivered: delivered again.
        dead: given up on.
        wait: from submission to the first work.
        work: of each attempt.
    """

    queue_up: bool | None
    waiting: float | None
    active: float | None
    oldest_age_s: float | None
    dead_kept: float | None
    storage_bytes: float | None
    storage_limit_bytes: float | None
    has_leader: bool | None
    submitted: Flow
    succeeded: Flow
    failed: Flow
    cancelled: Flow
    redelivered: Flow
    dead: Flow
    wait: Latency
    work: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the work on an image."""

    operation: str
    per_s: float | None
    latency: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFigures:
    """One process; ``kind`` is api, tasks or other, ``state`` starting, ready, draining, up or gone."""

    name: str
    kind: str
    pid: int | None
    state: str
    last_beat_s: float | None
    changed_s: float | None
    cpu_percent: float | None
    memory_bytes: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFigures:
    """One URL.

    Attributes:
        name: host and port.
        state: ready, not_ready, draining or away.
        away_s: how long it has been away; None where it is not.
        reason: why.
        version: of the service.
        scraped_s: how long ago it last answered.
        scrape_ms: how long that took.
        queue_up: whether it reaches the queue; None where it takes no tasks.
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
    processes: list[ProcessFigures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A sentence on what is wrong; ``is_severe`` where something does not work, else it is worth knowing."""

    is_severe: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All of one moment.

    Attributes:
        time: of the scrapes, UTC, ISO 8601.
        view_s: how long the view has been running.
        interval_s: between two scrapes.
        window_s: how far back rates and quantiles look.
        state: away (nobody answers), not_ready, degraded or ready.
        problems: severe ones first.
        instances: one a URL.
        requests: to the API.
        routes: the busiest first.
        errors: by code and component; those of late first.
        rejections: requests turned away before any work, by reason.
        worker_exits: worker processes that ended, by reason.
        tasks: and their queue.
        steps: of the work on images, in their order.
        cpu_percent: of all processes together, 100 a core.
        memory_bytes: of all processes together.
    """

    time: str
    view_s: float
    interval_s: float
    window_s: float
    state: str
    problems: list[Problem]
    instances: list[InstanceFigures]
    requests: Requests
    routes: list[Route]
    errors: list[ErrorKind]
    rejections: dict[str, Flow]
    worker_exits: dict[str, Flow]
    tasks: Tasks
    steps: list[Step]
    cpu_percent: float | None
    memory_bytes: float | None
