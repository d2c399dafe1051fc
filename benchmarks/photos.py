"""Folders of photos: how fast the command does them, against the bare program in as many processes."""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
from rich.progress import track

from benchmarks.cases import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PHOTOS = 500
LINKS = 4
FEW = 20
ROUNDS = 7
SCALES = 0.25, 1.5
SUFFIX = ".landmarks.json"
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
PR_SET_CHILD_SUBREAPER = 36
SIDES = ("product", "bare")


def make_photos(folder: Path, count: int, *, has_landmarks: bool) -> list[Path]:
    """Write copies of the sample in many sizes, with their landmarks or without."""
    sample = cv2.imread(str(EXAMPLES / "astronaut.png"))
    points = json.loads((EXAMPLES / "astronaut.landmarks.json").read_text())
    if sample is None:
        raise FileNotFoundError("examples/astronaut.png")
    sizes = random.Random(1)  # noqa: S311 - the same sizes each time
    photos = []
    for number in track(range(count), "photos"):
        side = round(sample.shape[0] * sizes.uniform(*SCALES))
        scale = side / sample.shape[0]
        photo = folder / f"{number:04}.png"
        cv2.imwrite(str(photo), cv2.resize(sample, (side, side), interpolation=cv2.INTER_AREA))
        if has_landmarks:
            scaled = [{"x": point["x"] * scale, "y": point["y"] * scale} for point in points]
            photo.with_suffix(SUFFIX).write_text(json.dumps(scaled))
        photos.append(photo)
    return photos


def run_product(listed: Path, out: Path) -> None:
    """Do the photos of a list by the command."""
    photos = listed.read_text(encoding="utf-8").splitlines()
    # A folder where it is all of it, as people give it.
    folder = Path(photos[0]).parents[1]
    inputs = [str(folder)] if len(photos) == len(list(folder.glob("*/*.png"))) else photos
    command = [sys.executable, "-m", "app", "process", *inputs, "--out", str(out), "--jobs", str(cores())]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def run_bare(listed: Path, out: Path) -> None:
    """Do the photos of a list by the bare program, in as many processes."""
    for folder in {Path(photo).parent.name for photo in listed.read_text(encoding="utf-8").splitlines()}:
        (out / folder).mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.bare_photos", str(listed), str(out)]
    running = [subprocess.Popen([*command, str(first), str(cores())]) for first in range(cores())]
    if any(process.wait() for process in running):
        raise RuntimeError("the bare program failed")


def cpu_s() -> float:
    """CPU seconds of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def adopt_orphans() -> None:
    """Have processes whose parent has ended become ours, so that their CPU is counted (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def cores() -> int:
    """Count the cores."""
    return len(os.sched_getaffinity(0))


def seconds(run: Callable[[Path, Path], None], listed: Path, folder: Path) -> tuple[float, float]:
    """Time a run, its start included, and see that it did every photo.

    Returns:
        Seconds by the clock, and of CPU in all its processes.
    """
    out = folder / "out"
    before, start = cpu_s(), time.perf_counter()
    run(listed, out)
    elapsed = time.perf_counter() - start
    with suppress(ChildProcessError):
        while True:
            os.wait()  # for those that its processes left to us
    used = cpu_s() - before
    expected, made = len(listed.read_text(encoding="utf-8").splitlines()), len(list(out.rglob("*.svg")))
    shutil.rmtree(out)
    if made != expected:
        raise RuntimeError(f"expected {expected} overlays, got {made}")
    return elapsed, used


@contextmanager
def lists(*, has_landmarks: bool, count: int, links: int) -> Iterator[tuple[Path, Path, Path]]:
    """Make photos for the duration of the block; give a folder, a list of all and one of a few.

    Each photo is there several times, by links: what is quick is to take long enough to be timed.
    """
    # In memory, if there is a place: it is the program that is measured, and not the disk.
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        folder = Path(name)
        first = folder / "photos" / "0"
        first.mkdir(parents=True)
        photos = make_photos(first, count, has_landmarks=has_landmarks)
        for number in range(1, links):
            shutil.copytree(first, first.with_name(str(number)), copy_function=os.link)
            photos += [first.with_name(str(number)) / photo.name for photo in photos[:count]]
        many, few = folder / "many", folder / "few"
        many.write_text("".join(f"{photo}\n" for photo in photos))
        few.write_text("".join(f"{photo}\n" for photo in photos[:: len(photos) // FEW]))
        yield folder, many, few


def compare(title: str, *, has_landmarks: bool, links: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Compare the rates of both, which take turns.

    Returns:
        ``ratio``: of the rates beyond the start, the median of the rounds, beside the lowest and the highest.
        ``cpu_ratio``: the same by CPU. Rates and ``cpu_ms`` of a photo are those of the quickest runs.
    """
    adopt_orphans()
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with lists(has_landmarks=has_landmarks, count=PHOTOS, links=links) as (folder, many, few):
        for _ in track(range(rounds), title):
            for size, listed in (("few", few), ("many", many)):
                for side, run in (("product", run_product), ("bare", run_bare)):
                    times.setdefault((side, size), []).append(seconds(run, listed, folder))
        total = len(many.read_text().splitlines())
        added = total - len(few.read_text().splitlines())
    # The start is that of the quickest run of a few; what follows is compared round by round, for what else runs on the
    # machine comes and goes.
    start = {side: [min(column) for column in zip(*times[side, "few"], strict=True)] for side in SIDES}
    beyond = {
        side: [(clock - start[side][0], cpu - start[side][1]) for clock, cpu in times[side, "many"]] for side in SIDES
    }
    ratios = [
        [bare / ours for ours, bare in zip(*pair, strict=True)]
        for pair in zip(beyond["product"], beyond["bare"], strict=True)
    ]
    clocks, cpus = zip(*ratios, strict=True)
    least = {side: [min(column) for column in zip(*beyond[side], strict=True)] for side in SIDES}
    return {
        "ratio": round(statistics.median(clocks), 4),
        "cpu_ratio": round(statistics.median(cpus), 4),
        "ratio_lowest": round(min(clocks), 4),
        "ratio_highest": round(max(clocks), 4),
        "per_second": round(added / least["product"][0], 1),
        "bare_per_second": round(added / least["bare"][0], 1),
        "cpu_ms": round(1000 * least["product"][1] / added, 3),
        "reference_cpu_ms": round(1000 * least["bare"][1] / added, 3),
        "start_s": round(start["product"][0], 3),
        "bare_start_s": round(start["bare"][0], 3),
        "photos": total,
        "processes": cores(),
        "rounds": rounds,
    }


def process_rate() -> dict[str, float]:
    """Photos with their landmarks: the cheapest work there is, so that what is around it shows most."""
    return compare("process_rate", has_landmarks=True, links=LINKS)


def process_rate_found() -> dict[str, float]:
    """Photos alone, whose landmarks are found."""
    return compare("process_rate_found", has_landmarks=False, links=1, rounds=3)
