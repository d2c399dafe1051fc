"""The reconciler on a real server: repairs, and states that it must not change."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from app.observability import metrics
from app.tasks import reconciler as module
from app.tasks import records as records_module
from app.tasks.errors import TaskUnknownError
from app.tasks.reconciler import Lease, Reconciler
from app.tasks.records import Record, TaskStatus
from app.tasks.stream import LANES, RECORDS_STREAM, STREAM, record_subject, task_subject
from app.tasks.stream_state import ConsumerInfo, QueueState, list_consumers, read_state
from tests.tasks.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput
    from tests.tasks.conftest import Desk, NatsServer

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]
    Check = Callable[..., CheckedInput]


@pytest.fixture
def repairs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the reasons of repairs."""
    found: list[str] = []
    monkeypatch.setattr(records_module, "record_task_repair", found.append)
    return found


def make(desk: Desk, *, grace_s: float = 0.0) -> Reconciler:
    """Return a reconciler with a given grace time for lost tasks."""
    made = Reconciler(desk.connection, desk.records, desk.settings)
    made._pending_grace_s = made._started_grace_s = grace_s
    return made


def _record(**changes: object) -> Record:
    return Record(task_id=os.urandom(16).hex(), submitted_at=time.time()).replace(**changes)


def test_every_reason_is_a_label_value_of_the_metric() -> None:
    spec = next(spec for spec in metrics.METRICS if spec.name == "task_repairs_total")
    assert set(spec.labels["reason"]) == {
        "task_lost", "record_restored", "record_expired", "record_unreadable", "message_removed", "consumer_recreated",
    }  # fmt: skip


@pytest.mark.parametrize("status", [TaskStatus.PENDING, TaskStatus.STARTED])
def test_a_task_without_its_message_ends_as_lost(desk: OpenDesk, repairs: list[str], status: TaskStatus) -> None:
    async def main() -> None:
        async with desk() as opened:
            lost = _record(status=status)
            await opened.records.create(lost)
            await make(opened).reconcile()
            end = (await opened.records.get(lost.task_id))[0]
            assert (end.status, end.error and end.error.code) == (TaskStatus.FAILURE, "task_lost")
            assert repairs == ["task_lost"]

    asyncio.run(main())


def test_a_task_is_not_lost_while_its_message_may_still_be_sent_or_its_result_stored(
    desk: OpenDesk, repairs: list[str]
) -> None:
    async def main() -> None:
        async with desk() as opened:
            records = [_record(), _record(status=TaskStatus.STARTED)]
            for record in records:
                await opened.records.create(record)
            reconciler = make(opened, grace_s=60)
            for _ in range(3):
                await reconciler.reconcile()
            assert [(await opened.records.get(record.task_id))[0] for record in records] == records
            assert not repairs

    asyncio.run(main())


def test_waiting_started_and_finished_tasks_are_not_changed(desk: OpenDesk, check: Check, repairs: list[str]) -> None:
    async def main() -> None:
        async with desk() as opened:
            waiting = await opened.queue.submit(check())
            ended = _record(status=TaskStatus.SUCCESS)
            await opened.records.create(ended)
            cancelled = await opened.queue.submit(check())
            await opened.queue.cancel(cancelled.task_id)
            await opened.fetch()
            reconciler = make(opened)
            for _ in range(module.STUCK_PASSES + 2):
                await reconciler.reconcile()
            assert (await opened.records.get(waiting.task_id))[0] == waiting
            assert (await opened.records.get(ended.task_id))[0] == ended
            assert await opened.count() == 2
            assert not repairs

    asyncio.run(main())


def test_a_change_between_scan_and_repair_wins(desk: OpenDesk, repairs: list[str]) -> None:
    async def main() -> None:
        async with desk() as opened:
            record = _record()
            revision = await opened.records.create(record)
            reconciler = make(opened)
            await reconciler._scan_records()
            done = record.replace(status=TaskStatus.SUCCESS)
            await opened.records.update(done, revision)
            await reconciler._end_lost_tasks(await read_state(opened.connection))
            assert (await opened.records.get(record.task_id))[0] == done
            assert not repairs

    asyncio.run(main())


