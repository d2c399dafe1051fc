"""Memory for request bodies: limits, waiting for room, and dropping slow senders if memory is short."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TICK_S = 0.1
OBSERVED_TICKS = 10  # rates are measured over one second, which is also the grace period of a new body
QUICK_RATE = 256 * 1024  # bytes per second; a sender at this rate or above is never dropped
MIN_DROPPED_BYTES = 64 * 1024  # dropping a smaller body frees too little
WAIT_LIMIT_S = 10.0
MAX_WAITING = 128  # bodies, each with up to half a megabyte that arrived before reading was paused
SMALL_FRACTION, LARGE_SHARE = 1 / 8, 3 / 4


class SaturatedError(Exception):
    """The process is at capacity."""


class CallerCounter(Counter[str]):
    """Number of things that each caller holds; a caller that holds none has no entry."""

    def release(self, caller: str) -> None:
        """Count one less."""
        self[caller] -= 1
        if not self[caller]:
            del self[caller]


class BodyBudget:
    """Buffered bytes of the bodies of one event loop.

    One body at a time, the leader, may use a reserve of one maximum body, so that waiting bodies never block each other
    forever. The others share the rest. Each may grow to half of the free bytes, so a new small body always finds room.

    A body without room is not read, so TCP slows down its sender. If too many bodies wait, the longest body of the
    client with the most bodies is rejected. While bodies wait, senders that are measurably slow are dropped, slowest
    first. Time is counted in ticks of the event loop, so that a pause of the process does not make a sender slow.
    """

    def __init__(self, *, max_bytes: int, max_body_bytes: int) -> None:
        self._max = max(max_bytes, max_body_bytes)
        self._max_body = max_body_bytes
        self._shared = self._max - max_body_bytes
        self._used = 0
        self._open = CallerCounter()
        self._arriving: set[BodyBuffer] = set()
        self._waiting: dict[BodyBuffer, tuple[int, asyncio.Future[None]]] = {}
        self._leader: BodyBuffer | None = None
        self._ticker: asyncio.TimerHandle | None = None

    @contextmanager
    def open(self, declared: int | None = None, client: str = "") -> Iterator[BodyBuffer]:
        """Track the buffered bytes of one body for the duration of the block; its Content-Length is None if unknown."""
        expected = self._max_body if declared is None else min(declared, self._max_body)
        buffer = BodyBuffer(self, expected, client)
        self._arriving.add(buffer)
        self._open[client] += 1
        try:
            yield buffer
        finally:
            self.finish(buffer)
            self._used -= buffer.size
            self._open.release(client)
            self._grant()

    def reserve(self, buffer: BodyBuffer, size: int) -> bool:
        """Reserve bytes for a body, and return whether there was room."""
        if not (self._fits(buffer, size) or self._lead(buffer, size)):
            return False
        self._used += size
        buffer.size += size
        if self._ticker is None and 2 * self._used > self._max:
            self._schedule()
        return True

    async def wait(self, buffer: BodyBuffer, size: int) -> None:
        """Wait for room, then reserve the bytes.

        Raises:
            SaturatedError: no room became free in time, or too many bodies with a better rank wait.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[buffer] = size, turn
        if len(self._waiting) > MAX_WAITING:
            _, last = self._waiting.pop(max(self._waiting, key=self._rank))
            if not last.done():
                last.set_exception(SaturatedError())
        if self._ticker is None:
            self._schedule()
        try:
            async with asyncio.timeout(WAIT_LIMIT_S):
                await turn
        except TimeoutError:
            if not turn.done() or turn.cancelled():  # otherwise room became free at the same moment
                raise SaturatedError from None
        finally:
            self._waiting.pop(buffer, None)
            buffer.restart_measurement()

    def finish(self, buffer: BodyBuffer) -> None:
        """Mark a body as complete; its bytes stay reserved until the block of `open` ends."""
        self._arriving.discard(buffer)
        if self._leader is buffer:
            self._leader = None
            self._grant()

    def _fits(self, buffer: BodyBuffer, size: int) -> bool:
        is_small = buffer.expected <= self._max_body * SMALL_FRACTION
        limit = self._shared if is_small else self._shared * LARGE_SHARE
        return buffer.size + size <= (limit - self._used) / 2

    def _lead(self, buffer: BodyBuffer, size: int) -> bool:
        """Use the reserve for a body if the body is the leader, or can become it."""
        if self._leader is None:
            missing = max(buffer.expected - buffer.size, size)
            if self._used + missing <= self._max:
                self._leader = buffer
        return self._leader is buffer and self._used + size <= self._max

    def _grant(self) -> None:
        for buffer in sorted(self._waiting, key=self._rank):
            size, turn = self._waiting[buffer]
            if not turn.done() and self.reserve(buffer, size):
                del self._waiting[buffer]
                turn.set_result(None)

    def _rank(self, buffer: BodyBuffer) -> tuple[int, int]:
        """Return the sort key of a waiting body: clients with few bodies first, then short bodies."""
        return self._open[buffer.client], buffer.expected

    def _schedule(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        sending = [buffer for buffer in self._arriving if buffer not in self._waiting and not buffer.is_dropped]
        for buffer in sending:
            buffer.measure()
        self._grant()
        if self._waiting:
            self._drop_slowest(sending)
        if self._waiting or 2 * self._used > self._max:
            self._schedule()

    def _drop_slowest(self, sending: list[BodyBuffer]) -> None:
        """Drop slow senders until the first waiting body has room."""
        first = min(self._waiting, key=self._rank)
        limit = min(QUICK_RATE, math.inf if first.rate is None else first.rate)
        slow = [(buffer.rate, -buffer.size, buffer) for buffer in sending if buffer.rate is not None]
        missing = 2 * (first.size + self._waiting[first][0])
        for rate, size, buffer in sorted(slow, key=lambda entry: entry[:2]):
            is_worth_it = buffer is self._leader or -size >= MIN_DROPPED_BYTES
            if missing > 0 and rate < limit and is_worth_it:
                buffer.drop()
                missing += size


@dataclass(slots=True, eq=False)
class BodyBuffer:
    """Buffered bytes of one body."""

    _budget: BodyBudget
    expected: int  # length that the body may reach
    client: str  # address of the sender
    size: int = 0  # reserved bytes
    rate: float | None = None  # bytes per second over the last measured second; None within the grace period
    is_dropped: bool = False  # because the sender was slow
    on_drop: Callable[[], None] = lambda: None  # called when the sender is dropped; set by the reader of the body
    _ticks: int = 0
    _measured: int = 0

    def reserve(self, size: int) -> bool:
        """Count received bytes if there is room for them."""
        return self._budget.reserve(self, size)

    async def wait(self, size: int) -> None:
        """Wait for room, then reserve the bytes; see `BodyBudget.wait`."""
        await self._budget.wait(self, size)

    def finish(self) -> None:
        """Mark the body as complete, so that it can no longer be dropped."""
        self._budget.finish(self)

    def drop(self) -> None:
        """Drop the sender."""
        self.is_dropped = True
        self.on_drop()

    def measure(self) -> None:
        """Count a tick, and measure the rate once a second."""
        if self._ticks == OBSERVED_TICKS:
            self.rate = (self.size - self._measured) / (self._ticks * TICK_S)
            self._ticks = 0
        if not self._ticks:
            self._measured = self.size
        self._ticks += 1

    def restart_measurement(self) -> None:
        """Start a new grace period, because the sender could not send while the body waited for room."""
        self.rate = None
        self._ticks = 0
