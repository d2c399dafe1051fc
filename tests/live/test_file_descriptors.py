"""A worker without file descriptors for new connections."""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.live.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live

SPARE = 10


def test_a_worker_without_file_descriptors_is_reported_and_recovers(
    run_service: Callable[..., AbstractContextManager[RunningService]],
) -> None:
    with run_service(WORKERS=1) as service:
        worker = service.workers()[0]
        _, hard = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        highest = max(int(path.name) for path in descriptors(worker.pid))
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (highest + 1 + SPARE, hard))
        url = httpx.URL(service.api)

        def is_ready() -> bool:
            return httpx.get(f"{service.metrics}/health/ready", timeout=30).status_code == 200

        with ExitStack() as flood:

            def fill() -> bool:
                with suppress(OSError):
                    flood.enter_context(socket.create_connection((url.host, url.port or 80), timeout=10))
                return not is_ready()

            wait_until(fill, limit_s=30, what="readiness false")
            assert value(service) == 1
            assert service.wait_for_lines(lambda line: "cannot accept more" in str(line))
        wait_until(is_ready, limit_s=30, what="readiness true again")
        assert value(service) == 0
        assert httpx.get(f"{service.api}/version", timeout=30).status_code == 200
        assert service.wait_for_lines(lambda line: "accepted again" in str(line))
        assert worker.pid == service.workers()[0].pid


def descriptors(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/fd").iterdir())


def value(service: RunningService) -> float:
    return service.scrape()["file_descriptors_exhausted", frozenset({("process", "worker-0")})]