def test_a_message_that_was_never_delivered_gets_its_record_back(
    desk: OpenDesk, check: Check, repairs: list[str]
) -> None:
    async def main() -> None:
        async with desk() as opened:
            submitted = [await opened.queue.submit(check()) for _ in range(2)]
            await opened.fetch()  # the first task may have ended and its final record have expired
            await opened.connection.client.jetstream().purge_stream(RECORDS_STREAM)
            await make(opened).reconcile()
            first, second = [await opened.records.find(record.task_id) for record in submitted]
            assert first is None
            assert second is not None
            assert second[0] == submitted[1]
            assert repairs == ["record_restored"]

    asyncio.run(main())


def test_the_record_of_a_waiting_task_is_renewed_before_it_expires(desk: OpenDesk, check: Check) -> None:
    async def main() -> None:
        async with desk() as opened:
            record = await opened.queue.submit(check())
            _, before = await opened.records.get(record.task_id)
            reconciler = make(opened)
            await reconciler.reconcile()
            assert (await opened.records.get(record.task_id)) == (record, before)
            seen = reconciler._open[record.task_id]
            reconciler._open[record.task_id] = replace(seen, written_at=time.time() - opened.records.open_ttl_s / 2)
            await reconciler.reconcile()
            found, after = await opened.records.get(record.task_id)
            assert found == record
            assert after > before

    asyncio.run(main())


@pytest.mark.parametrize("is_reconciled", [True, False])
def test_a_cancelled_task_whose_message_waits_for_longer_than_its_record_lives_stays_cancelled(
    desk: OpenDesk,
    at_work: OpenDesk,
    check: Check,
    repairs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_reconciled: bool,
) -> None:
    # Without a reconciler, the TTL of the record must exceed the wait.
    ttl_s = 3 if is_reconciled else 60
    monkeypatch.setattr(records_module, "CANCELLED_TTL_S", ttl_s)
    monkeypatch.setattr(records_module, "OPEN_TTL_MIN_S", 2)

    async def main() -> None:
        async with desk(result_ttl=1) as opened:
            record = await opened.queue.submit(check())
            await opened.queue.cancel(record.task_id)
            reconciler = make(opened)
            limit = time.monotonic() + 6
            while time.monotonic() < limit:
                if is_reconciled:
                    await reconciler.reconcile()
                await asyncio.sleep(0.2)
            with pytest.raises(TaskUnknownError):
                await opened.queue.status(record.task_id)
            assert not repairs
        async with at_work() as opened:
            await opened.drained()
            with pytest.raises(TaskUnknownError):
                await opened.queue.status(record.task_id)

    asyncio.run(main())


