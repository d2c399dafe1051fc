"""A queue of jobs for work threads that divides CPU time fairly between callers.

With round-robin by the number of jobs, a caller with expensive jobs would get nearly all of the CPU. Therefore, each
caller has a virtual time, which advances by the CPU time of its jobs, and the caller with the lowest virtual time is
next (start-time fair queueing). A caller does not save up time while it is idle.

A job cannot be interrupted, so a caller with cheap jobs and few connections would get only one job done for each
expensive job of another caller. Therefore, there is an additional thread, the express thread. It runs cheap jobs of
callers whose virtual time is lower than that of all running jobs, and the operating system divides the CPU. It decodes
no large images, whose memory is only available once for each of the other threads: such a job is moved to them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from app.codec.decoding_policy import DecodingForbiddenError, limit_decoding

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

# Maximum number of idle callers whose virtual time is kept, so that a caller cannot clear it by pausing.
MAX_IDLE: Final = 1024
# Estimated cost of the first job of a caller, and the weight of the newest job in later estimates.
FIRST_COST_S: Final = 0.01
NEWEST_WEIGHT: Final = 0.3
# Callers with more expensive jobs never use the express thread: several of them would block it for the others.
EXPRESS_COST_S: Final = 0.1
# Memory for decoding an image on the express thread: a PNG of 8 Mpx, or a progressive JPEG of 16 Mpx.
EXPRESS_IMAGE_BYTES: Final = 96 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Job:
    """A function call that waits for a thread or runs."""

    caller: str
    call: Callable[[], Any]
    context: contextvars.Context
    future: Future[Any] = field(default_factory=Future)
    is_started: bool = False
    is_large: bool = False  # needs more memory than the express thread has

    def start(self) -> bool:
        """Mark the future as running; return False if it was cancelled."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def run(self, max_image_bytes: float) -> Any:
        """Call the function in its context."""

        def call() -> Any:
            with limit_decoding(max_image_bytes):
                return self.call()

        return self.context.run(call)


@dataclass(slots=True, eq=False)
class _Lane:
    """Jobs of one caller."""

    waiting: deque[Job] = field(default_factory=deque)  # in the order of their arrival
    running: int = 0  # number of running jobs
    virtual_s: float = 0.0  # includes the estimated cost of the running jobs
    cost_s: float = FIRST_COST_S  # estimated cost of a job

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running


