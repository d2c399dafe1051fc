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
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NoReturn

import nats.errors

from app.observability import rich_logging
from app.observability.recording import record_error, record_task_redelivered
from app.observability.rich_logging import get_logger, log_task_retried
from app.service.crop import CropService, ImageLimits
from app.service.detector_pool import DetectorPool
from app.tasks.attempt import Attempt, MaxAttemptsError, ShuttingDownError, TaskTimeoutError, WorkerContext
from app.tasks.connection import Connection, RevisionConflictError
from app.tasks.dead_letters import DeadLetterQueue
from app.tasks.errors import QueueError
from app.tasks.message import MessageError, NewerTaskError, decode_task
from app.tasks.pull_consumer import PullConsumer
from app.tasks.reconciler import RELEASE_S, Reconciler
from app.tasks.records import Records
from app.tasks.stream import TASK_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.msg import Msg

    from app.settings import Settings

log = get_logger("tasks")

# Messages held beyond those in progress, so that the next task starts without a request.
PREFETCH: Final = 1
TICK_S: Final = 1.0
RETRY_S, RETRY_MAX_S = 1.0, 60.0
EXIT_TIMEOUT: Final = 1
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
        try:
            await self._attempt(message, deliveries)
        except ShuttingDownError:
            await _requeue(message)
        except TaskTimeoutError:
            await self._exit_on_timeout()
        except (QueueError, RevisionConflictError, nats.errors.Error, OSError) as error:
            await self._retry_later(message, deliveries, f"the queue: {type(error).__name__}")
        except NewerTaskError as error:
            await self._retry_later(message, deliveries, str(error))
        except Exception:  # the worker must continue with other tasks
            log.exception("Task failed with an unexpected error")
            record_error("internal_error", "tasks")
            await self._retry_later(message, deliveries, "internal error")
        finally:
            await self._consumer.release()

    async def _attempt(self, message: Msg, deliveries: int) -> None:
        try:
            task = decode_task(message.data)
            rich_logging.request_id.set(task.request_id)
            rich_logging.trace_id.set(task.trace_id)
            await Attempt(self._context, message, task).run(is_first=deliveries == 1)
        except MaxAttemptsError as error:
            await self._dead_letter(message, error.record.attempts, str(error))
        except MessageError as error:
            await self._dead_letter(message, deliveries, str(error))
        await _acknowledge(message)

    async def _dead_letter(self, message: Msg, attempts: int, reason: str) -> None:
        task_id = message.subject.rpartition(".")[2]
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
        os._exit(EXIT_TIMEOUT)


async def _acknowledge(message: Msg) -> None:
    # If this fails, the message is delivered again and acknowledged then, because its record is final.
    with contextlib.suppress(nats.errors.Error, OSError):
        await message.ack()


async def _requeue(message: Msg) -> None:
    with contextlib.suppress(nats.errors.Error, OSError):
        await message.nak()
