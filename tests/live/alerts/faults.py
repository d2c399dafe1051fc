"""What is broken, each for the duration of a block and from outside: by signals, by requests, in files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import orjson
import psutil

from tests.live.alerts.releases import API_USER, CROP, STORE_BYTES, WORKER_USER, Release, repeating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.live.conftest import RunningNats

# More than any release has processes, at three files each.
LEFT_BEHIND = range(100, 140)
# Takes a tenth of a second to decode, which Python lets every thread do at the same time.
LARGE_SIDE = 4800
# Of results that are kept, this much of the store is taken by: more than the alert asks for, and not all of it.
STORE_SHARE = 0.88


@contextmanager
def killed(queue: RunningNats, wait_until: Callable[..., Any]) -> Iterator[None]:
    """The queue's server is away."""
    queue.kill()
    try:
        yield
    finally:
        queue.start()
        wait_until(queue.is_up, limit_s=60, what="nats-server")


@contextmanager
def shut_out(queue: RunningNats) -> Iterator[None]:
    """The queue's server no longer knows the workers' user, as where somebody changed a secret."""
    path = queue._folder / "0.conf"
    before = path.read_bytes()
    known = orjson.loads(before)
    users = known["authorization"]["users"]
    known["authorization"]["users"] = [user for user in users if user["user"] != WORKER_USER]

    def load(content: bytes) -> None:
        path.write_bytes(content)
        for pid in queue.pids():
            os.kill(pid, signal.SIGHUP)

    load(orjson.dumps(known))
    try:
        yield
    finally:
        load(before)


@contextmanager
def halted(process: psutil.Process) -> Iterator[None]:
    """A process does nothing, and is there."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@contextmanager
def hanging_with_a_task(alone: Release, wait_until: Callable[..., Any]) -> Iterator[None]:
    """The only task process hangs, and there is a task."""
    (process,) = alone.service.task_workers()
    with halted(process):
        wait_until(lambda: alone.submit(alone.sample.json()), limit_s=60, what="a task")
        yield


def exporter_of(release: Release) -> psutil.Process:
    """Find the process that answers scrapes."""
    for child in psutil.Process(release.service.pid).children():
        with suppress(psutil.Error):  # one that was killed just now, say
            if "exporter" in " ".join(child.cmdline()):
                return child
    raise LookupError("there is no exporter")


@contextmanager
def workers_killed(release: Release) -> Iterator[None]:
    """One after the other, the API's worker processes are killed as the kernel does it for want of memory."""

    def kill_one() -> None:
        with suppress(psutil.Error):
            release.service.workers()[0].kill()

    with repeating(kill_one, every_s=1):
        yield


@contextmanager
def files_left_behind(release: Release, folder: Path) -> Iterator[None]:
    """There are files of worker processes that are no more."""
    assert any(folder.glob("counter_*.db")), f"{release.service.pid} writes elsewhere"
    files = [folder / f"counter_worker-{number}.db" for number in LEFT_BEHIND]
    for file in files:
        file.touch()
    try:
        yield
    finally:
        for file in files:
            file.unlink()


@contextmanager
def damaged_pictures(release: Release) -> Iterator[None]:
    """Callers send pictures that are cut short."""
    body = release.sample.json(image=release.sample.jpeg[:-200])
    with repeating(lambda: release.post(CROP, body), every_s=0.05):
        yield


@contextmanager
def damaged_tasks(release: Release) -> Iterator[None]:
    """Callers submit pictures that are whole by their structure, and cannot be decoded."""
    body = release.sample.json(image=release.sample.png_file(512, 512, b"none"), verify="pixels")
    with repeating(lambda: release.submit(body), every_s=0.1):
        yield


@contextmanager
def large_results(release: Release) -> Iterator[None]:
    """Tasks have results of a megabyte, and these are kept for longer than there is room for them."""
    speckles = (np.random.default_rng(seed=1).random((180, 180)) < 0.5).astype(np.uint8)
    body = release.sample.json(segmentation_map=release.sample.encode(".png", speckles))

    def submit_one() -> None:
        figures = {name: value for (name, labels), value in release.service.scrape().items() if not labels}
        if figures.get("queue_storage_bytes", STORE_BYTES) < STORE_SHARE * STORE_BYTES:
            release.submit(body)

    with repeating(submit_one, every_s=0.1):
        yield


@contextmanager
def poison(release: Release, queue: RunningNats) -> Iterator[None]:
    """There are tasks that kill whoever works on them; at the end an operator drops those that were given up on."""
    bodies = [release.sample.json(segmentation_map={"poison": [1, 2, 98, 327]}), release.sample.json()]

    def submit_some() -> None:
        for task_id in [release.submit(body) for body in bodies * 8]:
            if task_id is not None:
                release.end_of(task_id)

    with repeating(submit_some, every_s=0.05, threads=2):
        yield
    access = {"NATS_URL": queue.url, "NATS_USER": API_USER, "NATS_PASSWORD": API_USER}
    command = [sys.executable, "-m", "app", "tasks", "dead", "drop", "--all"]
    subprocess.run(command, env={**os.environ, **access}, check=True, capture_output=True, timeout=120)


@contextmanager
def many_tasks(release: Release, image: bytes) -> Iterator[None]:
    """Tasks come in, more than are worked on."""
    body = release.sample.form(image=image)
    with repeating(lambda: release.submit(body, release.sample.multipart), every_s=0.2):
        yield


class LargePhotos:
    """Callers ask for the pixels of large photos to be checked, and come back at once.

    Args:
        callers: how many there are at the same time.

    Attributes:
        cores: CPU time a second that the worker process got; known in the end.
    """

    def __init__(self, callers: int) -> None:
        self.cores = 0.0
        self._callers = callers

    @contextmanager
    def of(self, release: Release) -> Iterator[None]:
        """Send them for the duration of the block, to the only worker process of a release."""
        pixels = cv2.resize(release.sample.pixels, (LARGE_SIDE, LARGE_SIDE), interpolation=cv2.INTER_NEAREST)
        photo = release.sample.encode(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, 50)
        body = release.sample.form(image=photo, verify=b"pixels")
        (worker,) = release.service.workers()
        began, before = time.monotonic(), sum(worker.cpu_times()[:2])
        with repeating(lambda: release.post(CROP, body, release.sample.multipart), every_s=0.3, threads=self._callers):
            yield
            self.cores = (sum(worker.cpu_times()[:2]) - before) / (time.monotonic() - began)
