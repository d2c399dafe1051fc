"""After a kill of the master, its child processes end, and the next start succeeds without leftovers."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"Content-Type": "application/json"}
KILLS = 10
FOLDERS = "facial-service-metrics-*"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def descendants(service: Any) -> list[psutil.Process]:
    return psutil.Process(service.pid).children(recursive=True)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def send_head(service: Any, stack: ExitStack, body: bytes) -> None:
    """Keep a worker busy with a request whose caller stays connected."""
    url = httpx.URL(service.api)
    connection = stack.enter_context(socket.create_connection((url.host, url.port)))
    head = f"POST {CROP} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


def test_killed_master_is_followed_at_once(
    run_service: Any, sample: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    settings = {
        "PORT": free_port(),
        "METRICS_PORT": free_port(),
        "DATA_DIR": tmp_path / "data",
        "TMPDIR": temporary,
        "WORKERS": 2,
        "FAULT_WORK_S": 3,
    }
    orphans: list[psutil.Process] = []
    with ExitStack() as stack:
        for _ in range(KILLS):
            # Nested contexts, so that no killed master is reaped before the next start.
            service = stack.enter_context(run_service(**settings))
            send_head(service, stack, sample.json())
            orphans += descendants(service)
            os.kill(service.pid, signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, orphans)), limit_s=30, what="an end to all orphans")
        with run_service(**{**settings, "FAULT_WORK_S": 0}) as last:
            assert len(list(temporary.glob(FOLDERS))) == 1
            last.wait_tasks()
            posted = httpx.post(f"{last.api}{CROP}/submit", content=sample.json(), headers=JSON)
            status = httpx.get(last.api + posted.headers["location"], params={"wait": 20}, timeout=60)
            assert status.json()["status"] == "SUCCESS"
            assert last.stop() == 0
    assert list(temporary.iterdir()) == []


def list_pair(service: Any) -> list[psutil.Process]:
    workers: list[psutil.Process] = service.task_workers()
    return workers if len(workers) == 2 else []


def test_killed_task_master_takes_its_processes_along(run_service: Any, wait_until: Callable[..., Any]) -> None:
    with run_service(WORKERS=1, TASK_WORKERS=2, ENABLE_TASKS="true") as service:
        service.wait_tasks()
        master = service.worker_master()
        workers = wait_until(lambda: list_pair(service), limit_s=30, what="two task processes")
        master.kill()
        wait_until(lambda: all(map(is_gone, workers)), limit_s=30, what="an end to the task processes")
        wait_until(lambda: list_pair(service), limit_s=60, what="others")


def test_taken_port_is_waited_for_and_named(run_service: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=r"PORT\)") as ended, run_service(WORKERS=1, PORT=port):
            pytest.fail("the service started on a port that is taken")
    assert f"PORT {port} is in use; waiting" in str(ended.value)
