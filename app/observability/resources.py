"""Readiness of the instance, and memory and CPU usage of all its processes, read at scrape time."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from prometheus_client.registry import Collector

from app.observability.health import WorkerState
from app.observability.metrics import gauge_family

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import GaugeMetricFamily

    from app.observability.health import ScoreboardView


WINDOW_S = 5.0
# Memory limit of the container: of cgroup v2, then of v1, which reports a huge number if there is none.
MEMORY_LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
UNLIMITED_BYTES = 2**62


class ResourceCollector(Collector):
    """Collector of readiness, and of memory, CPU usage and failures of every process on the scoreboard.

    CPU usage is the mean since an earlier scrape, at least `WINDOW_S` seconds ago, so that several scrapers do not
    shorten each other's window. At first, it is the mean since the process started.
    """

    def __init__(self, scoreboard: ScoreboardView) -> None:
        self._scoreboard = scoreboard
        # Two snapshots that map a process id to the time and its CPU seconds. The later one replaces the earlier one
        # when it is old enough.
        self._earlier: dict[int, tuple[float, float]] = {}
        self._later: dict[int, tuple[float, float]] = {}
        self._rotated = time.monotonic()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield samples of each process, without those that have ended, and the number that cannot write metrics."""
        memory = gauge_family("memory_usage_bytes")
        cpu = gauge_family("cpu_usage_percent")
        starts = gauge_family("process_start_time_seconds")
        now, seen = time.monotonic(), {}
        for name, pid in self._processes():
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    times, rss, started = process.cpu_times(), process.memory_info().rss, process.create_time()
            except psutil.Error:
                continue
            used = times.user + times.system
            at, before = self._earlier.get(pid, (now - max(time.time() - started, 0.01), 0.0))
            memory.add_metric([name], rss)
            cpu.add_metric([name], 100 * max(0.0, used - before) / max(now - at, 0.01))
            starts.add_metric([name], started)
            seen[pid] = (now, used)
        if now - self._rotated >= WINDOW_S:
            self._earlier, self._later, self._rotated = self._later, seen, now
        yield memory
        yield cpu
        yield starts
        if (limit := read_memory_limit()) is not None:
            yield gauge_family("memory_limit_bytes", limit)
        yield gauge_family("service_ready", self._scoreboard.health().is_ready)
        exhausted = gauge_family("file_descriptors_exhausted")
        for worker in self._scoreboard.workers():
            exhausted.add_metric([worker.name], worker.state is WorkerState.EXHAUSTED)
        yield exhausted
        failing = sum(scoreboard.count_metric_failures() for scoreboard in self._scoreboards())
        yield gauge_family("multiprocess_failing_processes", failing)

    def _scoreboards(self) -> Iterator[ScoreboardView]:
        return filter(None, (self._scoreboard, self._scoreboard.task_scoreboard))

    def _processes(self) -> Iterator[tuple[str, int]]:
        yield "master", self._scoreboard.master_pid
        yield from self._scoreboard.managed_processes().items()
        for scoreboard in self._scoreboards():
            for worker in scoreboard.workers():
                if worker.pid != self._scoreboard.master_pid:
                    yield worker.name, worker.pid


def read_memory_limit() -> int | None:
    """Return the memory limit of the container in bytes, or None if there is none."""
    for path in MEMORY_LIMIT_FILES:
        try:
            limit = int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):  # not this version, or "max"
            continue
        return limit if limit < UNLIMITED_BYTES else None
    return None


class BuildCollector(Collector):
    """Collector of ``app_build_info``: the versions of the service and of Python."""

    def __init__(self, version: str) -> None:
        self._version = version

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the one sample."""
        family = gauge_family("app_build_info")
        family.add_metric([self._version, platform.python_version()], 1)
        yield family
