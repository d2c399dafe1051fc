"""Prometheus values across worker processes: stable slots, one folder of files, one registry to scrape.

The client library's default names a file after each process id and keeps it for ever. Here a process writes under the
name of its *slot* (``worker-0``), which its successor takes over, so that the number of files is bounded by the number
of processes that ever ran at once, and counters go on where a killed process left them.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from app.observability.metrics import gauge_family

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric
    from prometheus_client.core import GaugeMetricFamily

_FILE_KINDS = ("counter", "gauge", "histogram", "summary")
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_identity = "main"


def set_identity(name: str) -> None:
    """Name the file set that this process writes from now on; called right after a fork.

    Args:
        name: the slot, such as ``worker-0``. No two live processes may share one.

    Raises:
        ValueError: the name holds ``_`` or ``/``; the files' names are split at ``_`` when they are read.
    """
    global _identity  # noqa: PLW0603 - one identity a process is the point
    if "_" in name or "/" in name:
        raise ValueError(f"a slot's name may hold neither '_' nor '/': {name!r}")
    _identity = name


def get_identity() -> str:
    """Return the slot that this process writes under."""
    return _identity


def use_directory(directory: Path | None) -> Path:
    """Wipe (or make) the folder of value files and point the client library at it, before any metric is made.

    Files of an earlier run would be added to this one's: an emptyDir outlives its container.

    Args:
        directory: an existing or new folder; None makes one under the temporary folder.

    Returns:
        The folder in use.
    """
    path = Path(tempfile.mkdtemp(prefix="facial-service-")) if directory is None else directory
    path.mkdir(parents=True, exist_ok=True)
    for kind in _FILE_KINDS:  # by their names, for the folder may hold what is not ours
        for file in path.glob(f"{kind}_*.db"):
            file.unlink(missing_ok=True)
    os.environ[DIRECTORY_VARIABLE] = str(path)
    values.ValueClass = values.MultiProcessValue(process_identifier=get_identity)
    return path


def forget_slot(name: str, directory: Path) -> None:
    """Drop the live gauges of a process that is gone, so that its requests in progress are not counted for ever."""
    mark_process_dead(name, str(directory))


class SlotPool:
    """Numbers for processes, lowest first, each held by one process at a time.

    Example:
        >>> pool = SlotPool()
        >>> pool.take(), pool.take()
        (0, 1)
        >>> pool.free(0)
        >>> pool.take()
        0
    """

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 0

    def take(self) -> int:
        """Return the lowest number that nobody holds."""
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1

    def free(self, number: int) -> None:
        """Give a number back; the caller has dropped the live gauges under it."""
        heapq.heappush(self._free, number)


class ValueCollector(MultiProcessCollector):
    """The client library's collector, less the files that a process has made but not begun to fill.

    Such a file is there for a moment at every start of a worker, and for good where the worker is killed in it; the
    library's own reading fails on it, and with it the whole scrape.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(None, path=str(directory))
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        """Merge what every slot has written."""
        files = [entry.path for entry, size in _value_files(self._directory) if size]
        merged: Iterable[Metric] = self.merge(files, accumulate=True)
        return merged


def _value_files(directory: Path) -> Iterator[tuple[os.DirEntry[str], int]]:
    for entry in os.scandir(directory):
        if entry.name.endswith(".db"):
            with contextlib.suppress(FileNotFoundError):  # a live gauge's file went away with its process
                yield entry, entry.stat().st_size


class DirectoryCollector(Collector):
    """How many value files there are and what they take: a number that grows is a leak."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield ``multiprocess_files`` and ``multiprocess_bytes``."""
        sizes = [size for _, size in _value_files(self._directory)]
        for name, value in (("multiprocess_files", len(sizes)), ("multiprocess_bytes", sum(sizes))):
            family = gauge_family(name)
            family.add_metric([], value)
            yield family


def scrape_registry(directory: Path, collectors: Iterable[Collector] = ()) -> CollectorRegistry:
    """Build the registry that a scrape reads: every process's values, and what is read at scrape time."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in (ValueCollector(directory), DirectoryCollector(directory), *collectors):
        registry.register(collector)
    return registry
