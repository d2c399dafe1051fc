"""Task records: one per task in the key-value bucket, written with optimistic concurrency control.

A write names the revision that it replaces. If two workers receive the same task, or a caller cancels while a worker
finishes, the second writer gets a conflict and reads again. A final state never changes.

Expiry is checked when a record is read, not left to the server alone. nats-server 2.11 to 2.15 deletes a superseded
revision without a tombstone, but a revision whose TTL has passed with one. If it is killed, it rebuilds its state from
the message blocks and applies tombstones first. The superseded revision of an expired record then reappears, possibly
without its TTL (``filestore.go``: ``removeMsgFromBlock``, ``recoverPerMessageState``). Two rules make such a revision
harmless: no revision expires later than the revision that replaces it, and an expired revision counts as missing.

A record is stored longer than callers see it. While the message of a finished task waits, its record must not
disappear: a worker processes a message without a record, because the record may have expired during an outage.
"""

from __future__ import annotations

import contextlib
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
from app.observability import tracing
from app.observability.recording import record_task_repair
from app.observability.rich_logging import get_logger
from app.service.coalescing import Coalescer
from app.tasks.connection import RevisionConflictError
from app.tasks.errors import QueueUnavailableError, TaskUnknownError
from app.tasks.stream import RECORDS_STREAM, TASK_TYPE, is_task_id, record_subject
from app.tasks.stream_state import read_last_message, read_stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.settings import Settings
    from app.tasks.connection import Connection

log = get_logger("tasks")

# Bounds of the TTL of a record that is not final; within them it is that of a final one. The reconciler renews the
# record while the task's message exists. A shorter TTL costs more writes, and a longer one bridges a longer outage.
OPEN_TTL_MIN_S: Final = 60
OPEN_TTL_MAX_S: Final = 3600
# Minimum time to store the record of a task that was cancelled or not accepted, because its message may still wait. The
# reconciler renews the record while the message exists; this time bridges an outage.
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
    """State of a task."""

    PENDING = "PENDING"
    STARTED = "STARTED"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether the task has ended."""
        return self in _FINAL


_FINAL: Final = frozenset({TaskStatus.SUCCESS, TaskStatus.FAILURE, TaskStatus.CANCELLED})


class TaskError(msgspec.Struct, frozen=True):
    """The reason why a task failed."""

    code: str
    detail: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Record of one task.

    A later version may only add fields with default values, because a record that cannot be decoded is removed. Any
    other change needs another bucket.
    """

    task_id: str  # 32 hexadecimal digits
    type: str = TASK_TYPE
    status: TaskStatus = TaskStatus.PENDING
    submitted_at: float  # time of the submission, in seconds since the epoch
    started_at: float | None = None  # start of the first attempt
    completed_at: float | None = None  # end of the task
    attempts: int = 0  # number of attempts that were started
    progress: Annotated[float, Meta(ge=0, le=1)] = 0.0  # completed part of the work, 0 to 1
    processing_time_ms: float | None = None  # duration of the attempt that produced the result
    result: msgspec.Raw = NO_RESULT  # the JSON document that the synchronous route would return, an array for all faces
    error: TaskError | None = None  # the reason if the task failed
    digest: str = ""  # digest of everything that the result depends on; empty if it is not needed
    run: str = ""  # identifier of the attempt that wrote the record; empty before the first
    owner: str = ""  # identity of the API key that submitted the task; empty if no keys are set
    # TTL of the first revision, in seconds; later revisions are stored at least as long, regardless of the settings of
    # their writers.
    open_ttl_s: int = 0
    is_withdrawn: bool = False  # whether the submission failed, so that the task does not exist for callers

    def replace(self, **changes: object) -> Record:
        """Return the record with some fields changed."""
        return msgspec.structs.replace(self, **changes)


class Lifetime(NamedTuple):
    """Expiry of a stored message, in seconds since the epoch."""

    expires_at: float  # when it expires for callers
    removed_at: float  # when the server deletes it


