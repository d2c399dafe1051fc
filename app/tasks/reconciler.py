"""Reconciler: compares records, stream and consumers, and repairs differences that no worker would.

It runs in one process at a time, elected by a lease in the records bucket. Every repair names the revision that it
replaces, so it is safe while API and workers run: if one of them changes a record first, the repair is dropped.

- A record that is not final and has no message ends as FAILURE (``task_lost``), because the message contained the
  image. The reconciler waits until no live process can still send the message or store the result.
- A message that was never delivered and whose record expired during an outage gets its record back.
- Records of tasks whose message exists are renewed before the server deletes them. Without its record, a worker would
  process the message of a cancelled task.
- Revisions that the server should have deleted (see `app.tasks.records`) are removed.
- A message of a finished task is deleted if the consumer counts it as acknowledged.
- A consumer that does not track another message of the stream is created again, so that the message is delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import nats.errors
from nats.js.api import ConsumerConfig, DeliverPolicy

from app.observability.recording import record_error, record_task_completed
from app.observability.rich_logging import get_logger, log_task_failed
from app.tasks.connection import RevisionConflictError
from app.tasks.errors import QueueError
from app.tasks.message import MessageError, NewerTaskError, decode_task
from app.tasks.records import (
    EXPIRY_MARGIN_S,
    STATUS_HEADER,
    Records,
    StoredRecord,
    TaskError,
    TaskStatus,
    age_s,
    note_repair,
    read_lifetime,
)
from app.tasks.stream import RECORDS_STREAM, STREAM, consumer_config, consumer_name, record_subject
from app.tasks.stream_state import (
    ConsumerInfo,
    QueueState,
    delete_message,
    read_message,
    read_state,
    read_stream,
)

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from app.settings import Settings
    from app.tasks.connection import Connection

log = get_logger("tasks")

TASK_LOST: Final = "task_lost"
PASS_S: Final = 5.0
# A killed owner is replaced within this time, and a suspended one loses its lease after it.
LEASE_TTL_S: Final = 15
# A mismatch between stream and consumer is normal while messages move, unless it persists for this many passes.
STUCK_PASSES: Final = 4
RELEASE_S: Final = 1.0  # time limit to release the lease on stop
RESTORED_PER_PASS: Final = 50
EXAMINED_PER_PASS: Final = 1000
RENEWED_PER_PASS: Final = 1000
_LEASE_KEY: Final = "lease.reconciler"
_READ_TIMEOUT_S: Final = 5.0
_FINAL: Final = {status.value for status in TaskStatus if status.is_final}


@dataclass(frozen=True, slots=True)
class _Open:
    """State of a record that is not final, as of the last scan."""

    revision: int
    status: str
    written_at: float


class Reconciler:
    """Compares records, stream and consumer while it holds the lease.

    In standby, it leaves a free lease to other processes for one lease time first.
    """

    def __init__(
        self, connection: Connection, records: Records, settings: Settings, *, is_standby: bool = False
    ) -> None:
        self._connection = connection
        self._records = records
        self._settings = settings
        self._lease = Lease(connection)
        self._wait_s = LEASE_TTL_S + PASS_S if is_standby else 0.0
        # A process without a heartbeat for TIMEOUT_S is replaced; until then it may still send the message of a record.
        self._pending_grace_s = settings.timeout_s + settings.nats_timeout_s
        # The attempt may still finish and store its result within this time.
        self._started_grace_s = settings.task_timeout_s + 2 * settings.task_ack_wait_s
        self._identity: tuple[int, int] | None = None
        self._forget()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        free_since = time.monotonic()
        try:
            while True:
                try:
                    is_free = self._connection.is_up and await self._lease.is_free()
                    free_since = free_since if is_free else time.monotonic()
                    if is_free and time.monotonic() - free_since >= self._wait_s and await self._lease.hold():
                        await self.reconcile()
                    elif not self._lease.is_held:
                        self._forget()
                except (QueueError, nats.errors.Error, OSError, TimeoutError, msgspec.DecodeError) as error:
                    log.debug("Reconciliation was interrupted: %s; it continues in the next pass", type(error).__name__)
                except Exception:
                    log.exception("Reconciliation failed")
                await asyncio.sleep(PASS_S)
        finally:
            with contextlib.suppress(QueueError, RevisionConflictError, nats.errors.Error):
                await self._lease.release()

    async def reconcile(self) -> None:
        """Make one pass.

        Raises:
            QueueError: the server does not respond; the next pass continues with the state that is known.
        """
        client = self._connection.client
        if (identity := (id(client), client.stats["reconnects"])) != self._identity:
            # The server may have restarted and restored old revisions below the sequences that were scanned.
            self._forget()
            self._identity = identity
        # In this order, so that a task that is submitted in between is in the listing but not among the records.
        await self._scan_records()
        state = await read_state(self._connection)
        await self._restore_records(state)
        await self._renew_records(state)
        await self._keep_ended_records()
        await self._end_lost_tasks(state)
        await self._check_consumers(state)

    def _forget(self) -> None:
        self._identity = None
        self._scanned = 0
        self._open: dict[str, _Open] = {}
        self._ended: dict[str, float] = {}  # when the server deletes the record, by task with a message
        self._missing_since: dict[str, float] = {}
        self._stuck_seq = -1
        self._stuck_passes = 0
        self._stuck: set[int] = set()

    async def _scan_records(self) -> None:
        """Read the headers of the records written since the last pass."""
        last = (await read_stream(self._connection, RECORDS_STREAM)).last_seq
        if self._scanned >= last:
            return
        listing = await self._connection.client.jetstream().subscribe(
            record_subject("*"),
            stream=RECORDS_STREAM,
            ordered_consumer=True,
            config=ConsumerConfig(
                headers_only=True, deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._scanned + 1
            ),
        )
        try:
            info = await listing.consumer_info()
            left = (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered else 0)
            while left > 0:
                message = await listing.next_msg(timeout=_READ_TIMEOUT_S)
                await self._note(message)
                left = message.metadata.num_pending
            self._scanned = max(self._scanned, last)
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await listing.unsubscribe()

    async def _note(self, message: Msg) -> None:
        headers, position = message.headers or {}, message.metadata
        task_id, revision = message.subject.rpartition(".")[2], position.sequence.stream
        written_at = position.timestamp.timestamp()
        self._scanned = max(self._scanned, revision)
        if time.time() > read_lifetime(headers, position.timestamp.isoformat()).removed_at + EXPIRY_MARGIN_S:
            self._open.pop(task_id, None)
            await self._records.remove(task_id, revision)
            note_repair("record_expired", "Removed an expired record that the server kept", task_id)
        elif headers.get(STATUS_HEADER, "") in _FINAL:
            self._open.pop(task_id, None)
        else:
            self._open[task_id] = _Open(revision, headers.get(STATUS_HEADER, ""), written_at)

    async def _restore_records(self, state: QueueState) -> None:
        """Restore missing records of messages that were never delivered; workers handle the other messages."""
        self._ended = {task_id: at for task_id, at in self._ended.items() if task_id in state.lanes}
        unknown = state.lanes.keys() - self._open.keys() - self._ended.keys()
        messages = 0
        for task_id in list(unknown)[:EXAMINED_PER_PASS]:
            stored = await self._records.load(task_id)
            if stored is not None:
                self._ended[task_id] = stored.lifetime.removed_at  # its message is acknowledged when it is delivered
                continue
            messages += 1
            if messages > RESTORED_PER_PASS:
                continue
            lane = state.lanes[task_id]
            if not await restore_record(self._connection, self._records, task_id, lane, state.after[lane]):
                self._ended[task_id] = math.inf

    async def _renew_records(self, state: QueueState) -> None:
        due = time.time() - self._records.open_ttl_s / 3
        old = [task_id for task_id, seen in self._open.items() if seen.written_at < due and task_id in state.lanes]
        for task_id in old[:RENEWED_PER_PASS]:
            stored = await self._reload(task_id)
            if stored is not None:
                with contextlib.suppress(RevisionConflictError):
                    await self._records.update(stored.record, stored.revision)

    async def _keep_ended_records(self) -> None:
        """Keep the records of ended tasks whose messages have not been delivered yet."""
        due = time.time() + self._records.open_ttl_s * 2 / 3
        for task_id in [task_id for task_id, removed_at in self._ended.items() if removed_at < due]:
            stored = await self._records.load(task_id)
            if stored is None:
                self._ended[task_id] = math.inf
            elif not stored.record.status.is_final:
                del self._ended[task_id]  # submitted again under the same key
            else:
                with contextlib.suppress(RevisionConflictError):
                    self._ended[task_id] = (await self._records.keep(stored)).lifetime.removed_at

    async def _end_lost_tasks(self, state: QueueState) -> None:
        now = time.monotonic()
        missing = {task_id for task_id in self._open if task_id not in state.lanes}
        self._missing_since = {task_id: self._missing_since.get(task_id, now) for task_id in missing}
        for task_id, since in list(self._missing_since.items()):
            seen = self._open[task_id]
            grace_s = self._started_grace_s if seen.status == TaskStatus.STARTED else self._pending_grace_s
            if min(now - since, time.time() - seen.written_at) < grace_s:
                continue
            # A message that was sent after the listing comes from a process that was considered dead.
            stored = await self._reload(task_id)
            if stored is not None:
                await self._end_lost(stored)

    async def _end_lost(self, stored: StoredRecord) -> None:
        detail = "the queue lost the task's message; submit the task again"
        end = stored.record.replace(
            status=TaskStatus.FAILURE, error=TaskError(TASK_LOST, detail), completed_at=time.time(), run=""
        )
        with contextlib.suppress(RevisionConflictError):
            await self._records.update(end, stored.revision)
            self._open.pop(end.task_id, None)
            record_task_completed(end.type, end.status.value)
            record_error(TASK_LOST, "tasks")
            log_task_failed(end.task_id, TASK_LOST, detail)
            note_repair(TASK_LOST, "Marked a task as failed, because its message is missing", end.task_id)

    async def _reload(self, task_id: str) -> StoredRecord | None:
        """Read a record again; None if it has changed since it was scanned."""
        seen = self._open[task_id]
        stored = await self._records.load(task_id)
        if stored is None or stored.record.status.is_final:
            self._open.pop(task_id, None)
            return None
        return stored if stored.revision == seen.revision and not stored.is_expired else None

    async def _check_consumers(self, state: QueueState) -> None:
        """Repair lanes whose consumer has not tracked all messages for several passes."""
        untracked = {lane: state.untracked(lane) for lane in state.after}
        stuck = {lane for lane, count in untracked.items() if count > 0 or (count < 0 and not state.lanes)}
        if not stuck or state.first_seq != self._stuck_seq:
            self._stuck_seq, self._stuck_passes, self._stuck = state.first_seq, 1, stuck
            return
        self._stuck_passes += 1
        self._stuck &= stuck
        if self._stuck_passes < STUCK_PASSES:
            return
        manager = self._connection.client.jetstream(timeout=self._settings.nats_timeout_s)
        for lane in self._stuck:
            if await self._remove_ended_messages(state, lane):
                continue
            await manager.delete_consumer(STREAM, consumer_name(lane))
            await manager.add_consumer(STREAM, consumer_config(self._settings, lane))
            name, count = consumer_name(lane), untracked[lane]
            note_repair("consumer_recreated", f"Created the consumer {name} again: {count} messages were not tracked")
        self._stuck_seq = -1

    async def _remove_ended_messages(self, state: QueueState, lane: int) -> bool:
        """Delete messages that the consumer counts as acknowledged although the stream holds them; return if any.

        A killed server may restore them. If such a message were delivered again after its record has expired, a worker
        would process it again.
        """
        floor, removed = state.after[lane].ack_floor.stream_seq, 0
        ended = [task_id for task_id, at in state.lanes.items() if at == lane and task_id not in self._open]
        for task_id in ended[:EXAMINED_PER_PASS]:
            stored = await self._records.load(task_id)
            if stored is not None and not stored.record.status.is_final:
                continue
            message = await read_message(self._connection, task_id, lane)
            if message is not None and message[0] <= floor:
                await delete_message(self._connection, message[0])
                removed += 1
                note_repair("message_removed", "Removed the message of a finished task", task_id)
                if removed == RESTORED_PER_PASS:
                    break
        return removed > 0


async def restore_record(
    connection: Connection, records: Records, task_id: str, lane: int, consumer: ConsumerInfo
) -> bool:
    """Write the missing record of a waiting task, unless its message was delivered; return False in that case.

    If it was delivered, the record may have been final and have expired.
    """
    found = await read_message(connection, task_id, lane)
    if found is None or found[0] <= consumer.delivered.stream_seq:
        return False
    with contextlib.suppress(RevisionConflictError, MessageError, NewerTaskError):
        await records.create(decode_task(found[1]).record)
        note_repair("record_restored", "Restored the record of a waiting task", task_id)
    return True


class Lease:
    """The right to reconcile, held by one process at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._owner = uuid.uuid4().hex.encode()
        self._revision = 0
        self._held_until = 0.0

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lease."""
        return time.monotonic() < self._held_until

    async def is_free(self) -> bool:
        """Return whether this process holds the lease or may acquire it.

        Raises:
            QueueUnavailableError: the server does not respond.
        """
        if self.is_held:
            return True
        subject = f"$JS.API.DIRECT.GET.{RECORDS_STREAM}.{record_subject(_LEASE_KEY)}"
        lease = await self._connection.request(subject)
        headers = lease.headers or {}
        self._revision = int(headers.get("Nats-Sequence", 0))
        return not self._revision or not lease.data or age_s(headers["Nats-Time-Stamp"]) > LEASE_TTL_S

    async def hold(self) -> bool:
        """Acquire or renew the lease; return False if another process was first.

        Raises:
            QueueError: the server does not respond.
        """
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(self._revision),
            "Nats-TTL": str(LEASE_TTL_S),
        }
        until = time.monotonic() + LEASE_TTL_S
        try:
            self._revision = await self._connection.store(record_subject(_LEASE_KEY), self._owner, headers)
        except RevisionConflictError:
            self._held_until = 0.0
            return False
        self._held_until = until
        return True

    async def release(self) -> None:
        """Release the lease, so that another process can acquire it at once.

        Raises:
            QueueError: the server does not respond.
        """
        if self.is_held:
            self._held_until = 0.0
            headers = {"Nats-Expected-Last-Subject-Sequence": str(self._revision), "Nats-TTL": "1"}
            await self._connection.store(record_subject(_LEASE_KEY), b"", headers)
