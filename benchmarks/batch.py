"""Throughput of batch processing, compared with the reference program in the same number of processes."""

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

from benchmarks.inputs import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IMAGES = 500
LINKS = 4
SMALL_LIST = 20
ROUNDS = 7
SCALES = 0.25, 1.5
SUFFIX = ".landmarks.json"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a new folder is created in it
PR_SET_CHILD_SUBREAPER = 36
PROGRAMS = ("service", "reference")


def make_images(folder: Path, count: int, *, has_landmarks: bool) -> list[Path]:
    """Write copies of the sample in many sizes, with or without their landmarks."""
    sample = cv2.imread(str(EXAMPLES / "astronaut.png"))
    points = json.loads((EXAMPLES / "astronaut.landmarks.json").read_text())
    if sample is None:
        raise FileNotFoundError("examples/astronaut.png")
    sizes = random.Random(1)  # noqa: S311 - reproducible
    paths = []
    for number in track(range(count), "images"):
        side = round(sample.shape[0] * sizes.uniform(*SCALES))
        scale = side / sample.shape[0]
        path = folder / f"{number:04}.png"
        cv2.imwrite(str(path), cv2.resize(sample, (side, side), interpolation=cv2.INTER_AREA))
        if has_landmarks:
            scaled = [{"x": point["x"] * scale, "y": point["y"] * scale} for point in points]
            path.with_suffix(SUFFIX).write_text(json.dumps(scaled))
        paths.append(path)
    return paths


def run_service(image_list: Path, output: Path) -> None:
    """Process the images of a list with `facial-service process`."""
    images = image_list.read_text(encoding="utf-8").splitlines()
    # Pass the folder if the list contains all of it, as users do.
    folder = Path(images[0]).parents[1]
    inputs = [str(folder)] if len(images) == len(list(folder.glob("*/*.png"))) else images
    command = [sys.executable, "-m", "app", "process", *inputs, "--out", str(output), "--jobs", str(cores())]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def run_reference(image_list: Path, output: Path) -> None:
    """Process the images of a list with the reference program, in one process per core."""
    for folder in {Path(line).parent.name for line in image_list.read_text(encoding="utf-8").splitlines()}:
        (output / folder).mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.reference_batch", str(image_list), str(output)]
    running = [subprocess.Popen([*command, str(first), str(cores())]) for first in range(cores())]
    if any(process.wait() for process in running):
        raise RuntimeError("the reference program failed")


def cpu_s() -> float:
    """Return the CPU time of all child processes that have ended, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, so that their CPU time is counted (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def cores() -> int:
    """Return the number of usable cores."""
    return len(os.sched_getaffinity(0))


def measure(run: Callable[[Path, Path], None], image_list: Path, folder: Path) -> tuple[float, float]:
    """Measure a run including its start, and check that it processed every image.

    Returns:
        elapsed time, and CPU time of all its processes, in seconds.
    """
    output = folder / "out"
    before, start = cpu_s(), time.perf_counter()
    run(image_list, output)
    elapsed = time.perf_counter() - start
    with suppress(ChildProcessError):
        while True:
            os.wait()  # orphans of its processes
    used = cpu_s() - before
    expected, actual = len(image_list.read_text(encoding="utf-8").splitlines()), len(list(output.rglob("*.svg")))
    shutil.rmtree(output)
    if actual != expected:
        raise RuntimeError(f"expected {expected} overlays, got {actual}")
    return elapsed, used


@contextmanager
def image_lists(*, has_landmarks: bool, count: int, links: int) -> Iterator[tuple[Path, Path, Path]]:
    """Create images, and yield a working folder, a list of all images and a list of a few.

    Each image has several hard links, so that a run takes long enough to be measured.
    """
    # In memory if possible, so that the speed of the disk does not count.
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as name:
        folder = Path(name)
        first = folder / "images" / "0"
        first.mkdir(parents=True)
        images = make_images(first, count, has_landmarks=has_landmarks)
        for number in range(1, links):
            shutil.copytree(first, first.with_name(str(number)), copy_function=os.link)
            images += [first.with_name(str(number)) / image.name for image in images[:count]]
        full, small = folder / "full", folder / "small"
        full.write_text("".join(f"{image}\n" for image in images))
        small.write_text("".join(f"{image}\n" for image in images[:: len(images) // SMALL_LIST]))
        yield folder, full, small


def compare(title: str, *, has_landmarks: bool, links: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Compare the throughput of both programs, which run alternately.

    The small list measures the start, which is subtracted.

    Returns:
        ``ratio``: throughput relative to the reference, as the median of the rounds, with minimum and maximum.
        ``cpu_ratio``: the same for CPU time. Rates and ``cpu_ms`` per image are those of the fastest runs.
    """
    adopt_orphans()
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with image_lists(has_landmarks=has_landmarks, count=IMAGES, links=links) as (folder, full, small):
        for _ in track(range(rounds), title):
            for size, image_list in (("small", small), ("full", full)):
                for program, run in zip(PROGRAMS, (run_service, run_reference), strict=True):
                    times.setdefault((program, size), []).append(measure(run, image_list, folder))
        total = len(full.read_text().splitlines())
        added = total - len(small.read_text().splitlines())
    # The start is that of the fastest small run. Full runs are compared round by round, because the load of the machine
    # varies.
    start = {program: [min(column) for column in zip(*times[program, "small"], strict=True)] for program in PROGRAMS}
    net = {
        program: [(clock - start[program][0], cpu - start[program][1]) for clock, cpu in times[program, "full"]]
        for program in PROGRAMS
    }
    ratios = [
        [reference / ours for ours, reference in zip(*pair, strict=True)]
        for pair in zip(net["service"], net["reference"], strict=True)
    ]
    clocks, cpus = zip(*ratios, strict=True)
    fastest = {program: [min(column) for column in zip(*net[program], strict=True)] for program in PROGRAMS}
    return {
        "ratio": round(statistics.median(clocks), 4),
        "cpu_ratio": round(statistics.median(cpus), 4),
        "ratio_lowest": round(min(clocks), 4),
        "ratio_highest": round(max(clocks), 4),
        "per_second": round(added / fastest["service"][0], 1),
        "bare_per_second": round(added / fastest["reference"][0], 1),
        "cpu_ms": round(1000 * fastest["service"][1] / added, 3),
        "reference_cpu_ms": round(1000 * fastest["reference"][1] / added, 3),
        "start_s": round(start["service"][0], 3),
        "bare_start_s": round(start["reference"][0], 3),
        "photos": total,
        "processes": cores(),
        "rounds": rounds,
    }


def process_rate() -> dict[str, float]:
    """Throughput for images with landmarks: the cheapest work, for which the overhead is largest."""
    return compare("process_rate", has_landmarks=True, links=LINKS)


def process_rate_found() -> dict[str, float]:
    """Throughput for images without landmarks."""
    return compare("process_rate_found", has_landmarks=False, links=1, rounds=3)