class FairQueue:
    """Thread-safe queue of the jobs of one process.

    `start_next` must make one of the given number of threads call `run_next`, `start_express` must make another thread
    call `run_express`.
    """

    def __init__(self, threads: int, start_next: Callable[[], object], start_express: Callable[[], object]) -> None:
        self._threads = threads
        self._start_next = start_next
        self._start_express = start_express
        self._is_express_busy = False
        self._regular: list[_Lane] = []  # one entry for each job that runs on the other threads
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._waiting: dict[str, _Lane] = {}  # those with waiting jobs
        self._virtual_s = 0.0  # virtual time of the last dispatched job, at its start

    def put(self, job: Job) -> None:
        """Append a job to those of its caller."""
        with self._lock:
            lane = self._lanes.get(job.caller)
            if lane is None:
                self._forget_idle()
                lane = self._lanes[job.caller] = _Lane(virtual_s=self._virtual_s)
            elif lane.is_idle:
                lane.virtual_s = max(lane.virtual_s, self._virtual_s)
            lane.waiting.append(job)
            self._waiting[job.caller] = lane
        self._start_next()
        self._offer_express()

    def run_next(self) -> None:
        """Run the next job on this thread; return at once if there is none."""
        with self._lock:
            found = self._take(is_express=False)
        if found is not None:
            self._offer_express()
            self._run(*found, is_express=False)

    def run_express(self) -> None:
        """Run jobs on the express thread until it has none."""
        while True:
            with self._lock:
                found = self._take(is_express=True)
                if found is None:
                    self._is_express_busy = False
                    return
            self._run(*found, is_express=True)

    def close(self) -> None:
        """Cancel the waiting jobs."""
        with self._lock:
            jobs = [job for lane in self._waiting.values() for job in lane.waiting]
            self._waiting.clear()
            for lane in self._lanes.values():
                lane.waiting.clear()
        for job in jobs:
            if not job.future.cancel():  # it was moved from the express thread
                job.future.set_exception(CancelledError())

    def discard(self, job: Job) -> bool:
        """Remove a waiting job; return False if it no longer waits."""
        with self._lock:
            lane = self._waiting.get(job.caller)
            if lane is None or job not in lane.waiting:
                return False
            lane.waiting.remove(job)
            if not lane.waiting:
                del self._waiting[job.caller]
            return True

    def _run(self, job: Job, lane: _Lane, estimate_s: float, *, is_express: bool) -> None:
        start_s = time.thread_time()
        try:
            result = job.run(EXPRESS_IMAGE_BYTES if is_express else math.inf)
        except DecodingForbiddenError:
            self._put_back(job, lane, estimate_s, time.thread_time() - start_s)
        except BaseException as error:  # noqa: BLE001 - set on the future, as in an executor
            self._settle(lane, estimate_s, time.thread_time() - start_s, is_express=is_express)
            job.future.set_exception(error)
        else:
            self._settle(lane, estimate_s, time.thread_time() - start_s, is_express=is_express)
            job.future.set_result(result)

    def _put_back(self, job: Job, lane: _Lane, estimate_s: float, cost_s: float) -> None:
        """Move a job from the express thread to the others, as the next one of its caller."""
        with self._lock:
            lane.running -= 1
            lane.virtual_s += cost_s - estimate_s
            job.is_large, job.is_started = True, False
            lane.waiting.appendleft(job)
            self._waiting[job.caller] = lane
        self._start_next()

    def _offer_express(self) -> None:
        with self._lock:
            if self._is_express_busy or self._next_express() is None:
                return
            self._is_express_busy = True
        self._start_express()

    def _next(self) -> _Lane | None:
        return min(self._waiting.values(), key=_virtual_time, default=None)

    def _next_express(self) -> _Lane | None:
        if len(self._regular) < self._threads:
            return None
        bound_s = min(map(_virtual_time, self._regular))
        cheap = (
            lane
            for lane in self._waiting.values()
            if lane.cost_s <= EXPRESS_COST_S and lane.virtual_s < bound_s and not lane.waiting[0].is_large
        )
        return min(cheap, key=_virtual_time, default=None)

    def _take(self, *, is_express: bool) -> tuple[Job, _Lane, float] | None:
        while (lane := self._next_express() if is_express else self._next()) is not None:
            job = lane.waiting.popleft()
            job.is_started = True
            if not lane.waiting:
                del self._waiting[job.caller]
            if not job.start():
                continue
            self._virtual_s = max(self._virtual_s, lane.virtual_s)
            estimate_s = lane.cost_s
            lane.virtual_s += estimate_s
            lane.running += 1
            if not is_express:
                self._regular.append(lane)
            return job, lane, estimate_s
        return None

    def _settle(self, lane: _Lane, estimate_s: float, cost_s: float, *, is_express: bool) -> None:
        """Replace the estimated cost of a job with the actual cost."""
        with self._lock:
            lane.running -= 1
            if not is_express:
                self._regular.remove(lane)
            lane.virtual_s += cost_s - estimate_s
            lane.cost_s += NEWEST_WEIGHT * (cost_s - lane.cost_s)

    def _forget_idle(self) -> None:
        if len(self._lanes) < MAX_IDLE:
            return
        idle = sorted((lane.virtual_s, caller) for caller, lane in self._lanes.items() if lane.is_idle)
        for _, caller in idle[: max(1, len(idle) // 2)]:
            del self._lanes[caller]


def _virtual_time(lane: _Lane) -> float:
    return lane.virtual_s
