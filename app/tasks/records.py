"""What is known of each task: one record in the key-value bucket, written by revision.

A record can be written only by whoever names the revision that it has. So of two workers that got the same task, or of
a worker and a caller who cancels, the second finds that it has to look again; and an end, once written, stays.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import pybase64
from msgspec import Meta

from app import __version__
from app.tasks.errors import QueueUnavailableError, TaskUnknownError
from app.tasks.stream import RECORDS_STREAM, TASK_TYPE, is_task_id, record_subject

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from app.settings import Settings
    from app.tasks.connection import Connection

# Of a task that has not ended: longer than any backlog. It is there for records whose task never came to be, because
# the process that wrote them was killed in between.
OPEN_TTL_S: Final = 7 * 24 * 3600
# Of a task that was not taken: longer than its message, should it be there after all, waits behind others.
WITHDRAWN_TTL_S: Final = 3600
USAGE_AGE_S: Final = 1.0
NO_RESULT: Final = msgspec.Raw(b"null")


class TaskStatus(StrEnum):
    """Where a task is."""

    PENDING = "PENDING"
    STARTED = "STARTED"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after it."""
        return self in _FINAL


_FINAL: Final = frozenset({TaskStatus.SUCCESS, TaskStatus.FAILURE, TaskStatus.CANCELLED})