def test_an_expired_revision_that_the_server_kept_is_removed(
    desk: OpenDesk, repairs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXPIRY_MARGIN_S", 0.0)

    async def main() -> None:
        async with desk() as opened:
            record = _record()
            headers = {"Task-TTL": "0", "Task-Status": "STARTED"}
            await opened.connection.store(record_subject(record.task_id), msgspec.json.encode(record), headers)
            await make(opened).reconcile()
            assert await opened.records.load(record.task_id) is None
            assert repairs == ["record_expired"]

    asyncio.run(main())


def test_a_consumer_that_lost_a_message_is_created_again(
    run_server: Callable[..., NatsServer],
    check: Check,
    repairs: list[str],
    desk: OpenDesk,
) -> None:
    """Break the consumer of nats-server 2.15 as a purge by subject does: it never delivers the held message again."""
    server = run_server()

    async def break_consumer() -> str:
        async with desk(nats_url=server.url) as opened:
            held = await opened.queue.submit(check())
            await opened.fetch()
            for _ in range(6):
                record = await opened.queue.submit(check())
                (message,) = await opened.fetch()
                request = msgspec.json.encode({"filter": task_subject(record.task_id)})
                await opened.connection.request(f"$JS.API.STREAM.PURGE.{STREAM}", request)
                await message.ack()
                await opened.queue.submit(check())
                await (await opened.fetch())[0].ack_sync()
            return held.task_id

    async def repair(task_id: str) -> None:
        async with desk(nats_url=server.url) as opened:
            state = await read_state(opened.connection)
            reconciler = make(opened, grace_s=600)
            if state.untracked(0) == 0:  # a server version without this defect
                await opened.connection.client.jetstream().purge_stream(STREAM)
                pytest.skip("this nats-server does not lose track of messages")
            for _ in range(module.STUCK_PASSES):
                assert not repairs
                await reconciler.reconcile()
            assert repairs == ["consumer_recreated"]
            state = await read_state(opened.connection)
            assert (state.untracked(0), len(state.lanes)) == (0, 1)
            assert (await opened.fetch())[0].subject == task_subject(task_id)

    task_id = asyncio.run(break_consumer())
    server.stop()
    server.start()
    asyncio.run(repair(task_id))


@pytest.mark.parametrize("is_expired", [False, True])
@pytest.mark.parametrize("is_older_open", [False, True])
def test_a_message_that_the_server_restores_after_its_task_has_ended_is_removed(
    run_server: Callable[..., NatsServer],
    check: Check,
    repairs: list[str],
    desk: OpenDesk,
    *,
    is_expired: bool,
    is_older_open: bool,
) -> None:
    """Restore the blocks of the stream from before the acknowledgement, as a kill of the server may."""
    server = run_server()

    async def end_task() -> list[str]:
        async with desk(nats_url=server.url) as opened:
            submitted = [await opened.queue.submit(check()) for _ in range(3)]
            fetched = [(await opened.fetch())[0] for _ in range(2)]
            blocks = next(server.store.glob("jetstream/*/streams")) / STREAM / "msgs"
            await opened.until(lambda: any(file.stat().st_size for file in blocks.glob("*.blk")), "the blocks")
            shutil.copytree(blocks, server.folder / "before")
            ended = submitted[:1] if is_older_open else submitted[:2]
            for record, message in zip(ended, fetched, strict=False):
                stored = await opened.records.load(record.task_id)
                assert stored is not None
                await opened.records.update(record.replace(status=TaskStatus.SUCCESS), stored.revision)
                await message.ack_sync()
            if is_expired:
                await opened.connection.client.jetstream().purge_stream(RECORDS_STREAM)
                for record in submitted[len(ended) :]:
                    await opened.records.create(record)
            return [record.task_id for record in submitted[len(ended) :]]

    async def repair(left: list[str]) -> None:
        async with desk(nats_url=server.url) as opened:
            state = await read_state(opened.connection)
            assert len(state.lanes) == 3
            reconciler = make(opened, grace_s=600)
            for _ in range(module.STUCK_PASSES):
                assert not repairs
                await reconciler.reconcile()
            assert repairs == ["message_removed"] * (3 - len(left))
            state = await read_state(opened.connection)
            assert state.lanes.keys() == set(left)
            assert state.untracked(0) == 0
            # Messages of open tasks are still delivered.
            delivered = set()
            while len(delivered) < len(left):
                for message in await opened.fetch():
                    delivered.add(message.subject.rpartition(".")[2])
            assert delivered == set(left)

    left = asyncio.run(end_task())
    server.stop()
    (blocks,) = server.store.glob(f"jetstream/*/streams/{STREAM}/msgs")
    shutil.rmtree(blocks)
    shutil.copytree(server.folder / "before", blocks)
    server.start()
    asyncio.run(repair(left))


def _state(messages: int, tracked: int, first_seq: int, *, lane: int = 3) -> QueueState:
    consumers = {number: ConsumerInfo(num_pending=tracked if number == lane else 0) for number in range(LANES)}
    lanes = {f"task-{number}": lane for number in range(messages)}
    return QueueState(lanes=lanes, first_seq=first_seq, before=consumers, after=consumers)


@pytest.mark.parametrize(
    "states",
    [
        pytest.param([(5, 4, 1), (5, 4, 2), (5, 4, 3), (5, 4, 4), (5, 4, 5)], id="the oldest message moves on"),
        pytest.param([(5, 4, 1), (5, 4, 1), (5, 5, 1), (5, 4, 1), (5, 4, 1), (5, 4, 1)], id="all are tracked once"),
        pytest.param([(5, 6, 1)] * 6, id="removed after they were counted"),
        pytest.param([(0, 0, 7)] * 6, id="empty"),
    ],
)
def test_a_consumer_is_kept_while_its_messages_move(
    desk: OpenDesk, repairs: list[str], states: list[tuple[int, int, int]]
) -> None:
    async def main() -> None:
        async with desk() as opened:
            reconciler = make(opened)
            for state in states:
                await reconciler._check_consumers(_state(*state))
            assert not repairs

    asyncio.run(main())


def test_a_consumer_that_tracks_messages_of_an_empty_stream_is_created_again(
    desk: OpenDesk, repairs: list[str]
) -> None:
    async def main() -> None:
        async with desk() as opened:
            reconciler = make(opened)
            for _ in range(module.STUCK_PASSES):
                await reconciler._check_consumers(_state(0, 2, 8))
            assert repairs == ["consumer_recreated"]
            assert (await list_consumers(opened.connection)).keys() == set(range(LANES))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("before", "messages", "after", "untracked"),
    [(3, 3, 3, 0), (2, 3, 4, 0), (4, 3, 2, 0), (2, 3, 2, 1), (4, 3, 4, -1), (1, 5, 3, 2), (5, 1, 3, -2), (0, 0, 0, 0)],
)
def test_messages_that_move_while_the_state_is_read_make_no_difference(
    before: int, messages: int, after: int, untracked: int
) -> None:
    state = replace(_state(messages, before, 1), after=_state(0, after, 1).after)
    assert state.untracked(3) == untracked


