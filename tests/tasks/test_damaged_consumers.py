"""A consumer whose state on the disk is damaged, for example by a power failure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import nats
import pytest

from app.settings import Settings
from app.tasks import embedded_server
from app.tasks import stream as module
from app.tasks.records import TaskStatus
from app.tasks.stream import CONSUMER, STREAM, StreamSetupError, consumer_name, ensure_streams

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from app.service.crop import CheckedInput
    from tests.tasks.conftest import Desk, NatsServer

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]


def state_of(server: NatsServer, consumer: str) -> Path:
    return server.store / "jetstream" / "$G" / "streams" / STREAM / "obs" / consumer / "o.dat"


@pytest.mark.parametrize("content", [bytes(30), b"\x16", b"other"], ids=["zeros", "truncated", "overwritten"])
def test_waiting_tasks_are_delivered_although_the_embedded_server_lost_its_consumers(
    run_server: Callable[..., NatsServer],
    desk: OpenDesk,
    at_work: OpenDesk,
    check: Callable[..., CheckedInput],
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repairs: list[str] = []
    monkeypatch.setattr(module, "record_task_repair", repairs.append)
    server = run_server()
    monkeypatch.setattr(embedded_server, "store_folder", lambda _settings: server.store)
    settings = {"nats_url": server.url}

    async def submit() -> str:
        async with desk(**settings) as opened:
            task_id = (await opened.queue.submit(check())).task_id
            await opened.fetch()
            return task_id

    async def finish(task_id: str) -> None:
        async with at_work(**settings) as opened:
            assert (await opened.end_of(task_id)).status is TaskStatus.SUCCESS
            await opened.drained()

    task_id = asyncio.run(submit())
    server.stop()
    damaged = (CONSUMER, consumer_name(3))
    for consumer in damaged:
        state_of(server, consumer).write_bytes(content)
    server.start()
    asyncio.run(finish(task_id))
    assert repairs == ["consumer_recreated"] * len(damaged)


def test_the_remedy_is_reported_if_the_server_is_elsewhere(
    run_server: Callable[..., NatsServer], desk: OpenDesk, check: Callable[..., CheckedInput]
) -> None:
    server = run_server()

    async def submit() -> None:
        async with desk(nats_url=server.url) as opened:
            await opened.queue.submit(check())
            await opened.fetch()

    asyncio.run(submit())
    server.stop()
    state = state_of(server, CONSUMER)
    state.write_bytes(bytes(30))
    server.start()

    async def connect() -> None:
        client = await nats.connect(server.url)
        try:
            with pytest.raises(StreamSetupError, match="obs"):
                await ensure_streams(client, Settings(nats_url=server.url))
        finally:
            await client.close()

    asyncio.run(connect())
    assert state.read_bytes() == bytes(30)
