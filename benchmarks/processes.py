"""Servers to measure: start them, send them requests, read the CPU time of the process that serves."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LIMIT_S = 60.0
# How Linux numbers the CPU clock of another process (clock_getcpuclockid(3)); it counts in nanoseconds.
CPUCLOCK_SCHED = 2


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        port: of its HTTP interface.
        metrics_port: of its metrics, 0 where it has none.
        pid: of the process that serves requests.
        master: of the process that was started.
        ready_s: how long it took from start to the first request it could answer.
    """

    port: int
    metrics_port: int
    pid: int
    master: int
    ready_s: float

    def workers(self) -> list[tuple[str, int]]:
        """Name and process id of the service's workers, in the order of their slots."""
        report = json.loads(read(self.metrics_port, "/health"))
        return [(one["name"], one["pid"]) for one in report["workers"] if one["name"].startswith("worker-")]

    def exporter(self) -> Server:
        """The same server, with the process that serves metrics as the one to look at."""
        others = {child.pid for child in psutil.Process(self.master).children()} - {pid for _, pid in self.workers()}
        return replace(self, pid=others.pop())

    def cpu_s(self) -> float:
        """CPU time of the process so far, in seconds, its ended threads included."""
        return cpu_time_s(self.pid)


def cpu_time_s(pid: int) -> float:
    """Return the CPU time of a process so far, in seconds, its ended threads included."""
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


def drive(server: Server, path: str, body: bytes, content_type: str, count: int) -> float:
    """Send requests and look at what they cost.

    Returns:
        CPU milliseconds of the serving process for one request.
    """
    before = server.cpu_s()
    send(server, path, body, content_type, count)
    return 1000 * (server.cpu_s() - before) / count


def send(server: Server, path: str, body: bytes, content_type: str, count: int) -> None:
    """Send one request after the other on one new connection.

    Raises:
        RuntimeError: an answer is not 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(count):
        connection.request("POST", path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        answer = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(f"expected 200, got {response.status}: {answer[:200]!r}")
    connection.close()


def read(port: int, path: str) -> str:
    """Return what a path answers, whatever its status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    try:
        return connection.getresponse().read().decode()
    finally:
        connection.close()


@contextlib.contextmanager
def service(**environment: str) -> Iterator[Server]:
    """Run the product with one worker and JSON logs that go nowhere."""
    port, metrics_port = free_port(), free_port()
    settings = {"WORKERS": "1", "LOG_FORMAT": "json", "PORT": str(port), "METRICS_PORT": str(metrics_port)}
    settings["ENABLE_TASKS"] = "false"  # but where tasks are what is measured
    command = [sys.executable, "-m", "app", "serve"]
    with run(command, {**settings, **environment}) as (master, start):
        wait_until(lambda: _status(metrics_port, "/health/ready") == http.client.OK)
        ready_s = time.perf_counter() - start
        found = Server(port, metrics_port, 0, master, ready_s)
        yield replace(found, pid=found.workers()[0][1])


@contextlib.contextmanager
def reference(module: str = "reference", **environment: str) -> Iterator[Server]:
    """Run a bare program under uvicorn, with the event loop and the HTTP parser that the product has."""
    port = free_port()
    options = ["--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--no-server-header"]
    command = [sys.executable, "-m", "uvicorn", f"benchmarks.{module}:app", "--log-level", "warning", *options]
    with run(command, environment) as (master, start):
        wait_until(lambda: _status(port, "/") is not None)
        yield Server(port, 0, master, master, time.perf_counter() - start)


@contextlib.contextmanager
def run(command: list[str], environment: Mapping[str, str]) -> Iterator[tuple[int, float]]:
    """Run a program with more in its environment; give its process id and when it was started."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        yield process.pid, start
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def _status(port: int, path: str) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return None
    except http.client.HTTPException:
        return 0
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, within bounds.

    Raises:
        TimeoutError: it did not come about.
    """
    limit = time.perf_counter() + LIMIT_S
    while not condition():
        if time.perf_counter() > limit:
            raise TimeoutError("what was waited for did not come about")
        time.sleep(0.01)
