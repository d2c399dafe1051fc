"""Dead letters: messages of tasks that failed on every attempt, with commands to list, retry and drop them."""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import nats.errors
from nats.js.api import ConsumerConfig, DeliverPolicy

from app.observability.recording import record_error, record_task_completed, record_task_dead_lettered
from app.observability.rich_logging import log_task_failed
from app.tasks.connection import Connection, RevisionConflictError
from app.tasks.errors import QueueError, QueueUnavailableError, TaskEndedError, TaskUnknownError
from app.tasks.message import MessageError, NewerTaskError, decode_task
from app.tasks.records import Record, Records, StoredRecord, TaskError, TaskStatus
from app.tasks.stream import DEAD_STREAM, TASK_TYPE, dead_subject, is_task_id, task_subject

if TYPE_CHECKING:
    from app.settings import Settings

TASK_GAVE_UP: Final = "task_gave_up"
ATTEMPTS: Final = 8
_LIST_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A dead letter; the names of the fields are those of ``tasks dead list --json``."""

    task_id: str
    buried_at: float  # time at which it was dead-lettered, in seconds since the epoch
    attempts: int  # number of attempts that were started
    reason: str  # why it was dead-lettered
    size: int  # size of its message, in bytes


class DeadLetterQueue:
    """The stream of dead letters."""

    def __init__(self, connection: Connection, records: Records) -> None:
        self._connection = connection
        self._records = records

    async def dead_letter(self, task_id: str, message: bytes, *, attempts: int, reason: str) -> None:
        """Store a message in the dead-letter stream, then mark the task as failed.

        Raises:
            QueueError: the message or the record could not be stored; the call must be repeated.
        """
        headers = {
            "Task-Attempts": str(attempts),
            "Task-Reason": reason,
            "Task-Buried-At": str(time.time()),
            "Task-Size": str(len(message)),
        }
        await self._connection.store(dead_subject(task_id), message, headers)
        for _ in range(ATTEMPTS):
            stored = await self._records.load(task_id) or StoredRecord(
                _record_of(task_id, message).replace(attempts=attempts)
            )
            record, revision = stored.record, stored.revision
            if record.status.is_final:
                if _is_dead(record):
                    break
                await self._purge({"filter": dead_subject(task_id)})  # the task has ended meanwhile
                return
            error = TaskError(TASK_GAVE_UP, reason)
            # Without a run, because an attempt that still runs would otherwise mistake this end for its own.
            end = record.replace(status=TaskStatus.FAILURE, error=error, completed_at=time.time(), run="")
            with contextlib.suppress(RevisionConflictError):
                await self._records.update(end, revision)
                record_task_completed(record.type, end.status.value)
                record_error(TASK_GAVE_UP, "tasks")
                break
        record_task_dead_lettered(TASK_TYPE)
        log_task_failed(task_id, TASK_GAVE_UP, reason)

    async def list(self) -> list[DeadLetter]:
        """Return all dead letters, oldest first.

        Raises:
            QueueUnavailableError: the server does not respond.
        """
        stream = self._connection.client.jetstream()
        found: list[DeadLetter] = []
        try:
            left = (await stream.stream_info(DEAD_STREAM)).state.messages
            if not left:
                return []
            # Headers only, so that the images are not transferred.
            listing = await stream.subscribe(
                "tasks-dead.>",
                stream=DEAD_STREAM,
                ordered_consumer=True,
                config=ConsumerConfig(headers_only=True, deliver_policy=DeliverPolicy.ALL),
            )
            while left:
                message = await listing.next_msg(timeout=_LIST_TIMEOUT_S)
                found.append(_describe(message.subject, message.headers or {}))
                left = message.metadata.num_pending  # some may be removed meanwhile
            await listing.unsubscribe()
        except (nats.errors.Error, OSError):
            raise QueueUnavailableError("the queue did not respond in time") from None
        return found

    async def retry(self, task_id: str) -> None:
        """Move a task back to the queue, and reset its attempts.

        Raises:
            TaskUnknownError: no dead letter of this id exists.
            TaskEndedError: the task is no longer dead.
            QueueError: the task could not be stored.
        """
        message, sequence = await self._read(task_id)
        for _ in range(ATTEMPTS):
            stored = await self._records.load(task_id) or StoredRecord(_expired(task_id, message))
            record, revision = stored.record, stored.revision
            if not _is_dead(record):
                raise TaskEndedError(f"task: expected status FAILURE with {TASK_GAVE_UP}, got {record.status}")
            again = Record(
                task_id=task_id,
                type=record.type,
                submitted_at=record.submitted_at,
                digest=record.digest,
                owner=record.owner,
                open_ttl_s=record.open_ttl_s,
            )
            with contextlib.suppress(RevisionConflictError):
                revision = await self._records.update(again, revision)
                break
        else:
            raise QueueUnavailableError("the task is being changed concurrently; try again")
        # With a new id, because the server would drop a message with the old one as a duplicate.
        headers = {"Nats-Msg-Id": f"{task_id}.{uuid.uuid4().hex}"}
        try:
            await self._connection.store(task_subject(task_id), message, headers)
        except QueueError:
            with contextlib.suppress(QueueError, RevisionConflictError):  # the task remains dead
                await self._records.update(record, revision)
            raise
        # Not later messages, because the task may already be dead again.
        await self._purge({"filter": dead_subject(task_id), "seq": sequence + 1})

    async def drop(self, task_id: str) -> None:
        """Delete a dead letter.

        Raises:
            TaskUnknownError: no dead letter of this id exists.
            QueueUnavailableError: the server does not respond.
        """
        _require_id(task_id)
        if not await self._purge({"filter": dead_subject(task_id)}):
            raise _unknown()

    async def _purge(self, selection: dict[str, str | int]) -> int:
        request = msgspec.json.encode(selection)
        response = await self._connection.request(f"$JS.API.STREAM.PURGE.{DEAD_STREAM}", request)
        return int(msgspec.json.decode(response.data).get("purged", 0))

    async def _read(self, task_id: str) -> tuple[bytes, int]:
        _require_id(task_id)
        response = await self._connection.request(f"$JS.API.DIRECT.GET.{DEAD_STREAM}.{dead_subject(task_id)}")
        headers = response.headers or {}
        if "Nats-Sequence" not in headers:
            raise _unknown()
        return response.data, int(headers["Nats-Sequence"])


def _require_id(task_id: str) -> None:
    if not is_task_id(task_id):  # a wildcard would match all dead letters
        raise _unknown()


def _is_dead(record: Record) -> bool:
    return record.error is not None and record.error.code == TASK_GAVE_UP


def _record_of(task_id: str, message: bytes) -> Record:
    """Return the first record of a task; if the message cannot be decoded, one that was submitted now."""
    try:
        return decode_task(message).record
    except (MessageError, NewerTaskError):
        return Record(task_id=task_id, submitted_at=time.time())


def _expired(task_id: str, message: bytes) -> Record:
    error = TaskError(TASK_GAVE_UP, "the record has expired")
    return _record_of(task_id, message).replace(status=TaskStatus.FAILURE, error=error)


def _unknown() -> TaskUnknownError:
    return TaskUnknownError("task id: dead letter not found")


def _describe(subject: str, headers: dict[str, str]) -> DeadLetter:
    return DeadLetter(
        task_id=subject.rpartition(".")[2],
        buried_at=float(headers.get("Task-Buried-At", 0)),
        attempts=int(headers.get("Task-Attempts", 0)),
        reason=headers.get("Task-Reason", ""),
        size=int(headers.get("Task-Size", 0)),
    )


async def connect_dead_letters(settings: Settings) -> tuple[Connection, DeadLetterQueue]:
    """Connect to the queue for a single command.

    Raises:
        QueueUnavailableError: the queue is unavailable within the timeout of the settings.
    """
    connection = Connection(settings, "facial-service tasks", manages_streams=False)
    await connection.start()
    end = time.monotonic() + settings.nats_timeout_s
    if not await connection.wait_up(lambda: time.monotonic() > end):
        await connection.close()
        raise QueueUnavailableError(f"the queue did not respond within {settings.nats_timeout_s:g} s")
    return connection, DeadLetterQueue(connection, Records(connection, settings))
