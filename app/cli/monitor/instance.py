"""What is remembered of an instance from scrape to scrape: what it said last, who was there, since when it is away."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from app.cli.monitor.rates import Increase, Window, add_counters, increase
from app.cli.monitor.samples import Samples, known, rows

if TYPE_CHECKING:
    from app.cli.monitor.health import Health, Worker
    from app.cli.monitor.samples import Labels

MEMORY: Final = known("memory_usage_bytes", "gauge", "process")
EXITS: Final = known("app_worker_exits_total", "counter", "reason")
FAULTS: Final = frozenset({"killed", "timeout", "crashed"})

RECENT_S: Final = 60.0  # how long a process that is gone or new, or an instance that is, is pointed out
_WORKER = re.compile(r"(worker|task)-\d+")


@dataclass(frozen=True, slots=True)
class Scrape:
    """What an instance answered.

    Attributes:
        at: when it was asked, in seconds of a clock that only goes on. Counters are read at the beginning of a scrape.
        took_s: time until the whole answer was there.
        health: the report.
        samples: the metrics; None where the instance serves none.
    """

    at: float
    took_s: float
    health: Health
    samples: Samples | None


@dataclass(frozen=True, slots=True)
class Process:
    """A process of an instance.

    Attributes:
        name: as in the label ``process``.
        pid: process id; 0 of those that health does not list (masters, exporter, nats-server).
        state: as in the report; ``up`` where only metrics tell of it, ``gone`` where it was there before.
        last_beat_s: time since the last sign of life; None where nobody looks for one.
        changed_at: when another process took the name, or it went; None where neither was seen.
    """

    name: str
    pid: int
    state: str
    last_beat_s: float | None = None
    changed_at: float | None = None


def kind_of(process: str) -> str:
    """Tell what a process is for by its name: ``api``, ``tasks`` or ``other``.

    Example:
        >>> kind_of("worker-0"), kind_of("task-12"), kind_of("task-master")
        ('api', 'tasks', 'other')
    """
    match = _WORKER.fullmatch(process)
    return {"worker": "api", "task": "tasks"}[match[1]] if match else "other"


class Instance:
    """One instance as it is watched.

    Args:
        name: what it is called on the screen.
        window_s: how far back rates and quantiles look.

    Attributes:
        window: differences of late; empty after an absence, until there are two scrapes again.
        latest: what the last scrape said; kept while the instance is away.
        step: the difference to the scrape before; None where there was none.
        seen: by how much counters grew since the view began, absences left out.
        away_since: when it did not answer for the first time in a row; None while it answers.
        reason: why it did not.
        restarted_at: when a restart was noticed.
        exits: when worker processes were last seen to have ended, by reason.
        processes: by name.
    """

    def __init__(self, name: str, window_s: float) -> None:
        self.name = name
        self.window = Window(window_s)
        self.latest: Scrape | None = None
        self.step: Increase | None = None
        self.seen: dict[str, dict[Labels, float]] = {}
        self.away_since: float | None = None
        self.reason = ""
        self.restarted_at: float | None = None
        self.exits: dict[str, float] = {}
        self.processes: dict[str, Process] = {}

    @property
    def is_away(self) -> bool:
        """Whether the last scrape failed."""
        return self.away_since is not None

    @property
    def samples(self) -> Samples:
        """The metrics of the last scrape that succeeded; empty where there are none."""
        latest = self.latest.samples if self.latest is not None else None
        return latest if latest is not None else Samples()

    def miss(self, at: float, reason: str) -> None:
        """Note a scrape that failed.

        What answers next may be another process, or another pod behind the same port, whose counters have nothing to
        do with these. So the differences begin anew with it.
        """
        if self.away_since is None:
            self.away_since = at
        self.reason = reason
        self.step = None
        self.window.clear()

    def take(self, scrape: Scrape) -> None:
        """Note a scrape."""
        before, self.latest = self.latest, scrape
        was_away, self.away_since, self.reason = self.is_away, None, ""
        self.step = None
        if was_away:
            self.processes = {}
        elif before is not None and before.samples is not None and scrape.samples is not None:
            self._take_difference(increase(before.samples, scrape.samples, scrape.at - before.at), scrape.at)
        self._take_processes(scrape)

    def _take_difference(self, step: Increase, at: float) -> None:
        self.step = step
        self.window.add(step)
        for name, grown in step.grown.counters.items():
            self.seen[name] = add_counters([self.seen.get(name, {}), grown])
        self.exits |= {reason: at for (reason,) in step.grown.counters.get(EXITS, {})}
        if step.is_restart:
            self.restarted_at, self.processes = at, {}

    def _take_processes(self, scrape: Scrape) -> None:
        now = {worker.name: _process(worker) for worker in (*scrape.health.workers, *scrape.health.task_workers)}
        if scrape.samples is not None:
            beside = [name for (name,) in rows(scrape.samples.gauges, MEMORY) if kind_of(name) == "other"]
            now |= {name: Process(name, 0, "up") for name in beside}
        for name, old in self.processes.items():
            found = now.get(name)
            if found is None:
                gone_at = old.changed_at if old.state == "gone" and old.changed_at is not None else scrape.at
                if scrape.at - gone_at < RECENT_S:
                    now[name] = Process(name, old.pid, "gone", changed_at=gone_at)
            elif found.pid != old.pid or old.state == "gone":
                now[name] = replace(found, changed_at=scrape.at)
            elif old.changed_at is not None and scrape.at - old.changed_at < RECENT_S:
                now[name] = replace(found, changed_at=old.changed_at)
        self.processes = now


def _process(worker: Worker) -> Process:
    return Process(worker.name, worker.pid, worker.state, worker.last_beat_s)
