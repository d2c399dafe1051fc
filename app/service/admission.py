"""Admission control: slots of a process, shared between callers, beyond which requests are rejected."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from app.observability import tracing
from app.service.body_budget import BodyBudget, CallerCounter, SaturatedError
from app.service.fair_queue import FairQueue, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


P = ParamSpec("P")
R = TypeVar("R")


class Admission:
    """Slots and work threads of one event loop.

    A request takes a slot after its body has arrived, so that slow senders occupy none. The bytes of arriving bodies
    are bounded separately. If all slots are taken, a caller below its share (slots divided by callers) gets the slot of
    another request: the latest of the caller with the most slots, unless its work has started.

    Everything except the work runs on the thread of the event loop.

    At most `max_concurrency` requests run or wait for one of the threads.
    """

    def __init__(self, *, max_concurrency: int, threads: int, max_buffered_bytes: int, max_body_bytes: int) -> None:
        self._max = max_concurrency
        self._held = CallerCounter()  # slots
        self._slots: dict[Slot, None] = {}  # those with work, in the order of their arrival
        self.bodies = BodyBudget(max_bytes=max_buffered_bytes, max_body_bytes=max_body_bytes)
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="work")
        self._express = ThreadPoolExecutor(max_workers=1, thread_name_prefix="work-express")
        self._queue = FairQueue(
            threads,
            lambda: self._pool.submit(self._queue.run_next),
            lambda: self._express.submit(self._queue.run_express),
        )

    def require_slot(self, caller: str = "") -> None:
        """Raise an error if a request would get no slot; called before its body is read.

        Raises:
            SaturatedError: all slots are taken, and no request can be evicted.
        """
        if self._held.total() >= self._max and self._find_victim(caller) is None:
            raise SaturatedError

    @contextmanager
    def enter(self, caller: str = "") -> Iterator[Slot]:
        """Hold a slot for the duration of the block.

        Raises:
            SaturatedError: all slots are taken, and no request can be evicted.
        """
        if self._held.total() >= self._max:
            self._evict_for(caller)
        slot = Slot(self, caller)
        self._held[caller] += 1
        try:
            yield slot
        finally:
            slot.release()

    def close(self) -> None:
        """Stop the threads without waiting for running work, because a thread cannot be interrupted."""
        self._queue.close()
        for pool in (self._pool, self._express):
            pool.shutdown(wait=False, cancel_futures=True)

    def _evict_for(self, caller: str) -> None:
        while (victim := self._find_victim(caller)) is not None:
            if victim.evict():
                return
        raise SaturatedError

    def _find_victim(self, caller: str) -> Slot | None:
        own = self._held[caller]
        callers = len(self._held.keys() | {caller})
        if own >= self._max / callers:
            return None
        # After the eviction, the other caller must have at least as many slots, so that two callers cannot evict each
        # other forever.
        candidates = (slot for slot in reversed(self._slots) if self._held[slot.caller] >= own + 2 and slot.is_waiting)
        return max(candidates, key=lambda slot: self._held[slot.caller], default=None)

    def _start(self, slot: Slot, job: Job) -> None:
        self._slots[slot] = None
        self._queue.put(job)

    def _release(self, slot: Slot) -> None:
        self._held.release(slot.caller)
        self._slots.pop(slot, None)


class Slot:
    """Slot of one request."""

    def __init__(self, admission: Admission, caller: str) -> None:
        self.caller = caller
        self._admission = admission
        self._is_held = True
        self._job: Job | None = None

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Run a function on a work thread, with the log context of the request; one at a time.

        The future fails with `SaturatedError` if the slot is evicted before the function starts.
        """
        work = tracing.end_wait("wait for a work thread", partial(function, *args, **kwargs))
        job = self._job = Job(self.caller, work, copy_context())
        self._admission._start(self, job)  # noqa: SLF001 - both classes are one unit
        return asyncio.wrap_future(job.future)

    @property
    def is_waiting(self) -> bool:
        """Whether the slot has work that has not started."""
        return self._job is not None and not self._job.is_started

    def evict(self) -> bool:
        """Release the slot for another caller; return False if its work has started."""
        job = self._job
        if job is None or not self._admission._queue.discard(job):  # noqa: SLF001
            return False
        self._release()
        if job.start():
            job.future.set_exception(SaturatedError())
        return True

    def release(self) -> None:
        """Release the slot, and drop work that has not started."""
        if self._job is not None:
            self._admission._queue.discard(self._job)  # noqa: SLF001
        self._release()

    def _release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._admission._release(self)  # noqa: SLF001