class TaskFault(msgspec.Struct, frozen=True):
    """Why a task has no result."""

    code: str
    detail: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One task as the bucket holds it.

    Attributes:
        task_id: 32 hexadecimal digits.
        type: what kind of work it is.
        status: where it is.
        submitted_at: when it was taken, in seconds since the epoch.
        started_at: when the first work on it began.
        completed_at: when it ended.
        attempts: how often work on it was begun.
        progress: how much of the work is done, 0 to 1.
        processing_time_ms: how long the work took that gave the result.
        result: the JSON document that the synchronous route would have answered.
        error: why there is none.
        digest: of all that the result depends on; empty where nobody asked.
        run: which attempt wrote this; empty before the first.
        is_withdrawn: it was never taken: whoever brought it was told to come back.
    """

    task_id: str
    type: str = TASK_TYPE
    status: TaskStatus = TaskStatus.PENDING
    submitted_at: float
    started_at: float | None = None
    completed_at: float | None = None
    attempts: int = 0
    progress: Annotated[float, Meta(ge=0, le=1)] = 0.0
    processing_time_ms: float | None = None
    result: msgspec.Raw = NO_RESULT
    error: TaskFault | None = None
    digest: str = ""
    run: str = ""
    is_withdrawn: bool = False

    def replace(self, **changes: object) -> Record:
        """Return the record with some fields changed."""
        return msgspec.structs.replace(self, **changes)


class _RawMessage(msgspec.Struct):
    data: str = ""
    seq: int = 0


class _ApiFault(msgspec.Struct):
    code: int = 0


class _RawAnswer(msgspec.Struct):
    message: _RawMessage | None = None
    error: _ApiFault | None = None


class _StreamState(msgspec.Struct):
    bytes: int = 0


class _StreamAnswer(msgspec.Struct):
    state: _StreamState = msgspec.field(default_factory=_StreamState)


_RECORD = msgspec.json.Decoder(Record)
_RAW = msgspec.json.Decoder(_RawAnswer)
_STREAM = msgspec.json.Decoder(_StreamAnswer)
_NOT_FOUND = 404


def _result_subject(digest: str) -> str:
    # A later version may find other regions in the same photo.
    return record_subject(f"result.{__version__.replace('.', '-')}.{digest}")


class Records:
    """The bucket.

    Args:
        connection: to the server that holds it.
        settings: how long records are kept.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._ttl_s = settings.result_ttl
        # A copy that has not caught up may not know the newest record yet; one server alone has no copies.
        self._has_copies = settings.nats_replicas > 1
        self._usage = (-USAGE_AGE_S, 0)

    async def create(self, record: Record) -> int:
        """Write the first record of a task.

        Returns:
            Its revision.

        Raises:
            RevisionConflictError: there is one.
            QueueError: it could not be stored.
        """
        return await self.update(record, 0)

    async def update(self, record: Record, revision: int) -> int:
        """Write a record over the one of a revision.

        Returns:
            The new revision.

        Raises:
            RevisionConflictError: the record has another revision, or none.
            QueueError: it could not be stored.
        """
        ttl_s = self._ttl_s if record.status.is_final else OPEN_TTL_S
        if record.is_withdrawn:
            ttl_s = WITHDRAWN_TTL_S
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(revision),
            "Nats-TTL": str(ttl_s),
            "Task-Status": record.status.value,
        }
        return await self._connection.store(record_subject(record.task_id), msgspec.json.encode(record), headers)

    async def get(self, task_id: str) -> tuple[Record, int]:
        """Read a record and its revision.

        Raises:
            TaskUnknownError: there is none.
            QueueUnavailableError: no answer.
        """
        found = await self.find(task_id) if is_task_id(task_id) else None
        if found is None or found[0].is_withdrawn:
            raise TaskUnknownError("expected the id of a task that is not done, or ended not long ago; there is none")
        return found

    async def find(self, task_id: str) -> tuple[Record, int] | None:
        """Read a record and its revision, be it of a task that was not taken; None where there is none.

        Raises:
            QueueUnavailableError: no answer.
        """
        found = await self._read(record_subject(task_id))
        # An operator who deletes a key by hand leaves an empty message in its place.
        return None if found is None or not found[0] else (_RECORD.decode(found[0]), found[1])

    @staticmethod
    def read_notice(notice: Msg) -> Record | None:
        """Read the record that somebody has just written, from the notice of it; None where it was deleted."""
        return _RECORD.decode(notice.data) if notice.data else None

    async def note_result(self, digest: str, task_id: str) -> None:
        """Remember which task has the result for a digest, for as long as it has it.

        Raises:
            QueueError: it could not be stored.
        """
        headers = {"Nats-TTL": str(self._ttl_s)}
        await self._connection.store(_result_subject(digest), task_id.encode(), headers)

    async def find_result(self, digest: str) -> Record | None:
        """Find the record of a task that ended with the result for a digest.

        Raises:
            QueueUnavailableError: no answer.
        """
        found = await self._read(_result_subject(digest))
        if found is None:
            return None
        try:
            record, _ = await self.get(found[0].decode())
        except TaskUnknownError:
            return None
        return record if record.status is TaskStatus.SUCCESS and record.digest == digest else None

    async def usage_bytes(self) -> int:
        """Return the bytes that all records take, as of a second ago or less.

        Raises:
            QueueUnavailableError: no answer.
        """
        now = time.monotonic()
        if now - self._usage[0] >= USAGE_AGE_S:
            self._usage = (now, self._usage[1])  # whoever comes meanwhile takes the old figure
            answer = await self._connection.request(f"$JS.API.STREAM.INFO.{RECORDS_STREAM}")
            self._usage = (now, _STREAM.decode(answer.data).state.bytes)
        return self._usage[1]

    async def _read(self, subject: str) -> tuple[bytes, int] | None:
        answer = await self._connection.request(f"$JS.API.DIRECT.GET.{RECORDS_STREAM}.{subject}")
        headers = answer.headers or {}
        if "Nats-Sequence" in headers:
            return answer.data, int(headers["Nats-Sequence"])
        if headers.get("Status") != str(_NOT_FOUND):
            raise QueueUnavailableError("the queue cannot read now; come back after the time in Retry-After")
        return await self._read_from_leader(subject) if self._has_copies else None

    async def _read_from_leader(self, subject: str) -> tuple[bytes, int] | None:
        request = msgspec.json.encode({"last_by_subj": subject})
        answer: Msg = await self._connection.request(f"$JS.API.STREAM.MSG.GET.{RECORDS_STREAM}", request)
        found = _RAW.decode(answer.data)
        if found.message is not None:
            return pybase64.b64decode(found.message.data), found.message.seq
        if found.error is None or found.error.code != _NOT_FOUND:
            raise QueueUnavailableError("the queue cannot read now; come back after the time in Retry-After")
        return None
