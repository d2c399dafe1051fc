"""Metrics of the queue, read from the NATS server when Prometheus scrapes."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from prometheus_client.registry import Collector

from app.observability.metrics import gauge_family
from app.observability.rich_logging import get_logger
from app.tasks.connection import Connection
from app.tasks.embedded_server import reserve_bytes, store_folder
from app.tasks.errors import QueueError
from app.tasks.nats_monitoring import NatsServerStats, ServerMonitor
from app.tasks.records import age_s
from app.tasks.stream import DEAD_STREAM, RECORDS_STREAM, STREAM, TASK_TYPE
from app.tasks.stream_state import list_consumers, read_storage_limit, read_stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from prometheus_client.core import GaugeMetricFamily

    from app.settings import Settings

T = TypeVar("T")

log = get_logger("tasks")

RESPONSE_TIMEOUT_S: Final = 0.6  # a scrape must finish within a second, regardless of the state of the queue
CONNECT_WAIT_S: Final = 0.5
GRACE_S: Final = 0.05  # for the second of two parallel requests, if the first has used up the time


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of the queue."""

    waiting: int  # tasks that no worker has received
    unacknowledged: int  # tasks that a worker has received and not acknowledged
    oldest_s: float  # age of the oldest task, in seconds; 0 if there is none
    messages: int  # messages of the work queue, waiting or not
    stored: int  # bytes of the work queue
    records: int  # bytes of all task records
    dead: int  # dead letters
    storage: int  # bytes used by all streams
    storage_limit: int | None  # bytes that this account may use; None if only the server has a limit


class QueueCollector(Collector):
    """Collector of the queue's metrics; if the queue does not respond, ``queue_up`` is 0 and most others are absent.

    It is created before the processes fork. The process that is scraped connects in a separate thread, on the first
    scrape.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        self._monitor: ServerMonitor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one sample per metric."""
        stats, server = self._read()
        samples: list[tuple[str, list[str], float | None]] = [
            ("queue_up", [], 0 if stats is None else 1),
            ("queue_writable", [], self._is_writable(stats, server)),
            ("queue_memory_bytes", [], server.memory),
            ("queue_connections", [], server.connections),
            ("queue_cluster_has_leader", [], server.has_leader),
        ]
        if stats is not None:
            samples += [
                ("task_queue_size", [TASK_TYPE], stats.waiting),
                ("active_tasks_count", [TASK_TYPE], stats.unacknowledged),
                ("task_oldest_age_seconds", [TASK_TYPE], stats.oldest_s),
                ("task_queue_used_ratio", [], self._queue_used(stats)),
                ("result_store_used_ratio", [], stats.records / self._settings.result_max_bytes),
                ("task_dead_kept", [], stats.dead),
                ("queue_storage_bytes", [], stats.storage),
                ("queue_storage_limit_bytes", [], _storage_limit(stats, server)),
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
        # In parallel and independently, because a cluster without a leader responds only to the monitor.
        server = asyncio.run_coroutine_threadsafe(self._monitor.read(), self._loop)
        stats = asyncio.run_coroutine_threadsafe(
            read_stats(self._connection, wait_s=CONNECT_WAIT_S if is_new else 0), self._loop
        )
        limit_s = RESPONSE_TIMEOUT_S + (CONNECT_WAIT_S if is_new else 0)
        end = time.monotonic() + limit_s
        found = _result(stats, limit_s)
        return found, _result(server, end - time.monotonic() + GRACE_S) or NatsServerStats()

    def _queue_used(self, stats: QueueStats) -> float:
        settings = self._settings
        return max(stats.messages / settings.task_queue_max_messages, stats.stored / settings.task_queue_max_bytes)

    def _is_writable(self, stats: QueueStats | None, server: NatsServerStats) -> bool | None:
        if stats is None:
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
        threading.Thread(target=loop.run_forever, name="queue-stats", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._connection.start(), loop)


def _storage_limit(stats: QueueStats, server: NatsServerStats) -> int | None:
    if stats.storage_limit is not None:
        return stats.storage_limit
    if server.free is not None:  # the embedded server is limited only by its disk
        return stats.storage + server.free
    return server.storage_limit


def _result(future: Future[T], limit_s: float) -> T | None:
    try:
        return future.result(timeout=limit_s)
    except (QueueError, TimeoutError, msgspec.DecodeError) as error:
        log.debug("The queue did not report its state: %s", type(error).__name__)
        future.cancel()
        return None


async def read_stats(connection: Connection, *, wait_s: float = 0.0) -> QueueStats:
    """Request the statistics of the queue, after waiting for the connection.

    Raises:
        QueueUnavailableError: the server does not respond.
    """
    end = time.monotonic() + wait_s
    await connection.wait_up(lambda: time.monotonic() > end)
    consumers, tasks, dead, records, storage_limit = await asyncio.gather(
        list_consumers(connection, RESPONSE_TIMEOUT_S),
        read_stream(connection, STREAM, RESPONSE_TIMEOUT_S),
        read_stream(connection, DEAD_STREAM, RESPONSE_TIMEOUT_S),
        read_stream(connection, RECORDS_STREAM, RESPONSE_TIMEOUT_S),
        read_storage_limit(connection, RESPONSE_TIMEOUT_S),
    )
    return QueueStats(
        waiting=sum(consumer.num_pending for consumer in consumers.values()),
        unacknowledged=sum(consumer.num_ack_pending for consumer in consumers.values()),
        oldest_s=age_s(tasks.first_ts) if tasks.messages else 0.0,
        messages=tasks.messages,
        stored=tasks.bytes,
        records=records.bytes,
        dead=dead.messages,
        storage=tasks.bytes + records.bytes + dead.bytes,
        storage_limit=storage_limit,
    )
