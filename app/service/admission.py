"""How much a process takes on at once: beyond it callers are told to come back, instead of waiting in memory."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from app.service.body_budget import BodyBudget, SaturatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from app.service.body_budget import BodyBuffer

__all__ = ["Admission", "SaturatedError"]

P = ParamSpec("P")
R = TypeVar("R")


class Admission:
    """Counts what one event loop holds, and runs its work on threads of its own.

    A request takes a slot after its body has arrived, so that slow senders occupy none. Until then, the bytes of its
    body are bounded.

    Args:
        max_concurrency: requests that are worked on or wait for it.
        threads: how many of them are worked on at the same time.
        max_buffered_bytes: limit of the buffered bytes of all bodies.
        max_body_bytes: limit of one body.
    """

    def __init__(self, *, max_concurrency: int, threads: int, max_buffered_bytes: int, max_body_bytes: int) -> None:
        self._max = max_concurrency
        self._held = 0
        self._bodies = BodyBudget(max_bytes=max_buffered_bytes, max_body_bytes=max_body_bytes)
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

    def buffer(self, declared: int | None = None, client: str = "") -> AbstractContextManager[BodyBuffer]:
        """Account for the bytes of one body for the duration of the block.

        Args:
            declared: Content-Length; None if the length is unknown.
            client: address of the sender.
        """
        return self._bodies.open(declared, client)

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Run a function on a work thread, with the log context of the request."""
        context = copy_context()
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._pool, lambda: context.run(function, *args, **kwargs))

    def close(self) -> None:
        """End the threads once they are idle."""
        self._pool.shutdown(wait=True)
