"""Admission of submissions: message size, free disk space, limits of the streams, and the share of each caller."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from app.tasks.connection import FULL
from app.tasks.embedded_server import reserve_bytes, store_folder
from app.tasks.errors import QueueFullError, TaskTooLargeError
from app.tasks.nats_monitoring import free_bytes
from app.tasks.stream import STREAM
from app.tasks.stream_state import list_consumers, read_stream

if TYPE_CHECKING:
    from pathlib import Path

    from app.settings import Settings
    from app.tasks.connection import Connection
    from app.tasks.records import Records

# After a rejection, submissions to the same lane fail without a request; clients wait longer than this before a retry.
FULL_PAUSE_S: Final = 0.2
# Reserved in each message for the headers of a dead letter, so that the message can still be stored with them.
HEADERS_BYTES: Final = 1024
FREE_SPACE_AGE_S: Final = 0.2

# This part of the queue is reserved for lanes that hold less than an equal share.
RESERVED_PART: Final = 1 / 8
READ_EVERY_S: Final = 0.5
# A queue that was at most half full is read less often, because it does not fill up in this time.
RELAXED_EVERY_S: Final = 2.0
# Weight of the newest message in the mean size of a lane's messages.
NEWEST_WEIGHT: Final = 0.1


class QueueAdmission:
    """Decides whether a task may be submitted."""

    def __init__(self, connection: Connection, records: Records, settings: Settings) -> None:
        self._connection = connection
        self._records = records
        self._settings = settings
        self._shares = QueueShares(connection, settings)
        folder = store_folder(settings)
        self._space = None if folder is None else StorageSpace(folder)
        self._full_until: dict[int, float] = {}  # by lane

    @property
    def max_message_bytes(self) -> int:
        """Size of the largest message that the server accepts and that fits into an empty queue.

        Raises:
            QueueUnavailableError: the server is not connected.
        """
        return min(self._connection.client.max_payload, self._settings.task_queue_max_bytes) - HEADERS_BYTES

    async def admit(self, size: int, lane: int) -> None:
        """Check that a task with images of this size may be submitted, and count it.

        Raises:
            TaskTooLargeError: the images exceed the largest message.
            QueueFullError: a limit of the queue, the results or the disk is reached.
            QueueUnavailableError: the server does not respond or stores nothing.
        """
        if size > (limit := self.max_message_bytes):
            raise TaskTooLargeError(f"image: expected at most {limit} bytes including the segmentation map, got {size}")
        if time.monotonic() < self._full_until.get(lane, 0.0):
            raise QueueFullError(FULL)
        if self._space is not None and not self._space.admit(size):
            raise QueueFullError("the queue's storage is full; retry later")
        self._connection.require_storing()
        if await self._records.usage_bytes() > self._settings.result_max_bytes:
            raise QueueFullError("the storage for results is full; retry later")
        await self._shares.take(lane, size)

    def note_full(self, lane: int) -> None:
        """Reject submissions to a lane for a moment, because the server has rejected one."""
        self._full_until[lane] = time.monotonic() + FULL_PAUSE_S


class StorageSpace:
    """Free space of the embedded server's disk, read at most every 0.2 s."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_at = -FREE_SPACE_AGE_S
        self._spare = 0.0

    def admit(self, size: int) -> bool:
        """Return whether a message fits without using the reserve; if it does, count it.

        Messages that are admitted between two reads of the free space are subtracted, so that a burst does not use the
        reserve.
        """
        now = time.monotonic()
        if now - self._read_at >= FREE_SPACE_AGE_S:
            free = free_bytes(self._folder)
            # If the folder is not readable, the decision is left to the server.
            self._spare = math.inf if free is None else free - reserve_bytes(self._folder)
            self._read_at = now
        if size > self._spare:
            return False
        self._spare -= size
        return True


class QueueShares:
    """The share of the queue that each lane uses, so that one caller's backlog leaves room for others.

    It is read at most every half second, and messages that this process sends are added. The server reports the
    messages of each lane, but only the total of their bytes. That is divided among the lanes by the sizes of the
    messages that this process sends.
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
        """Count a message of a lane, of a size in bytes.

        Raises:
            QueueFullError: the rest of the queue is reserved for lanes with fewer messages or bytes.
            QueueUnavailableError: the server does not respond.
        """
        await self._refresh()
        is_beyond_share = _is_beyond_share(self._messages, lane, 1, self._max_messages)
        if is_beyond_share or (self._messages[lane] and _is_beyond_share(self._bytes, lane, size, self._max_bytes)):
            raise QueueFullError("the caller's share of the queue is full; retry after the time in Retry-After")
        self._messages[lane] += 1
        self._bytes[lane] += size
        mean = self._mean_sizes.get(lane, size)
        self._mean_sizes[lane] = mean + NEWEST_WEIGHT * (size - mean)

    async def _refresh(self) -> None:
        used = max(self._messages.total() / self._max_messages, self._bytes.total() / self._max_bytes)
        interval_s = READ_EVERY_S if 2 * used >= 1 else RELAXED_EVERY_S
        if time.monotonic() - self._read_at < interval_s:
            return
        # Concurrent submissions use the previous values, and are counted.
        self._read_at = time.monotonic()
        messages_before, bytes_before = self._messages.copy(), self._bytes.copy()
        consumers, stream = await asyncio.gather(
            list_consumers(self._connection), read_stream(self._connection, STREAM)
        )
        messages = Counter({number: consumer.tracked for number, consumer in consumers.items()})
        self._bytes = self._bytes - bytes_before + self._divide(stream.bytes, messages)
        self._messages = self._messages - messages_before + messages

    def _divide(self, stored: int, messages: Counter[int]) -> Counter[int]:
        """Divide the bytes of the stream among its lanes."""
        default = sum(self._mean_sizes.values()) / len(self._mean_sizes) if self._mean_sizes else 1.0
        weights = {lane: count * self._mean_sizes.get(lane, default) for lane, count in messages.items()}
        total = sum(weights.values()) or 1.0
        return Counter({lane: round(stored * weight / total) for lane, weight in weights.items()})


def _is_beyond_share(held: Counter[int], lane: int, amount: int, limit: int) -> bool:
    """Return whether an amount fits only into the reserve, and the lane already holds an equal share of the rest."""
    available = limit - int(limit * RESERVED_PART)
    lanes = len(+held | Counter({lane: 1}))
    return available < limit and held.total() + amount > available and held[lane] + amount > available / lanes
