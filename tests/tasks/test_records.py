"""Task records: revisions, expiry, and the result cache."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from app.tasks.connection import RevisionConflictError
from app.tasks.errors import TaskUnknownError
from app.tasks.message import decode_task
from app.tasks.records import (
    CANCELLED_TTL_S,
    NO_RESULT,
    OPEN_TTL_MAX_S,
    OPEN_TTL_MIN_S,
    Record,
    TaskError,
    TaskStatus,
    encode_record,
)
from app.tasks.stream import RECORDS_STREAM, record_subject

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput
    from app.tasks.records import Records
    from tests.tasks.conftest import Desk, NatsServer

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]

PENDING = Record(task_id="a" * 32, submitted_at=1.25, digest="d1")
DONE = PENDING.replace(
    status=TaskStatus.SUCCESS,
    started_at=2.0,
    completed_at=3.5,
    attempts=2,
    progress=1.0,
    processing_time_ms=1.5,
    result=msgspec.Raw(b'{"regions": [1.50, 2]}'),
    run="r",
)
BLOCK_BYTES = 4 << 20  # size of a block of the records' stream
FAILED = PENDING.replace(
    status=TaskStatus.FAILURE, error=TaskError("image_corrupt", "why"), result=msgspec.Raw(b"null")
)


@pytest.mark.parametrize("record", [PENDING, DONE, FAILED], ids=lambda record: record.status)
def test_a_record_is_read_as_it_was_written(desk: OpenDesk, record: Record) -> None:
    async def main() -> None:
        async with desk() as opened:
            revision = await opened.records.create(record)
            found = await opened.records.get(record.task_id)
            assert found == (record, revision)
            assert bytes(found[0].result) == bytes(record.result)

    asyncio.run(main())


def test_a_write_must_name_the_latest_revision(desk: OpenDesk) -> None:
    async def main() -> None:
        async with desk() as opened:
            first = await opened.records.create(PENDING)
            with pytest.raises(RevisionConflictError):
                await opened.records.create(PENDING.replace(submitted_at=PENDING.submitted_at + 1))
            assert await opened.records.create(PENDING) == first, "a request that was sent twice"
            second = await opened.records.update(DONE, first)
            assert second > first
            for stale in (0, first, second + 1):
                with pytest.raises(RevisionConflictError):
                    await opened.records.update(FAILED, stale)
            assert await opened.records.get(PENDING.task_id) == (DONE, second)
            with pytest.raises(RevisionConflictError):
                await opened.records.update(PENDING.replace(task_id="b" * 32), first)

    asyncio.run(main())


def test_one_of_many_concurrent_writers_succeeds(desk: OpenDesk) -> None:
    async def main() -> None:
        async with desk() as opened:
            first = await opened.records.create(PENDING)
            rivals = [opened.records.update(PENDING.replace(run=str(number)), first) for number in range(20)]
            results = await asyncio.gather(*rivals, return_exceptions=True)
            assert sum(isinstance(result, RevisionConflictError) for result in results) == 19
            (winner,) = (number for number, result in enumerate(results) if isinstance(result, int))
            assert (await opened.records.get(PENDING.task_id))[0].run == str(winner)

    asyncio.run(main())


@pytest.mark.parametrize("has_copies", [False, True])
def test_missing_and_withdrawn_tasks_are_unknown(desk: OpenDesk, *, has_copies: bool) -> None:
    async def main() -> None:
        async with desk() as opened:
            opened.records._is_replicated = has_copies
            with pytest.raises(TaskUnknownError, match="not found"):
                await opened.records.get(PENDING.task_id)
            assert await opened.records.find(PENDING.task_id) is None
            revision = await opened.records.create(PENDING.replace(is_withdrawn=True))
            with pytest.raises(TaskUnknownError):
                await opened.records.get(PENDING.task_id)
            assert await opened.records.find(PENDING.task_id) == (PENDING.replace(is_withdrawn=True), revision)

    asyncio.run(main())


def test_the_leader_returns_the_same_as_a_replica(desk: OpenDesk) -> None:
    async def main() -> None:
        async with desk() as opened:
            revision = await opened.records.create(DONE)
            found = await opened.records._read_from_leader(record_subject(DONE.task_id))
            assert found is not None
            assert (found.data, found.sequence) == (encode_record(DONE), revision)

    asyncio.run(main())


def test_a_final_record_expires_and_its_key_can_be_reused(desk: OpenDesk) -> None:
    async def main() -> None:
        async with desk(result_ttl=1) as opened:
            first = await opened.records.create(DONE)
            kept = PENDING.replace(task_id="b" * 32)
            await opened.records.create(kept)
            await opened.records.index_result("d1", DONE.task_id)
            assert await opened.records.find_result("d1") == DONE

            async def is_gone() -> bool:
                return await opened.records.find(DONE.task_id) is None

            await opened.until(is_gone, "the expiry of the record")
            assert await opened.records.find_result("d1") is None
            assert (await opened.records.get(kept.task_id))[0] == kept
            assert await opened.records.create(PENDING) > first

    asyncio.run(main())


@pytest.mark.parametrize(
    ("result_ttl", "open_s"), [(1, OPEN_TTL_MIN_S), (77, 77), (3600, 3600), (31_536_000, OPEN_TTL_MAX_S)]
)
def test_no_revision_expires_later_than_the_one_that_replaces_it(desk: OpenDesk, result_ttl: int, open_s: int) -> None:
    async def main() -> None:
        async with desk(result_ttl=result_ttl) as opened:
            stream = opened.connection.client.jetstream()
            visible, kept = {}, {}
            for name, record in (
                ("open", PENDING),
                ("begun", PENDING.replace(status=TaskStatus.STARTED)),
                ("ended", DONE),
                ("cancelled", PENDING.replace(status=TaskStatus.CANCELLED)),
                ("withdrawn", PENDING.replace(status=TaskStatus.CANCELLED, is_withdrawn=True)),
            ):
                sequence = await opened.records.create(record.replace(task_id=name))
                headers = (await stream.get_msg(RECORDS_STREAM, sequence)).headers or {}
                visible[name], kept[name] = float(headers["Task-TTL"]), int(headers["Nats-TTL"])
            final_s = max(result_ttl, open_s)
            assert visible == {
                "open": open_s, "begun": open_s, "ended": result_ttl, "cancelled": result_ttl,
                "withdrawn": CANCELLED_TTL_S,
            }  # fmt: skip
            assert kept == visible | {"ended": final_s, "cancelled": max(result_ttl, CANCELLED_TTL_S)}

    asyncio.run(main())


def test_concurrent_requests_share_a_response_that_is_not_older_than_any_of_them(
    desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with desk() as opened:
            revision = await opened.records.create(PENDING)
            fetch, fetches, release = opened.records._fetch, 0, asyncio.Event()

            async def count(subject: str) -> object:
                nonlocal fetches
                fetches += 1
                found = await fetch(subject)
                await release.wait()
                return found

            monkeypatch.setattr(opened.records, "_fetch", count)
            first = asyncio.create_task(opened.records.get(PENDING.task_id))
            await opened.until(lambda: fetches == 1, "the first request")
            later = DONE.replace(task_id=PENDING.task_id)
            await opened.records.update(later, revision)
            others = [asyncio.create_task(opened.records.get(PENDING.task_id)) for _ in range(20)]
            gone = asyncio.create_task(opened.records.get(PENDING.task_id))
            await asyncio.sleep(0)
            gone.cancel()
            release.set()
            found = [record for record, _ in await asyncio.gather(first, *others)]
            assert found[1:] == [later] * 20
            assert fetches == 2
            assert not opened.records._reading._running

    asyncio.run(main())


@pytest.mark.parametrize("result_ttl", [1, 77])
def test_a_final_record_is_stored_for_as_long_as_the_first_one_of_other_settings(
    desk: OpenDesk, check: Callable[..., CheckedInput], result_ttl: int
) -> None:
    async def main() -> None:
        async with desk(result_ttl=3600) as before:
            record = await before.queue.submit(check())
        async with desk(result_ttl=result_ttl) as opened:
            (message,) = await opened.fetch()
            task = decode_task(message.data)
            for status in (TaskStatus.STARTED, TaskStatus.SUCCESS):
                stored = await opened.records.load(record.task_id)
                assert stored is not None
                await opened.records.update(task.record.replace(status=status), stored.revision)
                written = await opened.records.load(record.task_id)
                assert written is not None
                assert written.lifetime.removed_at >= stored.lifetime.removed_at

    asyncio.run(main())


def test_a_record_that_is_not_final_is_read_from_the_leader(desk: OpenDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with desk() as opened:
            asked: list[str] = []
            read = opened.records._read_from_leader

            async def note(subject: str) -> object:
                asked.append(subject)
                return await read(subject)

            monkeypatch.setattr(opened.records, "_read_from_leader", note)
            opened.records._is_replicated = True
            begun = PENDING.replace(task_id="b" * 32, status=TaskStatus.STARTED)
            for record in (begun, DONE):
                await opened.records.create(record)
                assert (await opened.records.get(record.task_id))[0] == record
            assert asked == [record_subject(begun.task_id)]

    asyncio.run(main())


def test_a_record_is_kept_for_longer_and_expires_for_callers_when_it_did_before(desk: OpenDesk) -> None:
    async def main() -> None:
        async with desk(result_ttl=100) as opened:
            await opened.records.create(DONE)
            before = await opened.records.load(DONE.task_id)
            assert before is not None
            # As if most of its TTL had passed.
            past = replace(before, lifetime=before.lifetime._replace(expires_at=time.time() + 1))
            kept = await opened.records.keep(past)
            found = await opened.records.load(DONE.task_id)
            assert found is not None
            assert (found.record, found.revision) == (DONE, kept.revision)
            assert found.lifetime == pytest.approx(kept.lifetime, abs=0.5)
            assert found.lifetime.expires_at == pytest.approx(past.lifetime.expires_at, abs=0.5)
            assert found.lifetime.removed_at > before.lifetime.expires_at - 1
            expired = replace(found, lifetime=found.lifetime._replace(expires_at=time.time() - 10))
            assert (await opened.records.keep(expired)).is_expired
            assert await opened.records.find(DONE.task_id) is None
            found = await opened.records.load(DONE.task_id)
            assert found is not None
            assert (found.record.status, found.record.result) == (DONE.status, NO_RESULT)

    asyncio.run(main())


@pytest.mark.parametrize("has_copies", [False, True])
def test_an_expired_revision_that_the_server_kept_is_missing_and_can_be_replaced(
    desk: OpenDesk, *, has_copies: bool
) -> None:
    async def main() -> None:
        async with desk() as opened:
            opened.records._is_replicated = has_copies
            headers = {"Task-TTL": "0", "Task-Status": "PENDING"}
            await opened.connection.store(record_subject(PENDING.task_id), msgspec.json.encode(PENDING), headers)
            assert await opened.records.find(PENDING.task_id) is None
            stored = await opened.records.load(PENDING.task_id)
            assert stored is not None
            assert stored.is_expired
            with pytest.raises(RevisionConflictError):
                await opened.records.update(DONE, 0)
            revision = await opened.records.create(DONE)
            assert await opened.records.get(DONE.task_id) == (DONE, revision)

    asyncio.run(main())


def test_a_result_is_found_by_its_digest_until_it_expires(desk: OpenDesk) -> None:
    async def main() -> None:
        async with desk() as opened:
            records = opened.records
            assert await records.find_result("d1") is None
            await records.index_result("d1", PENDING.task_id)
            assert await records.find_result("d1") is None, "no record"
            revision = await records.create(PENDING)
            assert await records.find_result("d1") is None, "no end"
            revision = await records.update(DONE, revision)
            assert await records.find_result("d1") == DONE
            await records.index_result("d2", PENDING.task_id)
            assert await records.find_result("d2") is None, "the result of another request"
            await records.update(FAILED, revision)
            assert await records.find_result("d1") is None, "no result"

    asyncio.run(main())


def test_usage_is_the_size_of_the_records_and_is_read_periodically(
    desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with desk() as opened:
            await opened.records.create(DONE.replace(result=msgspec.Raw(b'"' + bytes(100_000).hex().encode() + b'"')))
            before = await opened.records.usage_bytes()
            assert 200_000 < before < 202_000
            await opened.records.create(PENDING.replace(task_id="b" * 32))
            assert await opened.records.usage_bytes() == before
            monkeypatch.setattr("app.tasks.records.USAGE_AGE_S", 0.0)
            assert await opened.records.usage_bytes() > before

    asyncio.run(main())


def test_superseded_revisions_that_a_killed_server_restores_are_missing(
    desk: OpenDesk, run_server: Callable[..., NatsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed server rebuilds its state: it keeps tombstones of expired revisions, but not of replaced ones."""
    monkeypatch.setattr("app.tasks.records.OPEN_TTL_MIN_S", 1)
    server = run_server()
    records = [PENDING.replace(task_id=f"{number:032x}") for number in range(50)]

    async def write() -> None:
        async with desk(nats_url=server.url, result_ttl=3600) as opened:
            await opened.records.create(PENDING)  # so that the server does not remove the whole block of messages
        async with desk(nats_url=server.url, result_ttl=1) as opened:
            for record in records:
                revision = await opened.records.create(record)
                revision = await opened.records.update(record.replace(status=TaskStatus.STARTED), revision)
                await opened.records.update(record.replace(status=TaskStatus.SUCCESS), revision)

            async def are_expired() -> bool:
                return await opened.count(RECORDS_STREAM) <= 2  # the first one, and the lease

            await opened.until(are_expired, "the records' expiry")

    async def find() -> list[object]:
        async with desk(nats_url=server.url, result_ttl=1) as opened:
            return [await opened.records.find(record.task_id) for record in records]

    asyncio.run(write())
    server.stop(is_killed=True)
    server.start()
    assert asyncio.run(find()) == [None] * len(records)


@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
def test_each_acknowledged_revision_is_found_after_a_restart(
    desk: OpenDesk, run_server: Callable[..., NatsServer], *, is_killed: bool
) -> None:
    server = run_server()
    result = msgspec.Raw(b'"' + b"x" * 700_000 + b'"')
    written: dict[str, int] = {}

    async def write(records: Records, record: Record) -> None:
        written[record.task_id] = await records.update(record, written.get(record.task_id, 0))

    async def main() -> None:
        for turn in range(4):
            async with desk(nats_url=server.url) as opened:
                for task_id, revision in written.items():
                    found = await opened.records.find(task_id)
                    assert found is not None, f"turn {turn}: the record of revision {revision} is missing"
                    assert found[1] == revision
                # The revisions of a small record, and sometimes those of a large one, are in different blocks.
                small = PENDING.replace(task_id=f"small-{turn}")
                await write(opened.records, small)
                for number in range(1 + BLOCK_BYTES // len(result)):
                    await write(opened.records, DONE.replace(task_id=f"{number:032}", result=result))
                await write(opened.records, small.replace(status=TaskStatus.CANCELLED))
            server.stop(is_killed=is_killed)
            server.start()

    asyncio.run(main())
