"""How many messages each lane may have in the queue, so that one caller's backlog leaves room for others."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from app.tasks.errors import QueueFullError
from app.tasks.stream_state import list_consumers

if TYPE_CHECKING:
    from app.settings import Settings
    from app.tasks.connection import Connection

# Of the queue, this part is only for lanes that hold less than an equal share.
RESERVED_PART: Final = 1 / 8
READ_EVERY_S: Final = 0.5
# A queue that was at most half full is read less often, because it does not fill up in this time.
RELAXED_EVERY_S: Final = 2.0


class QueueShares:
    """The messages of each lane, as of half a second ago, and those that this process has sent since.

    Args:
        connection: to the queue.
        settings: its bounds.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._max = settings.task_queue_max_messages
        self._reserved = int(self._max * RESERVED_PART)
        self._held = Counter[int]()
        self._read_at = -RELAXED_EVERY_S

    async def take(self, lane: int) -> None:
        """Count a message of a lane.

        Raises:
            QueueFullError: the rest of the queue is reserved for lanes with less.
            QueueUnavailableError: no response.
        """
        if not self._reserved:
            return
        interval_s = READ_EVERY_S if 2 * self._held.total() >= self._max else RELAXED_EVERY_S
        if time.monotonic() - self._read_at >= interval_s:
            # Requests that come while the figures are read use the previous ones, and count.
            self._read_at, before = time.monotonic(), self._held.copy()
            consumers = await list_consumers(self._connection)
            sent = self._held - before
            self._held = sent + Counter({number: consumer.tracked for number, consumer in consumers.items()})
        available = self._max - self._reserved
        lanes = len(+self._held | Counter({lane: 1}))
        if self._held.total() >= available and self._held[lane] >= available / lanes:
            raise QueueFullError("the caller's share of the queue is full; come back after the time in Retry-After")
        self._held[lane] += 1
