"""Runs whose processes are killed or stopped: what they leave, and that the next run resumes."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.live

COUNT = 80
FORMATS = ("--format", "svg", "--format", "png")
# CPU time per image, so that the test has time to interrupt the run.
SLOW = {"FAULT_WORK_S": "0.03"}


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and the modification time of every complete result."""
    found = [(path, path.stat()) for path in out.rglob("*") if path.suffix in {".svg", ".png"}]
    return {str(path.relative_to(out)): (status.st_ino, status.st_mtime_ns) for path, status in found}


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.suffix in {".svg", ".png"}}


def temporary_files(out: Path) -> list[Path]:
    return list(out.rglob("*.part"))


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the worker processes, which are children of the fork server."""
    descendants = psutil.Process(process.pid).children(recursive=True)
    return [child for child in descendants if child.ppid() != process.pid]


@pytest.fixture(scope="module")
def images(make_images: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("kill") / "in"
    make_images(folder / "x", COUNT // 2)
    make_images(folder / "y", COUNT // 2)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(run_process: Callable[..., Any], images: Path) -> dict[str, bytes]:
    """The results of a run without interruption."""
    out = images.parent / "uninterrupted"
    assert run_process(images, "--out", out, *FORMATS).status == 0
    return contents(out)


def suspend(process: subprocess.Popen[bytes], out: Path, wait_until: Callable[..., Any], least: int) -> None:
    """Suspend a run when it has written a number of files, so that the test can inspect it."""
    wait_until(lambda: len(finished(out)) >= least or process.poll() is not None, limit_s=60, what="first results")
    os.killpg(process.pid, signal.SIGSTOP)


@pytest.mark.parametrize("least", [2, 50])
def test_after_sigkill_no_result_is_lost_or_made_again(
    start_process: Callable[..., Any],
    run_process: Callable[..., Any],
    wait_until: Callable[..., Any],
    images: Path,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    least: int,
) -> None:
    out = tmp_path / "out"
    process = start_process(images, "--out", out, *FORMATS, **SLOW)
    suspend(process, out, wait_until, least)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(out)
    complete = {name[:-4] for name in before if f"{name[:-4]}.svg" in before and f"{name[:-4]}.png" in before}
    assert 0 < len(complete) < COUNT
    # Simulate a kill during a write.
    (out / "x" / ".facial-service.1-2-3.part").write_bytes(b"half")
    done = run_process(images, "--out", out, *FORMATS, "--json")
    assert (done.status, done.summary["skipped"], done.summary["done"]) == (0, len(complete), COUNT - len(complete))
    after = finished(out)
    assert {name: after[name] for name in before if name[:-4] in complete} == {
        name: before[name] for name in before if name[:-4] in complete
    }
    assert contents(out) == uninterrupted
    assert temporary_files(out) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_finishes_started_images_and_prints_how_to_resume(
    start_process: Callable[..., Any],
    run_process: Callable[..., Any],
    wait_until: Callable[..., Any],
    images: Path,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    out = tmp_path / "out"
    process = start_process(images, "--out", out, *FORMATS, "--jobs", 2, "--json", **SLOW)
    wait_until(lambda: len(finished(out)) >= 2, limit_s=60, what="first results")
    os.killpg(process.pid, number)  # A terminal sends the signal to the whole group.
    stdout, _ = process.communicate(timeout=60)
    summary = json.loads(stdout)
    stderr = (tmp_path / "0.stderr").read_text()
    assert process.returncode == 128 + number
    assert (summary["stopped"], summary["failed"]) == (number.name, [])
    assert summary["done"] + summary["not_begun"] == COUNT
    assert summary["not_begun"] > 0
    assert "facial-service: to resume, run the same command again" in stderr
    assert "Traceback" not in stderr
    assert (len(finished(out)), temporary_files(out)) == (2 * summary["done"], [])
    done = run_process(images, "--out", out, *FORMATS, "--json").summary
    assert (done["skipped"], done["done"]) == (summary["done"], summary["not_begun"])
    assert contents(out) == uninterrupted


def test_killed_worker_loses_no_image(
    start_process: Callable[..., Any],
    wait_until: Callable[..., Any],
    images: Path,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    process = start_process(images, "--out", out, *FORMATS, "--jobs", 2, "--json", **SLOW)
    for least in (2, 40, 80):
        suspend(process, out, wait_until, least)
        victims = workers(process)
        assert victims
        victims[0].kill()
        os.killpg(process.pid, signal.SIGCONT)
    stdout, _ = process.communicate(timeout=60)
    summary = json.loads(stdout)
    assert (process.returncode, summary["done"], summary["failed"]) == (0, COUNT, [])
    assert contents(out) == uninterrupted
    assert temporary_files(out) == []


def test_workers_end_with_their_parent(
    start_process: Callable[..., Any], wait_until: Callable[..., Any], images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start_process(images, "--out", out, *FORMATS, "--jobs", 2, **SLOW)
    wait_until(lambda: len(workers(process)) == 2 and finished(out), limit_s=60, what="two workers")
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(descendants, timeout=30)
    assert (len(gone), alive) == (len(descendants), [])


def test_image_that_kills_its_workers_is_reported_and_others_are_done(
    run_process: Callable[..., Any], make_images: Callable[..., Any], tmp_path: Path
) -> None:
    images = make_images(tmp_path / "in", 12)
    for number, image in enumerate(images):
        name = "poison" if number in {3, 4} else "nose"
        image.with_suffix(".regions.json").write_text(json.dumps({name: [1, 2, 98, 327]}))
    maps = ("--segmentation-map", "{dir}/{stem}.regions.json")
    done = run_process(tmp_path / "in", "--out", tmp_path / "out", *maps, "--json", FAULT_POISON_REGION="poison")
    assert (done.status, done.summary["done"]) == (1, 10)
    assert done.codes == dict.fromkeys(map(str, images[3:5]), "process_died")
    assert "killed by SIGKILL" in done.summary["failed"][0]["reason"]
    assert temporary_files(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("None", "worker processes exit during startup: exit status 1"),
        ("object()", "cannot start a worker process: "),  # The fork server ends.
    ],
)
def test_workers_that_cannot_start_end_the_run(
    run_process: Callable[..., Any], make_images: Callable[..., Any], tmp_path: Path, module: str, message: str
) -> None:
    make_images(tmp_path / "in", 2)
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nif 'forkserver' in ' '.join(sys.orig_argv):\n    sys.modules['cv2'] = {module}\n"
    )
    done = run_process(tmp_path / "in", "--out", tmp_path / "out", "--json", PYTHONPATH=str(tmp_path))
    assert (done.status, done.summary["not_begun"]) == (1, 2)
    assert f"facial-service: {message}" in done.stderr
