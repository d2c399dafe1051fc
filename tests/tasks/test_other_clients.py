"""Messages and records that other clients of the NATS server publish, overwrite or delete."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import pytest
from nats.js.errors import NoStreamResponseError

from app.tasks.errors import TaskUnknownError
from app.tasks.reconciler import Reconciler
from app.tasks.records import Record, TaskStatus
from app.tasks.stream import DEAD_STREAM, LANES, RECORDS_STREAM, record_subject, task_subject

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput
    from tests.tasks.conftest import Desk

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]
    Check = Callable[..., CheckedInput]

# A key that was deleted, that was overwritten with other bytes, other JSON, headers of a later version, another record.
REPLACEMENTS = [
    (b"", {"KV-Operation": "DEL"}),
    (b"", {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}),
    (b"\x00\xff", {}),
    (b'{"status": 1}', {"Task-Status": "ARCHIVED", "Task-TTL": "soon", "Nats-TTL": "1h"}),
    (b'{"task_id": "b", "submitted_at": 1}', {"Task-Status": "SUCCESS"}),
]
KINDS = pytest.mark.parametrize(("data", "headers"), REPLACEMENTS, ids=["deleted", "purged", "bytes", "json", "other"])


async def overwrite(desk: Desk, task_id: str, data: bytes, headers: dict[str, str]) -> None:
    await desk.connection.client.jetstream().publish(record_subject(task_id), data, headers=headers)


@pytest.mark.parametrize("subject", ["tasks.x", "tasks.x.y.z", f"tasks.x.{LANES}.z", "tasks.x.1.y.z"])
def test_a_message_that_no_consumer_would_take_is_not_stored(desk: OpenDesk, subject: str) -> None:
    async def main() -> None:
        async with desk() as opened:
            with pytest.raises(NoStreamResponseError):
                await opened.connection.client.jetstream().publish(subject, b"")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "headers"),
    [(b"other", {}), (b"", {}), (b"", {"Status": "100"}), (b"", {"Status": "404"}), (b"other", {"X": "x" * 60_000})],
    ids=["bytes", "empty", "heartbeat", "no message", "long header"],
)
def test_a_message_of_another_client_becomes_a_dead_letter(
    at_work: OpenDesk, check: Check, data: bytes, headers: dict[str, str]
) -> None:
    async def main() -> None:
        async with at_work() as opened:
            task_id = os.urandom(16).hex()
            await opened.connection.client.jetstream().publish(task_subject(task_id), data, headers=headers)
            assert (await opened.end_of_unknown(task_id)).status is TaskStatus.FAILURE
            assert await opened.count(DEAD_STREAM) == 1
            assert (await opened.end_of((await opened.queue.submit(check())).task_id)).status is TaskStatus.SUCCESS
            await opened.drained()

    asyncio.run(main())


@KINDS
@pytest.mark.parametrize("is_delivered", [False, True])
def test_a_task_ends_although_its_record_was_replaced(
    desk: OpenDesk, at_work: OpenDesk, check: Check, data: bytes, headers: dict[str, str], is_delivered: bool
) -> None:
    async def main() -> None:
        async with desk(task_ack_wait_s=1) as opened:
            task_id = (await opened.queue.submit(check())).task_id
            if is_delivered:
                await opened.fetch()
            await overwrite(opened, task_id, data, headers)
            if not is_delivered:
                assert (await opened.queue.status(task_id)).status is TaskStatus.PENDING
        async with at_work(task_ack_wait_s=1) as opened:
            await opened.drained()
            assert (await opened.queue.status(task_id)).status is TaskStatus.SUCCESS

    asyncio.run(main())


@KINDS
def test_a_replaced_record_of_an_ended_task_is_unknown_and_its_key_can_be_reused(
    at_work: OpenDesk, check: Check, data: bytes, headers: dict[str, str]
) -> None:
    async def main() -> None:
        async with at_work() as opened:
            task_id = (await opened.queue.submit(check(), idempotency_key="k", digest="d")).task_id
            await opened.end_of(task_id)
            await opened.drained()
            await overwrite(opened, task_id, data, headers)
            with pytest.raises(TaskUnknownError):
                await opened.queue.status(task_id)
            await overwrite(opened, task_id, data, headers)
            assert (await opened.queue.submit(check(), idempotency_key="k", digest="d")).task_id == task_id
            assert (await opened.end_of(task_id)).status is TaskStatus.SUCCESS

    asyncio.run(main())


@KINDS
def test_the_reconciler_ends_lost_tasks_next_to_replaced_records(
    desk: OpenDesk, data: bytes, headers: dict[str, str]
) -> None:
    async def main() -> None:
        async with desk() as opened:
            replaced = os.urandom(16).hex()
            await overwrite(opened, replaced, data, headers)
            lost = Record(task_id=os.urandom(16).hex(), submitted_at=time.time())
            await opened.records.create(lost)
            reconciler = Reconciler(opened.connection, opened.records, opened.settings)
            reconciler._pending_grace_s = 0.0
            await reconciler.reconcile()
            assert (await opened.records.get(lost.task_id))[0].status is TaskStatus.FAILURE
            assert await opened.records.load(replaced) is None
            assert await opened.count(RECORDS_STREAM) == 1

    asyncio.run(main())