def test_one_process_holds_the_lease_and_another_follows_when_it_is_released_or_expires(
    desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with desk() as opened:
            first, second = Lease(opened.connection), Lease(opened.connection)
            assert await first.is_free()
            assert await second.is_free()
            assert await first.hold()
            assert not await second.hold(), "both saw that it was free; one write succeeds"
            assert not await second.is_free()
            assert await first.is_free(), "the owner may renew it"
            assert await first.hold(), "renewed"
            await first.release()
            assert await second.is_free()
            assert await second.hold()
            assert not await first.is_free()
            monkeypatch.setattr(module, "age_s", lambda _: module.LEASE_TTL_S + 1.0)
            assert await first.is_free(), "it was not renewed in time"
            assert await first.hold()
            assert not await second.hold()

    asyncio.run(main())


def test_a_worker_runs_the_reconciler(at_work: OpenDesk, repairs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PASS_S", 0.1)

    async def main() -> None:
        async with at_work(timeout_s=2, nats_timeout_s=0.5) as opened:
            record = _record()
            await opened.records.create(record)
            assert (await opened.end_of(record.task_id)).error is not None
            await until(lambda: repairs == ["task_lost"], "the repair")

    asyncio.run(main())


def test_a_message_of_a_cancelled_task_is_acknowledged_when_it_is_delivered(at_work: OpenDesk, check: Check) -> None:
    async def main() -> None:
        async with at_work(workers=0) as opened:
            record = await opened.queue.submit(check())
            assert (await opened.queue.cancel(record.task_id)).status is TaskStatus.CANCELLED
            assert await opened.count() == 1
            async with at_work() as working:
                await working.drained()
                assert (await working.queue.status(record.task_id)).attempts == 0

    asyncio.run(main())
