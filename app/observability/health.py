"""Health and readiness of an instance, as the probes report them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Protocol

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Sequence


class WorkerState(IntEnum):
    """Life-cycle state of a worker process."""

    ABSENT = 0  # the slot is free
    STARTING = 1
    READY = 2
    DRAINING = 3
    EXHAUSTED = 4  # out of file descriptors: the worker accepts no connections


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker process on the scoreboard."""

    slot: int
    name: str
    pid: int
    state: WorkerState
    heartbeat_age_s: float


class WorkerHealth(msgspec.Struct, frozen=True):
    """Health of one worker process."""

    name: str
    pid: int
    state: str
    last_beat_s: Annotated[float, Meta(ge=0, description="Seconds since its last heartbeat.")]


class HealthResponse(msgspec.Struct, frozen=True):
    """Health of the instance."""

    live: bool
    ready: bool
    draining: bool
    workers: list[WorkerHealth]
    task_workers: Annotated[list[WorkerHealth], Meta(description="Task workers of this instance.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHealth:
    """Health of an instance at one moment."""

    workers: Sequence[WorkerStatus]  # serve requests
    task_workers: Sequence[WorkerStatus]  # work on tasks for the same instance; they do not affect its health
    heartbeat_timeout_s: float  # maximum age of a heartbeat
    uptime_s: float  # since the master started
    has_booted: bool  # all expected workers have been ready at the same time
    is_draining: bool  # the instance is stopping

    @property
    def is_live(self) -> bool:
        """Whether a worker sent a heartbeat in time. During startup, the age of the master counts instead."""
        is_starting = not self.has_booted and self.uptime_s <= self.heartbeat_timeout_s
        return is_starting or bool(self._alive_states())

    @property
    def is_ready(self) -> bool:
        """Whether all workers have booted once, at least one serves requests, and the instance is not stopping."""
        states = self._alive_states()
        # Workers share the listening socket: one that is exhausted closes connections that others would serve.
        can_serve = WorkerState.READY in states and WorkerState.EXHAUSTED not in states
        return self.has_booted and can_serve and not self.is_draining

    def report(self) -> HealthResponse:
        """Return the body of ``/health``."""
        workers, task_workers = ([_describe(worker) for worker in kind] for kind in (self.workers, self.task_workers))
        return HealthResponse(self.is_live, self.is_ready, self.is_draining, workers, task_workers)

    def _alive_states(self) -> list[WorkerState]:
        return [worker.state for worker in self.workers if worker.heartbeat_age_s <= self.heartbeat_timeout_s]


class ScoreboardView(Protocol):
    """Read access to the supervisor's scoreboard, for modules that must not import the supervisor."""

    @property
    def master_pid(self) -> int:
        """Process id of the master."""

    @property
    def is_draining(self) -> bool:
        """Whether the instance is stopping."""

    @property
    def task_scoreboard(self) -> ScoreboardView | None:
        """Scoreboard of the instance's task workers; None if they run elsewhere."""

    def health(self) -> InstanceHealth:
        """Return the current health of the instance."""

    def workers(self) -> list[WorkerStatus]:
        """List the worker processes, by slot."""

    def state(self, slot: int) -> WorkerState:
        """Return the state that the worker in a slot last reported."""

    def managed_processes(self) -> dict[str, int]:
        """Map the names of the running managed processes to their process ids."""

    def count_metric_failures(self) -> int:
        """Count the processes that cannot write their metrics."""

    def __hash__(self) -> int: ...


def probe(scoreboard: ScoreboardView, path: str) -> tuple[HTTPStatus, bytes]:
    """Return the response to one of the three health paths: 200, or 503 if the instance is not live or not ready."""
    health = scoreboard.health()
    is_healthy = health.is_ready if path == "/health/ready" else health.is_live
    status = HTTPStatus.OK if is_healthy else HTTPStatus.SERVICE_UNAVAILABLE
    return status, msgspec.json.encode(health.report())


def _describe(worker: WorkerStatus) -> WorkerHealth:
    return WorkerHealth(worker.name, worker.pid, worker.state.name.lower(), round(worker.heartbeat_age_s, 3))
