"""Admission: shares of the queue for each caller, and the reserve of the disk."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest

from app.tasks import admission as module
from app.tasks.errors import QueueFullError
from app.tasks.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from app.service.crop import CheckedInput
    from tests.tasks.conftest import Desk

GREEDY, OTHER = 0, 1


@pytest.mark.parametrize(("max_messages", "greedy", "other"), [(16, 14, 2), (7, 7, 0)])
def test_a_caller_who_fills_the_queue_leaves_an_eighth_to_others(
    desk: Callable[..., AbstractAsyncContextManager[Desk]],
    check: Callable[..., CheckedInput],
    monkeypatch: pytest.MonkeyPatch,
    max_messages: int,
    greedy: int,
    other: int,
) -> None:
    monkeypatch.setattr(module, "READ_EVERY_S", 0.0)
    monkeypatch.setattr(module, "RELAXED_EVERY_S", 0.0)
    monkeypatch.setattr(module, "FULL_PAUSE_S", 0.0)

    async def main() -> None:
        async with desk(task_queue_max_messages=max_messages) as opened:

            async def count_accepted(caller: int) -> int:
                accepted = 0
                for _ in range(20):
                    try:
                        assert isinstance(await opened.queue.submit(check(), caller_number=caller), Record)
                    except QueueFullError:
                        continue
                    accepted += 1
                return accepted

            assert await count_accepted(GREEDY) == greedy
            assert await count_accepted(OTHER) == other
            # Finished tasks of the greedy caller make room for others, but not for itself.
            for message in await opened.fetch(1, lane=GREEDY):
                await message.ack_sync()
            if other:
                with pytest.raises(QueueFullError, match="share"):
                    await opened.queue.submit(check(), caller_number=GREEDY)
                await opened.queue.submit(check(), caller_number=OTHER)

    asyncio.run(main())


def test_a_caller_whose_large_tasks_fill_the_queue_leaves_bytes_to_others(
    desk: Callable[..., AbstractAsyncContextManager[Desk]],
    check: Callable[..., CheckedInput],
    pad: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "READ_EVERY_S", 0.0)
    monkeypatch.setattr(module, "RELAXED_EVERY_S", 0.0)
    monkeypatch.setattr(module, "FULL_PAUSE_S", 0.0)

    async def main() -> None:
        async with desk(task_queue_max_bytes=8 << 20) as opened:
            large = check(image=pad(512 << 10))
            for _ in range(13):  # seven eighths of 8 MiB are 14, less the overhead of the messages
                await opened.queue.submit(large, caller_number=GREEDY)
            with pytest.raises(QueueFullError, match="share"):
                await opened.queue.submit(large, caller_number=GREEDY)
            # Another process reads the sizes from the stream.
            opened.queue._admission._shares = module.QueueShares(opened.connection, opened.queue._settings)
            with pytest.raises(QueueFullError, match="share"):
                await opened.queue.submit(large, caller_number=GREEDY)
            await opened.queue.submit(large, caller_number=OTHER)

    asyncio.run(main())


def test_statistics_are_read_periodically_and_messages_sent_meanwhile_count(
    desk: Callable[..., AbstractAsyncContextManager[Desk]],
    check: Callable[..., CheckedInput],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FULL_PAUSE_S", 0.0)

    async def main() -> None:
        reads = 0
        read = module.list_consumers

        async def count(connection: object) -> object:
            nonlocal reads
            reads += 1
            return await read(connection)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "list_consumers", count)
        monkeypatch.setattr(module, "READ_EVERY_S", 300.0)
        monkeypatch.setattr(module, "RELAXED_EVERY_S", 300.0)
        async with desk(task_queue_max_messages=16) as opened:
            opened.queue._admission._shares._read_at = -300.0
            found = await asyncio.gather(
                *(opened.queue.submit(check(), caller_number=GREEDY) for _ in range(30)), return_exceptions=True
            )
            assert sum(isinstance(one, Record) for one in found) == 14
            assert reads == 1

    asyncio.run(main())


MIB = 1 << 20


class Disk(NamedTuple):
    """Result of ``statvfs``."""

    f_frsize: int
    f_blocks: int
    f_bavail: int


@pytest.mark.parametrize(
    ("total", "free", "size", "has_room"),
    [
        (1024 * MIB, 80 * MIB, 16 * MIB, True),
        (1024 * MIB, 80 * MIB, 16 * MIB + 1, False),
        (1024 * MIB, 10 * MIB, 1, False),
        (40 * MIB, 6 * MIB, MIB, True),
        (40 * MIB, 5 * MIB, 1, False),
    ],
)
def test_a_reserve_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, size: int, has_room: bool
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(1, total, free))
    assert module.StorageSpace(tmp_path).admit(size) is has_room


def test_folder_that_cannot_be_read_is_left_to_the_server(tmp_path: Path) -> None:
    space = module.StorageSpace(tmp_path / "missing")
    assert all(space.admit(16 * MIB) for _ in range(100))


def test_burst_between_two_reads_of_the_free_space_keeps_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(1, 1024 * MIB, 80 * MIB))
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    space = module.StorageSpace(tmp_path)
    admitted = [size for size in (10 * MIB, 7 * MIB, 5 * MIB, 2 * MIB, MIB) if space.admit(size)]
    assert admitted == [10 * MIB, 5 * MIB, MIB], "rejected messages use no space"
    now += module.FREE_SPACE_AGE_S
    assert space.admit(16 * MIB), "the free space was read again"
