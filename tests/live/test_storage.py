"""Storage of the embedded queue: lowered limits, a full disk, and file permissions."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"Content-Type": "application/json"}
LOWERED = {"TASK_QUEUE_MAX_BYTES": 128 << 20, "RESULT_MAX_BYTES": 128 << 20, "TASK_DEAD_MAX_BYTES": 64 << 20}
DISK_BYTES = 40 << 20
FULL = "storage is full"


def submit(service: Any, body: bytes) -> httpx.Response:
    return httpx.post(f"{service.api}{CROP}/submit", content=body, headers=JSON, timeout=30)


def end_of(service: Any, task_id: str) -> str:
    answer = httpx.get(f"{service.api}{CROP}/status/{task_id}?wait=30", timeout=60).raise_for_status()
    return str(answer.json()["status"])


def metric(service: Any, name: str) -> float | None:
    return next((value for (found, _), value in service.scrape().items() if found == name), None)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    command = ["/bin/mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["/bin/umount", "--lazy", folder], check=True)


def test_only_the_client_port_is_open(run_service: Any, wait_until: Callable[..., Any]) -> None:
    with run_service(ENABLE_TASKS="true", WORKERS=1, TASK_WORKERS=1) as service:
        service.wait_tasks()
        server = service.nats_server()
        listening = [peer.laddr for peer in server.net_connections("all") if peer.status == psutil.CONN_LISTEN]
        assert len(listening) == 1, listening
        assert listening[0].ip == "127.0.0.1"
        assert not [peer for peer in server.net_connections("unix") if peer.laddr]
        for path in ("varz", "subsz?subs=1", "connz"):
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{listening[0].port}/{path}", timeout=5)
        wait_until(lambda: (metric(service, "queue_memory_bytes") or 0) > 1e6, limit_s=20, what="the server's memory")
        assert (metric(service, "queue_connections") or 0) >= 2
        assert (metric(service, "queue_storage_limit_bytes") or 0) > 0
        assert metric(service, "queue_writable") == 1
        files = [file for file in Path(server.cmdline()[2]).parent.iterdir() if file.is_file()]
        assert files
        assert all(file.stat().st_mode & 0o077 == 0 for file in files if file.name == "nats-server.conf")


def test_tasks_are_refused_before_the_disk_is_full(
    run_service: Any, sample: Any, disk: Path, wait_until: Callable[..., Any]
) -> None:
    with run_service(ENABLE_TASKS="true", DATA_DIR=disk, WORKERS=1, TASK_WORKERS=1) as service:
        service.wait_tasks()
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(DISK_BYTES - (4 << 20) - used(disk)))
        wait_until(lambda: submit(service, sample.json()).status_code == 503, limit_s=20, what="a refusal")
        refused = submit(service, sample.json())
        assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
        assert FULL in refused.json()["detail"]
        assert str(disk) not in refused.text
        assert metric(service, "queue_up") == 1
        assert metric(service, "queue_writable") == 0
        ballast.unlink()
        wait_until(
            lambda: submit(service, sample.json()).status_code == 202, limit_s=20, what="a task that is accepted"
        )
        assert metric(service, "queue_writable") == 1


def test_queue_recovers_by_itself_once_a_full_disk_has_room(
    run_service: Any, sample: Any, disk: Path, wait_until: Callable[..., Any]
) -> None:
    with run_service(ENABLE_TASKS="true", DATA_DIR=disk, WORKERS=1, TASK_WORKERS=1) as service:
        service.wait_tasks()
        ids = [submit(service, sample.json()).raise_for_status().json()["task_id"] for _ in range(3)]
        assert [end_of(service, task) for task in ids] == ["SUCCESS"] * 3
        server = service.nats_server()
        ids += fill(service, disk, sample.json())
        wait_until(lambda: "is not writable: " in service.log_text(), limit_s=60, what="the write error in the log")
        assert metric(service, "queue_writable") == 0
        assert service.nats_server().pid == server.pid, "without room it is not restarted"
        refused = submit(service, sample.json())
        assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
        (disk / "ballast").unlink()
        wait_until(lambda: service.nats_server().pid != server.pid, limit_s=60, what="another nats-server")
        wait_until(
            lambda: submit(service, sample.json()).status_code == 202, limit_s=60, what="a task that is accepted"
        )
        assert [end_of(service, task) for task in ids] == ["SUCCESS"] * 6, "nothing that was stored is lost"
        task_id = submit(service, sample.json()).raise_for_status().json()["task_id"]
        assert end_of(service, task_id) == "SUCCESS"
        wait_until(lambda: metric(service, "queue_writable") == 1, limit_s=30, what="queue_writable")
        log = service.log_text()
        assert log.count("is not writable: ") == 1, "the state is logged once"
        # Each of three processes reports the full disk and the restart, and no request does.
        assert log.count("The queue is available again") <= 6
        assert "exited unexpectedly" not in log


def used(disk: Path) -> int:
    """Return the used bytes."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bavail) * found.f_frsize


def fill(service: Any, disk: Path, body: bytes) -> list[str]:
    """Fill the disk completely while tasks run, as another program would, and return their ids."""
    (worker,) = service.task_workers()
    worker.suspend()
    try:
        ids = [submit(service, body).raise_for_status().json()["task_id"] for _ in range(3)]
        with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(4096))
    finally:
        worker.resume()
    return ids


def test_a_deleted_data_dir_is_created_again(
    run_service: Any, sample: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    folder = tmp_path / "data"
    with run_service(ENABLE_TASKS="true", DATA_DIR=folder, WORKERS=1, TASK_WORKERS=1) as service:
        service.wait_tasks()
        assert end_of(service, submit(service, sample.json()).json()["task_id"]) == "SUCCESS"
        shutil.rmtree(folder)

        def is_served() -> bool:
            response = submit(service, sample.json())
            return response.status_code == 202 and end_of(service, response.json()["task_id"]) == "SUCCESS"

        # Until the server meets the missing files, it works with those that it has open.
        wait_until(lambda: folder.exists() and is_served(), limit_s=90, what="a task that succeeds")
        assert (folder / "nats-server.conf").stat().st_mode & 0o077 == 0
