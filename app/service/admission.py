"""How much a process takes on at once, shared between callers; beyond it they are asked to come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from app.service.body_budget import BodyBudget, SaturatedError
from app.service.fair_queue import FairQueue, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from app.service.body_budget import BodyBuffer

__all__ = ["Admission", "SaturatedError"]

P = ParamSpec("P")
R = TypeVar("R")


class Admission:
    """Slots and work threads of one event loop.

    A request takes a slot when its body has arrived, so that slow senders take none. While bodies arrive, their bytes
    are bounded. If all slots are taken, a caller that holds less than its share (slots divided by callers) takes over
    the slot of the request that came last from the caller with the most, unless its work has begun.

    Everything but the work itself runs on the event loop's thread.

    Args:
        max_concurrency: requests that are worked on or wait for it.
        threads: how many of them are worked on at the same time.
        max_buffered_bytes: limit of the buffered bytes of all bodies.
        max_body_bytes: limit of one body.
    """

    def __init__(self, *, max_concurrency: int, threads: int, max_buffered_bytes: int, max_body_bytes: int) -> None:
        self._max = max_concurrency
        self._held = Counter[str]()  # slots, by caller
        self._slots: dict[Slot, None] = {}  # those that can be taken over, in the order of their arrival
        self._bodies = BodyBudget(max_bytes=max_buffered_bytes, max_body_bytes=max_body_bytes)
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="work")
        self._express = ThreadPoolExecutor(max_workers=1, thread_name_prefix="work-express")
        self._queue = FairQueue(threads, lambda: self._express.submit(self._queue.run_express))

    def require_slot(self, caller: str = "") -> None:
        """Refuse a request before its body is read, if it would be refused after.

        Raises:
            SaturatedError: every slot is taken, and none can be taken over.
        """
        if self._held.total() >= self._max and self._find_victim(caller) is None:
            raise SaturatedError

    @contextmanager
    def enter(self, caller: str = "") -> Iterator[Slot]:
        """Hold a slot for the duration of the block.

        Raises:
            SaturatedError: every slot is taken, and none can be taken over.
        """
        if self._held.total() >= self._max:
            self._take_over(caller)
        slot = Slot(self, caller)
        self._held[caller] += 1
        try:
            yield slot
        finally:
            slot.leave()

    def buffer(self, declared: int | None = None, client: str = "") -> AbstractContextManager[BodyBuffer]:
        """Account for the bytes of one body for the duration of the block.

        Args:
            declared: Content-Length; None if the length is unknown.
            client: address of the sender.
        """
        return self._bodies.open(declared, client)

    def close(self) -> None:
        """End the threads. Work that runs is not waited for, because a thread cannot be stopped."""
        self._queue.close()
        for pool in (self._pool, self._express):
            pool.shutdown(wait=False, cancel_futures=True)

    def _take_over(self, caller: str) -> None:
        while (victim := self._find_victim(caller)) is not None:
            if victim.evict():
                return
        raise SaturatedError

    def _find_victim(self, caller: str) -> Slot | None:
        own = self._held[caller]
        callers = len(self._held.keys() | {caller})
        if own >= self._max / callers:
            return None
        # The exchange must leave the other with at least as many, or two callers would take one slot in turn for ever.
        candidates = (slot for slot in reversed(self._slots) if self._held[slot.caller] >= own + 2 and slot.is_waiting)
        return max(candidates, key=lambda slot: self._held[slot.caller], default=None)

    def _start(self, slot: Slot, job: Job) -> None:
        self._slots[slot] = None
        self._queue.put(job)
        self._pool.submit(self._queue.run_next)

    def _release(self, slot: Slot) -> None:
        self._held[slot.caller] -= 1
        if not self._held[slot.caller]:
            del self._held[slot.caller]
        self._slots.pop(slot, None)


class Slot:
    """The right of one request to have work done.

    Attributes:
        caller: whose request it is.
    """

    def __init__(self, admission: Admission, caller: str) -> None:
        self.caller = caller
        self._admission = admission
        self._is_held = True
        self._job: Job | None = None

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Run a function on a work thread, with the log context of the request; one at a time.

        The future fails with `SaturatedError` if another caller takes over the slot before the function has begun.
        """
        job = self._job = Job(self.caller, partial(function, *args, **kwargs), copy_context())
        self._admission._start(self, job)  # noqa: SLF001 - two halves of one thing
        return asyncio.wrap_future(job.future)

    @property
    def is_waiting(self) -> bool:
        """Whether there is work that has not begun."""
        return self._job is not None and not self._job.is_begun

    def evict(self) -> bool:
        """Give the slot to another caller; False if the work has begun."""
        job = self._job
        if job is None or not self._admission._queue.discard(job):  # noqa: SLF001
            return False
        self._give_back()
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(SaturatedError())
        return True

    def leave(self) -> None:
        """Give the slot back, and drop work that has not begun."""
        if self._job is not None:
            self._admission._queue.discard(self._job)  # noqa: SLF001
        self._give_back()

    def _give_back(self) -> None:
        if self._is_held:
            self._is_held = False
            self._admission._release(self)  # noqa: SLF001