UNLIMITED: Final = Lifetime(math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record with its revision."""

    record: Record
    revision: int = 0  # its revision, which the write that replaces it must name; 0 if it is not stored
    lifetime: Lifetime = UNLIMITED

    @property
    def is_expired(self) -> bool:
        """Whether its TTL has passed; callers must not see it."""
        return time.time() > self.lifetime.expires_at


class _StoredMessage(NamedTuple):
    data: bytes
    sequence: int
    lifetime: Lifetime


_RECORD = msgspec.json.Decoder(Record)
_NOT_FOUND = 404
_UNREADABLE = "the queue cannot be read now; retry after the time in Retry-After"


def _result_subject(digest: str) -> str:
    # A later version may return another result for the same image.
    return record_subject(f"result.{__version__.replace('.', '-')}.{digest}")


class Records:
    """The bucket of task records.

    Reading and deleting raise `QueueUnavailableError` if the server does not respond. Writing raises `QueueError` if
    the record could not be stored.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._ttl_s = settings.result_ttl
        # TTL of a record that is not final.
        self.open_ttl_s: Final = min(max(settings.result_ttl, OPEN_TTL_MIN_S), OPEN_TTL_MAX_S)
        # A replica that lags behind may not have the latest record yet.
        self._is_replicated = settings.nats_replicas > 1
        self._usage = (-USAGE_AGE_S, 0)
        self._reading = Coalescer[_StoredMessage | None]()

    async def create(self, record: Record) -> int:
        """Write the first record of a task, or replace an expired record; return its revision.

        Raises:
            RevisionConflictError: a record exists.
        """
        try:
            return await self.update(record, 0)
        except RevisionConflictError:
            stored = await self.load(record.task_id)
            if stored is None or not stored.is_expired:
                raise
            return await self.update(record, stored.revision)

    async def update(self, record: Record, revision: int) -> int:
        """Replace the record of a revision; return the new revision, or that of an equal record.

        Raises:
            RevisionConflictError: the record has another revision or does not exist.
        """
        visible_s = max(self.open_ttl_s, record.open_ttl_s)
        if record.is_withdrawn:
            visible_s = CANCELLED_TTL_S
        elif record.status.is_final:
            visible_s = self._ttl_s
        return await self._write(record, revision, visible_s)

    async def keep(self, stored: StoredRecord) -> StoredRecord:
        """Write a record again so that the server keeps it longer; for callers, its expiry does not change.

        Raises:
            RevisionConflictError: the record has another revision.
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
        try:
            with tracing.span("store record", "CLIENT", {"facial.task.status": record.status.value}):
                return await self._connection.store(record_subject(record.task_id), encode_record(record), headers)
        except RevisionConflictError:
            # A write whose response was lost is sent again, and then finds itself.
            stored = await self.load(record.task_id)
            if stored is None or stored.record != record:
                raise
            return stored.revision

    async def get(self, task_id: str) -> tuple[Record, int]:
        """Return a record and its revision.

        Raises:
            TaskUnknownError: the record does not exist.
        """
        return require_known(await self.load(task_id) if is_task_id(task_id) else None)

    async def find(self, task_id: str) -> tuple[Record, int] | None:
        """Return a record and its revision, even if the task was not accepted; None if the record does not exist."""
        stored = await self.load(task_id)
        return None if stored is None or stored.is_expired else (stored.record, stored.revision)

    async def load(self, task_id: str) -> StoredRecord | None:
        """Return a record even if it has expired; None if none is stored.

        If another client has deleted or overwritten the record, what it left is removed: a task whose message waits
        gets its record back, and its id can be used again.
        """
        found = await self._read(record_subject(task_id))
        if found is None:
            return None
        if found.data:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                record = decode_record(found.data)
                if record.task_id == task_id:
                    return StoredRecord(record, found.sequence, found.lifetime)
            note_repair("record_unreadable", "Removed a record that another client has overwritten", task_id)
        # Otherwise, a client has deleted the key, which leaves an empty message.
        await self.remove(task_id, found.sequence)
        return None

    async def remove(self, task_id: str, revision: int) -> None:
        """Delete the revisions of a record up to the given one."""
        request = msgspec.json.encode({"filter": record_subject(task_id), "seq": revision + 1})
        await self._connection.request(f"$JS.API.STREAM.PURGE.{RECORDS_STREAM}", request)

    async def index_result(self, digest: str, task_id: str) -> None:
        """Store which task has the result for a digest, with the TTL of the result."""
        headers = {"Nats-TTL": str(self._ttl_s)}
        await self._connection.store(_result_subject(digest), task_id.encode(), headers)

    async def find_result(self, digest: str) -> Record | None:
        """Return the record of a task that has the result for a digest; None if there is none."""
        found = await self._read(_result_subject(digest))
        if found is None or time.time() > found.lifetime.expires_at:
            return None
        try:
            record, _ = await self.get(found.data.decode("ascii", "replace"))
        except TaskUnknownError:
            return None
        return record if record.status is TaskStatus.SUCCESS and record.digest == digest else None

    async def usage_bytes(self) -> int:
        """Return the size of all records in bytes, at most a second old."""
        now = time.monotonic()
        if now - self._usage[0] >= USAGE_AGE_S:
            self._usage = (now, self._usage[1])  # concurrent callers use the previous value
            self._usage = (now, (await read_stream(self._connection, RECORDS_STREAM)).bytes)
        return self._usage[1]

    async def _read(self, subject: str) -> _StoredMessage | None:
        # Coalesced, because results are large and many requests may wait for the same one.
        return await self._reading.run(subject, lambda: self._fetch(subject))

    async def _fetch(self, subject: str) -> _StoredMessage | None:
        response = await self._connection.request(f"$JS.API.DIRECT.GET.{RECORDS_STREAM}.{subject}")
        headers = response.headers or {}
        # A replica may lag behind; only a final record is the same on all of them.
        if self._is_replicated and headers.get(STATUS_HEADER, TaskStatus.SUCCESS) not in _FINAL:
            return await self._read_from_leader(subject)
        if "Nats-Sequence" in headers:
            lifetime = read_lifetime(headers, headers["Nats-Time-Stamp"])
            return _StoredMessage(response.data, int(headers["Nats-Sequence"]), lifetime)
        if headers.get("Status") != str(_NOT_FOUND):
            raise QueueUnavailableError(_UNREADABLE)
        return await self._read_from_leader(subject) if self._is_replicated else None

    async def _read_from_leader(self, subject: str) -> _StoredMessage | None:
        found = await read_last_message(self._connection, RECORDS_STREAM, subject)
        if (message := found.message) is not None:
            lifetime = read_lifetime(_parse_headers(pybase64.b64decode(message.hdrs)), message.time)
            return _StoredMessage(pybase64.b64decode(message.data), message.seq, lifetime)
        if found.error is None or found.error.code != _NOT_FOUND:
            raise QueueUnavailableError(_UNREADABLE)
        return None


def note_repair(reason: str, text: str, task_id: str = "") -> None:
    """Log and count a repair; the reason is a label value of ``task_repairs_total``."""
    record_task_repair(reason)
    extra = {"event": "repaired", "reason": reason} | ({"task_id": task_id} if task_id else {})
    log.warning("🔧 %s", f"{text}: {task_id}" if task_id else text, extra=extra)


def require_known(stored: StoredRecord | None) -> tuple[Record, int]:
    """Return the record and its revision if callers may see it.

    Raises:
        TaskUnknownError: it does not exist, has expired, or belongs to a submission that failed.
    """
    if stored is None or stored.is_expired or stored.record.is_withdrawn:
        raise TaskUnknownError(TASK_UNKNOWN)
    return stored.record, stored.revision


def encode_record(record: Record) -> bytes:
    """Encode a record as a line of JSON, followed by its result.

    The result is separate so that megabytes are copied and not parsed, which takes a tenth of the time. The parser
    holds the GIL, so a thread would not keep it from delaying the event loop.
    """
    if record.result == NO_RESULT:
        return msgspec.json.encode(record)
    return b"\n".join((msgspec.json.encode(record.replace(result=NO_RESULT)), record.result))


def decode_record(data: bytes) -> Record:
    """Decode a stored record; its result is a view of the data."""
    end = data.find(b"\n")
    if end < 0:
        return _RECORD.decode(data)
    view = memoryview(data)
    return _RECORD.decode(view[:end]).replace(result=msgspec.Raw(view[end + 1 :]))


def read_lifetime(headers: Mapping[str, str], timestamp: str) -> Lifetime:
    """Return when a message expires that the server stored at a time in RFC 3339."""
    stored_at = parse_time(timestamp)
    removed_s = headers.get(TTL_HEADER)
    visible_s = headers.get(VISIBLE_HEADER, removed_s)
    if visible_s is None:
        return UNLIMITED
    return Lifetime(stored_at + _parse_seconds(visible_s), stored_at + _parse_seconds(removed_s or visible_s))


def _parse_seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # of another client: the server also accepts `1h` and `never`
        return math.inf


def age_s(timestamp: str) -> float:
    """Return the seconds since a time in RFC 3339."""
    return max(0.0, time.time() - parse_time(timestamp))


def parse_time(timestamp: str) -> float:
    """Convert a time in RFC 3339 to seconds since the epoch."""
    # Python's parser truncates the server's nanoseconds to microseconds.
    return datetime.fromisoformat(timestamp).timestamp()


def _parse_headers(data: bytes) -> dict[str, str]:
    lines = data.decode("utf-8", "replace").split("\r\n")[1:]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
