"""Worker of tasks, one per process: receives messages, makes an attempt at each, and acknowledges them.

Outcomes of an attempt:

- Invalid input: the record ends as FAILURE with the error code of the input. There is no retry.
- Unexpected error: the message is requeued with a growing delay. After the last attempt it becomes a dead letter
  (`app.tasks.dead_letters`).
- Queue unavailable: the worker retries to store the end for a while, then the message is requeued.
- Process dies: the server delivers the message to another worker after ``TASK_ACK_WAIT_S``.
- Task ended meanwhile, for example because it was cancelled: the result is discarded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import nats.errors

from app.face.errors import ImageError, InputError
from app.observability import rich_logging, tracing
from app.observability.log_text import count_of
from app.observability.recording import (
    deferred,
    image_step,
    record_error,
    record_task_completed,
    record_task_redelivered,
    record_task_wait,
    track_task_metrics,
)
from app.observability.rich_logging import (
    get_logger,
    log_image_error,
    log_task_failed,
    log_task_retried,
    log_task_started,
    log_task_succeeded,
)
from app.service.crop import CropService, ImageLimits
from app.service.detector_pool import DetectorPool
from app.service.serialization import result_to_json
from app.tasks.connection import Connection, RevisionConflictError
from app.tasks.dead_letters import TASK_GAVE_UP, DeadLetterQueue
from app.tasks.errors import QueueError, TaskTooLargeError
from app.tasks.message import MessageError, NewerTaskError, decode_task
from app.tasks.pull_consumer import PullConsumer
from app.tasks.reconciler import RELEASE_S, Reconciler
from app.tasks.records import Records, StoredRecord, TaskError, TaskStatus
from app.tasks.stream import TASK_TYPE
from app.tasks.stream_state import find_lane

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from nats.aio.msg import Msg

    from app.service.crop import CheckedInput, CropResult, CropResults
    from app.settings import Settings
    from app.tasks.message import Task
    from app.tasks.records import Record

HEARTBEAT_S: Final = 1.0
WRITE_ATTEMPTS: Final = 8
STORE_PAUSE_S: Final = 0.1
# A region costs as much as this many of its indices. The most expensive shapes and options within the limit take 3 ms,
# the default regions 0.5 ms.
REGION_INDICES: Final = 32
LIGHT_INDICES: Final = 2048
RESULT_TOO_LARGE: Final = "result_too_large"

# Progress at the start of each step that a task may have. Decoding and detection take nearly all of the time if they
# are needed, so a finer scale would not be more accurate.
# fmt: off
_PROGRESS: Final = {
    "decode": 0.1,
    "detect": 0.3,
    "mesh": 0.4,
    "iris": 0.45,
    "warp": 0.5,
    "encode": 0.55,
    "segmentation": 0.6,
    "contours": 0.7,
    "svg": 0.8,
    "document": 0.9,
}
# fmt: on


class TaskTimeoutError(Exception):
    """The work exceeds its time limit; only the end of the process can stop its thread."""


class ShuttingDownError(Exception):
    """The process is stopping, and has not started the task."""


class MaxAttemptsError(Exception):
    """The task has been started as often as allowed, and has not ended."""

    def __init__(self, record: Record) -> None:
        super().__init__(f"the task did not finish in {count_of(record.attempts, 'attempt')}")
        self.record = record


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Resources that the attempts of a process share."""

    settings: Settings
    connection: Connection
    records: Records
    service: CropService
    pool: Executor  # work threads
    # One slot per work thread. A task that waits for a slot has not started, so that it does not lose an attempt if the
    # process dies.
    work_slots: asyncio.Semaphore
    stopping: asyncio.Event  # set when the process stops; tasks that wait for a slot are then requeued


