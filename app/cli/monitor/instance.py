"""State of one instance over successive scrapes: health, metrics, processes and outages."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from app.cli.monitor.samples import (
    Increase,
    ResponseError,
    Samples,
    Window,
    compute_increase,
    require_metric,
    sum_series,
)

if TYPE_CHECKING:
    from app.cli.monitor.samples import Labels

MEMORY: Final = require_metric("memory_usage_bytes", "gauge", "process")
EXITS: Final = require_metric("app_worker_exits_total", "counter", "reason")

RECENT_S: Final = 60.0  # how long a process that is gone or new, an exit, or a restart is shown
_WORKER = re.compile(r"(worker|task)-\d+")


class WorkerHealth(msgspec.Struct, frozen=True):
    """One worker process in the body of ``/health``; ``last_beat_s`` is the age of its last heartbeat."""

    name: str
    pid: int
    state: str
    last_beat_s: float


class HealthReport(msgspec.Struct, frozen=True):
    """Body of ``/health``; ``facial-service worker`` lists its task processes in ``workers``."""

    live: bool
    ready: bool
    draining: bool
    workers: tuple[WorkerHealth, ...]
    task_workers: tuple[WorkerHealth, ...] = ()


_DECODER = msgspec.json.Decoder(HealthReport)


def parse_health(body: bytes) -> HealthReport:
    """Parse the body of ``/health``.

    Raises:
        ResponseError: the body is not a health report.

    Example:
        >>> parse_health(b'{"live":true,"ready":true,"draining":false,"workers":[]}').ready
        True
    """
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ResponseError("/health: expected the health report of facial-service, got something else") from error


@dataclass(frozen=True, slots=True)
class Scrape:
    """One successful scrape of an instance."""

    # When the requests were sent, on a monotonic clock. The service reads its counters at the start of a scrape.
    at: float
    took_s: float  # time until both responses were complete
    health: HealthReport
    samples: Samples | None  # the metrics; None if the instance serves none


@dataclass(frozen=True, slots=True)
class TrackedProcess:
    """A process of an instance."""

    name: str  # value of the label ``process``
    pid: int  # process ID; 0 for processes that the health report does not list (masters, exporter, nats-server)
    state: str  # state in the health report; ``up`` if only metrics list the process, ``gone`` if it has disappeared
    last_beat_s: float | None = None  # age of the last heartbeat; None for processes without one
    changed_at: float | None = None  # when the process was replaced or disappeared; None if neither was observed


def process_kind(name: str) -> str:
    """Return what a process is for, from its name: ``api``, ``tasks`` or ``other``.

    Example:
        >>> process_kind("worker-0"), process_kind("task-12"), process_kind("task-master")
        ('api', 'tasks', 'other')
    """
    match = _WORKER.fullmatch(name)
    return {"worker": "api", "task": "tasks"}[match[1]] if match else "other"


class TrackedInstance:
    """An instance and its state over successive scrapes."""

    def __init__(self, name: str, window_s: float) -> None:
        self.name = name
        self.window = Window(window_s)  # empty after an outage, until two scrapes have succeeded
        self.latest: Scrape | None = None  # last successful scrape; kept during an outage
        self.last_increase: Increase | None = None  # since the previous scrape; None if that scrape failed
        self.seen: dict[str, dict[Labels, float]] = {}  # increases since the monitor started, outages excluded
        self.unreachable_since: float | None = None  # None if the last scrape succeeded
        self.reason = ""  # why the last scrape failed; empty if it succeeded
        self.restarted_at: float | None = None
        self.exits: dict[str, float] = {}  # when an exit of a worker process was last observed, by reason
        self.processes: dict[str, TrackedProcess] = {}  # by name

    @property
    def is_unreachable(self) -> bool:
        """Whether the last scrape failed."""
        return self.unreachable_since is not None

    @property
    def samples(self) -> Samples:
        """Metrics of the last successful scrape; empty if there are none."""
        latest = self.latest.samples if self.latest is not None else None
        return latest if latest is not None else Samples()

    def record_failure(self, at: float, reason: str) -> None:
        """Record a failed scrape, and start the window again.

        The next response may come from another process, or from another pod behind the same port. Its counters are
        unrelated to the ones known so far.
        """
        if self.unreachable_since is None:
            self.unreachable_since = at
        self.reason = reason
        self.last_increase = None
        self.window.clear()

    def record_scrape(self, scrape: Scrape) -> None:
        """Record a successful scrape."""
        before, self.latest = self.latest, scrape
        was_unreachable, self.unreachable_since, self.reason = self.is_unreachable, None, ""
        self.last_increase = None
        if was_unreachable:
            self.processes = {}
        elif before is not None and before.samples is not None and scrape.samples is not None:
            increase = compute_increase(before.samples, scrape.samples, scrape.at - before.at)
            self._record_increase(increase, scrape.at)
        self._update_processes(scrape)

    def _record_increase(self, increase: Increase, at: float) -> None:
        self.last_increase = increase
        self.window.add(increase)
        for name, series in increase.samples.counters.items():
            self.seen[name] = sum_series([self.seen.get(name, {}), series])
        self.exits |= {reason: at for (reason,) in increase.samples.counters.get(EXITS, {})}
        if increase.is_restart:
            self.restarted_at, self.processes = at, {}

    def _update_processes(self, scrape: Scrape) -> None:
        now = {
            worker.name: TrackedProcess(worker.name, worker.pid, worker.state, worker.last_beat_s)
            for worker in (*scrape.health.workers, *scrape.health.task_workers)
        }
        if scrape.samples is not None:
            names = [name for (name,) in scrape.samples.gauges.get(MEMORY, {})]
            now |= {name: TrackedProcess(name, 0, "up") for name in names if process_kind(name) == "other"}
        for name, old in self.processes.items():
            new = now.get(name)
            if new is None:
                gone_at = old.changed_at if old.state == "gone" and old.changed_at is not None else scrape.at
                if scrape.at - gone_at < RECENT_S:
                    now[name] = TrackedProcess(name, old.pid, "gone", changed_at=gone_at)
            elif new.pid != old.pid or old.state == "gone":
                now[name] = replace(new, changed_at=scrape.at)
            elif old.changed_at is not None and scrape.at - old.changed_at < RECENT_S:
                now[name] = replace(new, changed_at=old.changed_at)
        self.processes = now
