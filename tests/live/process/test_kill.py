"""What a run leaves when it, or one of its processes, is killed or told to stop; and that the next one goes on."""

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
# Of CPU for each photo, so that there is time to interfere.
SLOW = {"FAULT_WORK_S": "0.03"}


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Tell inode and time of every result that is in its place."""
    found = [(path, path.stat()) for path in out.rglob("*") if path.suffix in {".svg", ".png"}]
    return {str(path.relative_to(out)): (status.st_ino, status.st_mtime_ns) for path, status in found}


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.suffix in {".svg", ".png"}}


def parts(out: Path) -> list[Path]:
    return list(out.rglob("*.part"))


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Find the processes that do photos: those that the fork server has forked."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [child for child in below if child.ppid() != process.pid]


@pytest.fixture(scope="module")
def photos(make_photos: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("kill") / "in"
    make_photos(folder / "x", COUNT // 2)
    make_photos(folder / "y", COUNT // 2)
    return folder


@pytest.fixture(scope="module")
def unbroken(run_process: Callable[..., Any], photos: Path) -> dict[str, bytes]:
    """The results of a run that nobody disturbed."""
    out = photos.parent / "unbroken"
    assert run_process(photos, "--out", out, *FORMATS).status == 0
    return contents(out)


def stop_processes(process: subprocess.Popen[bytes], out: Path, wait_until: Callable[..., Any], least: int) -> None:
    """Halt a run once it has finished so many files, so that what it is doing can be looked at in peace."""
    wait_until(lambda: len(finished(out)) >= least or process.poll() is not None, limit_s=60, what="first results")
    os.killpg(process.pid, signal.SIGSTOP)


@pytest.mark.parametrize("least", [2, 50])
def test_after_sigkill_nothing_is_lost_and_nothing_finished_is_done_again(
    start_process: Callable[..., Any],
    run_process: Callable[..., Any],
    wait_until: Callable[..., Any],
    photos: Path,
    unbroken: dict[str, bytes],
    tmp_path: Path,
    least: int,
) -> None:
    out = tmp_path / "out"
    process = start_process(photos, "--out", out, *FORMATS, **SLOW)
    stop_processes(process, out, wait_until, least)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(out)
    whole = {name[:-4] for name in before if f"{name[:-4]}.svg" in before and f"{name[:-4]}.png" in before}
    assert 0 < len(whole) < COUNT
    # As if it had been killed in the middle of a write.
    (out / "x" / ".facial-service.1-2-3.part").write_bytes(b"half")
    done = run_process(photos, "--out", out, *FORMATS, "--json")
    assert (done.status, done.summary["skipped"], done.summary["done"]) == (0, len(whole), COUNT - len(whole))
    after = finished(out)
    assert {name: after[name] for name in before if name[:-4] in whole} == {
        name: before[name] for name in before if name[:-4] in whole
    }
    assert contents(out) == unbroken
    assert parts(out) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_ends_what_it_has_begun_and_says_how_to_go_on(
    start_process: Callable[..., Any],
    run_process: Callable[..., Any],
    wait_until: Callable[..., Any],
    photos: Path,
    unbroken: dict[str, bytes],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    out = tmp_path / "out"
    process = start_process(photos, "--out", out, *FORMATS, "--jobs", 2, "--json", **SLOW)
    wait_until(lambda: len(finished(out)) >= 2, limit_s=60, what="first results")
    os.killpg(process.pid, number)  # as a terminal does: to all of them
    stdout, _ = process.communicate(timeout=60)
    summary = json.loads(stdout)
    told = (tmp_path / "0.stderr").read_text()
    assert process.returncode == 128 + number
    assert (summary["stopped"], summary["failed"]) == (number.name, [])
    assert summary["done"] + summary["not_begun"] == COUNT
    assert summary["not_begun"] > 0
    assert "facial-service: the same command again goes on where this run stopped" in told
    assert "Traceback" not in told
    assert (len(finished(out)), parts(out)) == (2 * summary["done"], [])
    done = run_process(photos, "--out", out, *FORMATS, "--json").summary
    assert (done["skipped"], done["done"]) == (summary["done"], summary["not_begun"])
    assert contents(out) == unbroken


def test_a_killed_worker_costs_no_photo(
    start_process: Callable[..., Any],
    wait_until: Callable[..., Any],
    photos: Path,
    unbroken: dict[str, bytes],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    process = start_process(photos, "--out", out, *FORMATS, "--jobs", 2, "--json", **SLOW)
    for least in (2, 40, 80):
        stop_processes(process, out, wait_until, least)
        victims = workers(process)
        assert victims
        victims[0].kill()
        os.killpg(process.pid, signal.SIGCONT)
    stdout, _ = process.communicate(timeout=60)
    summary = json.loads(stdout)
    assert (process.returncode, summary["done"], summary["failed"]) == (0, COUNT, [])
    assert contents(out) == unbroken
    assert parts(out) == []


def test_processes_end_with_the_one_that_started_them(
    start_process: Callable[..., Any], wait_until: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start_process(photos, "--out", out, *FORMATS, "--jobs", 2, **SLOW)
    wait_until(lambda: len(workers(process)) == 2 and finished(out), limit_s=60, what="two workers")
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(below, timeout=30)
    assert (len(gone), alive) == (len(below), [])


def test_a_photo_that_kills_every_process_is_named_and_the_others_are_done(
    run_process: Callable[..., Any], make_photos: Callable[..., Any], tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "in", 12)
    for number, photo in enumerate(photos):
        name = "poison" if number in {3, 4} else "nose"
        photo.with_suffix(".regions.json").write_text(json.dumps({name: [1, 2, 98, 327]}))
    maps = ("--segmentation-map", "{dir}/{stem}.regions.json")
    done = run_process(tmp_path / "in", "--out", tmp_path / "out", *maps, "--json", FAULT_POISON_REGION="poison")
    assert (done.status, done.summary["done"]) == (1, 10)
    assert done.codes == dict.fromkeys(map(str, photos[3:5]), "process_died")
    assert "killed by SIGKILL" in done.summary["failed"][0]["reason"]
    assert parts(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("None", "processes end before they have begun, with exit status 1"),
        ("object()", "no process can be started: "),  # the one that others are forked from dies of it
    ],
)
def test_processes_that_cannot_even_begin_end_the_run(
    run_process: Callable[..., Any], make_photos: Callable[..., Any], tmp_path: Path, module: str, sentence: str
) -> None:
    make_photos(tmp_path / "in", 2)
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nif 'forkserver' in ' '.join(sys.orig_argv):\n    sys.modules['cv2'] = {module}\n"
    )
    done = run_process(tmp_path / "in", "--out", tmp_path / "out", "--json", PYTHONPATH=str(tmp_path))
    assert (done.status, done.summary["not_begun"]) == (1, 2)
    assert f"facial-service: {sentence}" in done.stderr
