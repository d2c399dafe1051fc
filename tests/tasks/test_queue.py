"""The queue as the web layer uses it: submit, status, cancel, outages and the result cache."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec
import nats.errors
import pytest
import uvloop

from app.tasks import admission, long_polls, records
from app.tasks import queue as module
from app.tasks.connection import RevisionConflictError
from app.tasks.errors import (
    IdempotencyConflictError,
    QueueFullError,
    QueueUnavailableError,
    TaskEndedError,
    TaskTooLargeError,
    TaskUnknownError,
)
from app.tasks.message import decode_task
from app.tasks.queue import TaskQueue
from app.tasks.records import Record, TaskError, TaskStatus
from app.tasks.stream import RECORDS_STREAM, STREAM, TASK_TYPE
from app.tasks.stream_state import find_lane

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput
    from app.settings import Settings
    from tests.tasks.conftest import Desk, NatsServer

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]
    Check = Callable[..., CheckedInput]
    Scrape = Callable[[], dict[tuple[str, ...], float]]

MIB = 1024 * 1024
SUBMITTED = ("task_submissions_total", TASK_TYPE)
UNKNOWN = "f" * 32


async def end(desk: Desk, task_id: str, **changes: Any) -> Record:
    """Store the end of a task as a worker does, unless it has ended."""
    record, revision = await desk.records.get(task_id)
    if record.status.is_final:
        raise RevisionConflictError
    ended = record.replace(**{"status": TaskStatus.SUCCESS, "progress": 1.0, **changes})
    await desk.records.update(ended, revision)
    return ended


def completed(status: str) -> tuple[str, ...]:
    return "task_completions_total", status, TASK_TYPE


class TestSubmit:
    def test_a_submitted_task_is_visible_to_workers_and_callers(
        self, desk: OpenDesk, check: Check, scrape: Scrape
    ) -> None:
        async def main() -> None:
            async with desk() as opened:
                before = time.time()
                checked = check(show_labels=True)
                record = await opened.queue.submit(checked)
                assert (record.status, record.attempts, len(record.task_id)) == (TaskStatus.PENDING, 0, 32)
                assert before <= record.submitted_at <= time.time()
                assert await opened.queue.status(record.task_id) == record
                (message,) = await opened.fetch()
                task = decode_task(message.data)
                assert task.record == record
                assert task.checked.digest() == checked.digest()
                assert task.revision == (await opened.records.get(record.task_id))[1]

        asyncio.run(main())
        counted = scrape()
        assert counted[SUBMITTED] == 1
        assert sum(counted[completed(status)] for status in ("SUCCESS", "FAILURE", "CANCELLED")) == 0

    def test_the_same_request_without_a_key_is_another_task(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                records = [await opened.queue.submit(check()) for _ in range(3)]
                assert len({record.task_id for record in records}) == 3
                assert await opened.count() == 3

        asyncio.run(main())

    def test_concurrent_submissions_are_all_accepted(self, desk: OpenDesk, check: Check, scrape: Scrape) -> None:
        async def main() -> None:
            async with desk() as opened:
                records = await asyncio.gather(*(opened.queue.submit(check()) for _ in range(100)))
                assert await opened.count() == 100
                found = [await opened.queue.status(record.task_id) for record in records]
                assert found == records

        asyncio.run(main())
        assert scrape()[SUBMITTED] == 100


class TestIdempotency:
    def test_the_same_key_gives_the_same_task(self, desk: OpenDesk, check: Check, scrape: Scrape) -> None:
        async def main() -> None:
            async with desk() as opened:
                first = await opened.queue.submit(check(), idempotency_key="k", digest="d")
                again = await opened.queue.submit(check(), idempotency_key="k", digest="d")
                assert again == first
                assert await opened.count() == 1
                ended = await end(opened, first.task_id)
                assert await opened.queue.submit(check(), idempotency_key="k", digest="d") == ended
                assert await opened.count() == 1

        asyncio.run(main())
        assert scrape()[SUBMITTED] == 1

    def test_the_same_key_with_another_request_is_a_conflict(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                first = await opened.queue.submit(check(), idempotency_key="k", digest="d")
                with pytest.raises(IdempotencyConflictError, match="Idempotency-Key"):
                    await opened.queue.submit(check(simplify=3), idempotency_key="k", digest="other")
                assert await opened.count() == 1
                assert await opened.queue.status(first.task_id) == first

        asyncio.run(main())

    def test_keys_of_different_callers_are_independent(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                callers = [("", "ab"), ("a", "b"), ("ab", ""), ("b", "a"), ("a", "b ")]
                taken = [
                    await opened.queue.submit(check(), idempotency_key=key, owner=caller, digest="d")
                    for caller, key in callers
                ]
                assert len({record.task_id for record in taken}) == len(callers)
                assert await opened.count() == len(callers)

        asyncio.run(main())

    def test_concurrent_submissions_with_one_key_create_one_task_and_one_message(
        self, desk: OpenDesk, check: Check, scrape: Scrape
    ) -> None:
        async def main() -> None:
            async with desk() as opened, desk() as beside:
                queues = [opened.queue, beside.queue] * 10
                taken = await asyncio.gather(
                    *(queue.submit(check(), idempotency_key="k", digest="d") for queue in queues)
                )
                assert len({record.task_id for record in taken}) == 1
                assert await opened.count() == 1
                (message,) = await opened.fetch()
                assert decode_task(message.data).record.task_id == taken[0].task_id

        asyncio.run(main())
        assert scrape()[SUBMITTED] == 1

    def test_a_record_whose_message_was_never_sent_gets_it_once(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                # As after a crash between the two writes.
                task_id = module._derive_id("me", "k")
                record = Record(task_id=task_id, submitted_at=time.time(), digest="d")
                await opened.records.create(record)
                for _ in range(2):
                    again = await opened.queue.submit(
                        check(), idempotency_key="k", caller_number=3, owner="me", digest="d"
                    )
                    assert again == record
                assert await opened.count() == 1
                (message,) = await opened.fetch(lane=3)
                assert decode_task(message.data).record == record

        asyncio.run(main())

    def test_a_late_withdrawal_does_not_reach_a_task_that_was_submitted_again(
        self, desk: OpenDesk, check: Check
    ) -> None:
        """The process that submits first gets no response about the message, which is stored, and is then slow."""

        async def main() -> None:
            async with desk() as opened:
                first = await opened.queue.submit(check(), idempotency_key="k", digest="d")
                _, revision = await opened.records.get(first.task_id)
                assert await opened.queue.submit(check(), idempotency_key="k", digest="d") == first
                withdrawn = first.replace(status=TaskStatus.CANCELLED, is_withdrawn=True)
                with pytest.raises(RevisionConflictError):
                    await opened.records.update(withdrawn, revision)
                assert await opened.queue.status(first.task_id) == first
                assert await opened.count() == 1

        asyncio.run(main())

    def test_a_submission_that_is_repeated_from_another_address_is_not_sent_again(
        self, desk: OpenDesk, check: Check
    ) -> None:
        async def main() -> None:
            async with desk() as opened:
                for number in (1, 2, 3, 0):
                    record = await opened.queue.submit(check(), idempotency_key="k", caller_number=number, digest="d")
                    assert await find_lane(opened.connection, record.task_id) is not None
                    assert await opened.queue.status(record.task_id) == record
                assert await opened.count() == 1

        asyncio.run(main())

    def test_a_started_task_is_not_sent_again(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                first = await opened.queue.submit(check(), idempotency_key="k", digest="d")
                (message,) = await opened.fetch()
                begun = await end(opened, first.task_id, status=TaskStatus.STARTED, attempts=1)
                await message.ack_sync()
                assert await opened.queue.submit(check(), idempotency_key="k", digest="d") == begun
                assert await opened.count() == 0

        asyncio.run(main())

    def test_a_task_that_ends_while_its_key_is_resolved(
        self, desk: OpenDesk, check: Check, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with desk() as opened:
                first = await opened.queue.submit(check(), idempotency_key="k", digest="d")
                records = opened.queue._records
                update = records.update

                async def end_before(record: Record, revision: int) -> int:
                    monkeypatch.setattr(records, "update", update)
                    await end(opened, first.task_id)
                    return await update(record, revision)

                # The worker is faster than the repeated request: the record was read, then the task ends.
                await opened.connection.client.jetstream().purge_stream(STREAM)
                monkeypatch.setattr(records, "update", end_before)
                again = await opened.queue.submit(check(), idempotency_key="k", digest="d")
                assert (again.task_id, again.status) == (first.task_id, TaskStatus.SUCCESS)
                assert await opened.count() == 0

        asyncio.run(main())

    def test_a_cancelled_task_keeps_its_key(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                first = await opened.queue.submit(check(), idempotency_key="k", digest="d")
                cancelled = await opened.queue.cancel(first.task_id)
                assert await opened.queue.submit(check(), idempotency_key="k", digest="d") == cancelled
                assert await opened.count() == 1, "only the message of the cancelled task"

        asyncio.run(main())

    def test_a_rejected_task_can_be_submitted_again(
        self, desk: OpenDesk, check: Check, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            monkeypatch.setattr(admission, "FULL_PAUSE_S", 0.0)
            async with desk(task_queue_max_messages=1) as opened:
                other = await opened.queue.submit(check())
                with pytest.raises(QueueFullError):
                    await opened.queue.submit(check(), idempotency_key="k", digest="d")
                (message,) = await opened.fetch()
                assert decode_task(message.data).record == other
                await message.ack_sync()
                # The task was not accepted, so another request may use the key.
                record = await opened.queue.submit(check(simplify=3), idempotency_key="k", digest="other")
                (message,) = await opened.fetch()
                task = decode_task(message.data)
                assert (task.record, task.checked.options.simplify) == (record, 3)
                assert await opened.queue.status(record.task_id) == record

        asyncio.run(main())


class TestStatus:
    def test_an_unknown_task(self, desk: OpenDesk) -> None:
        async def main() -> None:
            async with desk() as opened:
                for wait_s in (0, 5):
                    with pytest.raises(TaskUnknownError):
                        await opened.queue.status(UNKNOWN, wait_s=wait_s)
                with pytest.raises(TaskUnknownError):
                    await opened.queue.cancel(UNKNOWN)

        asyncio.run(main())

    def test_a_wait_ends_with_the_task_and_not_before(
        self, desk: OpenDesk, check: Check, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            monkeypatch.setattr(long_polls, "RECHECK_S", 300.0)  # so that only a notice can end it
            async with desk() as opened:
                record = await opened.queue.submit(check())
                waits = [asyncio.create_task(opened.queue.status(record.task_id, wait_s=300)) for _ in range(3)]
                await opened.until(lambda: len(opened.queue._long_polls._polls) == 3, "the waits")
                for progress in (0.25, 0.5):
                    await end(opened, record.task_id, status=TaskStatus.STARTED, progress=progress)
                # Notices arrive in order; the response to a later request shows that they have arrived.
                await opened.queue.status(record.task_id)
                assert not any(wait.done() for wait in waits)
                ended = await end(opened, record.task_id, result=msgspec.Raw(b'{"a":1}'))
                async with asyncio.timeout(30):
                    assert await asyncio.gather(*waits) == [ended] * 3

        asyncio.run(main())

    def test_a_wait_for_a_finished_task_returns_at_once(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                record = await opened.queue.submit(check())
                ended = await end(opened, record.task_id)
                async with asyncio.timeout(30):
                    assert await opened.queue.status(record.task_id, wait_s=300) == ended

        asyncio.run(main())

    def test_a_wait_ends_when_its_time_is_over(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                record = await opened.queue.submit(check())
                start = time.monotonic()
                assert await opened.queue.status(record.task_id, wait_s=0.3) == record
                assert time.monotonic() - start >= 0.3

        asyncio.run(main())

    def test_a_wait_ends_when_the_process_stops(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                record = await opened.queue.submit(check())
                stopping = asyncio.Event()
                wait = opened.queue.status(record.task_id, wait_s=300, is_stopping=stopping.is_set)
                waiting = asyncio.create_task(wait)
                await opened.until(lambda: bool(opened.connection.client._subs), "the wait")
                stopping.set()
                async with asyncio.timeout(30):
                    assert await waiting == record

        asyncio.run(main())

    def test_waits_leave_nothing_behind(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                record = await opened.queue.submit(check())
                before = len(opened.connection.client._subs)
                await opened.queue.status(record.task_id, wait_s=0.05)
                gone = asyncio.create_task(opened.queue.status(record.task_id, wait_s=300))
                await opened.until(lambda: len(opened.connection.client._subs) > before, "the wait")
                gone.cancel()  # as if the client disconnects
                await asyncio.gather(gone, return_exceptions=True)
                assert len(opened.connection.client._subs) == before

        asyncio.run(main())

    def test_a_lost_notice_delays_a_wait(self, desk: OpenDesk, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
        async def main() -> None:
            async with desk() as opened:
                record = await opened.queue.submit(check())
                # Notices are lost, as if the route to another server of the cluster was interrupted.
                monkeypatch.setattr(long_polls, "NOTICES", "nowhere")
                waiting = asyncio.create_task(opened.queue.status(record.task_id, wait_s=300))
                await opened.until(lambda: bool(opened.connection.client._subs), "the wait")
                ended = await end(opened, record.task_id)
                async with asyncio.timeout(30):
                    assert await waiting == ended

        asyncio.run(main())

    @pytest.mark.parametrize("wait_s", [0, 300])
    def test_a_connection_that_is_lost_during_a_request_is_an_unavailable_queue(
        self, desk: OpenDesk, check: Check, wait_s: float
    ) -> None:
        async def main() -> None:
            async with desk() as opened:
                record = await opened.queue.submit(check())
                client = opened.connection.client
                # Between two connections, nats-py writes to the socket directly, and finds it closed.
                tasks = [client._flusher_task, client._reading_task]
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                client._transport._io_writer.transport.close()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert opened.connection.is_up
                with pytest.raises(QueueUnavailableError):
                    await opened.queue.status(record.task_id, wait_s=wait_s)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    def test_a_connection_that_is_lost_before_a_wait_is_an_unavailable_queue(
        self, desk: OpenDesk, check: Check, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with desk() as opened:
                record = await opened.queue.submit(check())

                async def lose(*_: object, **__: object) -> None:
                    raise nats.errors.ConnectionClosedError

                monkeypatch.setattr(opened.connection.client, "subscribe", lose)
                with pytest.raises(QueueUnavailableError):
                    await opened.queue.status(record.task_id, wait_s=300)

        asyncio.run(main())


@pytest.fixture
def short_ttl(monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the TTL in seconds of records that are not final, shortened for tests."""
    monkeypatch.setattr(records, "OPEN_TTL_MIN_S", 1)
    return records.OPEN_TTL_MIN_S


