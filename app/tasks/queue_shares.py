"""How much of the queue each lane may use, so that one caller's backlog leaves room for others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from app.tasks.errors import QueueFullError
from app.tasks.stream_state import list_consumers, read_stored_bytes

if TYPE_CHECKING:
    from app.settings import Settings
    from app.tasks.connection import Connection

# Of the queue, this part is only for lanes that hold less than an equal share.
RESERVED_PART: Final = 1 / 8
READ_EVERY_S: Final = 0.5
# A queue that was at most half full is read less often, because it does not fill up in this time.
RELAXED_EVERY_S: Final = 2.0
# Weight of the newest message in the mean size of a lane's messages.
NEWEST_WEIGHT: Final = 0.1


class QueueShares:
    """The messages and bytes of each lane, as of half a second ago, and those that this process has sent since.

    The server reports the messages of each lane, but the bytes only in total. They are divided between the lanes by the
    sizes of the messages that this process sends.

    Args:
        connection: to the queue.
        settings: its bounds.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._max_messages = settings.task_queue_max_messages
        self._max_bytes = settings.task_queue_max_bytes
        self._messages = Counter[int]()
        self._bytes = Counter[int]()
        self._mean_sizes: dict[int, float] = {}
        self._read_at = -RELAXED_EVERY_S

    async def take(self, lane: int, size: int) -> None:
        """Count a message of a lane.

        Args:
            lane: its lane.
            size: its bytes.

        Raises:
            QueueFullError: the rest of the queue is reserved for lanes with less.
            QueueUnavailableError: no response.
        """
        await self._refresh()
        is_beyond_share = _is_beyond_share(self._messages, lane, 1, self._max_messages)
        if is_beyond_share or (self._messages[lane] and _is_beyond_share(self._bytes, lane, size, self._max_bytes)):
            raise QueueFullError("the caller's share of the queue is full; come back after the time in Retry-After")
        self._messages[lane] += 1
        self._bytes[lane] += size
        mean = self._mean_sizes.get(lane, size)
        self._mean_sizes[lane] = mean + NEWEST_WEIGHT * (size - mean)

    async def _refresh(self) -> None:
        used = max(self._messages.total() / self._max_messages, self._bytes.total() / self._max_bytes)
        interval_s = READ_EVERY_S if 2 * used >= 1 else RELAXED_EVERY_S
        if time.monotonic() - self._read_at < interval_s:
            return
        # Requests that come while the figures are read use the previous ones, and count.
        self._read_at = time.monotonic()
        messages_before, bytes_before = self._messages.copy(), self._bytes.copy()
        consumers, stored = await asyncio.gather(list_consumers(self._connection), read_stored_bytes(self._connection))
        messages = Counter({number: consumer.tracked for number, consumer in consumers.items()})
        self._bytes = self._bytes - bytes_before + self._divide(stored, messages)
        self._messages = self._messages - messages_before + messages

    def _divide(self, stored: int, messages: Counter[int]) -> Counter[int]:
        """Divide the bytes of the stream between its lanes."""
        usual = sum(self._mean_sizes.values()) / len(self._mean_sizes) if self._mean_sizes else 1.0
        weights = {lane: count * self._mean_sizes.get(lane, usual) for lane, count in messages.items()}
        total = sum(weights.values()) or 1.0
        return Counter({lane: round(stored * weight / total) for lane, weight in weights.items()})


def _is_beyond_share(held: Counter[int], lane: int, amount: int, limit: int) -> bool:
    """Return whether only the reserve has room for an amount, and the lane holds an equal share of the rest already."""
    available = limit - int(limit * RESERVED_PART)
    lanes = len(+held | Counter({lane: 1}))
    return available < limit and held.total() + amount > available and held[lane] + amount > available / lanes
