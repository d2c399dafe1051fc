"""Attempts at a task, and concurrent attempts: the first to finish ends the task, and it is counted once."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import nats.errors
import orjson
import pytest

from app.observability.recording import deferred
from app.tasks.connection import RevisionConflictError
from app.tasks.errors import QueueUnavailableError, TaskUnknownError
from app.tasks.message import decode_task
from app.tasks.records import Record, Records, TaskStatus
from app.tasks.stream import TASK_TYPE
from app.tasks.worker import Attempt, MaxAttemptsError, WorkerContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from nats.aio.msg import Msg

    from app.service.crop import CheckedInput, CropService
    from tests.tasks.conftest import Desk, Gate

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]
    Check = Callable[..., CheckedInput]
    Scrape = Callable[[], dict[tuple[str, ...], float]]

# Work on a thread, which can be blocked; light tasks run on the event loop.
HEAVY: dict[str, Any] = {"verify": "pixels"}
SUCCEEDED = ("task_completions_total", "SUCCESS", TASK_TYPE)
CANCELLED = ("task_completions_total", "CANCELLED", TASK_TYPE)
FAILED = ("task_completions_total", "FAILURE", TASK_TYPE)


class LossyRecords(Records):
    """Records whose responses get lost, or that are unavailable, at the end of a task.

    Attributes:
        lost: number of responses that get lost although the end is stored.
        unavailable: number of ends that are not stored.
    """

    lost = 0
    unavailable = 0

    async def update(self, record: Record, revision: int) -> int:
        if record.status.is_final and self.unavailable:
            self.unavailable -= 1
            raise QueueUnavailableError("unavailable")
        stored = await super().update(record, revision)
        if record.status.is_final and self.lost:
            self.lost -= 1
            raise QueueUnavailableError("lost")
        return stored


@pytest.fixture
def open_context(crop_service: CropService) -> Callable[..., Any]:
    """Return ``open_context(desk)``, which yields the resources of a worker process."""

    @contextmanager
    def make(desk: Desk) -> Iterator[WorkerContext]:
        with ThreadPoolExecutor(1) as pool:
            yield WorkerContext(
                settings=desk.settings,
                connection=desk.connection,
                records=LossyRecords(desk.connection, desk.settings),
                service=crop_service,
                pool=pool,
                work_slots=asyncio.Semaphore(1),
                stopping=asyncio.Event(),
            )

    return make


async def attempt(context: WorkerContext, message: Msg) -> None:
    with deferred():
        deliveries = message.metadata.num_delivered
        await Attempt(context, message, decode_task(message.data)).run(is_first=deliveries == 1)
    await message.ack_sync()


async def begun(desk: Desk, task_id: str, attempts: int) -> None:
    """Wait until this many attempts at a task have started."""

    async def is_begun() -> bool:
        return (await desk.queue.status(task_id)).attempts == attempts

    await desk.until(is_begun, f"attempt {attempts}")


@pytest.mark.parametrize("is_first_first", [True, False])
def test_a_late_delivery_changes_nothing(  # the first worker was considered dead, but was not
    desk: OpenDesk, check: Check, gate: Gate, open_context: Any, scrape: Scrape, *, is_first_first: bool
) -> None:
    gate.close(3)

    async def main() -> None:
        async with desk(task_ack_wait_s=1) as opened:
            with open_context(opened) as early, open_context(opened) as late:
                record = await opened.queue.submit(check(simplify=3, **HEAVY))
                (message,) = await opened.fetch()
                (again,) = await opened.fetch()
                assert (message.metadata.num_delivered, again.metadata.num_delivered) == (1, 2)
                # Both start before either ends: each is blocked in its own thread.
                first = asyncio.create_task(attempt(early, message))
                await begun(opened, record.task_id, 1)
                second = asyncio.create_task(attempt(late, again))
                await begun(opened, record.task_id, 2)
                order = [(early, first), (late, second)] if is_first_first else [(late, second), (early, first)]
                ended = await _end_in_order(opened, gate, record.task_id, order)
                assert await opened.queue.status(record.task_id) == ended
                assert await opened.count() == 0

    asyncio.run(main())
    counted = scrape()
    assert counted[SUCCEEDED] == 1
    assert counted["task_processing_duration_seconds_count", TASK_TYPE] == 2
    assert counted["task_wait_seconds_count", TASK_TYPE] == 1


async def _end_in_order(
    desk: Desk, gate: Gate, task_id: str, order: list[tuple[WorkerContext, asyncio.Task[None]]]
) -> Record:
    """Finish both attempts, so that the end of the second is written after that of the first."""
    (winner, first), (loser, second) = order
    assert isinstance(winner.records, LossyRecords)
    assert isinstance(loser.records, LossyRecords)
    loser.records.unavailable = 10_000
    gate.open(3)
    await first
    ended = await desk.queue.status(task_id)
    assert ended.status is TaskStatus.SUCCESS
    loser.records.unavailable = 0
    await second
    return ended


def test_an_end_whose_response_is_lost_is_counted_once(
    desk: OpenDesk, check: Check, open_context: Any, scrape: Scrape
) -> None:
    async def main() -> None:
        async with desk() as opened:
            with open_context(opened) as context:
                context.records.lost = 1
                record = await opened.queue.submit(check())
                (message,) = await opened.fetch()
                await attempt(context, message)
                ended = await opened.queue.status(record.task_id)
                assert (ended.status, ended.attempts) == (TaskStatus.SUCCESS, 1)

    asyncio.run(main())
    assert scrape()[SUCCEEDED] == 1


def test_a_short_outage_costs_no_work(desk: OpenDesk, check: Check, open_context: Any, scrape: Scrape) -> None:
    async def main() -> None:
        async with desk() as opened:
            with open_context(opened) as context:
                context.records.unavailable = 3
                record = await opened.queue.submit(check())
                (message,) = await opened.fetch()
                await attempt(context, message)
                assert (await opened.queue.status(record.task_id)).status is TaskStatus.SUCCESS

    asyncio.run(main())
    assert scrape()[SUCCEEDED] == 1
    assert scrape()["task_processing_duration_seconds_count", TASK_TYPE] == 1


def test_a_long_outage_leaves_the_task_to_other_workers(
    desk: OpenDesk, check: Check, open_context: Any, scrape: Scrape
) -> None:
    async def main() -> None:
        async with desk(task_ack_wait_s=1) as opened:
            with open_context(opened) as context:
                context.records.unavailable = 10_000
                record = await opened.queue.submit(check())
                (message,) = await opened.fetch()
                with pytest.raises(QueueUnavailableError):
                    await attempt(context, message)
                assert (await opened.queue.status(record.task_id)).status is TaskStatus.STARTED
                context.records.unavailable = 0
                (again,) = await opened.fetch()
                await attempt(context, again)
                ended = await opened.queue.status(record.task_id)
                assert (ended.status, ended.attempts) == (TaskStatus.SUCCESS, 2)

    asyncio.run(main())
    assert scrape()[SUCCEEDED] == 1


def test_an_end_that_comes_after_the_task_was_cancelled_is_not_counted(
    desk: OpenDesk, check: Check, gate: Gate, open_context: Any, scrape: Scrape
) -> None:
    gate.close(3)

    async def main() -> None:
        async with desk() as opened:
            with open_context(opened) as context:
                record = await opened.queue.submit(check(simplify=3, **HEAVY))
                (message,) = await opened.fetch()
                working = asyncio.create_task(attempt(context, message))
                await begun(opened, record.task_id, 1)
                cancelled = await opened.queue.cancel(record.task_id)
                gate.open(3)
                await working
                assert await opened.queue.status(record.task_id) == cancelled

    asyncio.run(main())
    assert (scrape()[SUCCEEDED], scrape()[CANCELLED]) == (0, 1)


def test_a_task_that_was_started_too_often_is_not_started_again(
    desk: OpenDesk, check: Check, open_context: Any
) -> None:
    async def main() -> None:
        async with desk(task_max_deliveries=2) as opened:
            with open_context(opened) as context:
                record = await opened.queue.submit(check())
                stored, revision = await opened.records.get(record.task_id)
                await opened.records.update(stored.replace(status=TaskStatus.STARTED, attempts=2), revision)
                (message,) = await opened.fetch()
                with pytest.raises(MaxAttemptsError, match="in 2 attempts"):
                    await attempt(context, message)
                assert (await opened.queue.status(record.task_id)).attempts == 2

    asyncio.run(main())


def test_a_task_whose_record_has_expired_is_processed(desk: OpenDesk, check: Check, open_context: Any) -> None:
    async def main() -> None:
        async with desk() as opened:
            with open_context(opened) as context:
                record = await opened.queue.submit(check())
                await opened.connection.client.jetstream().purge_stream("KV_TASK_RECORDS")
                (message,) = await opened.fetch()
                await attempt(context, message)
                ended = await opened.queue.status(record.task_id)
                assert (ended.status, ended.submitted_at) == (TaskStatus.SUCCESS, record.submitted_at)
                assert orjson.loads(bytes(ended.result))["regions_detected"]

    asyncio.run(main())


@pytest.mark.parametrize("is_acknowledged", [False, True])
def test_an_end_is_stored_although_the_record_has_expired_unless_another_attempt_ended_the_task(
    desk: OpenDesk, check: Check, gate: Gate, open_context: Any, *, is_acknowledged: bool
) -> None:
    gate.close(3)

    async def main() -> None:
        async with desk() as opened:
            with open_context(opened) as context:
                record = await opened.queue.submit(check(simplify=3, **HEAVY))
                (message,) = await opened.fetch()
                working = asyncio.create_task(attempt(context, message))
                await begun(opened, record.task_id, 1)
                context.records.unavailable = 1  # the progress that is stored meanwhile makes no difference
                if is_acknowledged:
                    await message.ack_sync()
                gate.open(3)
                await opened.until(lambda: context.records.unavailable == 0, "the end of the work")
                await opened.connection.client.jetstream().purge_stream("KV_TASK_RECORDS")
                if is_acknowledged:
                    with contextlib.suppress(nats.errors.MsgAlreadyAckdError):
                        await working
                    with pytest.raises(TaskUnknownError):
                        await opened.queue.status(record.task_id)
                else:
                    await working
                    assert (await opened.queue.status(record.task_id)).status is TaskStatus.SUCCESS

    asyncio.run(main())


def test_a_record_that_changes_continually_is_left_to_others(
    desk: OpenDesk, check: Check, open_context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with desk() as opened:
            with open_context(opened) as context:
                await opened.queue.submit(check())
                (message,) = await opened.fetch()

                async def conflict(*_: object) -> int:
                    raise RevisionConflictError

                monkeypatch.setattr(context.records, "update", conflict)
                with pytest.raises(RevisionConflictError):
                    await attempt(context, message)

    asyncio.run(main())


def test_a_failure_keeps_no_result(desk: OpenDesk, bad_pixels: CheckedInput, open_context: Any, scrape: Scrape) -> None:
    async def main() -> None:
        async with desk(result_cache=True) as opened:
            with open_context(opened) as context:
                digest = bad_pixels.digest()
                record = await opened.queue.submit(bad_pixels, digest=digest)
                (message,) = await opened.fetch()
                await attempt(context, message)
                ended = await opened.queue.status(record.task_id)
                assert (ended.status, msgspec.json.decode(bytes(ended.result))) == (TaskStatus.FAILURE, None)
                assert await opened.queue.find_result(digest) is None

    asyncio.run(main())
    assert scrape()[FAILED] == 1
