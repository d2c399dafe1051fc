"""Metrics of several processes: slots, the directory of their files, and the registry that a scrape reads.

The client library names a file after each process id and keeps it forever. Here, a process writes under the name of
its *slot* (``worker-0``), which its successor takes over. So the number of files is bounded by the number of processes
that ran at the same time, and counters continue after a process was killed.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from app.observability import value_directory
from app.observability.metrics import gauge_family
from app.observability.rich_logging import get_logger
from app.observability.value_store import (
    FILE_NAME,
    CorruptFileError,
    Series,
    ValueStore,
    merge_metrics,
    read_file,
    use_store,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from re import Match

    from prometheus_client import Metric

log = get_logger("server")

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_identity = "main"
_store: ValueStore | None = None


def set_identity(name: str) -> None:
    """Set the slot that this process writes under from now on, such as ``worker-0``; called right after a fork.

    No two live processes may have the same.

    Raises:
        ValueError: the name contains ``_`` or ``/``, which separate the parts of a file name.
    """
    global _identity  # noqa: PLW0603 - a process has one slot
    if "_" in name or "/" in name:
        raise ValueError(f"slot name: expected neither '_' nor '/', got {name!r}")
    _identity = name


def get_identity() -> str:
    """Return the slot that this process writes under."""
    return _identity


def use_directory(directory: Path | None) -> Path:
    """Claim and empty the directory of the metric files, and make the client library write there.

    Called before any metric is created. Files of an earlier run are removed because their values would be added to
    those of this run: an emptyDir volume survives a restart of its container.

    Args:
        directory: None creates one in the temporary directory.

    Raises:
        OSError: the directory cannot be created or emptied, or another instance uses it.
    """
    global _store  # noqa: PLW0603 - a process has one set of files
    if _store is not None:
        _store.close()
    path = value_directory.make() if directory is None else value_directory.claim(directory)
    _store = ValueStore(path, get_identity)
    os.environ[DIRECTORY_VARIABLE] = str(path)
    use_store(_store)
    return path


def maintain() -> None:
    """Repair this process's files if they were removed, damaged or not writable; called about once a second."""
    if _store is not None:
        _store.maintain()


def record(observations: Iterable[tuple[Series, float]]) -> None:
    """Add to metrics, and write the changed values together; see `ValueStore.record`."""
    if _store is not None:
        _store.record(observations)


def is_failing() -> bool:
    """Return whether this process has values that it cannot write."""
    return _store is not None and _store.is_failing


def forget_slot(name: str, directory: Path) -> None:
    """Remove the live gauges of a process that has ended, so that its requests in progress no longer count."""
    with contextlib.suppress(OSError):  # the successor in the slot starts them at 0 anyway
        for file in directory.glob(f"gauge_live*_{name}.db"):
            file.unlink(missing_ok=True)


class ValueCollector(Collector):
    """Collector of the values that all slots have written, and of the number and size of their files.

    If a file cannot be read, only its values are missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reported: set[str] = set()

    def collect(self) -> Iterator[Metric]:
        """Yield the merged metrics, ``multiprocess_files``, ``…_bytes`` and ``…_unreadable_files``."""
        contents: list[tuple[Match[str], list[tuple[str, float, float]]]] = []
        sizes, unreadable = [], 0
        for name, path, size in self._files():
            try:
                contents.append((name, read_file(path)))
            except FileNotFoundError:
                continue  # the file of a live gauge was removed with its process
            except (CorruptFileError, OSError) as error:
                unreadable += 1
                self._report(path, error)
            else:
                self._reported.discard(path)
            sizes.append(size)
        yield from merge_metrics(contents)
        yield gauge_family("multiprocess_files", len(sizes))
        yield gauge_family("multiprocess_bytes", sum(sizes))
        yield gauge_family("multiprocess_unreadable_files", unreadable)

    def _files(self) -> Iterator[tuple[Match[str], str, int]]:
        try:
            entries = sorted(os.scandir(self._directory), key=lambda entry: entry.name)
        except OSError as error:
            self._report(str(self._directory), error)
            return
        self._reported.discard(str(self._directory))
        for entry in entries:
            name = FILE_NAME.fullmatch(entry.name)
            with contextlib.suppress(FileNotFoundError):
                if name is not None and entry.is_file(follow_symlinks=False):
                    yield name, entry.path, entry.stat(follow_symlinks=False).st_size

    def _report(self, path: str, error: Exception) -> None:
        if path not in self._reported:
            self._reported.add(path)
            log.error("Metrics file %s is unreadable: %s; its metrics are omitted", path, error)


def scrape_registry(directory: Path, collectors: Iterable[Collector] = ()) -> CollectorRegistry:
    """Build the registry that a scrape reads, from the values of all processes and further collectors."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in (ValueCollector(directory), *collectors):
        registry.register(collector)
    return registry
