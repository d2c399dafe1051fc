"""The values of one process, as prometheus_client uses them: in memory, and in files where that is possible.

A value that cannot be written is kept in memory and written later, so that a counter loses nothing while the folder is
full, missing or not writable. Nothing here raises because of the folder.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.mmap_dict import mmap_key

from app.observability.rich_logging import get_logger
from app.observability.value_files import ValueFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = get_logger("server")

LOG_PAUSE_S: Final = 60.0  # at least this long between two error lines of a process about its folder


class ValueStore:
    """All values of this process, in the files of its slot.

    Args:
        directory: folder of the files.
        identity: returns the slot. It changes once in a process that was forked, which then has files of its own.
    """

    def __init__(self, directory: Path, identity: Callable[[], str]) -> None:
        self.directory = directory
        # Counters are written by work threads too.
        self.lock = threading.RLock()
        self._get_identity = identity
        self._identity = identity()
        self._files: dict[str, ValueFile] = {}
        self._values: list[StoredValue] = []
        self._is_failing = False
        self._next_line = 0.0

    @property
    def is_failing(self) -> bool:
        """Whether some values are in memory alone, because they could not be written."""
        return self._is_failing

    def add(self, value: StoredValue) -> None:
        """Give a new value its place in a file."""
        with self.lock:
            self.follow_fork()
            self._values.append(value)
            if not self._is_failing:
                self._attach(value)

    def follow_fork(self) -> None:
        """Begin files of its own in a process that was forked."""
        if self._identity != self._get_identity():
            self._identity, self._next_line = self._get_identity(), 0.0
            for value in self._values:
                value.forget()
            self._rebuild()

    def maintain(self) -> None:
        """Write what could not be written before, and make files again that were removed or damaged.

        Called about once a second.
        """
        with self.lock:
            self.follow_fork()
            if not self._is_failing and all(file.is_intact() for file in self._files.values()):
                return
            was_failing = self._is_failing
            self._rebuild()
            if was_failing and not self._is_failing:
                log.info("Metrics of %s are written again", self._identity)

    def fail(self, error: OSError) -> None:
        """Note that a value could not be written."""
        self._is_failing = True
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LOG_PAUSE_S
            log.error(
                "Metrics of %s cannot be written to %s: %s; requests are served, and the next attempt is in a second",
                self._identity,
                self.directory,
                error.strerror or error,
            )

    def close(self) -> None:
        """Close all files and forget all values."""
        with self.lock:
            self._values.clear()
            self._close_files()

    def _rebuild(self) -> None:
        self._close_files()
        self._is_failing = False
        for value in self._values:
            value.detach()
        for value in self._values:
            self._attach(value)
            if self._is_failing:
                break

    def _attach(self, value: StoredValue) -> None:
        try:
            value.attach(self._file(value.prefix))
        except OSError as error:
            self.fail(error)

    def _file(self, prefix: str) -> ValueFile:
        if prefix not in self._files:
            self._files[prefix] = ValueFile(self.directory / f"{prefix}_{self._identity}.db")
        return self._files[prefix]

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


class StoredValue:
    """A value of one metric, as prometheus_client uses it: kept in memory, and in the file where that is possible.

    Args:
        store: of this process.
        kind: ``counter``, ``gauge``, ``histogram`` or ``summary``.
        key: metric, sample, labels and help text.
        mode: how a gauge is merged.
    """

    _multiprocess = True

    def __init__(self, store: ValueStore, kind: str, key: str, mode: str) -> None:
        self.prefix = f"{kind}_{mode}" if kind == "gauge" else kind
        self._store = store
        self._key = key
        self._is_live = mode.startswith("live")
        self._file: ValueFile | None = None
        self._position = 0
        self._is_loaded = False
        self._value = self._timestamp = 0.0
        store.add(self)

    def forget(self) -> None:
        """Start at 0, or at what an earlier process of the slot has left."""
        self._value = self._timestamp = 0.0
        self._is_loaded = False

    def attach(self, file: ValueFile) -> None:
        """Continue in a file.

        Raises:
            OSError: there is no room in it.
        """
        self._position, before = file.find(self._key)
        if not self._is_loaded and not self._is_live:  # a live gauge of a process that has ended counts nothing
            self._value += before
        self._is_loaded = True
        file.write(self._position, self._value, self._timestamp)
        self._file = file

    def detach(self) -> None:
        """Continue in memory alone."""
        self._file = None

    def inc(self, amount: float) -> None:
        """Add to the value."""
        with self._store.lock:
            self._store.follow_fork()
            self._value += amount
            self._timestamp = 0.0
            self._write()

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Replace the value."""
        with self._store.lock:
            self._store.follow_fork()
            self._value = value
            self._timestamp = timestamp or 0.0
            self._is_loaded = True
            self._write()

    def get(self) -> float:
        """Return the value."""
        with self._store.lock:
            self._store.follow_fork()
            return self._value

    def set_exemplar(self, exemplar: object) -> None:
        """Do nothing: files have no exemplars."""

    def get_exemplar(self) -> None:
        """Return None: files have no exemplars."""

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            self._file.write(self._position, self._value, self._timestamp)
        except OSError as error:
            self.detach()
            self._store.fail(error)


def value_class(store: ValueStore) -> Callable[..., StoredValue]:
    """Return what prometheus_client calls to make a value."""

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

    return make
