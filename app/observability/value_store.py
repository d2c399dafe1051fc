"""The metric values of one process, in memory and in files of prometheus_client's format.

The library maps its files into memory. If the file system is full or the file was truncated, writing to a page without
a block ends the process with SIGBUS. `ValueFile` allocates a file in full and writes with ``pwrite``, which reports an
error instead. `ValueStore` keeps values that cannot be written in memory and writes them later, so that no counter
loses anything. Nothing here raises because of the directory, except when it is set up.

A request changes about 40 values. `ValueStore.record` changes all of them in a copy of the files in memory first, then
writes each file in a few calls, because one call per value costs more than the rest of the recording.

This is the only module that relies on internals of prometheus_client. `tests/contracts/test_prometheus_internals.py`
names them.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import struct
import threading
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from prometheus_client import Histogram, Metric, values
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from app.observability.rich_logging import LogLimit, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

log = get_logger("server")

# The kind, the mode by which a gauge is merged across processes, and the slot that writes the file.
FILE_NAME: Final = re.compile(r"(?:(?P<kind>counter|histogram|summary)|gauge_(?P<mode>[a-z]+))_(?P<slot>[^_/]+)\.db")
INITIAL_BYTES: Final = 1 << 16
MAX_BYTES: Final = 1 << 26  # larger files are considered corrupt
LOG_PAUSE_S: Final = 60.0  # minimum time between two error lines of a process about its directory

_USED = struct.Struct("=i")
_LENGTH = struct.Struct("=i")
_VALUE = struct.Struct("=dd")  # value, timestamp
_FIRST = 8
_NUMBER_BYTES = 8  # entries are aligned to this
# Values closer than this are written in one call, which costs about as much as the system call that it saves.
_MAX_GAP = 16_384 // _NUMBER_BYTES


class CorruptFileError(ValueError):
    """The content of a file is not in the library's format."""


def read_file(path: str | Path) -> list[tuple[str, float, float]]:
    """Return the keys, values and timestamps of a file.

    Raises:
        CorruptFileError: the content is not in the library's format.
        OSError: the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return [(key, value, timestamp) for key, value, timestamp, _ in _parse(_read(descriptor))]
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> bytes:
    """Return the used part of a file, which is empty if nothing was written yet."""
    head = os.pread(descriptor, _USED.size, 0)
    if not head:
        return b""  # created, but not written yet
    used = _USED.unpack(head)[0] if len(head) == _USED.size else -1
    if used == 0:
        return b""
    if not _FIRST <= used <= MAX_BYTES:
        raise CorruptFileError(f"header: expected a size from {_FIRST} to {MAX_BYTES}, got {used}")
    data = os.pread(descriptor, used, 0)
    if len(data) < used:
        raise CorruptFileError(f"content: expected {used} bytes, got {len(data)}")
    return data


def _parse(data: bytes) -> list[tuple[str, float, float, int]]:
    """Return the keys, values, timestamps and positions of the values in a file's used part."""
    entries = []
    position, used = _FIRST, len(data)
    try:
        while position < used:
            (length,) = _LENGTH.unpack_from(data, position)
            start = position + _LENGTH.size
            position = start + length + _padding(length)
            if length <= 0 or position + _VALUE.size > used:
                raise CorruptFileError(f"key at {start}: expected it to end within {used} bytes, got {length} bytes")
            key = data[start : start + length].decode()
            parse_key(key)
            entries.append((key, *_VALUE.unpack_from(data, position), position))
            position += _VALUE.size
    except (struct.error, UnicodeDecodeError) as error:
        raise CorruptFileError(f"content: expected keys and values, got other data ({error})") from None
    return entries


def _padding(length: int) -> int:
    return 8 - (length + _LENGTH.size) % 8


@functools.lru_cache(maxsize=16_384)
def parse_key(key: str) -> tuple[str, str, tuple[tuple[str, str], ...], str]:
    """Return the metric name, the sample name, the labels and the help text of a key.

    Raises:
        CorruptFileError: the key is not in the library's format.
    """
    try:
        metric, sample, labels, text = orjson.loads(key)
        items = tuple(sorted(labels.items()))
    except (ValueError, TypeError, AttributeError):
        raise CorruptFileError("key: expected one written by prometheus_client, got other data") from None
    if not all(isinstance(part, str) for part in (metric, sample, text, *labels.values())):
        raise CorruptFileError("key: expected strings, got other types")
    return metric, sample, items, text


