"""A page of memory that the master, its workers and the exporter share: who is alive, who drains.

It is made before the first fork and inherited, so it needs no file, no socket and no lock: each process writes only
its own row, and a row is small enough to be read whole.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

_HEADER = struct.Struct("=iid")  # master pid, expected workers, started at; never changed
# Draining, booted, and whether the master cannot write its metrics: one flag each, because they have different writers.
_FLAG = struct.Struct("=i")
_DRAINING, _BOOTED, _MASTER_FAILS = (_HEADER.size + number * _FLAG.size for number in range(3))
_FIRST_ROW = _HEADER.size + 4 * _FLAG.size
_ROW = struct.Struct("=iidi4x")  # pid, state, last beat, whether its metrics cannot be written
_ROWS = 1024
_COMPANION = struct.Struct("=i28s")  # pid, name
_COMPANIONS = 8
_FIRST_COMPANION = _FIRST_ROW + _ROWS * _ROW.size
_SIZE = _FIRST_COMPANION + _COMPANIONS * _COMPANION.size


class State(IntEnum):
    """Where a process is in its life. Zero is a row that nobody has taken."""

    ABSENT = 0
    STARTING = 1
    READY = 2
    DRAINING = 3
    EXHAUSTED = 4  # it cannot open more files, so it accepts no connections


@dataclass(frozen=True, slots=True)
class Row:
    """One worker as the board knows it; ``beat_age_s`` is the time since it last showed a sign of life."""

    slot: int
    name: str
    pid: int
    state: State
    beat_age_s: float


class Board:
    """Health that every process can read.

    Args:
        expected_workers: how many workers have to have booted before the service is ready.
        timeout_s: how old a worker's last sign of life may be.
        worker_name: what workers are called: ``worker-0``, ``worker-1`` and so on.
        beside: the board of a second set of workers, under a master of its own, which is told of beside this one.
    """

    def __init__(
        self, *, expected_workers: int, timeout_s: float, worker_name: str = "worker", beside: Board | None = None
    ) -> None:
        self.beside = beside
        self._memory = mmap.mmap(-1, _SIZE)
        self._expected_workers = expected_workers
        self._timeout_s = timeout_s
        self._worker_name = worker_name
        self.take_over()

    def take_over(self) -> None:
        """Make this process the master, of a board that is as new."""
        self._memory[:] = bytes(_SIZE)
        _HEADER.pack_into(self._memory, 0, os.getpid(), self._expected_workers, time.monotonic())

    @property
    def master_pid(self) -> int:
        """The process that made the board, or took it over."""
        return int(_HEADER.unpack_from(self._memory, 0)[0])

    def worker_name(self, slot: int) -> str:
        """Return what the worker in a slot is called."""
        return f"{self._worker_name}-{slot}"

    @property
    def is_draining(self) -> bool:
        """Whether the master has been told to stop."""
        return self._flag(_DRAINING)

    def drain(self) -> None:
        """Say that the master stops: nobody is ready from here on."""
        _FLAG.pack_into(self._memory, _DRAINING, 1)

    def beat(self, slot: int, state: State, *, is_failing: bool = False) -> None:
        """Write a worker's row: its process id, its state, the time, and whether it cannot write its metrics."""
        _ROW.pack_into(self._memory, self._offset(slot), os.getpid(), state, time.monotonic(), is_failing)

    def note_master(self, *, is_failing: bool) -> None:
        """Note whether the master cannot write its metrics."""
        _FLAG.pack_into(self._memory, _MASTER_FAILS, is_failing)

    def count_metric_failures(self) -> int:
        """Count the processes that cannot write their metrics."""
        rows = (_ROW.unpack_from(self._memory, self._offset(slot)) for slot in range(_ROWS))
        failing = [slot for slot, (_, state, _, fails) in enumerate(rows) if state != State.ABSENT and fails]
        return len(failing) + self._flag(_MASTER_FAILS)

    def state(self, slot: int) -> State:
        """Return what a worker last said of itself."""
        return State(_ROW.unpack_from(self._memory, self._offset(slot))[1])

    def clear(self, slot: int) -> None:
        """Empty the row of a worker that is gone."""
        _ROW.pack_into(self._memory, self._offset(slot), 0, State.ABSENT, 0.0, 0)

    def rows(self) -> list[Row]:
        """List the workers that have a row, by slot."""
        now = time.monotonic()
        rows = []
        for slot in range(_ROWS):
            pid, state, beat, _ = _ROW.unpack_from(self._memory, self._offset(slot))
            if state != State.ABSENT:
                rows.append(Row(slot, self.worker_name(slot), pid, State(state), max(0.0, now - beat)))
        return rows

    def note_companion(self, number: int, name: str, pid: int) -> None:
        """Write down a process that the master keeps beside the workers; 0 where it does not run.

        Args:
            number: its place, below 8.
            name: up to 28 letters.
            pid: its process id.
        """
        _COMPANION.pack_into(self._memory, _FIRST_COMPANION + number * _COMPANION.size, pid, name.encode())

    def companions(self) -> dict[str, int]:
        """Map the names of the companions that run to their process ids."""
        end = _FIRST_COMPANION + _COMPANIONS * _COMPANION.size
        entries = _COMPANION.iter_unpack(self._memory[_FIRST_COMPANION:end])
        return {name.rstrip(b"\0").decode(): pid for pid, name in entries if pid}

    def is_live(self) -> bool:
        """Tell whether some worker showed a sign of life in time; while all still boot, the master counts."""
        if any(row.beat_age_s <= self._timeout_s for row in self.rows()):
            return True
        _, _, started = _HEADER.unpack_from(self._memory, 0)
        return not self._flag(_BOOTED) and time.monotonic() - started <= self._timeout_s

    def is_ready(self) -> bool:
        """Tell whether all workers have booted once, one of them serves now, and the service does not stop."""
        _, expected, _ = _HEADER.unpack_from(self._memory, 0)
        alive = [row.state for row in self.rows() if row.beat_age_s <= self._timeout_s]
        serving = alive.count(State.READY)
        if serving >= expected:
            _FLAG.pack_into(self._memory, _BOOTED, 1)
        # Workers share the listening socket: one that cannot accept closes connections that others would serve.
        return self._flag(_BOOTED) and serving > 0 and State.EXHAUSTED not in alive and not self.is_draining

    def _flag(self, offset: int) -> bool:
        return bool(_FLAG.unpack_from(self._memory, offset)[0])

    @staticmethod
    def _offset(slot: int) -> int:
        if not 0 <= slot < _ROWS:
            raise ValueError(f"slot {slot}: the board has room for 0 to {_ROWS - 1}")
        return _FIRST_ROW + slot * _ROW.size
