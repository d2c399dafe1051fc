"""What the queue's server knows of tasks, asked when somebody scrapes."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from prometheus_client.registry import Collector

from app.observability.metrics import gauge_family
from app.observability.rich_logging import get_logger
from app.tasks.connection import Connection
from app.tasks.embedded_server import store_folder
from app.tasks.errors import QueueError, QueueUnavailableError
from app.tasks.nats_monitoring import NatsServerStats, ServerMonitor
from app.tasks.records import age_s
from app.tasks.storage_space import reserve_bytes
from app.tasks.stream import DEAD_STREAM, RECORDS_STREAM, STREAM, TASK_TYPE
from app.tasks.stream_state import list_consumers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from prometheus_client.core import GaugeMetricFamily

    from app.settings import Settings

T = TypeVar("T")

log = get_logger("tasks")

ANSWER_S: Final = 0.6  # a scrape answers within a second, whatever the queue does
FIRST_S: Final = 0.5
PATIENCE_S: Final = 0.05  # for what was asked beside, where its time is over too


class _StreamState(msgspec.Struct):
    messages: int = 0
    bytes: int = 0
    first_ts: str = ""


class _Answer(msgspec.Struct):
    error: dict[str, Any] | None = None


class _Stream(msgspec.Struct):
    state: _StreamState = msgspec.field(default_factory=_StreamState)


class _Limits(msgspec.Struct):
    max_storage: int = -1


class _Account(msgspec.Struct):
    limits: _Limits = msgspec.field(default_factory=_Limits)


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """What was read.

    Attributes:
        waiting: tasks that no worker has.
        unconfirmed: tasks that a worker has.
        oldest_s: age of the oldest of both; 0 where there is none.
        dead: tasks that are kept aside.
        storage: bytes that are used.
        storage_limit: bytes that this account may use; None where only the server has a limit.
    """

    waiting: int
    unconfirmed: int
    oldest_s: float
    dead: int
    storage: int
    storage_limit: int | None


class QueueCollector(Collector):
    """``queue_up`` always; what the queue holds and takes where it answers.

    It is made before the processes fork. The one that is scraped connects, in a thread of its own, when it is scraped
    first.

    Args:
        settings: where the queue is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        self._monitor: ServerMonitor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one sample a metric."""
        figures, server = self._read()
        samples: list[tuple[str, list[str], float | None]] = [
            ("queue_up", [], 0 if figures is None else 1),
            ("queue_writable", [], self._is_writable(figures, server)),
            ("queue_memory_bytes", [], server.memory),
            ("queue_connections", [], server.connections),
            ("queue_cluster_has_leader", [], server.has_leader),
        ]
        if figures is not None:
            samples += [
                ("task_queue_size", [TASK_TYPE], figures.waiting),
                ("active_tasks_count", [TASK_TYPE], figures.unconfirmed),
                ("task_oldest_age_seconds", [TASK_TYPE], figures.oldest_s),
                ("task_dead_kept", [], figures.dead),
                ("queue_storage_bytes", [], figures.storage),
                ("queue_storage_limit_bytes", [], _storage_limit(figures, server)),
            ]
        for name, labels, value in samples:
            if value is not None:
                family = gauge_family(name)
                family.add_metric(labels, value)
                yield family

    def _read(self) -> tuple[QueueStats | None, NatsServerStats]:
        with self._lock:
            is_new = self._owner != os.getpid()
            if is_new:
                self._start()
        if self._loop is None or self._connection is None or self._monitor is None:
            return None, NatsServerStats()
        # Side by side, and each for itself: a cluster without a leader is one that does not answer.
        asking = asyncio.run_coroutine_threadsafe(self._monitor.read(), self._loop)
        reading = asyncio.run_coroutine_threadsafe(
            read_figures(self._connection, wait_s=FIRST_S if is_new else 0), self._loop
        )
        limit_s = ANSWER_S + (FIRST_S if is_new else 0)
        end = time.monotonic() + limit_s
        figures = _result(reading, limit_s)
        return figures, _result(asking, end - time.monotonic() + PATIENCE_S) or NatsServerStats()

    def _is_writable(self, figures: QueueStats | None, server: NatsServerStats) -> bool | None:
        if figures is None:
            return False
        if server.storage_fault is None:
            return None
        folder = store_folder(self._settings)
        has_room = folder is None or server.free is None or server.free > reserve_bytes(folder)
        return not server.storage_fault and has_room

    def _start(self) -> None:
        self._owner = os.getpid()
        loop = self._loop = asyncio.new_event_loop()
        self._connection = Connection(self._settings, "facial-service metrics")
        self._monitor = ServerMonitor(self._settings.nats_monitor_url)
        threading.Thread(target=loop.run_forever, name="queue-figures", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._connection.start(), loop)


def _storage_limit(figures: QueueStats, server: NatsServerStats) -> int | None:
    if figures.storage_limit is not None:
        return figures.storage_limit
    if server.free is not None:  # of the embedded server, which has no limit but its disk
        return figures.storage + server.free
    return server.storage_limit


def _result(asked: Future[T], limit_s: float) -> T | None:
    try:
        return asked.result(timeout=limit_s)
    except (QueueError, TimeoutError, msgspec.DecodeError) as error:
        log.debug("The queue told nothing: %s", type(error).__name__)
        asked.cancel()
        return None


async def read_figures(connection: Connection, *, wait_s: float = 0.0) -> QueueStats:
    """Ask the server.

    Args:
        connection: to it.
        wait_s: how long to wait for the connection.

    Raises:
        QueueUnavailableError: no answer.
    """
    end = time.monotonic() + wait_s
    await connection.wait_up(lambda: time.monotonic() > end)

    async def ask(subject: str) -> bytes:
        answer = (await connection.request(f"$JS.API.{subject}", timeout_s=ANSWER_S)).data
        if msgspec.json.decode(answer, type=_Answer).error is not None:  # a stream has gone, say
            connection.recheck_streams()
            raise QueueUnavailableError("the queue has no streams")
        return answer

    stream, consumers, dead, records, account = await asyncio.gather(
        ask(f"STREAM.INFO.{STREAM}"),
        list_consumers(connection, ANSWER_S),
        ask(f"STREAM.INFO.{DEAD_STREAM}"),
        ask(f"STREAM.INFO.{RECORDS_STREAM}"),
        ask("INFO"),
    )
    tasks = msgspec.json.decode(stream, type=_Stream).state
    buried = msgspec.json.decode(dead, type=_Stream).state
    kept = msgspec.json.decode(records, type=_Stream).state
    share = msgspec.json.decode(account, type=_Account)
    return QueueStats(
        waiting=sum(consumer.num_pending for consumer in consumers.values()),
        unconfirmed=sum(consumer.num_ack_pending for consumer in consumers.values()),
        oldest_s=age_s(tasks.first_ts) if tasks.messages else 0.0,
        dead=buried.messages,
        storage=tasks.bytes + kept.bytes + buried.bytes,
        storage_limit=share.limits.max_storage if share.limits.max_storage > 0 else None,
    )
