"""Dependencies of the routes, created once per worker process by the composition root."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import choose_encoder
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from app.observability.health import ScoreboardView, WorkerState
from app.service.coalescing import Coalescer
from app.web.auth import ANONYMOUS

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import Request
    from prometheus_client import CollectorRegistry

    from app.service.admission import Admission
    from app.service.crop import CropService
    from app.tasks.queue import TaskQueue
    from app.web.auth import Caller, KeyRing
    from app.web.body import BodyLimits
    from app.web.rate_limit import RateLimiter

PAUSE_FACTOR: Final = 4


class Exposition:
    """Metrics of all processes in the exposition format, encoded once for concurrent requests.

    The route requires no API key and encoding takes about 20 ms of CPU, so a pause of `PAUSE_FACTOR` times the previous
    encoding leaves the CPU to other requests.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._encodings = Coalescer[bytes]()
        self._next_at = 0.0

    async def encode(self, accept: str) -> tuple[bytes, str]:
        """Return the encoded metrics and their content type for an ``Accept`` header."""
        encode, content_type = choose_encoder(accept)
        return await self._encodings.run(content_type, lambda: self._encode(encode)), content_type

    async def _encode(self, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
        await asyncio.sleep(max(0.0, self._next_at - time.monotonic()))
        start = time.monotonic()
        text = await run_in_threadpool(encode, self._registry)
        end = time.monotonic()
        self._next_at = end + PAUSE_FACTOR * (end - start)
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class WebState:
    """Dependencies of the routes."""

    crop: CropService
    admission: Admission
    scoreboard: ScoreboardView | None  # None if the health paths are disabled
    exposition: Exposition | None  # None if metrics are disabled
    queue: TaskQueue | None  # None if tasks are disabled
    has_result_cache: bool  # reuse results of earlier tasks for identical requests
    keys: KeyRing
    limiter: RateLimiter | None  # of POST requests; None without a limit
    body_limits: BodyLimits
    retry_after_s: int  # in responses with status 503
    prefix: str  # path prefix that a proxy strips; used in links
    # Set when the time for requests in flight has ended, before the server cancels them.
    shutdown: asyncio.Event = field(default_factory=asyncio.Event)

    def is_stopping(self) -> bool:
        """Return whether this process or the whole instance is shutting down."""
        if self.scoreboard is None:
            return False
        slot = _own_slot(self.scoreboard, os.getpid())
        is_draining = slot is not None and self.scoreboard.state(slot) is WorkerState.DRAINING
        return self.scoreboard.is_draining or is_draining


@lru_cache(maxsize=8)
def _own_slot(scoreboard: ScoreboardView, pid: int) -> int | None:
    """Return the slot of a process, which never changes."""
    return next((worker.slot for worker in scoreboard.workers() if worker.pid == pid), None)


def web_state(request: Request) -> WebState:
    """Return the state of the application."""
    state: WebState = request.app.state.web
    return state


def caller_of(request: Request) -> Caller:
    """Return the caller that `app.web.auth.require_caller` identified."""
    caller: Caller = getattr(request.state, "caller", ANONYMOUS)
    return caller


def task_queue(request: Request) -> TaskQueue:
    """Return the task queue.

    Raises:
        HTTPException: 404 if tasks are disabled.
    """
    queue = web_state(request).queue
    if queue is None:
        raise HTTPException(404)
    return queue
