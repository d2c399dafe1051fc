"""The folder of metric files is full, removed, replaced or damaged: requests are served, and nothing is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"Content-Type": "application/json"}


@contextmanager
def small_folder(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of this size in memory."""
    folder.mkdir()
    command = [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs root and the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run([shutil.which("umount") or "umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill a file system completely."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def post(service: Any, body: bytes) -> None:
    response = httpx.post(service.api + CROP, content=body, headers=JSON, timeout=60)
    assert response.status_code == 200, response.text


def value(service: Any, name: str, **labels: str) -> float:
    found: float = service.scrape().get((name, frozenset(labels.items())), 0.0)
    return found


def served(service: Any) -> float:
    return value(service, "api_requests_total", method="POST", endpoint=CROP, status="200")


def failing(service: Any) -> float:
    return value(service, "multiprocess_failing_processes")


def exits(service: Any) -> list[Any]:
    return [line for line in service.log_lines() if "reason" in line]


def is_renewed(service: Any, old: int) -> bool:
    workers = httpx.get(f"{service.metrics}/health", timeout=30).json()["workers"]
    return [worker["state"] for worker in workers if worker["pid"] != old] == ["ready"]


@pytest.mark.parametrize("variable", ["PROMETHEUS_MULTIPROC_DIR", "TMPDIR"])
def test_full_folder(
    run_service: Any, sample: Any, tmp_path: Path, wait_until: Callable[..., Any], variable: str
) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(small_folder(tmp_path / "small", "2m"))
        service = stack.enter_context(run_service(WORKERS=1, **{variable: folder}))
        (worker,) = service.workers()
        post(service, sample.json())
        assert failing(service) == 0
        filler = fill(folder)
        for _ in range(5):
            post(service, sample.json())
        assert served(service) == 6, "the files that there are have their blocks"
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: is_renewed(service, worker.pid), limit_s=60, what="a worker")
        post(service, sample.json())
        filler.unlink()
        wait_until(lambda: failing(service) == 0, limit_s=30, what="metrics that are written again")
        assert served(service) == 7
        assert [line["reason"] for line in exits(service)] == ["killed"]


def test_start_in_a_full_folder(run_service: Any, sample: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(small_folder(tmp_path / "small", "1m"))
        filler = fill(folder)
        service = stack.enter_context(run_service(WORKERS=1, PROMETHEUS_MULTIPROC_DIR=folder))
        for _ in range(3):
            post(service, sample.json())
        assert httpx.get(f"{service.metrics}/health/ready", timeout=30).status_code == 200
        wait_until(lambda: failing(service) == 2, limit_s=30, what="master and worker that cannot write")
        assert served(service) == 0
        filler.unlink()
        wait_until(lambda: failing(service) == 0, limit_s=30, what="metrics that are written again")
        assert served(service) == 3, "nothing was lost"
        errors = [line["message"] for line in service.log_lines() if line.get("level") == "ERROR"]
        assert len(errors) == 2, errors
        assert all("cannot be written" in line for line in errors)
        assert exits(service) == []


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def replace(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


def truncate(folder: Path) -> None:
    for file in folder.glob("*.db"):
        os.truncate(file, 0)


def overwrite(folder: Path) -> None:
    for file in folder.glob("*.db"):
        file.write_bytes(b"\xff" * 70_000)


@pytest.mark.parametrize("damage", [remove, replace, truncate, overwrite])
def test_damaged_folder(
    run_service: Any,
    sample: Any,
    tmp_path: Path,
    wait_until: Callable[..., Any],
    damage: Callable[[Path], None],
) -> None:
    folder = tmp_path / "metrics"
    with run_service(WORKERS=2, PROMETHEUS_MULTIPROC_DIR=folder) as service:
        for _ in range(5):
            post(service, sample.json())
        assert served(service) == 5
        damage(folder)
        for _ in range(5):
            post(service, sample.json())
            for base in (service.metrics, service.api):
                assert httpx.get(f"{base}/metrics", timeout=30).status_code == 200
        if folder.is_file():
            wait_until(lambda: failing(service) == 3, limit_s=30, what="processes that cannot write")
            folder.unlink()
        wait_until(lambda: served(service) == 10, limit_s=30, what="every request counted")
        wait_until(lambda: failing(service) == 0, limit_s=30, what="all processes that can write")
        unreadable = "multiprocess_unreadable_files"
        wait_until(lambda: value(service, unreadable) == 0, limit_s=30, what="files that are repaired")
        assert exits(service) == []
        assert "Traceback" not in service.log_text()


def test_read_only_folder(run_service: Any, sample: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(small_folder(tmp_path / "small", "2m"))
        subprocess.run([shutil.which("mount") or "mount", "-o", "remount,ro", str(folder)], check=True)
        service = stack.enter_context(run_service(WORKERS=1, PROMETHEUS_MULTIPROC_DIR=folder))
        post(service, sample.json())
        wait_until(lambda: failing(service) == 2, limit_s=30, what="processes that cannot write")
        assert "Read-only file system" in service.log_text()
        subprocess.run([shutil.which("mount") or "mount", "-o", "remount,rw", str(folder)], check=True)
        wait_until(lambda: failing(service) == 0, limit_s=30, what="metrics that are written")
        assert served(service) == 1


def test_no_file_descriptor_left(run_service: Any, sample: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    with run_service(WORKERS=1, PROMETHEUS_MULTIPROC_DIR=tmp_path) as service, ExitStack() as stack:
        post(service, sample.json())
        (worker,) = service.workers()
        url = httpx.URL(service.api)
        client = stack.enter_context(httpx.Client(timeout=60))
        assert client.post(service.api + CROP, content=sample.json(), headers=JSON).status_code == 200
        limit = worker.num_fds() + 3
        before = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
        for _ in range(8):
            stack.enter_context(socket.create_connection((url.host, url.port)))
        wait_until(lambda: worker.num_fds() >= limit, limit_s=30, what="all descriptors in use")
        # The open connection continues, and its metrics are written to the open files.
        assert client.post(service.api + CROP, content=sample.json(), headers=JSON).status_code == 200
        assert served(service) == 3
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, before)
        assert exits(service) == []
