"""Prometheus values across worker processes: stable slots, one folder of files, one registry to scrape.

The client library names a file after each process id and keeps it for ever. Here a process writes under the name of its
*slot* (``worker-0``), which its successor takes over. So the number of files is bounded by the number of processes that
ever ran at once, and counters continue where a killed process left them.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Metric, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.observability import value_folder
from app.observability.metrics import gauge_family
from app.observability.rich_logging import get_logger
from app.observability.value_files import FILE_NAME, CorruptFileError, parse_key, read_file
from app.observability.value_store import ValueStore, value_class

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from re import Match

    from prometheus_client.core import GaugeMetricFamily

    from app.observability.health import ScoreboardView

log = get_logger("server")

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_identity = "main"
_store: ValueStore | None = None


def set_identity(name: str) -> None:
    """Name the file set that this process writes from now on; called right after a fork.

    Args:
        name: the slot, such as ``worker-0``. No two live processes may share one.

    Raises:
        ValueError: the name contains ``_`` or ``/``. The names of files are split at ``_`` when they are read.
    """
    global _identity  # noqa: PLW0603 - one identity a process is the point
    if "_" in name or "/" in name:
        raise ValueError(f"slot name: expected neither '_' nor '/', got {name!r}")
    _identity = name


def get_identity() -> str:
    """Return the slot that this process writes under."""
    return _identity


def use_directory(directory: Path | None) -> Path:
    """Claim and empty (or make) the folder of value files, and point the client library at it.

    Called before any metric is made. Files of an earlier run would be added to this one's: an emptyDir outlives its
    container.

    Args:
        directory: an existing or new folder; None makes one under the temporary folder.

    Returns:
        The folder in use.

    Raises:
        OSError: the folder cannot be made or emptied, or another instance uses it.
    """
    global _store  # noqa: PLW0603 - one set of files a process is the point
    if _store is not None:
        _store.close()
    path = value_folder.make() if directory is None else value_folder.claim(directory)
    _store = ValueStore(path, get_identity)
    os.environ[DIRECTORY_VARIABLE] = str(path)
    values.ValueClass = value_class(_store)
    return path


def maintain() -> None:
    """Repair this process's files if they were removed, damaged or not writable; called about once a second."""
    if _store is not None:
        _store.maintain()


def is_failing() -> bool:
    """Return whether this process has values that it cannot write."""
    return _store is not None and _store.is_failing


def forget_slot(name: str, directory: Path) -> None:
    """Remove the live gauges of a process that has ended, so that its requests in progress are not counted for ever."""
    with contextlib.suppress(OSError):  # the successor in the slot starts them at 0 in any case
        for file in directory.glob(f"gauge_live*_{name}.db"):
            file.unlink(missing_ok=True)


class ValueCollector(Collector):
    """Everything that the slots have written, and how it is stored.

    A folder or a file that cannot be read leaves out its values, never those of the others.

    Args:
        directory: folder of the files.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reported: set[str] = set()

    def collect(self) -> Iterator[Metric]:
        """Yield the merged metrics, ``multiprocess_files``, ``…_bytes`` and ``…_unreadable_files``."""
        found: dict[str, Metric] = {}
        sizes, unreadable = [], 0
        for name, path, size in self._files():
            try:
                content = read_file(path)
            except FileNotFoundError:
                continue  # a live gauge's file was removed with its process
            except (CorruptFileError, OSError) as error:
                unreadable += 1
                self._report(path, error)
            else:
                self._reported.discard(path)
                _merge(found, name, content)
            sizes.append(size)
        yield from MultiProcessCollector._accumulate_metrics(found, accumulate=True)  # noqa: SLF001 - see value_files
        yield _gauge("multiprocess_files", len(sizes))
        yield _gauge("multiprocess_bytes", sum(sizes))
        yield _gauge("multiprocess_unreadable_files", unreadable)

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
            log.error("%s cannot be read and its metrics are left out: %s", path, error)


def _merge(found: dict[str, Metric], name: Match[str], content: Iterable[tuple[str, float, float]]) -> None:
    """Add the values of one file to the metrics of all, as the library's own collector does."""
    kind = name["kind"] or "gauge"
    slot = (("pid", name["slot"]),) if kind == "gauge" else ()
    for key, value, timestamp in content:
        metric_name, sample, labels, text = parse_key(key)
        metric = found.get(metric_name)
        if metric is None:
            metric = found[metric_name] = Metric(metric_name, text, kind)
        if kind == "gauge":
            metric._multiprocess_mode = name["mode"]  # type: ignore[attr-defined]  # noqa: SLF001 - see value_files
        metric.add_sample(sample, labels + slot, value, timestamp if slot else None)  # type: ignore[arg-type]


def _gauge(name: str, value: float) -> GaugeMetricFamily:
    family = gauge_family(name)
    family.add_metric([], value)
    return family


class FailureCollector(Collector):
    """How many processes have values that they cannot write, which they cannot write either: the boards know.

    Args:
        scoreboard: of the instance.
    """

    def __init__(self, scoreboard: ScoreboardView) -> None:
        self._scoreboard = scoreboard

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield ``multiprocess_failing_processes``."""
        scoreboards = filter(None, (self._scoreboard, self._scoreboard.task_scoreboard))
        failing = sum(scoreboard.count_metric_failures() for scoreboard in scoreboards)
        yield _gauge("multiprocess_failing_processes", failing)


def scrape_registry(directory: Path, collectors: Iterable[Collector] = ()) -> CollectorRegistry:
    """Build the registry that a scrape reads: every process's values, and what is read at scrape time."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in (ValueCollector(directory), *collectors):
        registry.register(collector)
    return registry