class Attempt:
    """One attempt at a task, which sends heartbeats for the message of the task."""

    def __init__(self, context: WorkerContext, message: Msg, task: Task) -> None:
        self._context = context
        self._message = message
        self._task = task
        self._run = tracing.make_run_id()
        self._record = task.record
        self._revision = task.revision
        self._heartbeat_s = min(HEARTBEAT_S, context.settings.task_ack_wait_s / 3)
        self._progress = 0.0
        self._working_since = 0.0
        settings = context.settings
        # Light tasks run on the event loop, and their start is not stored: both would take longer than the work.
        is_faulty = settings.fault_work_s or settings.fault_poison_region
        self._is_light = not is_faulty and _is_quick(task.checked)

    async def run(self, *, is_first: bool) -> None:
        """Process the task and store its end, unless it has ended; if it is the first, no other attempt has started.

        Raises:
            ShuttingDownError: the process is stopping, and the task was not started.
            MaxAttemptsError: the task was started as often as allowed.
            TaskTimeoutError: the work exceeds its time limit.
            QueueError: the record could not be read or written.
            Exception: an unexpected error of the work.
        """
        has_slot = not (self._is_light and is_first)
        if has_slot:
            with tracing.span("wait for a work slot"):
                await self._acquire_slot()
        try:
            if not has_slot:
                self._record = self._started(self._record)
            elif not await self._start(is_known=is_first):
                return
            log_task_started(self._record.task_id, self._record.type, attempt=self._record.attempts)
            with deferred():
                result, document = self._process() if self._is_light else await self._process_in_thread()
        except TaskTimeoutError:
            has_slot = False  # never released, because the thread continues
            raise
        except InputError as error:
            log_image_error(error.code, str(error), is_decoding=isinstance(error, ImageError))
            end = self._record.replace(status=TaskStatus.FAILURE, error=TaskError(error.code, str(error)))
        else:
            end = self._record.replace(
                status=TaskStatus.SUCCESS,
                progress=1.0,
                result=msgspec.Raw(document),
                processing_time_ms=round(result.processing_time_ms, 3),
            )
        finally:
            if has_slot:
                self._context.work_slots.release()
        try:
            await self._store_end(end.replace(completed_at=time.time()))
        except TaskTooLargeError:
            failure = TaskError(RESULT_TOO_LARGE, "the result exceeds the message size that the queue accepts")
            await self._store_end(
                self._record.replace(status=TaskStatus.FAILURE, error=failure, completed_at=time.time())
            )

    async def _acquire_slot(self) -> None:
        """Wait for a free work thread, and send heartbeats meanwhile."""
        slot = asyncio.ensure_future(self._context.work_slots.acquire())
        stopping = asyncio.ensure_future(self._context.stopping.wait())
        try:
            while True:
                await asyncio.wait({slot, stopping}, timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
                if slot.done():
                    return
                if stopping.done():
                    raise ShuttingDownError
                await self._heartbeat()
        finally:
            stopping.cancel()
            slot.cancel()

    async def _start(self, *, is_known: bool) -> bool:
        """Store that the attempt starts; return False if the task has ended."""
        limit = self._context.settings.task_max_deliveries
        # The first attempt at a light task is not stored unless it succeeds, so it is counted here.
        unseen = 0 if is_known or not self._is_light else 1
        for _ in range(WRITE_ATTEMPTS):
            if not is_known:
                # A missing record has expired during an outage; an expired one counts, because it may be final.
                stored = await self._context.records.load(self._record.task_id) or StoredRecord(self._task.record)
                self._record, self._revision = stored.record, stored.revision
                if self._record.status.is_final or not self._is_same_submission(self._record):
                    return False
                tracing.link_attempt(self._record.run)
                # Counted by the record, because a message may have been requeued before the task was started.
                if self._record.attempts >= limit:
                    raise MaxAttemptsError(self._record)
                self._record = self._record.replace(attempts=max(self._record.attempts, unseen))
            started = self._started(self._record)
            try:
                self._revision = await self._context.records.update(started, self._revision)
            except RevisionConflictError:
                is_known = False
                continue
            self._record = started
            _observe_wait(started)
            return True
        raise RevisionConflictError

    def _started(self, record: Record) -> Record:
        """Return the record of a task that starts now."""
        return record.replace(
            status=TaskStatus.STARTED,
            started_at=record.started_at or time.time(),
            attempts=record.attempts + 1,
            progress=0.0,
            run=self._run,
        )

    async def _process_in_thread(self) -> tuple[CropResult | CropResults, bytes]:
        context = copy_context()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._context.pool, lambda: context.run(self._process))
        while not (await asyncio.wait({work}, timeout=self._heartbeat_s))[0]:
            await self._heartbeat()
            since = self._working_since
            if since and time.monotonic() - since > self._context.settings.task_timeout_s:
                raise TaskTimeoutError
            await self._store_progress()
        return work.result()

    @track_task_metrics(TASK_TYPE)
    def _process(self) -> tuple[CropResult | CropResults, bytes]:
        """Do the work that uses CPU."""
        self._working_since = time.monotonic()
        checked = self._task.checked
        poison = self._context.settings.fault_poison_region
        if poison and poison in (checked.region_landmarks or {}):
            os.kill(os.getpid(), signal.SIGKILL)
        result = self._context.service.run(checked, self._step)
        with self._step("document"):
            return result, result_to_json(result)

    def _step(self, name: str) -> AbstractContextManager[None]:
        # A label map is decoded after detection; progress must not go back.
        self._progress = max(self._progress, _PROGRESS[name])
        return image_step(name)

    async def _store_progress(self) -> None:
        if self._progress > self._record.progress:
            record = self._record.replace(progress=self._progress)
            with contextlib.suppress(QueueError, RevisionConflictError):  # handled when the end is stored
                self._revision = await self._context.records.update(record, self._revision)
                self._record = record

    async def _store_end(self, end: Record) -> None:
        """Store the end, and retry for a while if the queue is unavailable, because the work is already done."""
        limit = time.monotonic() + self._context.settings.task_ack_wait_s
        pause_s = STORE_PAUSE_S
        while True:
            try:
                await self._write_end(end)
            except QueueError as error:
                if isinstance(error, TaskTooLargeError) or time.monotonic() > limit:
                    raise
            else:
                return
            await asyncio.sleep(pause_s)
            pause_s *= 2
            await self._heartbeat()

    async def _heartbeat(self) -> None:
        with contextlib.suppress(nats.errors.Error, OSError):  # without heartbeats, another worker also gets the task
            await self._message.in_progress()

    async def _write_end(self, end: Record) -> None:
        for _ in range(WRITE_ATTEMPTS):
            try:
                await self._context.records.update(end, self._revision)
            except RevisionConflictError:
                stored = await self._context.records.load(end.task_id)
                if stored is None and await find_lane(self._context.connection, end.task_id) is None:
                    return  # another attempt has ended the task, and the final record has expired
                if stored is not None and not self._is_same_submission(stored.record):
                    return
                if stored is None or not stored.record.status.is_final:
                    # Another attempt has started; the first to finish ends the task.
                    self._revision = stored.revision if stored else 0
                    continue
                if stored.record.run != self._run:
                    return
                # The end was stored, and only the response was lost.
            await self._report(end)
            return
        raise RevisionConflictError

    def _is_same_submission(self, record: Record) -> bool:
        """Return whether a record belongs to this submission; a withdrawn one leaves its id to the next."""
        return record.submitted_at == self._task.record.submitted_at

    async def _report(self, end: Record) -> None:
        """Count and log the end, and add the result to the cache."""
        if self._is_light:
            _observe_wait(end)
        record_task_completed(end.type, end.status.value)
        if end.error is not None:
            tracing.set_error(end.error.code)
            record_error(end.error.code, "tasks")
            log_task_failed(end.task_id, end.error.code, end.error.detail)
            return
        log_task_succeeded(end.task_id, (end.processing_time_ms or 0) / 1000)
        if self._context.settings.result_cache and end.digest:
            with contextlib.suppress(QueueError):  # an identical request is then processed again
                await self._context.records.index_result(end.digest, end.task_id)


