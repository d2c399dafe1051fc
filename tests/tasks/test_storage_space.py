"""What happens when the disk of the queue runs full: refusals before it does, and a restart after it was."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from app.tasks import connection, storage_space
from app.tasks.errors import QueueUnavailableError
from app.tasks.storage_space import (
    LOOK_AGAIN_S,
    RESTART_PAUSE_MAX_S,
    RESTART_PAUSE_S,
    StorageSpace,
    StorageWatch,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from app.service.crop import CheckedInput
    from tests.tasks.conftest import Desk, NatsServer

MIB = 1 << 20
FAULT = "JetStream stream '$G > TASKS' write error: no space left on device"


class Disk(NamedTuple):
    """What ``statvfs`` returns of a disk."""

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
    assert StorageSpace(tmp_path).admit(size) is has_room


def test_folder_that_cannot_be_read_is_left_to_the_server(tmp_path: Path) -> None:
    space = StorageSpace(tmp_path / "missing")
    assert all(space.admit(16 * MIB) for _ in range(100))


def test_burst_between_two_reads_of_the_free_space_keeps_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(1, 1024 * MIB, 80 * MIB))
    monkeypatch.setattr(storage_space.time, "monotonic", lambda: now)
    space = StorageSpace(tmp_path)
    admitted = [size for size in (10 * MIB, 7 * MIB, 5 * MIB, 2 * MIB, MIB) if space.admit(size)]
    assert admitted == [10 * MIB, 5 * MIB, MIB], "what is refused takes no space"
    now += LOOK_AGAIN_S
    assert space.admit(16 * MIB), "the free space was read again"


def test_server_is_restarted_when_there_is_room_and_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage_space, "reserve_bytes", lambda _: MIB)
    restarts: list[float] = []
    now = 1000.0
    watch = StorageWatch("", tmp_path, lambda: restarts.append(now))
    with caplog.at_level(logging.INFO):
        for fault, free in [(None, 0), ("", 0), (FAULT, 0), (FAULT, MIB), (FAULT, None), (None, 9 * MIB)]:
            watch.note(fault, free, now)
        assert restarts == [], "there is no room, or no response"
        while now < 5000:
            watch.note(FAULT, 2 * MIB, now)
            now += 1
        watch.note("", 2 * MIB, now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(restarts)]
    assert restarts[0] == 1000.0
    assert pauses[0] == RESTART_PAUSE_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == RESTART_PAUSE_MAX_S
    messages = [record.getMessage() for record in caplog.records]
    assert sum("cannot be written" in message for message in messages) == 1
    assert sum("can be written again" in message for message in messages) == 1


def test_server_that_hangs_is_no_server_that_stores_nothing(
    desk: Callable[..., AbstractAsyncContextManager[Desk]],
    check: Callable[..., CheckedInput],
    run_server: Callable[..., NatsServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "STUCK_TIMEOUT_S", 0.1)
    server = run_server()

    async def main() -> None:
        async with desk(nats_url=server.url, nats_timeout_s=0.2) as opened:
            with server.frozen():
                with pytest.raises(QueueUnavailableError) as caught:
                    await opened.connection.store("tasks.x.1", b"x")
                assert type(caught.value) is QueueUnavailableError, "the web layer maps this type"
                opened.connection.require_storing()
            await opened.until(lambda: opened.connection.is_up, "the connection")
            await opened.queue.submit(check())

    asyncio.run(main())


def test_server_that_stores_nothing_is_asked_by_one_request_at_a_time(
    desk: Callable[..., AbstractAsyncContextManager[Desk]],
    check: Callable[..., CheckedInput],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with desk(nats_timeout_s=0.3) as opened:
            request = opened.connection.client.request
            is_stuck = True
            asked: list[str] = []

            async def respond(subject: str, *arguments: Any, **options: Any) -> Any:
                if subject.startswith("tasks.") and is_stuck:
                    asked.append(subject)
                    raise TimeoutError
                return await request(subject, *arguments, **options)

            monkeypatch.setattr(opened.connection.client, "request", respond)
            for _ in range(5):
                with pytest.raises(QueueUnavailableError):
                    await opened.queue.submit(check())
            assert len(asked) == 1
            is_stuck = False
            monkeypatch.setattr(connection, "STUCK_PAUSE_S", 0.0)
            opened.connection._stuck = dict.fromkeys(opened.connection._stuck, 0.0)
            for _ in range(2):
                await opened.queue.submit(check())

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    messages = [record.getMessage() for record in caplog.records]
    assert sum("does not store messages of tasks" in message for message in messages) == 1
    assert sum("stores messages of tasks again" in message for message in messages) == 1
    assert "The queue is back" not in messages
