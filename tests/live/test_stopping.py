"""Stopping: every request gets a response, is logged and counted, in every state."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.observability import multiprocess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
SUBMIT = f"{CROP}/submit"
JSON = {"Content-Type": "application/json"}
STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]


def counted(folder: Path) -> Counter[tuple[str, int]]:
    """Read the counter of requests from the files that the ended service left: route and status to count."""
    found = Counter[tuple[str, int]]()
    for family in multiprocess.scrape_registry(folder).collect():
        for sample in family.samples:
            if sample.name == "api_requests_total":
                found[sample.labels["endpoint"], int(sample.labels["status"])] += int(sample.value)
    return found


def in_progress(service: Any) -> float:
    return sum(value for (name, _), value in service.scrape().items() if name == "api_requests_in_progress")


def access_statuses(service: Any) -> Counter[int]:
    return Counter(line["status"] for line in service.log_lines() if "client" in line)


def require_refusal(response: httpx.Response, service: Any, codes: set[str]) -> None:
    """Check that a response is a complete problem document of a stopping service, and has an access line."""
    assert response.status_code == 503, response.text
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["code"] in codes
    assert problem["request_id"] == response.headers["x-request-id"]
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["connection"] == "close"
    lines = [line for line in service.log_lines() if line.get("request_id") == problem["request_id"]]
    assert [line["status"] for line in lines if "client" in line] == [503]


@pytest.mark.parametrize("number", STOPS)
def test_request_that_outlives_its_time_gets_503(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path, number: signal.Signals
) -> None:
    with (
        run_service(WORKERS=1, FAULT_WORK_S=60, GRACEFUL_TIMEOUT_S=1, PROMETHEUS_MULTIPROC_DIR=tmp_path) as service,
        ThreadPoolExecutor(3) as pool,
    ):
        # One is being processed, the others wait for its thread.
        sent = [pool.submit(post, service, CROP, sample.json()) for _ in range(3)]
        wait_until(lambda: in_progress(service) == 3, limit_s=30, what="all requests")
        assert service.stop(number) == 0
        for request in sent:
            require_refusal(request.result(), service, {"shutting_down"})
    assert counted(tmp_path)[CROP, 503] == 3
    assert [line["reason"] for line in service.log_lines() if "reason" in line] == ["stopped"]
    assert "Traceback" not in service.log_text()


def test_second_signal_shortens_the_time(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    with (
        run_service(WORKERS=1, FAULT_WORK_S=60, GRACEFUL_TIMEOUT_S=600, PROMETHEUS_MULTIPROC_DIR=tmp_path) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        sent = pool.submit(post, service, CROP, sample.json())
        wait_until(lambda: in_progress(service) == 1, limit_s=30, what="the request")
        os.kill(service.pid, signal.SIGTERM)
        wait_until(lambda: "Stopping: work in progress" in service.log_text(), limit_s=30, what="the first signal")
        assert service.stop(signal.SIGINT) == 0
        require_refusal(sent.result(), service, {"shutting_down"})
    assert counted(tmp_path)[CROP, 503] == 1


def post(service: Any, path: str, body: bytes, **headers: str) -> httpx.Response:
    return httpx.post(service.api + path, content=body, headers={**JSON, **headers}, timeout=60)


@pytest.mark.parametrize("number", STOPS)
def test_requests_that_wait_for_a_hung_queue_get_503(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path, number: signal.Signals
) -> None:
    # The NATS server is suspended for longer than the request timeout, so that the stop comes first.
    settings = {
        "WORKERS": 1,
        "ENABLE_TASKS": "true",
        "RESULT_CACHE": "true",
        "GRACEFUL_TIMEOUT_S": 2,
        "NATS_TIMEOUT_S": 60,
        "PROMETHEUS_MULTIPROC_DIR": tmp_path / "metrics",
    }
    with ExitStack() as stack:
        service = stack.enter_context(run_service(**settings))
        pool = stack.enter_context(ThreadPoolExecutor(8))
        service.wait_tasks()
        task = post(service, SUBMIT, sample.json()).raise_for_status().json()["task_id"]
        server = service.nats_server()
        server.suspend()
        stack.callback(resume, server)
        status = f"{service.api}{CROP}/status/{task}"
        sent = [
            pool.submit(post, service, SUBMIT, sample.json(show_labels=True)),
            pool.submit(post, service, SUBMIT, sample.json(), **{"Idempotency-Key": "one"}),
            pool.submit(httpx.get, status, timeout=60),
            pool.submit(httpx.get, f"{status}?wait=30", timeout=60),
            pool.submit(httpx.delete, status, timeout=60),
        ]
        wait_until(lambda: in_progress(service) == len(sent), limit_s=30, what="all requests")
        os.kill(service.pid, number)
        responses = [request.result() for request in sent]
        resume(server)
        assert service.stop() == 0
        for response in responses:
            require_refusal(response, service, {"shutting_down", "queue_unavailable"})
        answered = access_statuses(service)
    assert answered == {202: 1, 503: len(sent)}
    assert counted(tmp_path / "metrics").total() == 1 + len(sent)
    assert "Traceback" not in service.log_text()


def resume(server: Any) -> None:
    if server.is_running():
        server.resume()


def test_upload_under_way_gets_503(run_service: Any, wait_until: Callable[..., Any], tmp_path: Path) -> None:
    head = f"POST {CROP} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 4000000\r\n\r\n"
    with run_service(WORKERS=1, GRACEFUL_TIMEOUT_S=1, PROMETHEUS_MULTIPROC_DIR=tmp_path) as service:
        with connect(service) as whole, connect(service) as partial:
            whole.sendall(head.encode() + b"x" * 1_000_000)
            partial.sendall(b"GET /version HTTP/1.1\r\nHost:")
            wait_until(lambda: in_progress(service) == 1, limit_s=30, what="the upload")
            os.kill(service.pid, signal.SIGTERM)
            # Data sent after the response has been written must not discard the response.
            received = [read_slowly(whole, b"x" * 100_000), read_slowly(partial, b"")]
        assert service.stop() == 0
    for response in received:
        assert response.startswith(b"HTTP/1.1 503 "), response[:200]
        assert b'"code":"shutting_down"' in response
        assert b"retry-after: 1\r\n" in response.lower()
    assert access_statuses(service) == {503: 2}
    assert counted(tmp_path) == {(CROP, 503): 1, ("unmatched", 503): 1}


def connect(service: Any) -> socket.socket:
    url = httpx.URL(service.api)
    return socket.create_connection((url.host, url.port), timeout=60)


def read_slowly(connection: socket.socket, more: bytes) -> bytes:
    """Wait for a response, send more of the request, then read the response."""
    first = connection.recv(1)
    if more:
        connection.sendall(more)
    parts = [first]
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


class Callers:
    """Clients that send requests one after the other and record the outcome of each.

    Attributes:
        answered: statuses of complete responses.
        refused: connections that the service did not accept.
        closed: kept connections that the service closed before a request was sent on them.
        broken: requests that got no response.
    """

    def __init__(self, service: Any, body: bytes, *, is_kept: bool) -> None:
        self.answered: Counter[int] = Counter()
        self.refused = self.closed = 0
        self.broken: list[str] = []
        self._url = httpx.URL(service.api)
        self._body = body
        self._is_kept = is_kept
        self._lock = threading.Lock()

    def run(self) -> None:
        """Send requests until the service accepts no connection."""
        while True:
            connection = HTTPConnection(self._url.host, self._url.port, timeout=60)
            try:
                connection.connect()
            except OSError:
                with self._lock:
                    self.refused += 1
                return
            while self._send(connection):
                pass
            connection.close()

    def _send(self, connection: HTTPConnection) -> bool:
        try:
            connection.request("POST", CROP, self._body, JSON)
            response = connection.getresponse()
            response.read()
        except (OSError, HTTPException) as error:
            with self._lock:
                self.broken.append(repr(error))
            return False
        with self._lock:
            self.answered[response.status] += 1
        return self._is_kept and not response.will_close


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("round_", range(3))
def test_saturated_service_resets_no_connection(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path, is_kept: bool, round_: int
) -> None:
    count = 24
    settings = {"WORKERS": 2, "MAX_CONCURRENCY": 3, "FAULT_WORK_S": 0.05 * round_, "GRACEFUL_TIMEOUT_S": 3}
    with run_service(**settings, PROMETHEUS_MULTIPROC_DIR=tmp_path) as service, ThreadPoolExecutor(count) as pool:
        callers = Callers(service, sample.json(), is_kept=is_kept)
        running = [pool.submit(callers.run) for _ in range(count)]
        wait_until(lambda: callers.answered.total() > 4 * count, limit_s=60, what="traffic")
        assert service.stop() == 0
        for caller in running:
            caller.result()
        lines = access_statuses(service)
    assert callers.broken == []
    assert callers.refused == count
    assert set(callers.answered) <= {200, 503}
    assert lines == callers.answered
    by_status = Counter[int]()
    for (_, status), value in counted(tmp_path).items():
        by_status[status] += value
    assert by_status == callers.answered


def test_backlog_is_served(run_service: Any, sample: Any, wait_until: Callable[..., Any]) -> None:
    request = f"POST {CROP} HTTP/1.1\r\nHost: a\r\n"
    request += f"Content-Type: application/json\r\nContent-Length: {len(sample.json())}\r\n\r\n"
    with run_service(WORKERS=1, GRACEFUL_TIMEOUT_S=10, TIMEOUT_S=120) as service, ExitStack() as stack:
        (worker,) = service.workers()
        worker.suspend()  # so that everything waits in the backlog
        waiting = [stack.enter_context(connect(service)) for _ in range(8)]
        for connection in waiting:
            connection.sendall(request.encode() + sample.json())
        os.kill(service.pid, signal.SIGTERM)
        wait_until(lambda: "Stopping: work in progress" in service.log_text(), limit_s=30, what="the signal")
        worker.resume()
        responses = [read_slowly(connection, b"") for connection in waiting]
        assert service.stop() == 0
    assert {response.split(b" ", 2)[1] for response in responses} <= {b"200", b"503"}


def test_idle_connections_do_not_hold_up_the_stop(run_service: Any, sample: Any) -> None:
    with run_service(WORKERS=1, GRACEFUL_TIMEOUT_S=60) as service, httpx.Client() as client, connect(service):
        client.post(service.api + CROP, content=sample.json(), headers=JSON).raise_for_status()
        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < 30


def test_reload_finishes_a_request_that_is_longer_than_the_heartbeat_timeout(
    run_service: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    with (
        run_service(WORKERS=1, FAULT_WORK_S=6, TIMEOUT_S=2, GRACEFUL_TIMEOUT_S=60) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        sent = pool.submit(post, service, CROP, sample.json())
        wait_until(lambda: in_progress(service) == 1, limit_s=30, what="the request")
        os.kill(service.pid, signal.SIGHUP)
        assert sent.result().status_code == 200
        ended = service.wait_for_lines(lambda line: "reason" in line)
    assert [line["reason"] for line in ended] == ["stopped"]


@pytest.mark.parametrize("is_kept", [True, False])
def test_reload_resets_no_connection(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path, is_kept: bool
) -> None:
    count = 8
    settings = {"WORKERS": 2, "PROMETHEUS_MULTIPROC_DIR": tmp_path}
    with run_service(**settings) as service, ThreadPoolExecutor(count) as pool:
        callers = Callers(service, sample.json(), is_kept=is_kept)
        running = [pool.submit(callers.run) for _ in range(count)]
        for _ in range(2):
            old = {worker.pid for worker in service.workers()}
            os.kill(service.pid, signal.SIGHUP)
            wait_until(lambda old=old: len(ready(service) - old) == 2, limit_s=60, what="two new workers")
        assert service.stop() == 0
        for caller in running:
            caller.result()
        lines = access_statuses(service)
    assert callers.broken == []
    assert lines == callers.answered


def ready(service: Any) -> set[int]:
    workers = httpx.get(f"{service.metrics}/health", timeout=30).json()["workers"]
    return {worker["pid"] for worker in workers if worker["state"] == "ready"}


def test_signal_to_all_processes_at_once(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    count = 12
    settings = {"WORKERS": 2, "FAULT_WORK_S": 0.05, "PROMETHEUS_MULTIPROC_DIR": tmp_path}
    with run_service(**settings) as service, ThreadPoolExecutor(count) as pool:
        callers = Callers(service, sample.json(), is_kept=False)
        running = [pool.submit(callers.run) for _ in range(count)]
        wait_until(lambda: callers.answered.total() > 2 * count, limit_s=60, what="traffic")
        for worker in service.workers():
            worker.terminate()
        assert service.stop() == 0
        for caller in running:
            caller.result()
        lines = access_statuses(service)
    assert callers.broken == []
    assert lines == callers.answered


def test_pipelined_requests_are_answered_in_turn(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    body = sample.json()
    head = f"POST {CROP} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    settings = {"WORKERS": 1, "FAULT_WORK_S": 1, "PROMETHEUS_MULTIPROC_DIR": tmp_path}
    with run_service(**settings) as service:
        with connect(service) as connection:
            connection.sendall((head.encode() + body) * 3)
            wait_until(lambda: in_progress(service) == 1, limit_s=30, what="the first request")
            os.kill(service.pid, signal.SIGTERM)
            received = read_slowly(connection, b"")
        assert service.stop() == 0
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert received.count(b"connection: close") == 1
    assert counted(tmp_path)[CROP, 200] == 3
