"""Capacity of one process, shared fairly between callers.

A request takes a slot once its body has arrived, so slow senders take none from others. The work of the requests that
hold slots is run on threads, one caller after the other in turn. If all slots are taken and a caller with less than its
share asks for one, the caller with the most gives up the request that has waited for the shortest time.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from app.service.body_budget import BodyBudget, SaturatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from app.service.body_budget import BodyBuffer

__all__ = ["Admission", "SaturatedError"]

P = ParamSpec("P")
R = TypeVar("R")

# Work that is handed to the threads beyond what they run, so that none is idle until the event loop's next turn.
AHEAD: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Work that waits for a thread."""

    run: Callable[[], Any]
    result: asyncio.Future[Any]


class Admission:
    """Slots and threads of one event loop; used by its thread only, so nothing needs a lock.

    Args:
        max_concurrency: requests that may hold a slot, whether their work runs or waits.
        threads: requests whose work runs at the same time.
        max_buffered_bytes: limit of the buffered bytes of all bodies.
        max_body_bytes: limit of one body.
    """

    def __init__(self, *, max_concurrency: int, threads: int, max_buffered_bytes: int, max_body_bytes: int) -> None:
        self._max = max_concurrency
        self._held = Counter[str]()  # slots, by caller
        self._threads = threads
        self._running = 0
        self._waiting: dict[str, deque[_Job]] = {}  # by caller; the first is next
        self._bodies = BodyBudget(max_bytes=max_buffered_bytes, max_body_bytes=max_body_bytes)
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="work")

    def require_place(self, caller: str = "") -> None:
        """Refuse a request before its body is read if it would be refused after.

        Raises:
            SaturatedError: all slots are taken, and the caller's share of them is used.
        """
        if self._held.total() >= self._max and self._find_excess(caller) is None:
            raise SaturatedError

    @contextmanager
    def enter(self, caller: str = "") -> Iterator[None]:
        """Hold a slot for the duration of the block.

        Args:
            caller: identity that shares are counted by.

        Raises:
            SaturatedError: all slots are taken, and the caller's share of them is used.
        """
        if self._held.total() >= self._max:
            excess = self._find_excess(caller)
            if excess is None:
                raise SaturatedError
            self._evict(excess)
        self._held[caller] += 1
        try:
            yield
        finally:
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]

    def buffer(self, declared: int | None = None, client: str = "") -> AbstractContextManager[BodyBuffer]:
        """Account for the bytes of one body for the duration of the block.

        Args:
            declared: Content-Length; None if the length is unknown.
            client: address of the sender.
        """
        return self._bodies.open(declared, client)

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Run a function on a work thread, with the log context of the request; see `run_for`."""
        return self.run_for("", function, *args, **kwargs)

    def run_for(self, caller: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Run a function on a work thread when it is the caller's turn, with the log context of the request.

        Returns:
            The result; `SaturatedError` if the work had to give up its slot before it began.
        """
        context = copy_context()
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        job = _Job(lambda: context.run(function, *args, **kwargs), result)
        self._waiting.setdefault(caller, deque()).append(job)
        self._start_waiting()
        return result

    def close(self) -> None:
        """End the threads. Work that runs is not waited for, because a thread cannot be stopped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start_waiting(self) -> None:
        """Hand work to the threads, one job of each caller in turn."""
        while self._waiting and self._running < self._threads + AHEAD:
            caller = next(iter(self._waiting))
            jobs = self._waiting.pop(caller)
            job = jobs.popleft()
            if jobs:
                self._waiting[caller] = jobs  # behind the others
            if not job.result.done():  # its request was cancelled
                self._start(job)

    def _start(self, job: _Job) -> None:
        self._running += 1
        done = asyncio.get_running_loop().run_in_executor(self._pool, job.run)
        # A job that was handed over and has not begun can still be cancelled.
        job.result.add_done_callback(lambda result: done.cancel() if result.cancelled() else None)
        done.add_done_callback(lambda _: self._finish(job, done))

    def _finish(self, job: _Job, done: asyncio.Future[Any]) -> None:
        self._running -= 1
        self._start_waiting()
        if done.cancelled():
            job.result.cancel()
        elif (error := done.exception()) is not None:  # read in any case, or asyncio reports that it was not
            if not job.result.done():
                job.result.set_exception(error)
        elif not job.result.done():
            job.result.set_result(done.result())

    def _find_excess(self, caller: str) -> str | None:
        """Find the caller that must give up a slot for another; None if no one holds more than a share."""
        share = self._max // len(self._held.keys() | {caller})
        if self._held[caller] >= max(1, share):
            return None
        candidates = [other for other in self._waiting if other != caller and self._held[other] > max(1, share)]
        return max(candidates, key=self._held.__getitem__, default=None)

    def _evict(self, caller: str) -> None:
        jobs = self._waiting[caller]
        job = jobs.pop()
        if not jobs:
            del self._waiting[caller]
        if not job.result.done():
            job.result.set_exception(SaturatedError())
