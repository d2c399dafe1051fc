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
    from app.service.detector_pool import DetectorPool
    from app.tasks.queue import TaskQueue
    from app.web.auth import Caller, KeyRing
    from app.web.body import BodyLimits
    from app.web.rate_limit import RateLimiter

PAUSE_FACTOR: Final = 4


class Shutdown:
    """Whether the time for requests in flight has ended in this process."""

    def __init__(self) -> None:
        self._has_ended = False

    def has_ended(self) -> bool:
        """Return whether the time has ended."""
        return self._has_ended

    def end(self) -> None:
        """End the time; the server calls this before it cancels the requests."""
        self._has_ended = True


class Exposition:
    """Metrics of all processes in the exposition format, encoded once for concurrent requests.

    The route requires no API key and encoding takes some 20 ms of CPU, so a pause of `PAUSE_FACTOR` times the previous
    encoding leaves the CPU to other requests.

    Args:
        registry: the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._encodings = Coalescer[bytes]()
        self._next_at = 0.0

    async def encode(self, accept: str) -> tuple[bytes, str]:
        """Return the encoded metrics and their content type.

        Args:
            accept: the request's ``Accept`` header.
        """
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
    """Dependencies of the routes.

    Attributes:
        crop: the service behind the crop routes.
        detectors: landmark detectors.
        admission: slots, threads and body memory of this process.
        scoreboard: health of the instance; None if the health paths are disabled.
        exposition: metrics for ``/metrics``; None if metrics are disabled.
        queue: task queue; None if tasks are disabled.
        has_result_cache: whether results of earlier tasks are reused for identical requests.
        keys: accepted API keys; false if none is required.
        limiter: rate limit of POST requests; None without a limit.
        body_limits: limits of one request body.
        retry_after_s: value of ``Retry-After`` in 503 responses.
        prefix: path prefix that a proxy has removed; used in links.
        shutdown: whether the time for requests in flight has ended.
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
