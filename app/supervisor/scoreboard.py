"""Worker slots, and the shared memory in which each process reports its health.

The memory is mapped before the first fork and inherited, so it needs no file, no socket and no lock: each process
writes only its own row, and a row is small enough to be read in one piece.
"""

from __future__ import annotations

import heapq
import mmap
import os
import struct
import time

from app.observability.health import InstanceHealth, WorkerState, WorkerStatus
from app.settings import Settings, count_usable_cores

_HEADER = struct.Struct("=iid")  # master pid, expected workers, start time; written only by the master
# Draining, booted, and whether the master cannot write its metrics: separate flags, because their writers differ.
_FLAG = struct.Struct("=i")
_DRAINING, _BOOTED, _MASTER_FAILS = (_HEADER.size + number * _FLAG.size for number in range(3))
_FIRST_ROW = _HEADER.size + 4 * _FLAG.size
_ROW = struct.Struct("=iidi4x")  # pid, state, time of the last heartbeat, whether its metrics cannot be written
_ROWS = 1024
_MANAGED_PROCESS = struct.Struct("=i28s")  # pid, name
_MANAGED_PROCESSES = 8
_FIRST_MANAGED_PROCESS = _FIRST_ROW + _ROWS * _ROW.size
_SIZE = _FIRST_MANAGED_PROCESS + _MANAGED_PROCESSES * _MANAGED_PROCESS.size


class Scoreboard:
    """Health of an instance's processes, readable by all of them.

    The instance is ready once the expected number of workers has booted. Names of workers are like ``worker-0``. The
    instance's task workers have a master and a scoreboard of their own.
    """

    def __init__(
        self,
        *,
        expected_workers: int,
        timeout_s: float,
        worker_name: str = "worker",
        task_scoreboard: Scoreboard | None = None,
    ) -> None:
        self.task_scoreboard = task_scoreboard
        self._memory = mmap.mmap(-1, _SIZE)
        self._expected_workers = expected_workers
        self._timeout_s = timeout_s
        self._worker_name = worker_name
        self.take_over()

    def take_over(self) -> None:
        """Reset the scoreboard and make this process its master."""
        self._memory[:] = bytes(_SIZE)
        _HEADER.pack_into(self._memory, 0, os.getpid(), self._expected_workers, time.monotonic())

    @property
    def master_pid(self) -> int:
        """Process id of the master."""
        return int(_HEADER.unpack_from(self._memory, 0)[0])

    def worker_name(self, slot: int) -> str:
        """Return the name of the worker in a slot."""
        return f"{self._worker_name}-{slot}"

    @property
    def is_draining(self) -> bool:
        """Whether the instance is stopping."""
        return self._flag(_DRAINING)

    def drain(self) -> None:
        """Mark the instance as stopping, which makes it unready."""
        _FLAG.pack_into(self._memory, _DRAINING, 1)

    def heartbeat(self, slot: int, state: WorkerState, *, is_failing: bool = False) -> None:
        """Record a heartbeat of this process, and whether it cannot write its metrics."""
        _ROW.pack_into(self._memory, self._offset(slot), os.getpid(), state, time.monotonic(), is_failing)

    def record_master(self, *, is_failing: bool) -> None:
        """Record whether the master cannot write its metrics."""
        _FLAG.pack_into(self._memory, _MASTER_FAILS, is_failing)

    def count_metric_failures(self) -> int:
        """Count the processes that cannot write their metrics."""
        rows = (_ROW.unpack_from(self._memory, self._offset(slot)) for slot in range(_ROWS))
        failing = [slot for slot, (_, state, _, fails) in enumerate(rows) if state != WorkerState.ABSENT and fails]
        return len(failing) + self._flag(_MASTER_FAILS)

    def state(self, slot: int) -> WorkerState:
        """Return the state that the worker in a slot last reported."""
        return WorkerState(_ROW.unpack_from(self._memory, self._offset(slot))[1])

    def clear(self, slot: int) -> None:
        """Clear the row of a worker that has ended."""
        _ROW.pack_into(self._memory, self._offset(slot), 0, WorkerState.ABSENT, 0.0, 0)

    def workers(self) -> list[WorkerStatus]:
        """List the worker processes, by slot."""
        now = time.monotonic()
        workers = []
        for slot in range(_ROWS):
            pid, state, heartbeat, _ = _ROW.unpack_from(self._memory, self._offset(slot))
            if state != WorkerState.ABSENT:
                age_s = max(0.0, now - heartbeat)
                workers.append(WorkerStatus(slot, self.worker_name(slot), pid, WorkerState(state), age_s))
        return workers

    def record_managed_process(self, number: int, name: str, pid: int) -> None:
        """Record a managed process: index (at most 7), name (at most 28 bytes), and id; 0 if it is not running."""
        offset = _FIRST_MANAGED_PROCESS + number * _MANAGED_PROCESS.size
        _MANAGED_PROCESS.pack_into(self._memory, offset, pid, name.encode())

    def managed_processes(self) -> dict[str, int]:
        """Map the names of the running managed processes to their process ids."""
        entries = _MANAGED_PROCESS.iter_unpack(self._memory[_FIRST_MANAGED_PROCESS:_SIZE])
        return {name.rstrip(b"\0").decode(): pid for pid, name in entries if pid}

    def health(self) -> InstanceHealth:
        """Return the current health; remember if all expected workers have been ready at the same time."""
        workers = self.workers()
        _, expected, started = _HEADER.unpack_from(self._memory, 0)
        ready = [
            worker
            for worker in workers
            if worker.state is WorkerState.READY and worker.heartbeat_age_s <= self._timeout_s
        ]
        if len(ready) >= expected:
            _FLAG.pack_into(self._memory, _BOOTED, 1)
        return InstanceHealth(
            workers=workers,
            task_workers=self.task_scoreboard.workers() if self.task_scoreboard is not None else [],
            heartbeat_timeout_s=self._timeout_s,
            uptime_s=time.monotonic() - started,
            has_booted=self._flag(_BOOTED),
            is_draining=self.is_draining,
        )

    def _flag(self, offset: int) -> bool:
        return bool(_FLAG.unpack_from(self._memory, offset)[0])

    @staticmethod
    def _offset(slot: int) -> int:
        if not 0 <= slot < _ROWS:
            raise ValueError(f"slot: expected 0 to {_ROWS - 1}, got {slot}")
        return _FIRST_ROW + slot * _ROW.size


class SlotPool:
    """Slot numbers, each held by at most one process.

    Example:
        >>> pool = SlotPool()
        >>> pool.acquire(), pool.acquire()
        (0, 1)
        >>> pool.release(0)
        >>> pool.acquire()
        0
    """

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 0

    def acquire(self) -> int:
        """Return the lowest free slot."""
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1

    def release(self, slot: int) -> None:
        """Return a slot to the pool; the caller has removed its live gauges."""
        heapq.heappush(self._free, slot)


def count_task_workers(settings: Settings) -> int:
    """Return the number of task worker processes: ``TASK_WORKERS``, or one per usable core."""
    return settings.task_workers or count_usable_cores()


def make_task_scoreboard(settings: Settings) -> Scoreboard:
    """Create the scoreboard of the task worker processes."""
    expected = count_task_workers(settings)
    return Scoreboard(expected_workers=expected, timeout_s=settings.timeout_s, worker_name="task")
