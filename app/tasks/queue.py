"""Tasks as the web layer sees them: taken, looked at, cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from contextvars import Context
from hashlib import sha256
from typing import TYPE_CHECKING, Final, TypeVar

import nats.errors

from app.observability.recording import record_cache_lookup, record_task_completed, record_task_submitted
from app.tasks.connection import Connection, RevisionConflictError
from app.tasks.embedded_server import store_folder
from app.tasks.errors import (
    IdempotencyConflictError,
    QueueError,
    QueueFullError,
    QueueUnavailableError,
    TaskEndedError,
    TaskTooLargeError,
    TaskUnknownError,
)
from app.tasks.long_polls import LongPolls
from app.tasks.message import encode_task
from app.tasks.queue_shares import QueueShares
from app.tasks.reconciler import RELEASE_S, Reconciler
from app.tasks.records import TASK_UNKNOWN, Record, Records, TaskStatus
from app.tasks.storage_space import StorageSpace
from app.tasks.stream import TASK_TYPE, lane_of, notice_subject, task_subject
from app.tasks.stream_state import is_queued

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.service.crop import CheckedInput
    from app.settings import Settings

FULL_PAUSE_S: Final = 0.2  # after a refusal, others are refused without asking; callers wait longer than this anyhow
CACHE_TIMEOUT_S: Final = 0.5
CACHE_PAUSE_S: Final = 5.0  # for a queue that did not answer; the synchronous route shall not wait for it each time
ATTEMPTS: Final = 8
# Of a message that may be taken: with what is told of it should it be given up on, it is still one that can be stored.
HEADERS_BYTES: Final = 1024

T = TypeVar("T")


class TaskQueue:
    """The queue, for one process; everything runs in the event loop that `start` was called in.

    Args:
        settings: where the queue is, and its bounds.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = Connection(settings, "facial-service api")
        self._records = Records(self._connection, settings)
        self._reconciling: asyncio.Task[None] | None = None
        self._long_polls = LongPolls()
        self._shares = QueueShares(self._connection, settings)
        folder = store_folder(settings)
        self._space = None if folder is None else StorageSpace(folder)
        self._full_until: dict[int, float] = {}  # by lane
        self._no_cache_until = 0.0

    async def start(self) -> None:
        """Begin to connect, in the background, and stand by to reconcile if no worker does."""
        await self._connection.start()
        # In no request's context: its log lines would carry that request's id.
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
        """Take a task.

        Args:
            checked: what is to be done.
            idempotency_key: of the caller's making; the same key gives the same task.
            caller_number: number of the caller, which determines the lane of its tasks.
            owner: whom the task belongs to. Equal idempotency keys of two owners give two tasks.
            digest: of ``checked``; needed with a key, and for the result cache.

        Returns:
            The task's record; with a key that was used before, or a result that is there, it may have ended already.

        Raises:
            QueueUnavailableError: the queue is away.
            QueueFullError: the queue is full.
            TaskTooLargeError: the queue's server takes no message so large.
            IdempotencyConflictError: the key was used for another request.
        """
        task_id = uuid.uuid4().hex if idempotency_key is None else _derive_id(owner, idempotency_key)
        record = Record(
            task_id=task_id,
            submitted_at=time.time(),
            digest=digest or "",
            owner=owner,
            open_ttl_s=self._records.open_ttl_s,
        )
        lane = lane_of(caller_number)
        if idempotency_key is not None:  # what was taken stays so, be the queue full now
            there = await _until_settled(lambda: self._find_taken(record, checked, lane))
            if there is not None:
                return there
        self._require_small(checked)
        await self._require_room(len(checked.image) + len(checked.label_image or b""), lane)
        if self._settings.result_cache and digest and (found := await self._find(digest)) is not None:
            record = _answer_from(found, record)
        return await _until_settled(lambda: self._take(record, checked, lane))

    async def status(
        self,
        task_id: str,
        *,
        owner: str = "",
        caller: str = "",
        wait_s: float = 0.0,
        is_stopping: Callable[[], bool] = bool,
    ) -> Record:
        """Return the record of a task.

        Args:
            task_id: id of the task.
            owner: whose tasks the caller may see.
            caller: identity of the caller; waiting requests are shared between callers.
            wait_s: how long to wait for the end of the task.
            is_stopping: asked now and then whether to wait no longer.

        Raises:
            TaskUnknownError: the task does not exist, or belongs to another owner.
            QueueUnavailableError: the queue is unreachable.
            SaturatedError: too many requests wait, and the caller has no smaller share of them than others.
        """
        end = time.monotonic() + wait_s
        record, _ = await self._get(task_id, owner)
        if wait_s <= 0 or record.status.is_final:
            return record
        with self._long_polls.enter(caller) as poll:
            return await self._wait_for_end(task_id, end, lambda: poll.is_over or is_stopping())

    async def _wait_for_end(self, task_id: str, end: float, is_over: Callable[[], bool]) -> Record:
        notices = await self._connection.subscribe(notice_subject(task_id))
        try:
            # Once more: an end that came before the subscription was not noticed.
            record, _ = await self._records.get(task_id)
            while True:
                left_s = end - time.monotonic()
                if record.status.is_final or left_s <= 0 or is_over():
                    return record
                with contextlib.suppress(TimeoutError):
                    await notices.next_msg(timeout=min(left_s, self._long_polls.recheck_s))
                record, _ = await self._records.get(task_id)
        except (nats.errors.Error, OSError):
            raise QueueUnavailableError("the queue went away; come back after the time in Retry-After") from None
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await notices.unsubscribe()

    async def cancel(self, task_id: str, *, owner: str = "") -> Record:
        """End a task that has not ended; work on it that is under way is for nothing.

        Raises:
            TaskUnknownError: the task does not exist, or belongs to another owner.
            TaskEndedError: it has ended otherwise.
            QueueError: the queue is away, or could not store it.
        """
        return await _until_settled(lambda: self._cancel(task_id, owner))

    async def find_result(self, digest: str) -> bytes | None:
        """Return the result of a task that was asked the same, or None; the queue's absence is no error here."""
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

    async def _require_room(self, size: int, lane: int) -> None:
        if time.monotonic() < self._full_until.get(lane, 0.0):
            raise QueueFullError("the queue is full; come back after the time in Retry-After")
        if self._space is not None and not self._space.admit(size):
            raise QueueFullError("the queue's storage is full; come back later")
        self._connection.require_storing()
        if await self._records.usage_bytes() > self._settings.result_max_bytes:
            raise QueueFullError("the store of results is full; come back later")
        await self._shares.take(lane, size)

    def _require_small(self, checked: CheckedInput) -> None:
        limit = self._largest()
        size = len(checked.image) + len(checked.label_image or b"")
        if size > limit:
            raise TaskTooLargeError(f"expected pictures of at most {limit} bytes in a task, got {size}")

    def _largest(self) -> int:
        """Return how large a message may be: the server's limit, or a queue with nothing else in it."""
        bounds = (self._connection.client.max_payload, self._settings.task_queue_max_bytes)
        return min(bounds) - HEADERS_BYTES

    async def _find_taken(self, record: Record, checked: CheckedInput, lane: int) -> Record | None:
        found = await self._records.find(record.task_id)
        return None if found is None or found[0].is_withdrawn else await self._resume(*found, record, checked, lane)

    async def _take(self, record: Record, checked: CheckedInput, lane: int) -> Record:
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
        """Answer a request whose task is there already."""
        if record.digest != wanted.digest:
            raise IdempotencyConflictError("expected the request that this Idempotency-Key was used for, got another")
        if record.status is TaskStatus.PENDING and not await is_queued(self._connection, record.task_id):
            # Whoever wrote the record may have been killed before it sent the message, or be about to withdraw it: the
            # new revision keeps it from that. Sent twice, the message is kept once.
            revision = await self._renew(record, revision)
            await self._publish(record, revision, checked, lane)
        return record

    async def _renew(self, record: Record, revision: int) -> int:
        """Write a record again as it is; whoever else did so meanwhile has done it for all."""
        try:
            return await self._records.update(record, revision)
        except RevisionConflictError:
            found = await self._records.find(record.task_id)
            if found is None or found[0] != record:
                raise
            return found[1]

    async def _publish_or_withdraw(self, record: Record, revision: int, checked: CheckedInput, lane: int) -> None:
        try:
            await self._publish(record, revision, checked, lane)
        except QueueError as error:
            if isinstance(error, QueueFullError):
                self._full_until[lane] = time.monotonic() + FULL_PAUSE_S
            # Whether the message is there after all cannot be known; its worker shall find that nobody waits for it.
            withdrawn = record.replace(status=TaskStatus.CANCELLED, is_withdrawn=True)
            with contextlib.suppress(QueueError, RevisionConflictError):
                await self._records.update(withdrawn, revision)
            raise

    async def _publish(self, record: Record, revision: int, checked: CheckedInput, lane: int) -> None:
        # By this id the server knows a message that it has already.
        headers = {"Nats-Msg-Id": f"{record.task_id}.{record.submitted_at}"}
        message = encode_task(record, revision, checked)
        if len(message) > self._largest():
            raise TaskTooLargeError("expected smaller pictures: the queue does not take messages as large as this task")
        await self._connection.store(task_subject(record.task_id, lane), message, headers)

    async def _get(self, task_id: str, owner: str) -> tuple[Record, int]:
        found = await self._records.get(task_id)
        # A task that was submitted before keys were set belongs to no one, and every key may read it.
        if found[0].owner not in {"", owner}:
            raise TaskUnknownError(TASK_UNKNOWN)
        return found

    async def _cancel(self, task_id: str, owner: str) -> Record:
        record, revision = await self._get(task_id, owner)
        if record.status is TaskStatus.CANCELLED:
            return record
        if record.status.is_final:
            raise TaskEndedError(f"expected a task that has not ended, got one that ended with {record.status}")
        # Of no run: the one that works on it would take this end for its own.
        cancelled = record.replace(status=TaskStatus.CANCELLED, completed_at=time.time(), run="")
        await self._records.update(cancelled, revision)
        # The message stays until it is delivered: purging it by subject breaks the consumer's state if an older message
        # is unacknowledged. The worker that receives it reads the final record and acknowledges.
        record_task_completed(record.type, TaskStatus.CANCELLED.value)
        return cancelled


async def _until_settled(step: Callable[[], Awaitable[T]]) -> T:
    """Do a step again whenever somebody else, a worker or the key's other request, wrote the record in between."""
    for _ in range(ATTEMPTS):
        with contextlib.suppress(RevisionConflictError):
            return await step()
    raise QueueUnavailableError("the task changes too fast; come back after the time in Retry-After")


def _derive_id(owner: str, key: str) -> str:
    """Return the task id of an idempotency key; equal keys of different owners have different ids."""
    parts = (owner.encode(), TASK_TYPE.encode(), key.encode())
    return sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).hexdigest()[:32]


def _answer_from(found: Record, wanted: Record) -> Record:
    return found.replace(
        task_id=wanted.task_id,
        owner=wanted.owner,
        submitted_at=wanted.submitted_at,
        started_at=None,
        completed_at=time.time(),
        attempts=0,
    )