class TestExpiredRecord:
    """Records that expired in an outage although their tasks have not ended; no reconciler renews them here."""

    @pytest.mark.parametrize("lane", [0, 3])
    @pytest.mark.parametrize("action", ["status", "wait", "cancel"])
    def test_a_waiting_task_is_known_while_its_message_exists(
        self, desk: OpenDesk, check: Check, short_ttl: int, lane: int, action: str
    ) -> None:
        async def main() -> None:
            async with desk(result_ttl=short_ttl) as opened:
                record = await opened.queue.submit(check(), caller_number=lane, owner="a")
                await opened.until(lambda: is_gone(opened, record.task_id), "the expiry of the record")
                with pytest.raises(TaskUnknownError):
                    await opened.queue.status(record.task_id, owner="b")
                await opened.until(lambda: is_gone(opened, record.task_id), "the expiry of the restored record")
                match action:
                    case "status":
                        assert await opened.queue.status(record.task_id, owner="a") == record
                    case "wait":
                        found = await opened.queue.status(record.task_id, owner="a", wait_s=3 * short_ttl)
                        assert found == record
                    case "cancel":
                        found = await opened.queue.cancel(record.task_id, owner="a")
                        assert found.status is TaskStatus.CANCELLED

        asyncio.run(main())

    def test_a_task_whose_message_was_delivered_is_unavailable_until_its_state_is_known(
        self, desk: OpenDesk, at_work: OpenDesk, check: Check, short_ttl: int
    ) -> None:
        async def main() -> None:
            async with desk(result_ttl=short_ttl, task_ack_wait_s=1) as opened:
                record = await opened.queue.submit(check())
                await opened.fetch()
                await opened.until(lambda: is_gone(opened, record.task_id), "the expiry of the record")
                with pytest.raises(QueueUnavailableError):
                    await opened.queue.status(record.task_id)
                with pytest.raises(QueueUnavailableError):
                    await opened.queue.cancel(record.task_id)
            async with at_work(task_ack_wait_s=1) as opened:
                assert (await opened.end_of_unknown(record.task_id)).status is TaskStatus.SUCCESS

        asyncio.run(main())

    def test_an_ended_task_is_unknown_although_its_message_exists(
        self, desk: OpenDesk, check: Check, short_ttl: int
    ) -> None:
        async def main() -> None:
            async with desk(result_ttl=short_ttl) as opened:
                record = await opened.queue.submit(check())
                await opened.queue.cancel(record.task_id)
                await asyncio.sleep(short_ttl + 0.5)
                assert await opened.count() == 1
                with pytest.raises(TaskUnknownError):
                    await opened.queue.status(record.task_id)

        asyncio.run(main())


