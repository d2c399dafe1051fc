"""A caller who fills the queue leaves room for others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from app.tasks import queue as queue_module
from app.tasks import queue_shares as module
from app.tasks.errors import QueueFullError
from app.tasks.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

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
    monkeypatch.setattr(queue_module, "FULL_PAUSE_S", 0.0)

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
            # Those of the greedy caller that are done make room for others too, but not for itself.
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
    monkeypatch.setattr(queue_module, "FULL_PAUSE_S", 0.0)

    async def main() -> None:
        async with desk(task_queue_max_bytes=8 << 20) as opened:
            large = check(image=pad(512 << 10))
            for _ in range(13):  # seven eighths of 8 MiB are 14, less what surrounds the images
                await opened.queue.submit(large, caller_number=GREEDY)
            with pytest.raises(QueueFullError, match="share"):
                await opened.queue.submit(large, caller_number=GREEDY)
            # Another process knows the sizes only from the stream.
            opened.queue._shares = module.QueueShares(opened.connection, opened.queue._settings)
            with pytest.raises(QueueFullError, match="share"):
                await opened.queue.submit(large, caller_number=GREEDY)
            await opened.queue.submit(large, caller_number=OTHER)

    asyncio.run(main())


def test_figures_are_read_now_and_then_and_what_is_sent_meanwhile_counts(
    desk: Callable[..., AbstractAsyncContextManager[Desk]],
    check: Callable[..., CheckedInput],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_module, "FULL_PAUSE_S", 0.0)

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
            opened.queue._shares._read_at = -300.0
            found = await asyncio.gather(
                *(opened.queue.submit(check(), caller_number=GREEDY) for _ in range(30)), return_exceptions=True
            )
            assert sum(isinstance(one, Record) for one in found) == 14
            assert reads == 1

    asyncio.run(main())
