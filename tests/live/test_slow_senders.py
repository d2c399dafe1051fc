"""Clients that send a body slowly or never finish it, together with clients that send ordinary requests."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Sample
    from tests.live.conftest import RunningService

    RunService = Callable[..., AbstractContextManager[RunningService]]

pytestmark = pytest.mark.live

MIB = 1024 * 1024
BODY = 16 * MIB
JSON = {"content-type": "application/json"}
HEAD = b"POST /api/v1/frontal/crop HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def impatient(run_service: RunService) -> Iterator[RunningService]:
    """A service with a short timeout, so that a body without pauses lasts many times longer."""
    with run_service(WORKERS=1, BODY_TIMEOUT_S=1, BODY_MIN_RATE=8192) as running:
        yield running


def connect(service: RunningService, source: str = "127.0.0.1") -> socket.socket:
    url = httpx.URL(service.api)
    return socket.create_connection((url.host, url.port or 80), timeout=30, source_address=(source, 0))


def stall(service: RunningService, stop: threading.Event, source: str, patience_s: float) -> None:
    """Send a body except for its last byte, then pause; reconnect if the connection is closed or not read."""
    while not stop.is_set():
        with suppress(OSError), connect(service, source) as connection:
            connection.settimeout(patience_s)
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % BODY)
            connection.sendall(bytes(BODY - 1))
            connection.settimeout(0.2)
            while not stop.is_set():
                with suppress(TimeoutError):
                    connection.recv(4096)
                    break


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(65_536).split()[1])


@pytest.mark.parametrize(
    ("addresses", "patience_s"), [pytest.param(1, 30, id="one address"), pytest.param(60, 1, id="reconnecting")]
)
def test_stalled_bodies_fail_no_other_request(
    run_service: RunService, sample: Sample, addresses: int, patience_s: float
) -> None:
    with run_service(WORKERS=1) as service, ExitStack() as stack:
        (worker,) = service.workers()
        stop = threading.Event()
        attackers = [
            threading.Thread(target=stall, args=(service, stop, f"127.0.1.{number % addresses + 1}", patience_s))
            for number in range(60)
        ]
        stack.callback(lambda: [attacker.join() for attacker in attackers])
        stack.callback(stop.set)
        before, most = worker.memory_info().rss, 0
        for attacker in attackers:
            attacker.start()
        statuses, begun = [], time.monotonic()
        while time.monotonic() - begun < 15 or len(statuses) < 30:
            body = sample.json().ljust(MIB * (len(statuses) % 4))  # up to 3 MiB
            answer = httpx.post(f"{service.api}/api/v1/frontal/crop", content=body, headers=JSON, timeout=60)
            statuses.append(answer.status_code)
            most = max(most, worker.memory_info().rss)
        assert set(statuses) == {200}
        print(f"{len(statuses)} requests, worker {before / MIB:.0f} to {most / MIB:.0f} MiB")  # noqa: T201
        # The budget of bodies, data received before reading is paused, the copy of a body, and the processing.
        assert most - before < 300 * MIB


def test_a_body_that_makes_progress_has_no_time_limit(impatient: RunningService, sample: Sample) -> None:
    body = sample.json().ljust(400_000)
    with connect(impatient) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 8000):
            connection.sendall(body[start : start + 8000])
            time.sleep(0.1)
        assert status_of(connection) == 200


@pytest.mark.parametrize("silent_after", [0, 10, MIB])
def test_a_silent_sender_gets_408(impatient: RunningService, silent_after: int) -> None:
    with connect(impatient) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (silent_after + 1) + b" " * silent_after)
        assert status_of(connection) == 408


@pytest.mark.parametrize("piece", [b"1\r\na\r\n", b"1;" + b"x" * 200 + b"\r\na\r\n"])
def test_a_dribbling_sender_gets_408(impatient: RunningService, piece: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.settimeout(0.05)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            connection.sendall(piece)
            with suppress(TimeoutError):
                assert status_of(connection) == 408
                return
        pytest.fail("no response")


def test_the_body_of_a_waiting_client_is_read_after_100_continue(impatient: RunningService, sample: Sample) -> None:
    body = sample.json()
    with connect(impatient) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert status_of(connection) == 100
        connection.sendall(body)
        assert status_of(connection) == 200
    with connect(impatient) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert status_of(connection) == 100
        assert status_of(connection) == 408
