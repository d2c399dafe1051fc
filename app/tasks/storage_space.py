"""Free space of the embedded server's storage: refuse tasks before the disk is full, and recover once it was.

nats-server remembers a write error of a stream until it is restarted: it responds to requests for information but
stores nothing, even when the disk has room again.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from app.observability.rich_logging import get_logger
from app.task_settings import MIB
from app.tasks.nats_monitoring import ServerMonitor, free_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = get_logger("tasks")

# Kept free for results of accepted tasks, and for the server, which writes a block again to compact it.
RESERVE_BYTES: Final = 64 * MIB
RESERVE_SHARE: Final = 8  # of a small disk, at most one part in this many
STORE: Final = "jetstream"  # folder in which the server keeps its streams
LOOK_AGAIN_S: Final = 0.2
CHECK_S: Final = 2.0
# A server that does not recover is restarted again, at growing intervals.
RESTART_PAUSE_S, RESTART_PAUSE_MAX_S = 10.0, 300.0


def reserve_bytes(folder: Path) -> int:
    """Return the bytes that are kept free on a folder's disk."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return RESERVE_BYTES
    return min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // RESERVE_SHARE)


class StorageSpace:
    """Free space of a folder, read at most every 0.2 s.

    Args:
        folder: of the storage.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_at = -LOOK_AGAIN_S
        self._spare = 0.0

    def admit(self, size: int) -> bool:
        """Return whether a message of a size can be stored and the reserve is kept; count it if so.

        What is admitted between two reads of the free space is subtracted, so that a burst does not use the reserve.
        """
        now = time.monotonic()
        if now - self._read_at >= LOOK_AGAIN_S:
            free = free_bytes(self._folder)
            # If the folder cannot be read, the server knows better.
            self._spare = math.inf if free is None else free - reserve_bytes(self._folder)
            self._read_at = now
        if size > self._spare:
            return False
        self._spare -= size
        return True


class StorageWatch:
    """Asks for a restart of the embedded server if it stays in the state after a write error though there is room.

    Args:
        monitor_url: of the server's system account.
        folder: of its storage.
        restart: asks for a restart.
    """

    def __init__(self, monitor_url: str, folder: Path, restart: Callable[[], None]) -> None:
        self._monitor_url = monitor_url
        self._folder = folder
        self._restart = restart
        self._is_broken = False
        self._next = 0.0
        self._pause_s = RESTART_PAUSE_S

    def start(self) -> None:
        """Watch in a thread of this process, for as long as it lives."""
        threading.Thread(target=lambda: asyncio.run(self._run()), name="storage-watch", daemon=True).start()

    async def _run(self) -> None:
        monitor = ServerMonitor(self._monitor_url)
        while True:
            fault = (await monitor.read()).storage_fault
            existing = next(folder for folder in (self._folder, *self._folder.parents) if folder.exists())
            if fault == "" and not (self._folder / STORE).exists():
                fault = "it was deleted"  # the server goes on with the files that it has open, until it needs another
            self.note(fault, free_bytes(existing), time.monotonic())
            await asyncio.sleep(CHECK_S)

    def note(self, fault: str | None, free: int | None, now: float) -> None:
        """Take what was read, and ask for a restart if it is time.

        Args:
            fault: see `NatsServerStats.storage_fault`.
            free: bytes free on the disk; None if unknown.
            now: a monotonic time, in seconds.
        """
        if fault is None:  # no response, or it is about to start
            return
        if not fault:
            if self._is_broken:
                self._is_broken = False
                log.info("The queue's storage can be written again")
            elif now > self._next + RESTART_PAUSE_MAX_S:
                self._pause_s = RESTART_PAUSE_S
            return
        if not self._is_broken:
            self._is_broken = True
            log.error(
                "The queue's storage cannot be written: %s; tasks are refused until its disk has room and "
                "nats-server is restarted",
                fault,
            )
        if (free or 0) > reserve_bytes(self._folder) and now >= self._next:
            self._next = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, RESTART_PAUSE_MAX_S)
            log.warning("Restarting nats-server, whose disk has room now")
            self._restart()
