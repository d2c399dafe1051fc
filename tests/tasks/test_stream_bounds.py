"""Limits of existing streams: raised and lowered, with and without room in the storage limit of the server."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import orjson
import pytest

from app.tasks.stream import DEAD_STREAM, STREAM

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput
    from tests.tasks.conftest import Desk, NatsServer

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]
    Check = Callable[..., CheckedInput]

MIB = 1 << 20
DEFAULTS = {"task_queue_max_bytes": 1024 * MIB, "task_dead_max_bytes": 256 * MIB}
LOWERED = {"task_queue_max_bytes": 128 * MIB, "task_dead_max_bytes": 64 * MIB}


async def bounds(opened: Desk) -> list[int]:
    manager = opened.connection.client.jetstream()
    return [(await manager.stream_info(name)).config.max_bytes or 0 for name in (STREAM, DEAD_STREAM)]


def limit(server: NatsServer, size: int) -> None:
    """Restart a server with another storage limit."""
    server.stop()
    values = orjson.loads(server._file.read_bytes())
    values["jetstream"]["max_file"] = size
    server._file.write_bytes(orjson.dumps(values))
    server.start()


@pytest.mark.parametrize("swapped", [False, True])
def test_one_limit_is_lowered_before_another_is_raised(
    desk: OpenDesk, run_server: Callable[..., NatsServer], swapped: bool
) -> None:
    server = run_server()
    limit(server, 1200 * MIB)
    high, low = (
        {"task_queue_max_bytes": 1000 * MIB, "task_dead_max_bytes": 100 * MIB},
        {
            "task_queue_max_bytes": 100 * MIB,
            "task_dead_max_bytes": 1000 * MIB,
        },
    )
    before, after = (low, high) if swapped else (high, low)

    async def main() -> None:
        async with desk(nats_url=server.url, **before):
            pass
        async with desk(nats_url=server.url, **after) as opened:
            assert await bounds(opened) == list(after.values())

    asyncio.run(main())


def test_lowered_limit_drops_no_task(desk: OpenDesk, check: Check, run_server: Callable[..., NatsServer]) -> None:
    server = run_server()

    async def main() -> None:
        async with desk(nats_url=server.url) as opened:
            for _ in range(5):
                await opened.queue.submit(check())
        lowered = {"task_queue_max_messages": 2, "task_queue_max_bytes": MIB}
        async with desk(nats_url=server.url, **lowered) as opened:
            assert (await bounds(opened))[0] == MIB
            assert await opened.count() == 5

    asyncio.run(main())


def test_tasks_are_accepted_though_the_server_can_update_no_stream(
    desk: OpenDesk, check: Check, run_server: Callable[..., NatsServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = run_server()

    async def main() -> None:
        async with desk(nats_url=server.url, **DEFAULTS) as opened:
            version = opened.connection.client.connected_server_version
        if (version.major, version.minor) < (2, 12):
            pytest.skip("nats-server 2.11 does not load streams that reserve more than max_file")
        limit(server, 640 * MIB)
        with caplog.at_level(logging.WARNING):
            async with desk(nats_url=server.url, **LOWERED) as opened:
                await opened.queue.submit(check())
                assert await opened.count() == 1
                assert await bounds(opened) == list(DEFAULTS.values())
        (line,) = {record.getMessage() for record in caplog.records if f"Stream {STREAM} keeps" in record.getMessage()}
        assert "raise `max_file` of the server" in line
        limit(server, 2048 * MIB)
        async with desk(nats_url=server.url, **LOWERED) as opened:
            assert await bounds(opened) == list(LOWERED.values())
        limit(server, 640 * MIB)
        async with desk(nats_url=server.url, **LOWERED) as opened:
            await opened.queue.submit(check())
            assert await opened.count() == 2

    asyncio.run(main())


def test_limit_too_low_for_new_streams_is_named(
    desk: OpenDesk, run_server: Callable[..., NatsServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = run_server()
    limit(server, 64 * MIB)

    async def connect() -> None:
        async with asyncio.timeout(3), desk(nats_url=server.url, **DEFAULTS):
            pass

    with caplog.at_level(logging.WARNING), pytest.raises(TimeoutError):
        asyncio.run(connect())
    lines = [record.getMessage() for record in caplog.records if "cannot be created" in record.getMessage()]
    assert len(lines) == 1
    assert "raise `max_file` of the server" in lines[0]