async def is_gone(desk: Desk, task_id: str) -> bool:
    """Return whether a record has expired."""
    return await desk.records.find(task_id) is None


class TestCancel:
    def test_a_waiting_task_ends_and_its_message_stays_until_it_is_delivered(
        self, desk: OpenDesk, check: Check, scrape: Scrape
    ) -> None:
        async def main() -> None:
            async with desk() as opened:
                kept = await opened.queue.submit(check())
                record = await opened.queue.submit(check())
                cancelled = await opened.queue.cancel(record.task_id)
                assert cancelled.status is TaskStatus.CANCELLED
                assert cancelled.completed_at
                assert await opened.queue.status(record.task_id) == cancelled
                assert await opened.queue.cancel(record.task_id) == cancelled, "a repetition changes nothing"
                assert await opened.count() == 2
                assert (await opened.queue.status(kept.task_id)).status is TaskStatus.PENDING

        asyncio.run(main())
        assert scrape()[completed("CANCELLED")] == 1

    def test_a_started_task_can_be_cancelled(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                record = await opened.queue.submit(check())
                begun = await end(opened, record.task_id, status=TaskStatus.STARTED, attempts=1, run="r")
                cancelled = await opened.queue.cancel(record.task_id)
                assert (cancelled.status, cancelled.attempts) == (TaskStatus.CANCELLED, begun.attempts)
                assert cancelled.run != begun.run, "an attempt would mistake it for its own end"

        asyncio.run(main())

    @pytest.mark.parametrize("status", [TaskStatus.SUCCESS, TaskStatus.FAILURE])
    def test_a_finished_task_cannot_be_cancelled(
        self, desk: OpenDesk, check: Check, scrape: Scrape, status: TaskStatus
    ) -> None:
        async def main() -> None:
            async with desk() as opened:
                record = await opened.queue.submit(check())
                ended = await end(opened, record.task_id, status=status, error=TaskError("a", "b"))
                with pytest.raises(TaskEndedError, match=f"got {status}$"):
                    await opened.queue.cancel(record.task_id)
                assert await opened.queue.status(record.task_id) == ended

        asyncio.run(main())
        assert scrape()[completed("CANCELLED")] == 0

    def test_a_waiting_request_is_notified_of_a_cancellation(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk() as opened:
                record = await opened.queue.submit(check())
                waiting = asyncio.create_task(opened.queue.status(record.task_id, wait_s=300))
                await opened.until(lambda: bool(opened.connection.client._subs), "the wait")
                cancelled = await opened.queue.cancel(record.task_id)
                async with asyncio.timeout(30):
                    assert await waiting == cancelled

        asyncio.run(main())

    def test_either_cancel_or_end_wins(self, desk: OpenDesk, check: Check, scrape: Scrape) -> None:
        async def main() -> list[str]:
            async with desk() as opened:
                kinds = []
                for _ in range(10):
                    record = await opened.queue.submit(check())
                    results = await asyncio.gather(
                        opened.queue.cancel(record.task_id),
                        opened.queue.cancel(record.task_id),
                        end(opened, record.task_id),
                        return_exceptions=True,
                    )
                    found = await opened.queue.status(record.task_id)
                    assert isinstance(results[2], Record) == (found.status is TaskStatus.SUCCESS)
                    for result in results[:2]:
                        is_cancelled = isinstance(result, Record)
                        assert is_cancelled or isinstance(result, TaskEndedError)
                        assert is_cancelled == (found.status is TaskStatus.CANCELLED)
                    kinds.append(found.status.value)
                return kinds

        kinds = asyncio.run(main())
        assert scrape()[completed("CANCELLED")] == kinds.count("CANCELLED")


class TestBounds:
    def test_a_queue_full_by_messages_rejects_tasks_and_drops_none(
        self, desk: OpenDesk, check: Check, scrape: Scrape, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            monkeypatch.setattr(admission, "FULL_PAUSE_S", 0.0)
            async with desk(task_queue_max_messages=3) as opened:
                results = await asyncio.gather(
                    *(opened.queue.submit(check()) for _ in range(20)), return_exceptions=True
                )
                taken = [result for result in results if isinstance(result, Record)]
                refused = [result for result in results if isinstance(result, QueueFullError)]
                assert (len(taken), len(refused), await opened.count()) == (3, 17, 3)
                messages = await opened.fetch(3)
                assert {decode_task(message.data).record.task_id for message in messages} == {
                    record.task_id for record in taken
                }
                # The ids of rejected tasks are unknown.
                subjects = await self.read_ids(opened)
                for task_id in subjects - {record.task_id for record in taken}:
                    with pytest.raises(TaskUnknownError):
                        await opened.queue.status(task_id)
                await messages[0].ack_sync()
                assert (await opened.queue.submit(check())).status is TaskStatus.PENDING

        asyncio.run(main())
        assert scrape()[SUBMITTED] == 4

    @staticmethod
    async def read_ids(desk: Desk) -> set[str]:
        info = await desk.connection.client.jetstream().stream_info(RECORDS_STREAM, subjects_filter=">")
        return {subject.rpartition(".")[2] for subject in info.state.subjects or {}}

    def test_a_queue_full_by_bytes_rejects_tasks(
        self, desk: OpenDesk, check: Check, pad: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            monkeypatch.setattr(admission, "FULL_PAUSE_S", 0.0)
            async with desk(task_queue_max_bytes=MIB) as opened:
                large = check(image=pad(400_000))
                taken = [await opened.queue.submit(large) for _ in range(2)]
                with pytest.raises(QueueFullError, match="Retry-After"):
                    await opened.queue.submit(large)
                taken.append(await opened.queue.submit(check()))  # a small one still fits
                messages = await opened.fetch(3)
                assert [decode_task(message.data).record for message in messages] == taken

        asyncio.run(main())

    def test_after_a_rejection_others_are_rejected_without_a_request(self, desk: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with desk(task_queue_max_messages=1) as opened:
                await opened.queue.submit(check())
                with pytest.raises(QueueFullError):
                    await opened.queue.submit(check())
                before = await opened.count(RECORDS_STREAM)
                opened.queue._admission._full_until[0] = time.monotonic() + 300
                with pytest.raises(QueueFullError):
                    await opened.queue.submit(check())
                assert await opened.count(RECORDS_STREAM) == before
                opened.queue._admission._full_until.clear()
                with pytest.raises(QueueFullError):
                    await opened.queue.submit(check())

        asyncio.run(main())

    def test_a_full_store_of_results_rejects_tasks_but_finishes_accepted_ones(
        self, desk: OpenDesk, check: Check
    ) -> None:
        async def main() -> None:
            async with desk(result_max_bytes=MIB) as opened:
                taken = [await opened.queue.submit(check()) for _ in range(3)]
                for record in taken:
                    await end(opened, record.task_id, result=msgspec.Raw(b'"' + b"x" * 600_000 + b'"'))

                async def is_refused() -> bool:
                    try:
                        await opened.queue.submit(check())
                    except QueueFullError:
                        return True
                    return False

                await opened.until(is_refused, "a rejection")
                for record in taken:
                    assert (await opened.queue.status(record.task_id)).status is TaskStatus.SUCCESS

        asyncio.run(main())

    def test_a_task_larger_than_the_server_accepts(
        self, desk: OpenDesk, check: Check, pad: Callable[[int], bytes]
    ) -> None:
        async def main() -> None:
            async with desk() as opened:
                with pytest.raises(TaskTooLargeError, match=f"at most {MIB - admission.HEADERS_BYTES} bytes"):
                    await opened.queue.submit(check(image=pad(MIB + 1)))
                assert await opened.count(RECORDS_STREAM) == 0

        asyncio.run(main())

    def test_tasks_near_the_size_limit_are_accepted_or_too_large(
        self, desk: OpenDesk, check: Check, pad: Callable[[int], bytes]
    ) -> None:
        async def main() -> None:
            async with desk(nats_timeout_s=2) as opened:
                limit = opened.connection.client.max_payload
                reconnects = opened.connection.client.stats["reconnects"]
                for size in (*range(limit - 4800, limit - 3600, 25), limit - 1, limit):
                    try:
                        record = await opened.queue.submit(check(image=pad(size)))
                    except TaskTooLargeError:
                        continue
                    await opened.queue.cancel(record.task_id)
                assert opened.connection.client.stats["reconnects"] == reconnects, "the server disconnected the client"

        asyncio.run(main())


class TestOutage:
    def test_everything_is_unavailable_before_the_first_connection(self, check: Check, make_settings: Any) -> None:
        async def main() -> None:
            queue = TaskQueue(make_settings(nats_url="nats://127.0.0.1:9", result_cache=True))
            await queue.start()
            for ask in (queue.submit(check(), digest="d"), queue.status(UNKNOWN), queue.status(UNKNOWN, wait_s=1)):
                with pytest.raises(QueueUnavailableError, match="Retry-After"):
                    await ask
            with pytest.raises(QueueUnavailableError):
                await queue.cancel(UNKNOWN)
            assert await queue.find_result("d") is None
            await queue.close()

        asyncio.run(main())

    @pytest.mark.parametrize("is_killed", [False, True])
    def test_a_restarted_server_has_its_tasks(
        self,
        desk: OpenDesk,
        check: Check,
        scrape: Scrape,
        run_server: Callable[..., NatsServer],
        *,
        is_killed: bool,
    ) -> None:
        server = run_server()

        async def main() -> None:
            async with desk(nats_url=server.url, nats_timeout_s=1) as opened:
                taken = [await opened.queue.submit(check()) for _ in range(5)]
                waiting = asyncio.create_task(opened.queue.status(taken[0].task_id, wait_s=300))
                await opened.until(lambda: bool(opened.connection.client._subs), "the wait")
                await asyncio.to_thread(server.stop, is_killed=is_killed)
                with pytest.raises(QueueUnavailableError):
                    await opened.queue.submit(check())
                with pytest.raises(QueueUnavailableError):
                    await opened.queue.status(taken[0].task_id)
                with pytest.raises(QueueUnavailableError):
                    await opened.queue.cancel(taken[0].task_id)
                with pytest.raises(QueueUnavailableError):
                    await waiting
                await asyncio.to_thread(server.start)
                await opened.until(lambda: opened.connection.is_up, "the connection")
                assert [await opened.queue.status(record.task_id) for record in taken] == taken
                taken.append(await opened.queue.submit(check()))
                assert await opened.count() == 6
                messages = await opened.fetch(6)
                assert [decode_task(message.data).record for message in messages] == taken

        asyncio.run(main())
        assert scrape()[SUBMITTED] == 6

    def test_a_server_that_restarts_without_its_store_gets_new_streams(
        self, desk: OpenDesk, check: Check, run_server: Callable[..., NatsServer]
    ) -> None:
        server = run_server()

        async def main() -> None:
            async with desk(nats_url=server.url, nats_timeout_s=1) as opened:
                lost = await opened.queue.submit(check())
                await asyncio.to_thread(server.stop)
                server.lose_store()
                await asyncio.to_thread(server.start)
                await opened.until(lambda: opened.connection.is_up, "the connection")
                with pytest.raises(TaskUnknownError):
                    await opened.queue.status(lost.task_id)
                record = await opened.queue.submit(check())
                assert await opened.queue.status(record.task_id) == record

        asyncio.run(main())

    @pytest.mark.parametrize("gone", ["TASKS", "KV_TASK_RECORDS"])
    def test_a_deleted_stream_is_created_again(self, desk: OpenDesk, check: Check, gone: str) -> None:
        async def main() -> None:
            async with desk(nats_timeout_s=1) as opened:
                await opened.connection.client.jetstream().delete_stream(gone)

                async def is_taken() -> bool:
                    try:
                        record = await opened.queue.submit(check())
                    except QueueUnavailableError:
                        return False
                    assert await opened.queue.status(record.task_id) == record
                    return True

                await opened.until(is_taken, "a task that is taken")
                assert await opened.fetch()

        asyncio.run(main())

    def test_a_task_whose_submission_failed_is_unknown(
        self, desk: OpenDesk, check: Check, scrape: Scrape, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with desk() as opened:
                store = opened.connection.store
                is_lossy = True

                async def store_but_lose_the_answer(subject: str, *rest: Any) -> int:
                    sequence = await store(subject, *rest)
                    if is_lossy and subject.startswith("tasks."):
                        raise QueueUnavailableError("lost")
                    return sequence

                monkeypatch.setattr(opened.connection, "store", store_but_lose_the_answer)
                with pytest.raises(QueueUnavailableError):
                    await opened.queue.submit(check(), idempotency_key="k", digest="d")
                is_lossy = False
                task_id = module._derive_id("", "k")
                with pytest.raises(TaskUnknownError):
                    await opened.queue.status(task_id)
                record = await opened.queue.submit(check(), idempotency_key="k", digest="d")
                assert (record.task_id, record.status) == (task_id, TaskStatus.PENDING)
                assert (await opened.records.get(task_id))[0] == record

        asyncio.run(main())
        assert scrape()[SUBMITTED] == 1


class TestCache:
    def test_an_identical_request_reuses_the_result(self, desk: OpenDesk, check: Check, scrape: Scrape) -> None:
        async def main() -> None:
            async with desk(result_cache=True) as opened:
                digest = check().digest()
                assert await opened.queue.find_result(digest) is None
                first = await opened.queue.submit(check(), digest=digest)
                ended = await end(
                    opened, first.task_id, result=msgspec.Raw(b'{"a":1}'), started_at=1.0, attempts=1, run="r"
                )
                await opened.records.index_result(digest, first.task_id)
                assert await opened.queue.find_result(digest) == b'{"a":1}'
                again = await opened.queue.submit(check(), digest=digest)
                assert again.task_id != first.task_id
                assert (again.status, bytes(again.result)) == (TaskStatus.SUCCESS, bytes(ended.result))
                assert (again.attempts, again.started_at, again.progress) == (0, None, 1.0)
                assert again.submitted_at > first.submitted_at
                assert await opened.queue.status(again.task_id, wait_s=30) == again
                assert await opened.count() == 1, "the first one's message"
                other = check(simplify=3)
                assert (await opened.queue.submit(other, digest=other.digest())).status is TaskStatus.PENDING

        asyncio.run(main())
        counted = scrape()
        assert counted[SUBMITTED] == 3
        assert counted[completed("SUCCESS")] == 1
        lookups = {key[1]: value for key, value in counted.items() if key[0] == "cache_lookups_total"}
        assert lookups == {"hit": 2, "miss": 3, "unavailable": 0}

    def test_a_key_and_a_cached_result(self, desk: OpenDesk, check: Check, scrape: Scrape) -> None:
        async def main() -> None:
            async with desk(result_cache=True) as opened:
                digest = check().digest()
                first = await opened.queue.submit(check(), digest=digest)
                await end(opened, first.task_id, result=msgspec.Raw(b'{"a":1}'))
                await opened.records.index_result(digest, first.task_id)
                keyed = [await opened.queue.submit(check(), idempotency_key="k", digest=digest) for _ in range(2)]
                assert keyed[0] == keyed[1]
                with pytest.raises(IdempotencyConflictError):
                    await opened.queue.submit(check(simplify=3), idempotency_key="k", digest="other")

        asyncio.run(main())
        counted = scrape()
        assert (counted[SUBMITTED], counted[completed("SUCCESS")]) == (2, 1)

    def test_a_disabled_cache_is_not_read(self, desk: OpenDesk, check: Check, scrape: Scrape) -> None:
        async def main() -> None:
            async with desk() as opened:
                digest = check().digest()
                first = await opened.queue.submit(check(), digest=digest)
                await end(opened, first.task_id)
                await opened.records.index_result(digest, first.task_id)
                assert (await opened.queue.submit(check(), digest=digest)).status is TaskStatus.PENDING

        asyncio.run(main())
        assert sum(value for key, value in scrape().items() if key[0] == "cache_lookups_total") == 0

    def test_an_unavailable_queue_is_no_error(self, make_settings: Callable[..., Settings], scrape: Scrape) -> None:
        async def main() -> None:
            queue = TaskQueue(make_settings(nats_url="nats://127.0.0.1:9"))
            await queue.start()
            assert await queue.find_result("d") is None
            await queue.close()

        asyncio.run(main())
        assert scrape()["cache_lookups_total", "unavailable"] == 1
