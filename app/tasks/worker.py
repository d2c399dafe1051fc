"""Work on tasks, one `Worker` a process: pulls them, makes an attempt at each, confirms them.

What may happen, and what comes of it:

- The input is at fault: the record ends as FAILURE with the input's code; nobody tries again.
- Something unforeseen: the task goes back with a delay that grows, and is put aside (`app.tasks.dead_letters`) after as
  many attempts as are allowed.
- The store cannot be reached: the end is offered to it for a while, then the task goes back.
- The process dies: the task goes to another once its confirmation is overdue (``TASK_ACK_WAIT_S``).
- Somebody else ended the task meanwhile: what came of the work is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NoReturn

import nats.errors

from app.observability import context
from app.observability.events import log_task_retried
from app.observability.recording import record_error, record_task_redelivered
from app.observability.rich_logging import get_logger
from app.service.crop import CropService, Limits
from app.service.faces import FaceFinders
from app.tasks.attempt import Attempt, MaxAttemptsError, ShuttingDownError, TaskTimeoutError
from app.tasks.connection import Connection, RevisionConflictError
from app.tasks.dead_letters import DeadLetterQueue
from app.tasks.errors import QueueError
from app.tasks.message import MessageError, NewerTaskError, decode_task
from app.tasks.pull_consumer import PullConsumer
from app.tasks.reconciler import RELEASE_S, Reconciler
from app.tasks.records import Records
from app.tasks.stream import TASK_TYPE
from app.tasks.workshop import WorkerContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.msg import Msg

    from app.settings import Settings

log = get_logger("tasks")

# One more than is worked on, so that the next is there when one ends.
AHEAD: Final = 1
TICK_S: Final = 1.0
RETRY_S, RETRY_MAX_S = 1.0, 60.0
EXIT_OVERDUE: Final = 1
LAST_WORDS_S: Final = 1  # for a process that ends to leave the queue


async def work(settings: Settings, *, stop: asyncio.Event, on_ready: Callable[[], None], name: str) -> None:
    """Work on tasks until told to stop, then end what was begun, within ``GRACEFUL_TIMEOUT_S``.

    Args:
        settings: how to work.
        stop: set when no more tasks are to be begun.
        on_ready: called once, when the queue is there for the first time.
        name: of this process, for whoever looks at the server's list of clients.
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
    """Pulls tasks and works on them.

    Args:
        settings: how to work.
        connection: to the queue.
    """

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self._settings = settings
        self._connection = connection
        self._pool = ThreadPoolExecutor(settings.work_threads, thread_name_prefix="work")
        limits = Limits(max_image_pixels=settings.max_image_pixels, landmark_margin=settings.landmark_margin)
        self._records = Records(connection, settings)
        self._graveyard = DeadLetterQueue(connection, self._records)
        self._workshop = WorkerContext(
            settings=settings,
            records=self._records,
            service=CropService(limits, FaceFinders(settings.models_dir), fault_work_s=settings.fault_work_s),
            pool=self._pool,
            benches=asyncio.Semaphore(settings.work_threads),
            closing=asyncio.Event(),
        )
        self._puller = PullConsumer(connection, settings.work_threads, AHEAD, self._begin)
        self._held: dict[asyncio.Task[None], Msg] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop; see `work`."""
        try:
            while not stop.is_set():
                await self._puller.ask()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), TICK_S)
            self._workshop.closing.set()
            for message in await self._puller.stop():
                await _give_back(message)
            if self._held:
                await asyncio.wait(self._held, timeout=self._settings.graceful_timeout_s)
        finally:  # where there is no time to end it, too: another worker shall not wait for the ack wait
            for attempt, message in list(self._held.items()):
                attempt.cancel()
                await _give_back(message)
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, message: Msg) -> None:
        attempt = asyncio.create_task(self._handle(message))
        self._held[attempt] = message
        attempt.add_done_callback(self._held.pop)

    async def _handle(self, message: Msg) -> None:
        """See a message to its end: confirmed, given back or put aside."""
        deliveries = message.metadata.num_delivered
        if deliveries > 1:
            record_task_redelivered(TASK_TYPE)
        try:
            await self._attempt(message, deliveries)
        except ShuttingDownError:
            await _give_back(message)
        except TaskTimeoutError:
            await self._die()
        except (QueueError, RevisionConflictError, nats.errors.Error, OSError) as error:
            await self._put_back(message, deliveries, f"the queue: {type(error).__name__}")
        except NewerTaskError as error:
            await self._put_back(message, deliveries, str(error))
        except Exception:  # whatever it is, the others shall go on
            log.exception("Work on a task failed")
            record_error("internal_error", "tasks")
            await self._put_back(message, deliveries, "an error of ours")
        finally:
            await self._puller.done()

    async def _attempt(self, message: Msg, deliveries: int) -> None:
        try:
            task = decode_task(message.data)
            context.request_id.set(task.request_id)
            context.trace_id.set(task.trace_id)
            await Attempt(self._workshop, message, task).make(is_first=deliveries == 1)
        except MaxAttemptsError as given_up:
            await self._bury(message, given_up.record.attempts, str(given_up))
        except MessageError as error:
            await self._bury(message, deliveries, str(error))
        await message.ack()

    async def _bury(self, message: Msg, attempts: int, reason: str) -> None:
        task_id = message.subject.rpartition(".")[2]
        await self._graveyard.bury(task_id, message.data, attempts=attempts, reason=reason)

    async def _put_back(self, message: Msg, deliveries: int, reason: str) -> None:
        delay_s = min(RETRY_S * 2 ** (deliveries - 1), RETRY_MAX_S)
        log_task_retried(message.subject.rpartition(".")[2], reason, delay_s)
        with contextlib.suppress(nats.errors.Error, OSError):  # unconfirmed, it comes back all the same
            await message.nak(delay=delay_s)

    async def _die(self) -> NoReturn:
        """End the process with the thread that does not; its task counts as begun, the others go back."""
        log.critical("Work on a task took longer than %g s; this process ends", self._settings.task_timeout_s)
        this = asyncio.current_task()
        # First, so that what is given back is not delivered to this process again.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                for message in await self._puller.stop():
                    await _give_back(message)
        for attempt, message in list(self._held.items()):
            if attempt is not this:
                await _give_back(message)
        with contextlib.suppress(nats.errors.Error, OSError, QueueError):
            await self._connection.client.flush(timeout=LAST_WORDS_S)
        os._exit(EXIT_OVERDUE)


async def _give_back(message: Msg) -> None:
    with contextlib.suppress(nats.errors.Error, OSError):
        await message.nak()
