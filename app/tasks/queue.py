"""The queue as the web layer uses it: submit tasks, read their status, cancel them."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from contextvars import Context
from hashlib import sha256
from typing import TYPE_CHECKING, Final, TypeVar

from app.observability import tracing
from app.observability.recording import record_cache_lookup, record_task_completed, record_task_submitted
from app.tasks.admission import QueueAdmission
from app.tasks.connection import TOO_LARGE, UNAVAILABLE, Connection, RevisionConflictError
from app.tasks.errors import (
    IdempotencyConflictError,
    QueueError,
    QueueFullError,
    QueueUnavailableError,
    TaskEndedError,
    TaskTooLargeError,
    TaskUnknownError,
)
from app.tasks.long_polls import LongPoll, LongPolls
from app.tasks.message import encode_task
from app.tasks.reconciler import RELEASE_S, Reconciler, restore_record
from app.tasks.records import TASK_UNKNOWN, Record, Records, TaskStatus, require_known
from app.tasks.stream import TASK_TYPE, is_task_id, lane_of, task_subject
from app.tasks.stream_state import find_lane, list_consumers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.service.crop import CheckedInput
    from app.settings import Settings

CACHE_TIMEOUT_S: Final = 0.5
CACHE_PAUSE_S: Final = 5.0  # after a timeout, so that the synchronous route does not wait each time
ATTEMPTS: Final = 8
# Submissions that wait for the end of an outage hold memory that other requests need.
MAX_WAITING_BYTES: Final = 32 * 1024 * 1024

T = TypeVar("T")


class TaskQueue:
    """The queue of one process; everything runs in the event loop in which `start` was called."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = Connection(settings, "facial-service api")
        self._records = Records(self._connection, settings)
        self._reconciling: asyncio.Task[None] | None = None
        self._long_polls = LongPolls(self._connection)
        self._admission = QueueAdmission(self._connection, self._records, settings)
        self._no_cache_until = 0.0
        self._submitting_bytes = 0

    async def start(self) -> None:
        """Start to connect, in the background, and reconcile if no worker does."""
        await self._connection.start()
        # In an empty context, because its log lines would otherwise carry the id of an unrelated request.
        reconciler = Reconciler(self._connection, self._records, self._settings, is_standby=True)
        self._reconciling = asyncio.create_task(reconciler.run(), context=Context())

    async def close(self) -> None:
        """Close the connection."""
        if self._reconciling is not None:
            self._reconciling.cancel()
            await asyncio.wait([self._reconciling], timeout=RELEASE_S)
        await self._connection.close()

    async def submit(
        self,
        checked: CheckedInput,
        *,
        idempotency_key: str | None = None,
        caller_number: int = 0,
        owner: str = "",
        digest: str | None = None,
    ) -> Record:
        """Submit a task; a short outage of the queue delays it.

        Args:
            checked: validated input of the task.
            idempotency_key: key chosen by the caller; the same key returns the same task.
            caller_number: number of the caller, which determines the lane of its tasks.
            owner: owner of the task. Equal idempotency keys of different owners are independent.
            digest: digest of ``checked``; required with a key, and for the result cache.

        Returns:
            The record of the task, which may have ended if the key was used before or the result is cached.

        Raises:
            QueueUnavailableError: the queue is unavailable.
            QueueFullError: the queue is full.
            TaskTooLargeError: the task exceeds the largest message.
            IdempotencyConflictError: the key was used for another request.
        """
        size = len(checked.image) + len(checked.label_image or b"")
        if self._connection.is_in_outage and self._submitting_bytes + size > MAX_WAITING_BYTES:
            raise QueueUnavailableError(UNAVAILABLE)
        task_id = uuid.uuid4().hex if idempotency_key is None else _derive_id(owner, idempotency_key)
        record = Record(
            task_id=task_id,
            submitted_at=time.time(),
            digest=digest or "",
            owner=owner,
            open_ttl_s=self._records.open_ttl_s,
        )
        self._submitting_bytes += size
        try:
            lane = lane_of(caller_number)
            return await self._submit(record, checked, lane, size, is_keyed=idempotency_key is not None)
        finally:
            self._submitting_bytes -= size

    async def _submit(self, record: Record, checked: CheckedInput, lane: int, size: int, *, is_keyed: bool) -> Record:
        await self._connection.wait_outage()
        if is_keyed:  # before admission, because the task may exist although the queue is full now
            existing = await _retry_on_conflict(lambda: self._find_existing(record, checked, lane))
            if existing is not None:
                return existing
        await self._admission.admit(size, lane)
        new = record
        if self._settings.result_cache and record.digest and (found := await self._find(record.digest)) is not None:
            new = _copy_result(found, record)
        return await _retry_on_conflict(lambda: self._create(new, checked, lane))

    async def status(
        self,
        task_id: str,
        *,
        owner: str = "",
        caller: str = "",
        wait_s: float = 0.0,
        is_stopping: Callable[[], bool] = bool,
    ) -> Record:
        """Return the record of a task after waiting up to `wait_s` for its end, or until `is_stopping` returns true.

        The slots for waiting requests are shared among callers.

        Raises:
            TaskUnknownError: the task does not exist, or belongs to another owner.
            QueueUnavailableError: the queue is unavailable.
            SaturatedError: too many requests wait, and the caller has no smaller share of them than others.
        """
        end = time.monotonic() + wait_s
        record, _ = await self._get(task_id, owner)
        if wait_s <= 0 or record.status.is_final:
            return record
        try:
            with self._long_polls.enter(caller, task_id) as poll:
                return await self._wait_for_end(poll, end, is_stopping)
        finally:
            await self._long_polls.unsubscribe_if_idle()

    async def _wait_for_end(self, poll: LongPoll, end: float, is_stopping: Callable[[], bool]) -> Record:
        while True:
            # On each turn, because a new connection has no subscription; before the record is read, so that no notice
            # is lost in between.
            await self._long_polls.subscribe()
            record, _ = await self._read(poll.task_id)
            left_s = end - time.monotonic()
            if record.status.is_final or left_s <= 0 or poll.is_over or is_stopping():
                return record
            await poll.wait(min(left_s, self._long_polls.recheck_s))

    async def cancel(self, task_id: str, *, owner: str = "") -> Record:
        """Cancel a task that has not ended; the result of an attempt in progress is discarded.

        Raises:
            TaskUnknownError: the task does not exist, or belongs to another owner.
            TaskEndedError: the task has ended with another status.
            QueueError: the queue is unavailable, or could not store the record.
        """
        return await _retry_on_conflict(lambda: self._cancel(task_id, owner))

    async def find_result(self, digest: str) -> bytes | None:
        """Return the cached result for a digest; None if there is none or the queue is unavailable."""
        found = await self._find(digest)
        return None if found is None else bytes(found.result)

    async def _find(self, digest: str) -> Record | None:
        if time.monotonic() < self._no_cache_until:
            record_cache_lookup("unavailable")
            return None
        try:
            async with asyncio.timeout(CACHE_TIMEOUT_S):
                found = await self._records.find_result(digest)
        except (QueueUnavailableError, TimeoutError):
            self._no_cache_until = time.monotonic() + CACHE_PAUSE_S
            record_cache_lookup("unavailable")
            return None
        record_cache_lookup("miss" if found is None else "hit")
        return found

    async def _find_existing(self, record: Record, checked: CheckedInput, lane: int) -> Record | None:
        found = await self._records.find(record.task_id)
        return None if found is None or found[0].is_withdrawn else await self._resume(*found, record, checked, lane)

    async def _create(self, record: Record, checked: CheckedInput, lane: int) -> Record:
        try:
            revision = await self._records.create(record)
        except RevisionConflictError:
            found = await self._records.find(record.task_id)
            if found is None:
                raise
            if not found[0].is_withdrawn:
                return await self._resume(*found, record, checked, lane)
            revision = await self._records.update(record, found[1])
        if record.status.is_final:
            record_task_completed(record.type, record.status.value)
        else:
            await self._publish_or_withdraw(record, revision, checked, lane)
        record_task_submitted(record.type)
        return record

    async def _resume(self, record: Record, revision: int, wanted: Record, checked: CheckedInput, lane: int) -> Record:
        """Return the record of a task that exists; send its message if that is missing."""
        if record.digest != wanted.digest:
            raise IdempotencyConflictError(
                "Idempotency-Key: expected the same request as when the key was first used, got another request"
            )
        if record.status is TaskStatus.PENDING:
            # The process that wrote the record may be about to withdraw it, because it got no response when it sent the
            # message; the new revision prevents that.
            revision = await self._records.update(record, revision)
            if await find_lane(self._connection, record.task_id) is None:
                # It may have been killed before it sent the message. The server drops a message that is sent twice.
                await self._publish(record, revision, checked, lane)
        return record

    async def _publish_or_withdraw(self, record: Record, revision: int, checked: CheckedInput, lane: int) -> None:
        try:
            await self._publish(record, revision, checked, lane)
        except QueueError as error:
            if isinstance(error, QueueFullError):
                self._admission.note_full(lane)
            # The message may have been stored even so; its worker must then find the task withdrawn.
            withdrawn = record.replace(status=TaskStatus.CANCELLED, is_withdrawn=True)
            await self._connection.wait_restored()
            with contextlib.suppress(QueueError, RevisionConflictError):
                await self._records.update(withdrawn, revision)
            raise

    async def _publish(self, record: Record, revision: int, checked: CheckedInput, lane: int) -> None:
        # The server recognizes a duplicate by this id.
        headers = {"Nats-Msg-Id": f"{record.task_id}.{record.submitted_at}"}
        message = encode_task(record, revision, checked)
        if len(message) > self._admission.max_message_bytes:
            raise TaskTooLargeError(TOO_LARGE)
        with tracing.publication(record.task_id):
            headers |= tracing.inject()
            await self._connection.store(task_subject(record.task_id, lane), message, headers)

    async def _get(self, task_id: str, owner: str) -> tuple[Record, int]:
        found = await self._read(task_id)
        # A task that was submitted before keys were set has no owner, and every key may read it.
        if found[0].owner not in {"", owner}:
            raise TaskUnknownError(TASK_UNKNOWN)
        return found

    async def _read(self, task_id: str) -> tuple[Record, int]:
        """Return a record and its revision.

        Raises:
            TaskUnknownError: the task does not exist.
            QueueUnavailableError: the record has expired although the task may not have ended.
        """
        if not is_task_id(task_id):
            raise TaskUnknownError(TASK_UNKNOWN)
        stored = await self._records.load(task_id)
        may_wait = stored is None or (stored.is_expired and not stored.record.status.is_final)
        if may_wait and await self._restore(task_id):
            stored = await self._records.load(task_id)
        return require_known(stored)

    async def _restore(self, task_id: str) -> bool:
        """Restore the record of a waiting task; return False if the queue does not hold the task.

        The record expires in a long outage of the queue, because nothing renews it then.
        """
        lane = await find_lane(self._connection, task_id)
        if lane is None:
            return False
        consumer = (await list_consumers(self._connection))[lane]
        if not await restore_record(self._connection, self._records, task_id, lane, consumer):
            # A worker will process the task again, or the reconciler will remove the message of an ended task.
            raise QueueUnavailableError("the state of the task is being restored; retry after the time in Retry-After")
        return True

    async def _cancel(self, task_id: str, owner: str) -> Record:
        record, revision = await self._get(task_id, owner)
        if record.status is TaskStatus.CANCELLED:
            return record
        if record.status.is_final:
            raise TaskEndedError(f"task: expected status PENDING or STARTED, got {record.status}")
        # Without a run, because the attempt in progress would otherwise mistake this end for its own.
        cancelled = record.replace(status=TaskStatus.CANCELLED, completed_at=time.time(), run="")
        await self._records.update(cancelled, revision)
        # The message stays until it is delivered, because a purge by subject breaks the consumer's state if an older
        # message is unacknowledged. The worker that receives it reads the final record and acknowledges.
        record_task_completed(record.type, TaskStatus.CANCELLED.value)
        return cancelled


async def _retry_on_conflict(step: Callable[[], Awaitable[T]]) -> T:
    """Repeat a step if a worker or a concurrent request has changed the record meanwhile."""
    for _ in range(ATTEMPTS):
        with contextlib.suppress(RevisionConflictError):
            return await step()
    raise QueueUnavailableError("the task is being changed concurrently; retry after the time in Retry-After")


def _derive_id(owner: str, key: str) -> str:
    """Return the task id of an idempotency key; equal keys of different owners have different ids."""
    parts = (owner.encode(), TASK_TYPE.encode(), key.encode())
    return sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).hexdigest()[:32]


def _copy_result(found: Record, wanted: Record) -> Record:
    return found.replace(
        task_id=wanted.task_id,
        owner=wanted.owner,
        submitted_at=wanted.submitted_at,
        started_at=None,
        completed_at=time.time(),
        attempts=0,
    )
