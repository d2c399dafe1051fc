"""Task records: one per task in the key-value bucket, written by revision.

A write names the revision that it replaces. Of two workers that received the same task, or of a worker and a caller who
cancels, the second gets a conflict and reads again; a final state, once written, stays.

Expiry is checked when a record is read, not left to the server alone. nats-server 2.11 to 2.15 deletes a superseded
revision without a tombstone but a revision whose TTL has passed with one; if it is killed and rebuilds its state from
the message blocks, it applies tombstones first, so the superseded revision of an expired record reappears, and its TTL
may be lost (``filestore.go``: ``removeMsgFromBlock``, ``recoverPerMessageState``). Two rules make such a revision
harmless: no revision expires later than the revision that replaces it, and an expired revision counts as missing.

A record is stored longer than callers see it. While the message of an ended task waits, its record must not disappear,
because a message without a record is that of a task whose record expired during an outage, and is worked on.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
import pybase64
from msgspec import Meta

from app import __version__
from app.service.coalescing import Coalescer
from app.tasks.connection import RevisionConflictError
from app.tasks.errors import QueueUnavailableError, TaskUnknownError
from app.tasks.stream import RECORDS_STREAM, TASK_TYPE, is_task_id, record_subject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nats.aio.msg import Msg

    from app.settings import Settings
    from app.tasks.connection import Connection

# TTL of a record that is not final: that of a final one, within these bounds. The reconciler renews it while the task's
# message exists, so a shorter TTL costs more writes and a longer one bridges a longer outage.
OPEN_TTL_MIN_S: Final = 60
OPEN_TTL_MAX_S: Final = 3600
# How long the record of a task that was cancelled or not accepted is stored at least, because its message may wait. The
# reconciler renews it while the message exists; this bridges an outage.
CANCELLED_TTL_S: Final = 3600
# The server removes expired messages about once a second.
EXPIRY_MARGIN_S: Final = 60.0
TTL_HEADER: Final = "Nats-TTL"
VISIBLE_HEADER: Final = "Task-TTL"
STATUS_HEADER: Final = "Task-Status"
USAGE_AGE_S: Final = 1.0
TASK_UNKNOWN: Final = "task not found, or its result has expired"
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


class TaskError(msgspec.Struct, frozen=True):
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
        owner: identity of the API key that submitted it; empty if no keys were set.
        open_ttl_s: lifetime of its first revision, in seconds; later ones are stored for as long, whatever the settings
            of their writers.
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
    error: TaskError | None = None
    digest: str = ""
    run: str = ""
    owner: str = ""
    open_ttl_s: int = 0
    is_withdrawn: bool = False

    def replace(self, **changes: object) -> Record:
        """Return the record with some fields changed."""
        return msgspec.structs.replace(self, **changes)


class Lifetime(NamedTuple):
    """When a stored message expires, in seconds since the epoch.

    Attributes:
        expires_at: for callers.
        removed_at: when the server deletes it.
    """

    expires_at: float
    removed_at: float


UNLIMITED: Final = Lifetime(math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it is stored.

    Attributes:
        record: the record.
        revision: its revision, to be named by the write that replaces it; 0 if it is not stored.
        lifetime: when it expires.
    """

    record: Record
    revision: int = 0
    lifetime: Lifetime = UNLIMITED

    @property
    def is_expired(self) -> bool:
        """Whether its TTL has passed; callers must not see it."""
        return time.time() > self.lifetime.expires_at


class _StoredMessage(NamedTuple):
    data: bytes
    sequence: int
    lifetime: Lifetime


