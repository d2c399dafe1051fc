"""The files that processes write their metric values into, in prometheus_client's format.

The library maps its files into memory. A write into a block that is not allocated, because the file system is full or
the file was truncated, then ends the process with SIGBUS. Here a file is allocated in full when it is made and when it
grows, and is written with ``pwrite``, which reports an error instead.

What this module and `value_store` rely on of the library is listed in `tests/observability/test_value_files.py`.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import struct
from typing import TYPE_CHECKING, Final

import orjson

from app.observability.rich_logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = get_logger("server")

# kind, how a gauge is merged across processes, and the slot that writes the file
FILE_NAME: Final = re.compile(r"(?:(?P<kind>counter|histogram|summary)|gauge_(?P<mode>[a-z]+))_(?P<slot>[^_/]+)\.db")
INITIAL_BYTES: Final = 1 << 16
MAX_BYTES: Final = 1 << 26  # a file that claims more is not one of ours

_USED = struct.Struct("=i")
_LENGTH = struct.Struct("=i")
_VALUE = struct.Struct("=dd")  # value, timestamp
_FIRST = 8


class CorruptFileError(ValueError):
    """A file does not hold values in the library's format."""


def read_file(path: str | Path) -> list[tuple[str, float, float]]:
    """Return the keys, values and timestamps of a file.

    Raises:
        CorruptFileError: the content is not what a process writes.
        OSError: the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return [(key, value, timestamp) for key, value, timestamp, _ in _read(descriptor)]
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> list[tuple[str, float, float, int]]:
    head = os.pread(descriptor, _USED.size, 0)
    if not head:
        return []  # made, and not written yet
    used = _USED.unpack(head)[0] if len(head) == _USED.size else -1
    if used == 0:
        return []
    if not _FIRST <= used <= MAX_BYTES:
        raise CorruptFileError(f"expected a size from {_FIRST} to {MAX_BYTES} in the header, got {used}")
    data = os.pread(descriptor, used, 0)
    if len(data) < used:
        raise CorruptFileError(f"expected {used} bytes, got {len(data)}")
    try:
        return list(_parse(data))
    except (struct.error, UnicodeDecodeError) as error:
        raise CorruptFileError(f"expected values, got something else: {error}") from None


def _parse(data: bytes) -> Iterator[tuple[str, float, float, int]]:
    position, used = _FIRST, len(data)
    while position < used:
        (length,) = _LENGTH.unpack_from(data, position)
        start = position + _LENGTH.size
        position = start + length + _padding(length)
        if length <= 0 or position + _VALUE.size > used:
            raise CorruptFileError(f"expected a key within {used} bytes at {start}, got one of {length} bytes")
        key = data[start : start + length].decode()
        parse_key(key)
        value, timestamp = _VALUE.unpack_from(data, position)
        yield key, value, timestamp, position
        position += _VALUE.size


def _padding(length: int) -> int:
    return 8 - (length + _LENGTH.size) % 8


@functools.lru_cache(maxsize=16_384)
def parse_key(key: str) -> tuple[str, str, tuple[tuple[str, str], ...], str]:
    """Return the metric's name, the sample's name, its labels and the help text of a key.

    Raises:
        CorruptFileError: the key is not one that the library makes.
    """
    try:
        metric, sample, labels, text = orjson.loads(key)
        items = tuple(sorted(labels.items()))
    except (ValueError, TypeError, AttributeError):
        raise CorruptFileError("expected a key of prometheus_client, got something else") from None
    if not all(isinstance(part, str) for part in (metric, sample, text, *labels.values())):
        raise CorruptFileError("expected texts in a key, got something else")
    return metric, sample, items, text


class ValueFile:
    """One file, open for writing.

    Args:
        path: a new file, or one that an earlier process of the slot has left.

    Raises:
        OSError: the file cannot be opened or allocated.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = _open(path)
        try:
            self._positions = self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> dict[str, tuple[int, float]]:
        try:
            entries = _read(self._descriptor)
        except CorruptFileError as error:
            log.error("Metrics file %s is corrupt and starts again: %s", self._path, error)  # noqa: TRY400 - no fault of ours
            os.ftruncate(self._descriptor, 0)
            entries = []
        self._capacity = max(INITIAL_BYTES, os.fstat(self._descriptor).st_size)
        _allocate(self._descriptor, self._capacity)
        self._used = max((position + _VALUE.size for *_, position in entries), default=_FIRST)
        os.pwrite(self._descriptor, _USED.pack(self._used), 0)
        return {key: (position, value) for key, value, _, position in entries}

    def find(self, key: str) -> tuple[int, float]:
        """Return where a value is, and what it is; a new one is 0.

        Raises:
            OSError: there is no room for another value, or the file is damaged.
        """
        found = self._positions.get(key)
        return found if found is not None else (self._add(key), 0.0)

    def write(self, position: int, value: float, timestamp: float) -> None:
        """Write a value where `find` has found it.

        Raises:
            OSError: the file system does not take it.
        """
        os.pwrite(self._descriptor, _VALUE.pack(value, timestamp), position)

    def is_intact(self) -> bool:
        """Return whether the file still exists under its name, in full and with its header."""
        try:
            there, here = self._path.stat(), os.fstat(self._descriptor)
            head = os.pread(self._descriptor, _USED.size, 0)
        except OSError:
            return False
        is_same = (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
        return is_same and here.st_size >= self._capacity and head == _USED.pack(self._used)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _add(self, key: str) -> int:
        if os.pread(self._descriptor, _USED.size, 0) != _USED.pack(self._used):
            raise OSError(errno.EIO, "the file was changed by another program")
        encoded = key.encode()
        padded = encoded + b" " * _padding(len(encoded))
        entry = _LENGTH.pack(len(encoded)) + padded + _VALUE.pack(0.0, 0.0)
        capacity = self._capacity
        while self._used + len(entry) > capacity:
            capacity *= 2
        if capacity > self._capacity:
            _allocate(self._descriptor, capacity)
            self._capacity = capacity
        os.pwrite(self._descriptor, entry, self._used)
        self._used += len(entry)
        os.pwrite(self._descriptor, _USED.pack(self._used), 0)  # last, so that a scrape never reads half an entry
        position = self._used - _VALUE.size
        self._positions[key] = (position, 0.0)
        return position


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o644)
    except FileNotFoundError:  # cleaners of temporary folders remove what looks old
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o644)


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    elif os.fstat(descriptor).st_size < size:  # macOS
        os.ftruncate(descriptor, size)
