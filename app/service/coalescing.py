"""Calls that several requests share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Coalescer(Generic[T]):
    """Runs one call per key at a time; requests that come during a call share the next one.

    They do not share the call that runs already, because what it returns may be older than what they know.
    """

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Future[T]] = {}

    async def run(self, key: str, call: Callable[[], Coroutine[None, None, T]]) -> T:
        """Return the result of a call that begins after this request.

        Args:
            key: what is called for.
            call: begins the call, if this request is the first to want it.
        """
        earlier = self._running.get(key)
        if earlier is not None:
            await asyncio.wait([earlier])
        running = self._running.get(key)
        if running is None:
            # In a task of its own: the request that begins it may be cancelled.
            running = self._running[key] = asyncio.ensure_future(call())
            running.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.shield(running)