class _RawMessage(msgspec.Struct):
    data: str = ""
    hdrs: str = ""
    time: str = ""
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
    """The bucket of records.

    Attributes:
        open_ttl_s: lifetime of a record that is not final, in seconds, unless it is renewed.

    Args:
        connection: to the server that holds it.
        settings: how long records are kept.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._ttl_s = settings.result_ttl
        self.open_ttl_s: Final = min(max(settings.result_ttl, OPEN_TTL_MIN_S), OPEN_TTL_MAX_S)
        # A copy that has not caught up may not know the newest record yet; one server alone has no copies.
        self._has_copies = settings.nats_replicas > 1
        self._usage = (-USAGE_AGE_S, 0)
        self._reading = Coalescer[_StoredMessage | None]()

    async def create(self, record: Record) -> int:
        """Write the first record of a task, or replace an expired one.

        Returns:
            Its revision.

        Raises:
            RevisionConflictError: a record exists.
            QueueError: the record could not be stored.
        """
        try:
            return await self.update(record, 0)
        except RevisionConflictError:
            stored = await self.load(record.task_id)
            if stored is None or not stored.is_expired:
                raise
            return await self.update(record, stored.revision)

    async def update(self, record: Record, revision: int) -> int:
        """Replace the record of a revision.

        Returns:
            The new revision.

        Raises:
            RevisionConflictError: the record has another revision, or none.
            QueueError: the record could not be stored.
        """
        visible_s = max(self.open_ttl_s, record.open_ttl_s)
        if record.is_withdrawn:
            visible_s = CANCELLED_TTL_S
        elif record.status.is_final:
            visible_s = self._ttl_s
        return await self._write(record, revision, visible_s)

    async def keep(self, stored: StoredRecord) -> StoredRecord:
        """Write a record again so that the server keeps it for longer; for callers, it expires when it did before.

        Raises:
            RevisionConflictError: it has another revision.
            QueueError: the record could not be stored.
        """
        visible_s = stored.lifetime.expires_at - time.time()
        record = stored.record if visible_s > 0 else stored.record.replace(result=NO_RESULT)
        revision = await self._write(record, stored.revision, visible_s)
        removed_at = time.time() + self._stored_ttl_s(record, visible_s)
        return StoredRecord(record, revision, Lifetime(stored.lifetime.expires_at, removed_at))

    def _stored_ttl_s(self, record: Record, visible_s: float) -> int:
        least_s = CANCELLED_TTL_S if record.status is TaskStatus.CANCELLED else 0
        return math.ceil(max(visible_s, least_s, self.open_ttl_s, record.open_ttl_s))

    async def _write(self, record: Record, revision: int, visible_s: float) -> int:
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(revision),
            TTL_HEADER: str(self._stored_ttl_s(record, visible_s)),
            VISIBLE_HEADER: f"{visible_s:.3f}",
            STATUS_HEADER: record.status.value,
        }
        return await self._connection.store(record_subject(record.task_id), encode_record(record), headers)

    async def get(self, task_id: str) -> tuple[Record, int]:
        """Read a record and its revision.

        Raises:
            TaskUnknownError: it does not exist.
            QueueUnavailableError: no response.
        """
        found = await self.find(task_id) if is_task_id(task_id) else None
        if found is None or found[0].is_withdrawn:
            raise TaskUnknownError(TASK_UNKNOWN)
        return found

    async def find(self, task_id: str) -> tuple[Record, int] | None:
        """Read a record and its revision, including that of a task that was not accepted; None if it does not exist.

        Raises:
            QueueUnavailableError: no response.
        """
        stored = await self.load(task_id)
        return None if stored is None or stored.is_expired else (stored.record, stored.revision)

    async def load(self, task_id: str) -> StoredRecord | None:
        """Read a record even if it has expired; None if nothing is stored.

        Raises:
            QueueUnavailableError: no response.
        """
        found = await self._read(record_subject(task_id))
        # An operator who deletes a key by hand leaves an empty message in its place.
        if found is None or not found.data:
            return None
        return StoredRecord(decode_record(found.data), found.sequence, found.lifetime)

    async def remove(self, task_id: str, revision: int) -> None:
        """Delete the revisions of a record up to one that has expired.

        Raises:
            QueueUnavailableError: no response.
        """
        request = msgspec.json.encode({"filter": record_subject(task_id), "seq": revision + 1})
        await self._connection.request(f"$JS.API.STREAM.PURGE.{RECORDS_STREAM}", request)

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
        if found is None or time.time() > found.lifetime.expires_at:
            return None
        try:
            record, _ = await self.get(found.data.decode())
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

    async def _read(self, subject: str) -> _StoredMessage | None:
        # Results are large, and many requests may wait for one.
        return await self._reading.run(subject, lambda: self._fetch(subject))

    async def _fetch(self, subject: str) -> _StoredMessage | None:
        answer = await self._connection.request(f"$JS.API.DIRECT.GET.{RECORDS_STREAM}.{subject}")
        headers = answer.headers or {}
        # A copy may be behind: only a final record is the same on all of them.
        if self._has_copies and headers.get(STATUS_HEADER, TaskStatus.SUCCESS) not in _FINAL:
            return await self._read_from_leader(subject)
        if "Nats-Sequence" in headers:
            lifetime = read_lifetime(headers, headers["Nats-Time-Stamp"])
            return _StoredMessage(answer.data, int(headers["Nats-Sequence"]), lifetime)
        if headers.get("Status") != str(_NOT_FOUND):
            raise QueueUnavailableError("the queue cannot read now; come back after the time in Retry-After")
        return await self._read_from_leader(subject) if self._has_copies else None

    async def _read_from_leader(self, subject: str) -> _StoredMessage | None:
        request = msgspec.json.encode({"last_by_subj": subject})
        answer: Msg = await self._connection.request(f"$JS.API.STREAM.MSG.GET.{RECORDS_STREAM}", request)
        found = _RAW.decode(answer.data)
        if (message := found.message) is not None:
            lifetime = read_lifetime(_parse_headers(pybase64.b64decode(message.hdrs)), message.time)
            return _StoredMessage(pybase64.b64decode(message.data), message.seq, lifetime)
        if found.error is None or found.error.code != _NOT_FOUND:
            raise QueueUnavailableError("the queue cannot read now; come back after the time in Retry-After")
        return None


def encode_record(record: Record) -> bytes:
    """Return a record as it is stored: a line of JSON, and after it the result if there is one.

    Apart from the rest, a result of megabytes is copied instead of parsed, which takes a tenth of the time. The parser
    holds the interpreter's lock, so a thread would not keep it from delaying the event loop.
    """
    if record.result == NO_RESULT:
        return msgspec.json.encode(record)
    return b"\n".join((msgspec.json.encode(record.replace(result=NO_RESULT)), record.result))


def decode_record(data: bytes) -> Record:
    """Return a stored record; its result is a view of the data."""
    end = data.find(b"\n")
    if end < 0:
        return _RECORD.decode(data)
    view = memoryview(data)
    return _RECORD.decode(view[:end]).replace(result=msgspec.Raw(view[end + 1 :]))


def read_lifetime(headers: Mapping[str, str], timestamp: str) -> Lifetime:
    """Return when a stored message expires.

    Args:
        headers: the message's headers.
        timestamp: when the server stored it, in RFC 3339.
    """
    stored_at = parse_time(timestamp)
    removed_s = headers.get(TTL_HEADER)
    visible_s = headers.get(VISIBLE_HEADER, removed_s)
    if visible_s is None:
        return UNLIMITED
    return Lifetime(stored_at + float(visible_s), stored_at + float(removed_s or visible_s))


def age_s(timestamp: str) -> float:
    """Return the seconds since a time that the server wrote in RFC 3339."""
    return max(0.0, time.time() - parse_time(timestamp))


def parse_time(timestamp: str) -> float:
    """Return a time that the server wrote in RFC 3339, in seconds since the epoch."""
    # The server writes nanoseconds, of which Python's parser keeps the microseconds.
    return datetime.fromisoformat(timestamp).timestamp()


def _parse_headers(data: bytes) -> dict[str, str]:
    lines = data.decode("utf-8", "replace").split("\r\n")[1:]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