def _is_quick(checked: CheckedInput) -> bool:
    """Return whether the work takes less than about 5 ms, so that it may run on the event loop."""
    # Label placement renders each region and measures distances in it, which takes ten times as long as all other work.
    if checked.needs_pixels or checked.options.show_labels or len(checked.faces or ()) > 1:
        return False
    regions = checked.region_landmarks or {}
    return sum(map(len, regions.values())) + REGION_INDICES * len(regions) <= LIGHT_INDICES


def _observe_wait(record: Record) -> None:
    if record.started_at is not None and record.attempts == 1:
        record_task_wait(record.type, record.started_at - record.submitted_at)


log = get_logger("tasks")

# Messages held beyond those in progress, so that the next task starts without a request.
PREFETCH: Final = 1
TICK_S: Final = 1.0
RETRY_S, RETRY_MAX_S = 1.0, 60.0
EXIT_TIMEOUT: Final = 1
EXIT_FLUSH_S: Final = 0.5  # to export traces
EXIT_GRACE_S: Final = 1  # to requeue messages before the process exits


async def work(settings: Settings, *, stop: asyncio.Event, on_ready: Callable[[], None], name: str) -> None:
    """Process tasks until stopped, then finish those in progress, within ``GRACEFUL_TIMEOUT_S``.

    `on_ready` is called once, when the queue is available for the first time.
    """
    connection = Connection(settings, f"facial-service {name}")
    await connection.start()
    reconciling = asyncio.create_task(Reconciler(connection, Records(connection, settings), settings).run())
    try:
        if await connection.wait_up(stop.is_set):
            on_ready()
            await Worker(settings, connection).run(stop)
    finally:
        reconciling.cancel()
        await asyncio.wait([reconciling], timeout=RELEASE_S)
        await connection.close()


