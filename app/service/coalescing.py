"""Sharing of concurrent calls between requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Coalescer(Generic[T]):
    """One running call per key. Requests that arrive during a call share the next one.

    They do not share the running call, because its result may be older than the request.
    """

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Future[T]] = {}

    async def run(self, key: str, call: Callable[[], Coroutine[None, None, T]]) -> T:
        """Return the result of a call that starts after this request."""
        earlier = self._running.get(key)
        if earlier is not None:
            await asyncio.wait([earlier])
        running = self._running.get(key)
        if running is None:
            # A separate task, because the request that starts it may be cancelled.
            running = self._running[key] = asyncio.ensure_future(call())
            running.add_done_callback(lambda _: self._running.pop(key))
            # asyncio would log an error of the call if all requests that share it have been cancelled.
            running.add_done_callback(lambda call: call.cancelled() or call.exception())
        return await asyncio.shield(running)
