"""One attempt at one task: begun in its record, worked on, and its end written."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from contextvars import copy_context
from typing import TYPE_CHECKING, Final

import msgspec
import nats.errors

from app.face.errors import InputError
from app.observability.events import log_task_failed, log_task_started, log_task_succeeded
from app.observability.recording import (
    held_back,
    image_step,
    record_error,
    record_task_completed,
    record_task_wait,
    track_task_metrics,
)
from app.service.document import result_to_json
from app.tasks.connection import RevisionConflictError
from app.tasks.errors import QueueError, TaskTooLargeError
from app.tasks.records import StoredRecord, TaskError, TaskStatus
from app.tasks.stream import TASK_TYPE

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from nats.aio.msg import Msg

    from app.service.crop import CheckedInput, CropResult
    from app.tasks.message import Task
    from app.tasks.records import Record
    from app.tasks.workshop import WorkerContext

BEAT_S: Final = 1.0
ATTEMPTS: Final = 8
STORE_PAUSE_S: Final = 0.1
# A region costs as much as this many of its indices. The most expensive shapes and options found within the limit take
# 3 ms, the catalogue 0.5 ms.
REGION_INDICES: Final = 32
LIGHT_INDICES: Final = 2048
RESULT_TOO_LARGE: Final = "result_too_large"

# Of the steps that a task may have, how much is done when each begins. Decoding and looking for a face take nearly all
# of the time where there is any, so that a finer scale would promise what it cannot keep.
# fmt: off
_PROGRESS: Final = {
    "decode": 0.1, "detect": 0.3, "mesh": 0.4, "iris": 0.45, "warp": 0.5, "encode": 0.55,
    "segmentation": 0.6, "contours": 0.7, "svg": 0.8, "document": 0.9,
}
# fmt: on


class TaskTimeoutError(Exception):
    """Work on a task takes longer than it may, and cannot be stopped but with its process."""


class ShuttingDownError(Exception):
    """The process stops, and has not begun the task."""


class MaxAttemptsError(Exception):
    """Work on a task was begun as often as it may be, and came to nothing."""

    def __init__(self, record: Record) -> None:
        times = "once" if record.attempts == 1 else f"{record.attempts} times"
        super().__init__(f"work on it was begun {times} and came to no end")
        self.record = record


class Attempt:
    """One attempt.

    Args:
        workshop: what to work with.
        message: the task's message, to show signs of life by.
        task: what the message holds.
    """

    def __init__(self, workshop: WorkerContext, message: Msg, task: Task) -> None:
        self._shop = workshop
        self._message = message
        self._task = task
        self._run = uuid.uuid4().hex
        self._record = task.record
        self._revision = task.revision
        self._beat_s = min(BEAT_S, workshop.settings.task_ack_wait_s / 3)
        self._progress = 0.0
        self._working_since = 0.0
        settings = workshop.settings
        # Done sooner than it could be handed to a thread, or its beginning be written down.
        is_faulty = settings.fault_work_s or settings.fault_poison_region
        self._is_light = not is_faulty and _is_quick(task.checked)

    async def make(self, *, is_first: bool) -> None:
        """Do the task, unless it has ended already; its record tells how it ended.

        Args:
            is_first: nobody can have begun it before.

        Raises:
            ShuttingDownError: it was not begun, for the process stops.
            MaxAttemptsError: it was begun too often already.
            TaskTimeoutError: the work takes too long.
            QueueError: the record could not be read or written.
            Exception: whatever else came up in the work.
        """
        is_bench_taken = not (self._is_light and is_first)
        if is_bench_taken:
            await self._take_bench()
        try:
            if not is_bench_taken:
                self._record = self._begun(self._record)
            elif not await self._begin(is_known=is_first):
                return
            log_task_started(self._record.task_id, self._record.type, attempt=self._record.attempts)
            with held_back():
                result, document = self._do() if self._is_light else await self._work()
        except TaskTimeoutError:
            is_bench_taken = False  # for good: the thread goes on
            raise
        except InputError as error:
            end = self._record.replace(status=TaskStatus.FAILURE, error=TaskError(error.code, str(error)))
        else:
            end = self._record.replace(
                status=TaskStatus.SUCCESS,
                progress=1.0,
                result=msgspec.Raw(document),
                processing_time_ms=round(result.processing_time_ms, 3),
            )
        finally:
            if is_bench_taken:
                self._shop.benches.release()
        try:
            await self._end(end.replace(completed_at=time.time()))
        except TaskTooLargeError:
            fault = TaskError(RESULT_TOO_LARGE, "the result is larger than the queue's server takes")
            await self._end(self._record.replace(status=TaskStatus.FAILURE, error=fault, completed_at=time.time()))

    async def _take_bench(self) -> None:
        """Wait until a thread is free, and show signs of life meanwhile."""
        place = asyncio.ensure_future(self._shop.benches.acquire())
        closing = asyncio.ensure_future(self._shop.closing.wait())
        try:
            while True:
                await asyncio.wait({place, closing}, timeout=self._beat_s, return_when=asyncio.FIRST_COMPLETED)
                if place.done():
                    return
                if closing.done():
                    raise ShuttingDownError
                await self._beat()
        finally:
            closing.cancel()
            place.cancel()

    async def _begin(self, *, is_known: bool) -> bool:
        """Write that work begins; False where there is nothing to be done."""
        limit = self._shop.settings.task_max_deliveries
        # Of a light task, the first attempt leaves no trace where it comes to nothing: it counts for certain.
        unseen = 0 if is_known or not self._is_light else 1
        for _ in range(ATTEMPTS):
            if not is_known:
                # A missing record has expired during an outage; an expired one counts, because it may be final.
                stored = await self._shop.records.load(self._record.task_id) or StoredRecord(self._task.record)
                self._record, self._revision = stored.record, stored.revision
                if self._record.status.is_final or not self._is_of(self._record):
                    return False
                # By what is written: it may have been given back before anything was begun.
                if self._record.attempts >= limit:
                    raise MaxAttemptsError(self._record)
                self._record = self._record.replace(attempts=max(self._record.attempts, unseen))
            begun = self._begun(self._record)
            try:
                self._revision = await self._shop.records.update(begun, self._revision)
            except RevisionConflictError:
                is_known = False
                continue
            self._record = begun
            _note_wait(begun)
            return True
        raise RevisionConflictError

    def _begun(self, record: Record) -> Record:
        """Return a record of which work begins now."""
        return record.replace(
            status=TaskStatus.STARTED,
            started_at=record.started_at or time.time(),
            attempts=record.attempts + 1,
            progress=0.0,
            run=self._run,
        )

    async def _work(self) -> tuple[CropResult, bytes]:
        context = copy_context()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._shop.pool, lambda: context.run(self._do))
        while not (await asyncio.wait({work}, timeout=self._beat_s))[0]:
            await self._beat()
            since = self._working_since
            if since and time.monotonic() - since > self._shop.settings.task_timeout_s:
                raise TaskTimeoutError
            await self._show_progress()
        return work.result()

    @track_task_metrics(TASK_TYPE)
    def _do(self) -> tuple[CropResult, bytes]:
        """Do all that takes CPU, on a work thread unless it is light."""
        self._working_since = time.monotonic()
        checked = self._task.checked
        poison = self._shop.settings.fault_poison_region
        if poison and poison in (checked.region_landmarks or {}):
            os.kill(os.getpid(), signal.SIGKILL)
        result = self._shop.service.run(checked, self._step)
        with self._step("document"):
            return result, result_to_json(result)

    def _step(self, name: str) -> AbstractContextManager[None]:
        # A label map is decoded after a face was found: what is done stays done.
        self._progress = max(self._progress, _PROGRESS[name])
        return image_step(name)

    async def _show_progress(self) -> None:
        if self._progress > self._record.progress:
            shown = self._record.replace(progress=self._progress)
            with contextlib.suppress(QueueError, RevisionConflictError):  # the end will see to it
                self._revision = await self._shop.records.update(shown, self._revision)
                self._record = shown

    async def _end(self, end: Record) -> None:
        """Write the end, and go on trying while the store is away for a moment: the work is done already."""
        limit = time.monotonic() + self._shop.settings.task_ack_wait_s
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
            await self._beat()

    async def _beat(self) -> None:
        with contextlib.suppress(nats.errors.Error, OSError):  # not heard, the task goes to another as well
            await self._message.in_progress()

    async def _write_end(self, end: Record) -> None:
        for _ in range(ATTEMPTS):
            try:
                await self._shop.records.update(end, self._revision)
            except RevisionConflictError:
                stored = await self._shop.records.load(end.task_id)
                if stored is None and self._revision != self._task.revision:
                    return  # the record of this attempt was replaced by a final one, which has expired
                if stored is not None and not self._is_of(stored.record):
                    return
                if stored is None or not stored.record.status.is_final:
                    # Another attempt has begun; the first to finish ends the task.
                    self._revision = stored.revision if stored else 0
                    continue
                if stored.record.run != self._run:
                    return
                # It was stored, and only the answer was lost.
            await self._tell(end)
            return
        raise RevisionConflictError

    def _is_of(self, record: Record) -> bool:
        """Tell whether a record is of this submission: one that was withdrawn leaves its id to another."""
        return record.submitted_at == self._task.record.submitted_at

    async def _tell(self, end: Record) -> None:
        if self._is_light:
            _note_wait(end)
        record_task_completed(end.type, end.status.value)
        if end.error is not None:
            record_error(end.error.code, "tasks")
            log_task_failed(end.task_id, end.error.code, end.error.detail)
            return
        log_task_succeeded(end.task_id, (end.processing_time_ms or 0) / 1000)
        if self._shop.settings.result_cache and end.digest:
            with contextlib.suppress(QueueError):  # the same will be worked out again, that is all
                await self._shop.records.note_result(end.digest, end.task_id)


def _is_quick(checked: CheckedInput) -> bool:
    """Return whether the work takes less than about 5 ms, so that it may run on the event loop."""
    # Placing labels draws each region and measures distances in it, which takes ten times as long as all other work.
    if checked.needs_pixels or checked.options.show_labels:
        return False
    regions = checked.region_landmarks or {}
    return sum(map(len, regions.values())) + REGION_INDICES * len(regions) <= LIGHT_INDICES


def _note_wait(record: Record) -> None:
    if record.started_at is not None and record.attempts == 1:
        record_task_wait(record.type, record.started_at - record.submitted_at)