class Worker:
    """Receives tasks and processes them."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self._settings = settings
        self._connection = connection
        self._pool = ThreadPoolExecutor(settings.work_threads, thread_name_prefix="work")
        limits = ImageLimits(max_image_pixels=settings.max_image_pixels, landmark_margin=settings.landmark_margin)
        records = Records(connection, settings)
        self._dead_letters = DeadLetterQueue(connection, records)
        self._context = WorkerContext(
            settings=settings,
            connection=connection,
            records=records,
            service=CropService(limits, DetectorPool(settings.models_dir), fault_work_s=settings.fault_work_s),
            pool=self._pool,
            work_slots=asyncio.Semaphore(settings.work_threads),
            stopping=asyncio.Event(),
        )
        self._consumer = PullConsumer(connection, settings.work_threads, PREFETCH, self._start)
        self._held: dict[asyncio.Task[None], Msg] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Process tasks until stopped; see `work`."""
        try:
            while not stop.is_set():
                await self._consumer.request_messages()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), TICK_S)
            self._context.stopping.set()
            for message in await self._consumer.stop():
                await _requeue(message)
            if self._held:
                await asyncio.wait(self._held, timeout=self._settings.graceful_timeout_s)
        finally:  # even after a timeout, so that other workers need not wait for TASK_ACK_WAIT_S
            for attempt, message in list(self._held.items()):
                attempt.cancel()
                await _requeue(message)
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, message: Msg) -> None:
        attempt = asyncio.create_task(self._handle(message))
        self._held[attempt] = message
        attempt.add_done_callback(self._held.pop)

    async def _handle(self, message: Msg) -> None:
        """Process a message until it is acknowledged, requeued or a dead letter."""
        deliveries = message.metadata.num_delivered
        if deliveries > 1:
            record_task_redelivered(TASK_TYPE)
        with tracing.attempt(message.headers, message.subject.rpartition(".")[2], deliveries):
            await self._handle_delivery(message, deliveries)

    async def _handle_delivery(self, message: Msg, deliveries: int) -> None:
        try:
            await self._attempt(message, deliveries)
        except ShuttingDownError:
            tracing.set_error("shutting_down")
            await _requeue(message)
        except TaskTimeoutError:
            await self._exit_on_timeout()
        except (QueueError, RevisionConflictError, nats.errors.Error, OSError) as error:
            tracing.set_error("queue_unavailable")
            await self._retry_later(message, deliveries, f"the queue: {type(error).__name__}")
        except NewerTaskError as error:
            tracing.set_error("task_newer")
            await self._retry_later(message, deliveries, str(error))
        except Exception:  # the worker must continue with other tasks
            log.exception("Task failed with an unexpected error")
            tracing.set_error("internal_error")
            record_error("internal_error", "tasks")
            await self._retry_later(message, deliveries, "internal error")
        finally:
            await self._consumer.release()

    async def _attempt(self, message: Msg, deliveries: int) -> None:
        try:
            task = decode_task(message.data)
            rich_logging.request_id.set(task.request_id)
            if not tracing.is_enabled():
                rich_logging.trace_id.set(task.trace_id)
            if deliveries == 1:
                tracing.record_queue_wait(message.headers, task.record.submitted_at)
            await Attempt(self._context, message, task).run(is_first=deliveries == 1)
        except MaxAttemptsError as error:
            await self._dead_letter(message, error.record.attempts, str(error))
        except MessageError as error:
            await self._dead_letter(message, deliveries, str(error))
        await _acknowledge(message)

    async def _dead_letter(self, message: Msg, attempts: int, reason: str) -> None:
        task_id = message.subject.rpartition(".")[2]
        tracing.set_error(TASK_GAVE_UP)
        await self._dead_letters.dead_letter(task_id, message.data, attempts=attempts, reason=reason)

    async def _retry_later(self, message: Msg, deliveries: int, reason: str) -> None:
        delay_s = min(RETRY_S * 2 ** (deliveries - 1), RETRY_MAX_S)
        log_task_retried(message.subject.rpartition(".")[2], reason, delay_s)
        with contextlib.suppress(nats.errors.Error, OSError):  # without a nak, the server redelivers it as well
            await message.nak(delay=delay_s)

    async def _exit_on_timeout(self) -> NoReturn:
        """Exit, because the thread cannot be stopped; its attempt counts, and the other messages are requeued."""
        log.critical("Task took longer than %g s; the process exits and is replaced", self._settings.task_timeout_s)
        this = asyncio.current_task()
        # First, so that requeued messages are not delivered to this process again.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_GRACE_S):
                for message in await self._consumer.stop():
                    await _requeue(message)
        for attempt, message in list(self._held.items()):
            if attempt is not this:
                await _requeue(message)
        with contextlib.suppress(nats.errors.Error, OSError, QueueError):
            await self._connection.client.flush(timeout=EXIT_GRACE_S)
        tracing.end_attempt("task_timeout", EXIT_FLUSH_S)
        os._exit(EXIT_TIMEOUT)


async def _acknowledge(message: Msg) -> None:
    # If this fails, the message is delivered again and acknowledged then, because its record is final.
    with contextlib.suppress(nats.errors.Error, OSError):
        await message.ack()


async def _requeue(message: Msg) -> None:
    with contextlib.suppress(nats.errors.Error, OSError):
        await message.nak()
