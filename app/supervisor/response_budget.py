"""Memory for responses that clients have not read yet: which connections are closed when it is short."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from app.supervisor.closing import LingeringTransport

MAX_BYTES = 64 * 1024 * 1024
WATCHED_BYTES = 256 * 1024  # a smaller rest is not worth watching
TICK_S = 0.5
QUICK_RATE = 256 * 1024  # bytes per second; a client that reads at this rate or above is never dropped


class ResponseBudget:
    """Buffered bytes of the responses of one event loop.

    While they exceed `MAX_BYTES`, the connections of clients that read slowly are closed, those with most bytes first.
    A client has at least one tick to begin to read.

    Args:
        loop: for the ticks.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[LingeringTransport, tuple[Callable[[], None], int | None]] = {}
        self._ticker: asyncio.TimerHandle | None = None

    def watch(self, transport: LingeringTransport, on_drop: Callable[[], None]) -> None:
        """Watch a connection that cannot send at once, if it has much to send.

        Args:
            transport: the connection.
            on_drop: called if it is to be closed at once.
        """
        if transport.get_write_buffer_size() < WATCHED_BYTES:
            return
        self._watched.setdefault(transport, (on_drop, None))
        if self._ticker is None:
            self._ticker = self._loop.call_later(TICK_S, self._tick)

    def forget(self, transport: LingeringTransport) -> None:
        """Forget a connection that was lost."""
        self._watched.pop(transport, None)

    def _tick(self) -> None:
        self._ticker = None
        total, slow = 0, []
        for transport, (on_drop, before) in list(self._watched.items()):
            buffered = transport.get_write_buffer_size()
            if buffered < WATCHED_BYTES:
                del self._watched[transport]
                continue
            total += buffered
            sent = transport.written_bytes - buffered
            if before is not None and sent - before < QUICK_RATE * TICK_S:
                slow.append((buffered, on_drop))
            self._watched[transport] = (on_drop, sent)
        for buffered, on_drop in sorted(slow, key=lambda entry: -entry[0]):
            if total <= MAX_BYTES:
                break
            on_drop()
            total -= buffered
        if self._watched:
            self._ticker = self._loop.call_later(TICK_S, self._tick)


_budgets: WeakKeyDictionary[asyncio.AbstractEventLoop, ResponseBudget] = WeakKeyDictionary()


def response_budget(loop: asyncio.AbstractEventLoop) -> ResponseBudget:
    """Return the budget of an event loop."""
    return _budgets.setdefault(loop, ResponseBudget(loop))
