"""Tasks that were given up on: put aside with why, listed, tried again, dropped."""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import nats.errors
from nats.js.api import ConsumerConfig, DeliverPolicy

from app.observability.events import log_task_failed
from app.observability.recording import record_error, record_task_completed, record_task_dead
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
    """A task that was given up on.

    Attributes:
        task_id: which one.
        buried_at: when, in seconds since the epoch.
        attempts: how often work on it was begun.
        reason: why it was given up on.
        size: of its message, in bytes.
    """

    task_id: str
    buried_at: float
    attempts: int
    reason: str
    size: int


class DeadLetterQueue:
    """The stream of tasks that were given up on.

    Args:
        connection: to the server that holds it.
        records: where their ends are written.
    """

    def __init__(self, connection: Connection, records: Records) -> None:
        self._connection = connection
        self._records = records

    async def bury(self, task_id: str, message: bytes, *, attempts: int, reason: str) -> None:
        """Put a message aside, then write into its record that it was given up on.

        Raises:
            QueueError: it could not be stored; it is to be tried again.
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
                if _was_given_up(record):
                    break
                await self._purge({"filter": dead_subject(task_id)})  # it has ended otherwise meanwhile
                return
            fault = TaskError(TASK_GAVE_UP, reason)
            # Of no run: one that is not done after all would take this end for its own.
            end = record.replace(status=TaskStatus.FAILURE, error=fault, completed_at=time.time(), run="")
            with contextlib.suppress(RevisionConflictError):
                await self._records.update(end, revision)
                record_task_completed(record.type, end.status.value)
                record_error(TASK_GAVE_UP, "tasks")
                break
        record_task_dead(TASK_TYPE)
        log_task_failed(task_id, TASK_GAVE_UP, reason)

    async def list(self) -> list[DeadLetter]:
        """List what is there, the oldest first.

        Raises:
            QueueUnavailableError: no answer.
        """
        stream = self._connection.client.jetstream()
        found: list[DeadLetter] = []
        try:
            left = (await stream.stream_info(DEAD_STREAM)).state.messages
            if not left:
                return []
            # Headers alone: the pictures stay where they are.
            listing = await stream.subscribe(
                "tasks-dead.>",
                stream=DEAD_STREAM,
                ordered_consumer=True,
                config=ConsumerConfig(headers_only=True, deliver_policy=DeliverPolicy.ALL),
            )
            while left:
                message = await listing.next_msg(timeout=_LIST_TIMEOUT_S)
                found.append(_describe(message.subject, message.headers or {}))
                left = message.metadata.num_pending  # some may go away while they are listed
            await listing.unsubscribe()
        except (nats.errors.Error, OSError):
            raise QueueUnavailableError("the queue did not answer in time") from None
        return found

    async def retry(self, task_id: str) -> None:
        """Put a task into the queue again, with all its attempts before it.

        Raises:
            TaskUnknownError: it is not here.
            TaskEndedError: it is not given up on any more.
            QueueError: it could not be stored.
        """
        message, sequence = await self._read(task_id)
        for _ in range(ATTEMPTS):
            stored = await self._records.load(task_id) or StoredRecord(_expired(task_id, message))
            record, revision = stored.record, stored.revision
            if not _was_given_up(record):
                raise TaskEndedError(f"expected a task that was given up on, got one that is {record.status}")
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
            raise QueueUnavailableError("the task changes too fast; try again")
        # A new id: under the old one, the server would take it for a copy of what it had.
        headers = {"Nats-Msg-Id": f"{task_id}.{uuid.uuid4().hex}"}
        try:
            await self._connection.store(task_subject(task_id), message, headers)
        except QueueError:
            with contextlib.suppress(QueueError, RevisionConflictError):  # nobody will work on it
                await self._records.update(record, revision)
            raise
        # Not what comes after it: the task may have been given up on again already.
        await self._purge({"filter": dead_subject(task_id), "seq": sequence + 1})

    async def drop(self, task_id: str) -> None:
        """Forget a task.

        Raises:
            TaskUnknownError: it is not here.
            QueueUnavailableError: no answer.
        """
        _require_id(task_id)
        if not await self._purge({"filter": dead_subject(task_id)}):
            raise _unknown()

    async def _purge(self, what: dict[str, str | int]) -> int:
        answer = await self._connection.request(f"$JS.API.STREAM.PURGE.{DEAD_STREAM}", msgspec.json.encode(what))
        return int(msgspec.json.decode(answer.data).get("purged", 0))

    async def _read(self, task_id: str) -> tuple[bytes, int]:
        _require_id(task_id)
        answer = await self._connection.request(f"$JS.API.DIRECT.GET.{DEAD_STREAM}.{dead_subject(task_id)}")
        headers = answer.headers or {}
        if "Nats-Sequence" not in headers:
            raise _unknown()
        return answer.data, int(headers["Nats-Sequence"])


def _require_id(task_id: str) -> None:
    if not is_task_id(task_id):  # a wildcard would stand for all of them
        raise _unknown()


def _was_given_up(record: Record) -> bool:
    return record.error is not None and record.error.code == TASK_GAVE_UP


def _record_of(task_id: str, message: bytes) -> Record:
    """Return the record that a task began with; one that cannot be read began now."""
    try:
        return decode_task(message).record
    except (MessageError, NewerTaskError):
        return Record(task_id=task_id, submitted_at=time.time())


def _expired(task_id: str, message: bytes) -> Record:
    fault = TaskError(TASK_GAVE_UP, "its record has expired")
    return _record_of(task_id, message).replace(status=TaskStatus.FAILURE, error=fault)


def _unknown() -> TaskUnknownError:
    return TaskUnknownError("expected the id of a task that was given up on; there is none")


def _describe(subject: str, headers: dict[str, str]) -> DeadLetter:
    return DeadLetter(
        task_id=subject.rpartition(".")[2],
        buried_at=float(headers.get("Task-Buried-At", 0)),
        attempts=int(headers.get("Task-Attempts", 0)),
        reason=headers.get("Task-Reason", ""),
        size=int(headers.get("Task-Size", 0)),
    )


async def connect_dead_letters(settings: Settings) -> tuple[Connection, DeadLetterQueue]:
    """Connect, for a command that does one thing and ends.

    Raises:
        QueueUnavailableError: no connection within the time of the settings.
    """
    connection = Connection(settings, "facial-service tasks", manages_streams=False)
    await connection.start()
    end = time.monotonic() + settings.nats_timeout_s
    if not await connection.wait_up(lambda: time.monotonic() > end):
        await connection.close()
        raise QueueUnavailableError(f"the queue did not answer within {settings.nats_timeout_s:g} s")
    return connection, DeadLetterQueue(connection, Records(connection, settings))
