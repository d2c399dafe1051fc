"""Connections to the metrics port that never finish their request."""

from __future__ import annotations

import itertools
import resource
import socket
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from app.supervisor.exporter import MAX_CONNECTIONS
from tests.live.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live

ATTACKERS = 300


def connect(service: RunningService) -> socket.socket:
    url = httpx.URL(service.metrics)
    return socket.create_connection((url.host, url.port or 80), timeout=30)


def exporter(service: RunningService) -> psutil.Process:
    children = psutil.Process(service.pid).children()
    return next(child for child in children if "exporter" in " ".join(child.cmdline()))


def test_scrapes_and_probes_are_served_while_connections_drip(
    run_service: Callable[..., AbstractContextManager[RunningService]],
) -> None:
    with run_service(WORKERS=1) as service, ExitStack() as attack:
        is_over = threading.Event()
        connections = [attack.enter_context(connect(service)) for _ in range(ATTACKERS)]

        def drip() -> None:
            while not is_over.wait(0.2):
                for connection in connections:
                    with suppress(OSError):
                        connection.sendall(b"X-A: b\r\n")

        for connection in connections:
            with suppress(OSError):
                connection.sendall(b"GET /metrics HTTP/1.1\r\n")
        attacker = threading.Thread(target=drip)
        attacker.start()
        try:
            for _ in range(10):
                for path in ("/metrics", "/health/live", "/health/ready"):
                    response = httpx.get(service.metrics + path, timeout=30)
                    assert response.status_code == 200
                    assert response.headers["x-content-type-options"] == "nosniff"
            process = exporter(service)
            wait_until(
                lambda: process.num_threads() <= MAX_CONNECTIONS + 8, limit_s=20, what="a bounded number of threads"
            )
            # Slow ones are closed even below the connection limit, because a request has a time limit.
            wait_until(lambda: process.num_threads() <= 8, limit_s=30, what="the end of the dripping connections")
        finally:
            is_over.set()
            attacker.join()


@pytest.mark.parametrize(
    ("spare", "message"), [(0, "cannot accept connections"), (1, "A scrape failed")], ids=["none", "one"]
)
def test_exporter_without_file_descriptors_logs_little_and_recovers(
    run_service: Callable[..., AbstractContextManager[RunningService]], spare: int, message: str
) -> None:
    with run_service(WORKERS=1) as service:
        service.scrape()
        process = exporter(service)
        limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        taken = {int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
        free = (number for number in itertools.count() if number not in taken)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (next(itertools.islice(free, spare, None)), limits[1]))
        for _ in range(8):
            with suppress(httpx.HTTPError):
                assert httpx.get(f"{service.metrics}/metrics", timeout=0.3).status_code == 500
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)

        def is_scraped() -> bool:
            with suppress(httpx.HTTPError):
                return service.scrape().get(("multiprocess_unreadable_files", frozenset())) == 0
            return False

        wait_until(is_scraped, limit_s=15, what="a complete scrape")
        assert exporter(service).pid == process.pid
        assert httpx.get(f"{service.metrics}/health/ready", timeout=30).status_code == 200
        lines = [str(line) for line in service.log_lines()]
        assert sum(message in line for line in lines) == 1
        if not spare:
            assert sum("accepted again" in line for line in lines) == 1
