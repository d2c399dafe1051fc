"""Faults, each for the duration of a block, caused from outside: by signals, requests and files."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import httpx
import numpy as np
import orjson
import psutil

from tests.live.alerts.releases import API_USER, CROP, STORE_BYTES, WORKER_USER, Release, repeating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.live.conftest import RunningNats

# More than the processes of any release, with three files each.
LEFT_BEHIND = range(100, 140)
SPARE_DESCRIPTORS = 10
# Decoding takes a tenth of a second, and threads decode in parallel.
LARGE_SIDE = 4800
# Share of the store that results fill: more than the threshold of the alert, but not everything.
STORE_SHARE = 0.88


@contextmanager
def killed(queue: RunningNats, wait_until: Callable[..., Any]) -> Iterator[None]:
    """The NATS server is unreachable."""
    queue.kill()
    try:
        yield
    finally:
        queue.start()
        wait_until(queue.is_up, limit_s=60, what="nats-server")


@contextmanager
def shut_out(queue: RunningNats) -> Iterator[None]:
    """The NATS server rejects the workers' user, as after a change of a secret."""
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
    """A process is suspended."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


class Relay:
    """Metrics of a release, whose scrapes can be delayed."""

    def __init__(self, address: str) -> None:
        self._source = f"http://{address}/metrics"
        self._delay_s = 0.0
        self._is_prompt = threading.Event()
        self._is_prompt.set()

    def expose(self) -> str:
        """Return the exposition, after the delay."""
        self._is_prompt.wait(self._delay_s)
        return httpx.get(self._source).text

    @contextmanager
    def delaying(self, delay_s: float) -> Iterator[None]:
        """Each scrape is delayed."""
        self._delay_s = delay_s
        self._is_prompt.clear()
        try:
            yield
        finally:
            self._is_prompt.set()


@contextmanager
def hanging_with_a_task(alone: Release, wait_until: Callable[..., Any]) -> Iterator[None]:
    """The only task process is suspended, and a task waits."""
    (process,) = alone.service.task_workers()
    with halted(process):
        wait_until(lambda: alone.submit(alone.sample.json()), limit_s=60, what="a task")
        yield


@contextmanager
def workers_killed(release: Release) -> Iterator[None]:
    """The API's worker processes are killed one after the other, as the kernel does without memory."""

    def kill_one() -> None:
        with suppress(psutil.Error):
            release.service.workers()[0].kill()

    with repeating(kill_one, every_s=1):
        yield


@contextmanager
def exporter_killed(release: Release) -> Iterator[None]:
    """The exporter is killed as often as it is restarted."""

    def kill() -> None:
        with suppress(psutil.Error, TimeoutError):
            release.service.exporter().kill()

    with repeating(kill, every_s=1):
        yield


@contextmanager
def without_file_descriptors(release: Release) -> Iterator[None]:
    """The only worker process of a release has no file descriptors for new connections."""
    (worker,) = release.service.workers()
    before = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path(f"/proc/{worker.pid}/fd").iterdir())
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (highest + 1 + SPARE_DESCRIPTORS, before[1]))
    url = httpx.URL(release.service.api)
    with ExitStack() as connections:

        def connect() -> None:
            with suppress(OSError):
                connections.enter_context(socket.create_connection((url.host, url.port or 80), timeout=5))

        try:
            with repeating(connect, every_s=0.1):
                yield
        finally:
            resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, before)


@contextmanager
def damaged_metric_file(folder: Path) -> Iterator[None]:
    """A metric file has invalid content."""
    file = folder / f"counter_worker-{LEFT_BEHIND.stop}.db"
    file.write_bytes(b"\xff" * 4096)
    try:
        yield
    finally:
        file.unlink()


@contextmanager
def files_left_behind(release: Release, folder: Path) -> Iterator[None]:
    """Metric files of dead worker processes accumulate."""
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
def damaged_images(release: Release) -> Iterator[None]:
    """Callers send truncated images."""
    body = release.sample.json(image=release.sample.jpeg[:-200])
    with repeating(lambda: release.post(CROP, body), every_s=0.05):
        yield


@contextmanager
def damaged_tasks(release: Release) -> Iterator[None]:
    """Callers submit images with a valid structure that cannot be decoded."""
    body = release.sample.json(image=release.sample.png_file(512, 512, b"none"), verify="pixels")
    with repeating(lambda: release.submit(body), every_s=0.1):
        yield


@contextmanager
def large_results(release: Release) -> Iterator[None]:
    """Tasks have results of a megabyte each, which fill the store before they expire."""
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
    """Tasks kill their worker process; at the end, an operator drops the dead-lettered tasks."""
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
    """More tasks arrive than are processed."""
    body = release.sample.form(image=image)
    with repeating(lambda: release.submit(body, release.sample.multipart), every_s=0.2):
        yield


class LargePhotos:
    """Callers request verification of large images without a pause.

    Args:
        callers: number of concurrent callers.

    Attributes:
        cores: CPU time per second of the worker process, set at the end.
    """

    def __init__(self, callers: int) -> None:
        self.cores = 0.0
        self._callers = callers

    @contextmanager
    def of(self, release: Release) -> Iterator[None]:
        """Send the requests during the block, to the only worker process of a release."""
        pixels = cv2.resize(release.sample.pixels, (LARGE_SIDE, LARGE_SIDE), interpolation=cv2.INTER_NEAREST)
        photo = release.sample.encode(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, 50)
        body = release.sample.form(image=photo, verify=b"pixels")
        (worker,) = release.service.workers()
        began, before = time.monotonic(), sum(worker.cpu_times()[:2])
        with repeating(lambda: release.post(CROP, body, release.sample.multipart), every_s=0.3, threads=self._callers):
            yield
            self.cores = (sum(worker.cpu_times()[:2]) - before) / (time.monotonic() - began)
