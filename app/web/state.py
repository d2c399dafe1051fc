"""What the routes need of the process they run in, made once by the composition root."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from app.observability.health import ScoreboardView, WorkerState
from app.web.auth import ANONYMOUS

if TYPE_CHECKING:
    from fastapi import Request

    from app.service.admission import Admission
    from app.service.crop import CropService
    from app.service.detector_pool import DetectorPool
    from app.tasks.queue import TaskQueue
    from app.web.auth import Caller, KeyRing
    from app.web.body import BodyLimits
    from app.web.exposition import Exposition
    from app.web.rate_limit import RateLimiter


class Shutdown:
    """How far the stop of this process has come."""

    def __init__(self) -> None:
        self._has_ended = False

    def has_ended(self) -> bool:
        """Return whether the time of the requests in flight has passed."""
        return self._has_ended

    def end(self) -> None:
        """Note that the time has passed; the server calls it before it cancels the requests."""
        self._has_ended = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WebState:
    """The parts behind the routes.

    Attributes:
        crop: the use case.
        finders: what finds faces.
        admission: places and threads of this process.
        scoreboard: health of the instance; None if the health paths are disabled.
        exposition: what ``/metrics`` returns; None if metrics are disabled.
        queue: where tasks go; None where none are taken.
        has_result_cache: whether results of earlier tasks answer requests for the same.
        keys: API keys that are accepted; false if none is required.
        limiter: rate limit of POST requests; None without a limit.
        body_limits: limits of one request body.
        retry_after_s: what a 503 asks for.
        prefix: what a proxy in front has stripped from the path; for links.
        shutdown: how far the stop of this process has come.
    """

    crop: CropService
    detectors: DetectorPool
    admission: Admission
    scoreboard: ScoreboardView | None
    exposition: Exposition | None
    queue: TaskQueue | None
    has_result_cache: bool
    keys: KeyRing
    limiter: RateLimiter | None
    body_limits: BodyLimits
    retry_after_s: int
    prefix: str
    shutdown: Shutdown = field(default_factory=Shutdown)

    def is_stopping(self) -> bool:
        """Tell whether this process, or the whole instance, has been told to stop."""
        if self.scoreboard is None:
            return False
        slot = _own_slot(self.scoreboard, os.getpid())
        is_draining = slot is not None and self.scoreboard.state(slot) is WorkerState.DRAINING
        return self.scoreboard.is_draining or is_draining


@lru_cache(maxsize=8)
def _own_slot(scoreboard: ScoreboardView, pid: int) -> int | None:
    """Find the process's row once: it keeps it for life."""
    return next((worker.slot for worker in scoreboard.workers() if worker.pid == pid), None)


def web_state(request: Request) -> WebState:
    """Return the state that the application was made with."""
    state: WebState = request.app.state.web
    return state


def caller_of(request: Request) -> Caller:
    """Return who sent a request, as `app.web.auth.require_caller` found."""
    caller: Caller = getattr(request.state, "caller", ANONYMOUS)
    return caller


def task_queue(request: Request) -> TaskQueue:
    """Return the queue.

    Raises:
        HTTPException: 404, where no tasks are taken.
    """
    queue = web_state(request).queue
    if queue is None:
        raise HTTPException(404)
    return queue