class ValueFile:
    """A file that is open for writing: a new one, or one that an earlier process of the slot has left.

    Attributes:
        numbers: the content as 8-byte numbers; a timestamp follows each value.
        changed: indexes of the values in `numbers` that `flush` has to write.

    Raises:
        OSError: the file cannot be opened or allocated.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = _open(path)
        self.changed: list[int] = []
        try:
            self._indexes = self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> dict[str, int]:
        try:
            data = _read(self._descriptor)
            entries = _parse(data)
        except CorruptFileError as error:
            log.error("Metrics file %s is corrupt and was reset: %s", self._path, error)  # noqa: TRY400 - not a bug
            os.ftruncate(self._descriptor, 0)
            data, entries = b"", []
        self._used = max(len(data), _FIRST)
        self._reserve(max(INITIAL_BYTES, os.fstat(self._descriptor).st_size), data)
        self._bytes[: _USED.size] = self._head()
        os.pwrite(self._descriptor, self._bytes[:_FIRST], 0)
        return {key: position // _NUMBER_BYTES for key, _, _, position in entries}

    def _reserve(self, capacity: int, content: bytes | memoryview) -> None:
        """Allocate space for `capacity` bytes in the file and in memory."""
        _allocate(self._descriptor, capacity)
        self._bytes = memoryview(bytearray(-(-capacity // _NUMBER_BYTES) * _NUMBER_BYTES))
        self._bytes[: len(content)] = content
        self.numbers = self._bytes.cast("d")
        self._capacity = capacity

    def _head(self) -> bytes:
        return _USED.pack(self._used)

    def find(self, key: str) -> int:
        """Return the index of the value of a key, which is added with the value 0 if it is new.

        Raises:
            OSError: the file has no room for another value, or is damaged.
        """
        found = self._indexes.get(key)
        return self._add(key) if found is None else found

    def flush(self) -> None:
        """Write the changed values, with their timestamps.

        Raises:
            OSError: the file cannot be written.
        """
        changed = sorted(self.changed)
        self.changed.clear()
        start = last = changed[0]
        for index in changed:
            if index > last + _MAX_GAP:
                self._write(start, last)
                start = index
            last = index
        self._write(start, last)

    def _write(self, start: int, last: int) -> None:
        position = start * _NUMBER_BYTES
        os.pwrite(self._descriptor, self._bytes[position : last * _NUMBER_BYTES + _VALUE.size], position)

    def is_intact(self) -> bool:
        """Return whether the file still exists under its name, with its full size and its header."""
        try:
            named, opened = self._path.stat(), os.fstat(self._descriptor)
            head = os.pread(self._descriptor, _USED.size, 0)
        except OSError:
            return False
        is_same = (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
        return is_same and opened.st_size >= self._capacity and head == self._head()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _add(self, key: str) -> int:
        if os.pread(self._descriptor, _USED.size, 0) != self._head():
            raise OSError(errno.EIO, "the file was changed by another program")
        encoded = key.encode()
        padded = encoded + b" " * _padding(len(encoded))
        entry = _LENGTH.pack(len(encoded)) + padded + _VALUE.pack(0.0, 0.0)
        used, end = self._used, self._used + len(entry)
        if end > self._capacity:
            capacity = self._capacity
            while end > capacity:
                capacity *= 2
            self._reserve(capacity, self._bytes[:used])
        self._bytes[used:end] = entry
        os.pwrite(self._descriptor, entry, used)
        # Last, so that a scrape never reads half an entry.
        os.pwrite(self._descriptor, _USED.pack(end), 0)
        self._used = end
        index = self._indexes[key] = (end - _VALUE.size) // _NUMBER_BYTES
        return index


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o644)
    except FileNotFoundError:  # cleaners of the temporary directory remove old entries
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o644)


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    elif os.fstat(descriptor).st_size < size:  # macOS
        os.ftruncate(descriptor, size)


class ValueStore:
    """All values of this process, in the files of its slot.

    The slot that ``identity`` returns changes once in a forked process, which then writes its own files.
    """

    def __init__(self, directory: Path, identity: Callable[[], str]) -> None:
        self.directory = directory
        # Worker threads write counters too.
        self.lock = threading.RLock()
        self._get_identity = identity
        self._identity = identity()
        self._files: dict[str, ValueFile] = {}
        self._values: list[StoredValue] = []
        self.is_failing = False  # some values are only in memory, because they could not be written
        self._error_lines = LogLimit(LOG_PAUSE_S)

    def add(self, value: StoredValue) -> None:
        """Add a new value to its file."""
        with self.lock:
            self.follow_fork()
            self._values.append(value)
            if not self.is_failing:
                self._attach([value])

    def record(self, observations: Iterable[tuple[Series, float]]) -> None:
        """Observe amounts in histograms and add them to counters and gauges, then write all changed values."""
        with self.lock:
            self.follow_fork()
            for (bounds, stored), amount in observations:
                if bounds:
                    stored[-1].add(amount)
                    stored[bisect_left(bounds, amount)].add(1.0)
                else:
                    stored[0].add(amount)
            self.flush()

    def flush(self) -> None:
        """Write the changed values to their files; keep those in memory that cannot be written."""
        for file in self._files.values():
            if file.changed:
                try:
                    file.flush()
                except OSError as error:
                    self._detach(file)
                    self.fail(error)

    def _detach(self, file: ValueFile) -> None:
        for value in self._values:
            if value.file is file:
                value.detach()

    def follow_fork(self) -> None:
        """Open the files of the new slot if the process was forked."""
        if self._identity != self._get_identity():
            self._identity, self._error_lines = self._get_identity(), LogLimit(LOG_PAUSE_S)
            for value in self._values:
                value.reset()
            self._rebuild()

    def maintain(self) -> None:
        """Write the values that could not be written before, and recreate files that were removed or damaged.

        Called about once a second.
        """
        with self.lock:
            self.follow_fork()
            if not self.is_failing and all(file.is_intact() for file in self._files.values()):
                return
            was_failing = self.is_failing
            self._rebuild()
            if was_failing and not self.is_failing:
                log.info("Metrics of %s are written again", self._identity)

    def fail(self, error: OSError) -> None:
        """Record that a value could not be written, and log it at a limited rate."""
        self.is_failing = True
        if self._error_lines.is_due():
            log.error(
                "Metrics of %s cannot be written to %s: %s; they are kept in memory, retrying every second",
                self._identity,
                self.directory,
                error.strerror or error,
            )

    def close(self) -> None:
        """Close all files and remove all values."""
        with self.lock:
            self._values.clear()
            self._close_files()

    def _rebuild(self) -> None:
        for value in self._values:
            value.detach()
        self._close_files()
        self.is_failing = False
        self._attach(self._values)

    def _attach(self, added: Iterable[StoredValue]) -> None:
        try:
            for value in added:
                value.attach(self._file(value.prefix))
        except OSError as error:
            self.fail(error)
        self.flush()

    def _file(self, prefix: str) -> ValueFile:
        if prefix not in self._files:
            self._files[prefix] = ValueFile(self.directory / f"{prefix}_{self._identity}.db")
        return self._files[prefix]

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


class StoredValue:
    """A value with the interface that prometheus_client expects: in a file if possible, otherwise only in memory."""

    __slots__ = ("_index", "_is_live", "_is_loaded", "_key", "_store", "_timestamp", "_value", "file", "prefix")
    _multiprocess = True

    def __init__(self, store: ValueStore, kind: str, key: str, mode: str) -> None:
        self.prefix = f"{kind}_{mode}" if kind == "gauge" else kind
        self.file: ValueFile | None = None  # None while the value is only in memory
        self._index = 0  # in the file
        self._value = self._timestamp = 0.0  # while the value is only in memory
        self._store = store
        self._key = key
        self._is_live = mode.startswith("live")
        self._is_loaded = False
        store.add(self)

    def reset(self) -> None:
        """Restart at 0, to which `attach` adds the value of an earlier process of the slot."""
        self.file = None
        self._value = self._timestamp = 0.0
        self._is_loaded = False

    def attach(self, file: ValueFile) -> None:
        """Find the value in a file, to which the store writes it from now on.

        Raises:
            OSError: the file has no room for the value.
        """
        index = file.find(self._key)
        if not self._is_loaded and not self._is_live:  # the live gauge of a dead process does not count
            self._value += file.numbers[index]
        self._is_loaded = True
        self.file, self._index = file, index
        self._replace(self._value, self._timestamp)

    def detach(self) -> None:
        """Keep the value in memory until it is attached again."""
        if self.file is not None:
            self._value, self._timestamp = self.file.numbers[self._index : self._index + 2]
            self.file = None

    def _replace(self, value: float, timestamp: float) -> None:
        if self.file is None:
            self._value, self._timestamp = value, timestamp
        else:
            self.file.numbers[self._index], self.file.numbers[self._index + 1] = value, timestamp
            self.file.changed.append(self._index)

    def add(self, amount: float) -> None:
        """Add to the value, which `ValueStore.flush` writes; the caller holds the lock."""
        file = self.file
        if file is None:
            self._value += amount
        else:
            file.numbers[self._index] += amount
            file.changed.append(self._index)

    def inc(self, amount: float) -> None:
        """Add to the value."""
        with self._store.lock:
            self._store.follow_fork()
            self.add(amount)
            self._store.flush()

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Replace the value."""
        with self._store.lock:
            self._store.follow_fork()
            self._is_loaded = True
            self._replace(value, timestamp or 0.0)
            self._store.flush()

    def get(self) -> float:
        """Return the value."""
        with self._store.lock:
            self._store.follow_fork()
            return self._value if self.file is None else self.file.numbers[self._index]

    def set_exemplar(self, exemplar: object) -> None:
        """Do nothing, because the file format has no exemplars."""

    def get_exemplar(self) -> None:
        """Return None, because the file format has no exemplars."""


