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
    """The process holds as many requests as it may."""


class Admission:
    """Counts the requests of one event loop and runs their work on threads of its own.

    Args:
        max_concurrency: requests held at once, from the first byte of the body to the answer.
        threads: how many of them are worked on at the same time.
    """

    def __init__(self, *, max_concurrency: int, threads: int) -> None:
        self._max = max_concurrency
        self._held = 0
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="work")

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place for the duration of the block; only for the event loop's thread, so no lock is needed.

        Raises:
            SaturatedError: every place is taken.
        """
        if self._held >= self._max:
            raise SaturatedError
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function on a work thread, with the log context of the request."""
        context = copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: context.run(function, *args, **kwargs))

    def close(self) -> None:
        """End the threads once they are idle."""
        self._pool.shutdown(wait=True)
