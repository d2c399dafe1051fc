"""Run servers, send requests to them, and measure the CPU time of their processes."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TIMEOUT_S = 60.0
# Clock id of the CPU time of another process on Linux (clock_getcpuclockid(3)), with a resolution of nanoseconds.
CPUCLOCK_SCHED = 2


def free_port() -> int:
    """Return an unused port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        port: port of the API.
        metrics_port: port of the metrics; 0 if there is none.
        pid: id of the process that handles requests.
        master: id of the main process.
        ready_s: seconds from the start until it was ready.
    """

    port: int
    metrics_port: int
    pid: int
    master: int
    ready_s: float

    def workers(self) -> list[tuple[str, int]]:
        """Return the name and the process id of each API worker, by slot."""
        report = json.loads(read(self.metrics_port, "/health"))
        return [(one["name"], one["pid"]) for one in report["workers"] if one["name"].startswith("worker-")]

    def exporter(self) -> Server:
        """Return the same server with `pid` set to its exporter."""
        others = {child.pid for child in psutil.Process(self.master).children()} - {pid for _, pid in self.workers()}
        return replace(self, pid=others.pop())

    def cpu_s(self) -> float:
        """Return the CPU time of `pid` so far, in seconds."""
        return cpu_time_s(self.pid)


def cpu_time_s(pid: int) -> float:
    """Return the CPU time of a process so far, in seconds, including threads that have ended."""
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


def drive(server: Server, path: str, body: bytes, content_type: str, count: int) -> float:
    """Send requests, and return the CPU time of the process per request in milliseconds."""
    before = server.cpu_s()
    send(server, path, body, content_type, count)
    return 1000 * (server.cpu_s() - before) / count


def send(server: Server, path: str, body: bytes, content_type: str, count: int) -> None:
    """Send requests sequentially on a new connection.

    Raises:
        RuntimeError: a response is not 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(count):
        connection.request("POST", path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        content = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(f"expected 200, got {response.status}: {content[:200]!r}")
    connection.close()


def read(port: int, path: str) -> str:
    """Return the response body of a path, regardless of the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    try:
        return connection.getresponse().read().decode()
    finally:
        connection.close()


@contextlib.contextmanager
def service(**environment: str) -> Iterator[Server]:
    """Run the service with one worker, without tasks, and discard its JSON log."""
    port, metrics_port = free_port(), free_port()
    settings = {"WORKERS": "1", "LOG_FORMAT": "json", "PORT": str(port), "METRICS_PORT": str(metrics_port)}
    settings["ENABLE_TASKS"] = "false"
    command = [sys.executable, "-m", "app", "serve"]
    with run(command, {**settings, **environment}) as (master, start):
        wait_until(lambda: _status(metrics_port, "/health/ready") == http.client.OK)
        ready_s = time.perf_counter() - start
        found = Server(port, metrics_port, 0, master, ready_s)
        yield replace(found, pid=found.workers()[0][1])


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """Run a server that accepts and discards exported traces, and return its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Discard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Discard(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Accept a request of OTLP."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(http.client.OK)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def reference(module: str = "reference", **environment: str) -> Iterator[Server]:
    """Run a reference program under uvicorn, with the same event loop and HTTP parser as the service."""
    port = free_port()
    options = ["--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--no-server-header"]
    command = [sys.executable, "-m", "uvicorn", f"benchmarks.{module}:app", "--log-level", "warning", *options]
    with run(command, environment) as (master, start):
        wait_until(lambda: _status(port, "/") is not None)
        yield Server(port, 0, master, master, time.perf_counter() - start)


@contextlib.contextmanager
def run(command: list[str], environment: Mapping[str, str]) -> Iterator[tuple[int, float]]:
    """Run a program with additional environment variables; yield its process id and start time."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        yield process.pid, start
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


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
    """Wait until a condition is true.

    Raises:
        TimeoutError: the condition is not true within `TIMEOUT_S`.
    """
    deadline = time.perf_counter() + TIMEOUT_S
    while not condition():
        if time.perf_counter() > deadline:
            raise TimeoutError(f"expected the condition to become true within {TIMEOUT_S:g} s")
        time.sleep(0.01)