class Series(NamedTuple):
    """The stored values of a metric without labels, or of the child for one set of label values.

    Attributes:
        bounds: upper bounds of the buckets of a histogram; empty for a counter or a gauge.
        stored: the value, or for a histogram those of the buckets and then the sum.
    """

    bounds: Sequence[float]
    stored: Sequence[StoredValue]


def series_of(metric: Any) -> Series:
    """Return the stored values of a metric without labels, or of a child."""
    if isinstance(metric, Histogram):  # added to as in Histogram.observe
        return Series(tuple(metric._upper_bounds), (*metric._buckets, metric._sum))  # noqa: SLF001
    return Series((), (metric._value,))  # noqa: SLF001 - added to as in Counter.inc and Gauge.inc


def use_store(store: ValueStore) -> None:
    """Make prometheus_client create its values in a store."""

    def make(
        typ: str,
        metric_name: str,
        name: str,
        labelnames: list[str],
        labelvalues: list[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> StoredValue:
        key = mmap_key(metric_name, name, labelnames, labelvalues, help_text)
        return StoredValue(store, typ, key, multiprocess_mode)

    values.ValueClass = make


def merge_metrics(files: Iterable[tuple[re.Match[str], Iterable[tuple[str, float, float]]]]) -> Iterable[Metric]:
    """Merge the values of all processes, as the library's own collector does.

    For each file, there is its name matched by `FILE_NAME`, and its content as `read_file` returns it.
    """
    metrics: dict[str, Metric] = {}
    for name, content in files:
        kind = name["kind"] or "gauge"
        slot = (("pid", name["slot"]),) if kind == "gauge" else ()
        for key, value, timestamp in content:
            metric_name, sample, labels, text = parse_key(key)
            metric = metrics.get(metric_name)
            if metric is None:
                metric = metrics[metric_name] = Metric(metric_name, text, kind)
            if kind == "gauge":
                metric._multiprocess_mode = name["mode"]  # type: ignore[attr-defined]  # noqa: SLF001 - as the library does
            metric.add_sample(sample, labels + slot, value, timestamp if slot else None)  # type: ignore[arg-type]
    return MultiProcessCollector._accumulate_metrics(metrics, accumulate=True)  # type: ignore[no-any-return]  # noqa: SLF001
