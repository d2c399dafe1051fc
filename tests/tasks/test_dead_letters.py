"""Dead letters: stored with a reason, listed, retried, dropped."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from app.tasks import worker
from app.tasks.dead_letters import DeadLetterQueue, connect_dead_letters
from app.tasks.errors import QueueUnavailableError, TaskUnknownError
from app.tasks.message import encode_task
from app.tasks.records import Record, TaskStatus
from app.tasks.stream import DEAD_STREAM, TASK_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput
    from app.settings import Settings
    from tests.tasks.conftest import Desk, Gate

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]
    Check = Callable[..., CheckedInput]
    Scrape = Callable[[], dict[tuple[str, ...], float]]

UNKNOWN = "f" * 32
HEAVY: dict[str, Any] = {"verify": "pixels"}
FAILED = ("task_completions_total", "FAILURE", TASK_TYPE)


async def dead_letter(
    desk: Desk, checked: CheckedInput, *, attempts: int = 5, digest: str = ""
) -> tuple[Record, bytes]:
    """Dead-letter a task as a worker does; return its previous record and its message."""
    record = await desk.queue.submit(checked, digest=digest)
    (message,) = await desk.fetch()
    await DeadLetterQueue(desk.connection, desk.records).dead_letter(
        record.task_id, message.data, attempts=attempts, reason="it did not finish"
    )
    await message.ack_sync()
    return record, message.data


def test_a_dead_lettered_task_has_failed_and_is_stored(desk: OpenDesk, check: Check, scrape: Scrape) -> None:
    async def main() -> None:
        async with desk() as opened:
            dead_letters = DeadLetterQueue(opened.connection, opened.records)
            assert await dead_letters.list() == []
            before = time.time()
            record, data = await dead_letter(opened, check())
            failed = await opened.queue.status(record.task_id)
            assert failed.error is not None
            assert (failed.status, failed.error.code) == (TaskStatus.FAILURE, "task_gave_up")
            assert failed.error.detail == "it did not finish"
            (dead,) = await dead_letters.list()
            assert (dead.task_id, dead.attempts, dead.reason) == (record.task_id, 5, "it did not finish")
            assert dead.size == len(data)
            assert before <= dead.buried_at <= time.time()

    asyncio.run(main())
    counted = scrape()
    assert (counted[FAILED], counted["task_dead_total", TASK_TYPE]) == (1, 1)
    assert counted["errors_total", "tasks", "task_gave_up"] == 1


def test_all_are_listed_the_oldest_first(desk: OpenDesk, check: Check) -> None:
    async def main() -> None:
        async with desk() as opened:
            buried = [(await dead_letter(opened, check()))[0].task_id for _ in range(30)]
            dead_letters = DeadLetterQueue(opened.connection, opened.records)
            for _ in range(2):
                assert [dead.task_id for dead in await dead_letters.list()] == buried
            info = await opened.connection.client.jetstream().consumers_info(DEAD_STREAM)
            assert len(info) <= 2, "the consumers of listings expire"

    asyncio.run(main())


def test_a_task_that_has_ended_keeps_its_end(desk: OpenDesk, check: Check, scrape: Scrape) -> None:
    async def main() -> None:
        async with desk() as opened:
            record = await opened.queue.submit(check())
            cancelled = await opened.queue.cancel(record.task_id)
            await DeadLetterQueue(opened.connection, opened.records).dead_letter(
                record.task_id, b"x", attempts=1, reason="why"
            )
            assert await opened.queue.status(record.task_id) == cancelled

    asyncio.run(main())
    assert scrape()[FAILED] == 0


@pytest.mark.parametrize("has_record", [True, False])
def test_a_retried_task_succeeds(at_work: OpenDesk, check: Check, scrape: Scrape, *, has_record: bool) -> None:
    async def main() -> None:
        async with at_work() as desk:
            record = Record(task_id="b" * 32, submitted_at=1.5, digest="d")
            revision = await desk.records.create(record)
            dead_letters = DeadLetterQueue(desk.connection, desk.records)
            message = encode_task(record, revision, check())
            await dead_letters.dead_letter(record.task_id, message, attempts=5, reason="why")
            if not has_record:
                await desk.connection.client.jetstream().purge_stream("KV_TASK_RECORDS")
            await dead_letters.retry(record.task_id)
            ended = await desk.end_of(record.task_id)
            assert (ended.status, ended.attempts, ended.error) == (TaskStatus.SUCCESS, 1, None)
            if has_record:
                assert (ended.submitted_at, ended.digest) == (1.5, "d")
            assert await dead_letters.list() == []
            await desk.drained()

    asyncio.run(main())
    assert scrape()["task_completions_total", "SUCCESS", TASK_TYPE] == 1


def test_a_retried_task_that_fails_again_is_dead_again(
    at_work: OpenDesk, check: Check, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RETRY_S", 0.05)
    gate.fail(3, times=99)

    async def main() -> None:
        async with at_work(task_max_deliveries=2) as desk:
            dead_letters = DeadLetterQueue(desk.connection, desk.records)
            record = await desk.queue.submit(check(simplify=3, **HEAVY))
            for _ in range(3):
                assert (await desk.end_of(record.task_id)).status is TaskStatus.FAILURE
                await desk.drained()
                (dead,) = await dead_letters.list()
                assert (dead.task_id, dead.attempts) == (record.task_id, 2)
                await dead_letters.retry(record.task_id)
            await desk.end_of(record.task_id)
            await desk.drained()
            assert len(await dead_letters.list()) == 1
            assert gate.begun == [3] * 8

    asyncio.run(main())


def test_a_task_that_dies_again_before_the_retry_is_over_stays_dead(desk: OpenDesk) -> None:
    async def main() -> None:
        async with desk() as opened:
            dead_letters = DeadLetterQueue(opened.connection, opened.records)
            await dead_letters.dead_letter("b" * 32, b"garbage", attempts=1, reason="why")
            store = opened.connection.store

            async def store_and_be_overtaken(subject: str, *rest: Any) -> int:
                sequence = await store(subject, *rest)
                if subject.startswith("tasks."):
                    await dead_letters.dead_letter("b" * 32, b"garbage", attempts=1, reason="why again")
                return sequence

            opened.connection.store = store_and_be_overtaken  # type: ignore[assignment]
            await dead_letters.retry("b" * 32)
            assert [dead.reason for dead in await dead_letters.list()] == ["why again"]

    asyncio.run(main())


def test_one_is_dropped_and_the_others_stay(desk: OpenDesk, check: Check) -> None:
    async def main() -> None:
        async with desk() as opened:
            dead_letters = DeadLetterQueue(opened.connection, opened.records)
            first, second = [(await dead_letter(opened, check()))[0].task_id for _ in range(2)]
            await dead_letters.drop(first)
            assert [dead.task_id for dead in await dead_letters.list()] == [second]
            assert (await opened.queue.status(first)).status is TaskStatus.FAILURE
            for ask in (dead_letters.drop(first), dead_letters.retry(first)):
                with pytest.raises(TaskUnknownError, match="dead letter not found"):
                    await ask

    asyncio.run(main())


@pytest.mark.parametrize("task_id", [UNKNOWN, "*", ">", "", "a b", f"x.{UNKNOWN}"])
def test_an_unknown_task_can_neither_be_retried_nor_dropped(desk: OpenDesk, check: Check, task_id: str) -> None:
    async def main() -> None:
        async with desk() as opened:
            record, _ = await dead_letter(opened, check())
            dead_letters = DeadLetterQueue(opened.connection, opened.records)
            for ask in (dead_letters.drop, dead_letters.retry):
                with pytest.raises(TaskUnknownError):
                    await ask(task_id)
            assert [dead.task_id for dead in await dead_letters.list()] == [record.task_id]
            assert await opened.count() == 0

    asyncio.run(main())


def test_a_retry_without_room_keeps_the_dead_letter(desk: OpenDesk, check: Check) -> None:
    async def main() -> None:
        async with desk(task_queue_max_messages=1) as opened:
            dead_letters = DeadLetterQueue(opened.connection, opened.records)
            record, _ = await dead_letter(opened, check())
            await opened.queue.submit(check())
            with pytest.raises(Exception, match="the queue is full"):
                await dead_letters.retry(record.task_id)
            assert [dead.task_id for dead in await dead_letters.list()] == [record.task_id]
            # The task was not requeued, so it remains failed.
            assert (await opened.queue.status(record.task_id)).status is TaskStatus.FAILURE

    asyncio.run(main())


def test_a_command_connects_without_changing_streams_or_raises(
    make_settings: Callable[..., Settings], desk: OpenDesk
) -> None:
    async def main() -> None:
        async with desk(task_ack_wait_s=33, task_dead_max_bytes=5 * 1024 * 1024) as opened:
            # A shell whose settings differ from those of the service.
            connection, dead_letters = await connect_dead_letters(make_settings())
            assert await dead_letters.list() == []
            await connection.close()
            assert (await opened.consumer()).config.ack_wait == 33
            dead = await opened.connection.client.jetstream().stream_info(DEAD_STREAM)
            assert dead.config.max_bytes == 5 * 1024 * 1024
        with pytest.raises(QueueUnavailableError, match=r"within 0\.5 s"):
            await connect_dead_letters(make_settings(nats_url="nats://127.0.0.1:9", nats_timeout_s=0.5))

    asyncio.run(main())
