"""How much a process takes on at once: beyond it callers are told to come back, instead of waiting in memory."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P = ParamSpec("P")
R = TypeVar("R")


class SaturatedError(Exception):
    """The process holds as much as it may."""


class Admission:
    """Counts what one event loop holds, and runs its work on threads of its own.

    A request takes a place when its body is there, so that slow senders take none from the quick; while bodies come
    in, it is their bytes that are bounded.

    Args:
        max_concurrency: requests that are worked on or wait for it.
        threads: how many of them are worked on at the same time.
        max_buffered_bytes: bytes of all bodies that are held.
    """

    def __init__(self, *, max_concurrency: int, threads: int, max_buffered_bytes: int) -> None:
        self._max = max_concurrency
        self._held = 0
        self._max_buffered = max_buffered_bytes
        self._buffered = 0
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="work")

    def require_place(self) -> None:
        """Refuse a request before its body is read, where it would be refused after.

        Raises:
            SaturatedError: every place is taken.
        """
        if self._held >= self._max:
            raise SaturatedError

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place for the duration of the block; only for the event loop's thread, so no lock is needed.

        Raises:
            SaturatedError: every place is taken.
        """
        self.require_place()
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    @contextmanager
    def buffer(self) -> Iterator[Buffer]:
        """Account for the bytes of one body for the duration of the block."""
        buffer = Buffer(self)
        try:
            yield buffer
        finally:
            self._buffered -= buffer.size

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Run a function on a work thread, with the log context of the request."""
        context = copy_context()
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._pool, lambda: context.run(function, *args, **kwargs))

    def close(self) -> None:
        """End the threads once they are idle."""
        self._pool.shutdown(wait=True)

    def _keep(self, size: int) -> None:
        if self._buffered + size > self._max_buffered:
            raise SaturatedError
        self._buffered += size


class Buffer:
    """The bytes of one body that are held."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size = 0

    def keep(self, size: int) -> None:
        """Count bytes that came in.

        Raises:
            SaturatedError: the process holds as many as it may.
        """
        self._admission._keep(size)  # noqa: SLF001 - two halves of one thing
        self.size += size
