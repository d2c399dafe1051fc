"""Latency and memory while sixty clients withhold the last byte of a large body.

Example: python -m benchmarks.run --only slow_bodies
"""

from __future__ import annotations

import http.client
import socket
import statistics
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import psutil
from rich.progress import track

from benchmarks import inputs
from benchmarks.processes import service
from benchmarks.worst_request import post

if TYPE_CHECKING:
    from collections.abc import Iterator

SENDERS: Final = 60
BODY_BYTES: Final = 16 * 1024 * 1024
REQUESTS: Final = 200
PAUSE_S: Final = 0.1


def slow_bodies() -> dict[str, float]:
    """Measure the latency of the sample with stalled senders at different addresses, relative to that without them."""
    sample = inputs.multipart_request()
    with service(WORKERS="1") as server:
        post(server.port, *sample)
        worker = psutil.Process(server.pid)
        quiet, _, _ = _send(server.port, sample, worker, "slow_bodies, without stalled senders")
        before = worker.memory_info().rss
        with _stalled(server.port):
            times, failed, peak = _send(server.port, sample, worker, "slow_bodies")
    return {
        "p99_ratio": round(_p99(times) / _p99(quiet), 2),
        "p99_s": round(_p99(times), 3),
        "p50_s": round(statistics.median(times), 3),
        "requests": len(times),
        "failed": failed,
        "rss_mb": round(before / 1e6, 1),
        "highest_rss_mb": round(peak / 1e6, 1),
    }


def _send(port: int, sample: tuple[bytes, str], worker: psutil.Process, title: str) -> tuple[list[float], int, int]:
    """Send the sample repeatedly; return the latencies, the number of failures, and the peak memory of the worker."""
    times, failed, peak = [], 0, 0
    for _ in track(range(REQUESTS), title):
        start = time.monotonic()
        failed += post(port, *sample) != http.client.OK
        times.append(time.monotonic() - start)
        peak = max(peak, worker.memory_info().rss)
        time.sleep(PAUSE_S)
    return times, failed, peak


@contextmanager
def _stalled(port: int) -> Iterator[None]:
    stop = threading.Event()
    senders = [threading.Thread(target=_stall, args=(port, f"127.0.1.{n + 1}", stop)) for n in range(SENDERS)]
    for sender in senders:
        sender.start()
    try:
        yield
    finally:
        stop.set()
        for sender in senders:
            sender.join()


def _stall(port: int, source: str, stop: threading.Event) -> None:
    """Send a body without its last byte, and reconnect whenever the connection is closed."""
    head = f"POST /api/v1/frontal/crop HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY_BYTES}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) as connection:
            connection.settimeout(1)
            connection.sendall(head.encode() + bytes(BODY_BYTES - 1))
            while not stop.is_set():
                with suppress(TimeoutError):
                    connection.recv(4096)
                    break


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[-1]
