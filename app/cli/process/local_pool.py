"""Process images on several worker processes.

The pools of the standard library fail, or wait forever, when a worker is killed. This one starts a replacement and
retries the image that the worker was processing; an image that kills two workers fails. Each worker publishes the
number of its current job in shared memory.

Jobs and outcomes travel in batches, because a message each would cost as much as a small image. A worker ends when its
pipe is closed, and therefore with the parent process, even if that is killed.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import selectors
import signal
import sys
import time
from collections import deque
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver, resource_tracker, sharedctypes
from typing import TYPE_CHECKING, Final

from app.cli.process.jobs import Outcome, RunError
from app.cli.process.outputs import remove_temporary_files
from app.supervisor.processes import describe_exit, keep_freed_memory

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from ctypes import c_int64
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from app.cli.process.jobs import Job, JobConfig

BATCH_MIN, BATCH_MAX = 2, 64
BATCH_S: Final = 0.1
"""Target processing time of the jobs that a worker holds, with limits for their number."""
FLUSH_S: Final = 0.025
"""Time after which a worker sends its outcomes, even if its batch is not finished."""
MAX_ATTEMPTS: Final = 2
MAX_FAILED_STARTS: Final = 3
POLL_S: Final = 0.2
JOIN_TIMEOUT_S: Final = 5.0

_context = multiprocessing.get_context("forkserver")


def start_fork_server() -> None:
    """Start the process that workers are forked from, unless it runs already.

    It loads the image libraries, so call this early. The fork server and the workers ignore the signals that a terminal
    sends to the whole process group, because the parent decides how to stop.
    """
    _context.set_forkserver_preload(["app.cli.process.processor"])
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_worker(pipe: Connection, config: JobConfig, current: c_int64) -> None:
    """Process jobs until the pipe is closed; the entry point of a worker."""
    # Import lazily: the fork server has already loaded the processor, and the parent does not need it.
    from app.cli.process.processor import LocalProcessor, run_job  # noqa: PLC0415

    # Loaded modules stay in memory. If each collection scanned them, processing would take 10 % longer.
    gc.freeze()
    keep_freed_memory()
    processor = LocalProcessor(config)
    outcomes: list[Outcome] = []
    with suppress(EOFError, OSError):
        pipe.send(outcomes)  # An empty message reports that the worker is ready.
        while True:
            sent = time.monotonic()
            for job in pipe.recv():
                current.value = job.number
                outcomes.append(run_job(job, processor.process))
                if time.monotonic() - sent > FLUSH_S:
                    pipe.send(outcomes)
                    outcomes, sent = [], time.monotonic()
            if outcomes:
                pipe.send(outcomes)
                outcomes = []


@contextmanager
def _hidden_main_script() -> Iterator[None]:
    """Prevent multiprocessing from running the script of the main module again in each worker."""
    main = vars(sys.modules["__main__"])
    script = main.pop("__file__", None)
    try:
        yield
    finally:
        if script is not None:
            main["__file__"] = script


class _Worker:
    """A worker process and the jobs that it holds."""

    def __init__(self, config: JobConfig) -> None:
        self.pipe, remote_end = connection.Pipe()
        # No lock is necessary, because only the worker writes this word.
        self.current = sharedctypes.RawValue(ctypes.c_int64, -1)
        arguments = remote_end, config, self.current
        self.process: BaseProcess = _context.Process(target=_run_worker, args=arguments, daemon=True)
        try:
            with _hidden_main_script():
                self.process.start()
        except (EOFError, OSError) as error:
            raise RunError(f"cannot start a worker process: {str(error) or type(error).__name__}") from None
        remote_end.close()
        self.is_ready = False
        self.jobs: deque[Job] = deque()

    def remove_temporary_files(self) -> None:
        """Remove what the dead worker left in the folders of its results."""
        remove_temporary_files((result for job in self.jobs for result in job.results), self.process.pid or 0)


class LocalPool:
    """Processes jobs on worker processes."""

    def __init__(self, config: JobConfig, size: int) -> None:
        self._config = config
        self._size = size
        self._workers: list[_Worker] = []
        self._retries: deque[Job] = deque()
        self._crashes: dict[int, int] = {}
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()
        self._mean_s = BATCH_S

    def run(self, jobs: Iterator[Job], stop: threading.Event) -> Iterator[Outcome]:
        """Process jobs in any order; after a stop, finish only those that workers hold.

        Raises:
            RunError: workers cannot start.
        """
        try:
            while True:
                self._dispatch(jobs, is_stopping=stop.is_set())
                if not any(worker.jobs for worker in self._workers):
                    return
                for key, _ in self._selector.select(POLL_S):
                    yield from self._receive(key.data)
        finally:
            self._close()

    def _dispatch(self, jobs: Iterator[Job], *, is_stopping: bool) -> None:
        """Refill the workers in turn, so that the last jobs are spread over all of them."""
        if is_stopping:
            self._retries.clear()
            return
        size = max(BATCH_MIN, min(BATCH_MAX, round(BATCH_S / self._mean_s)))
        batches: dict[_Worker, list[Job]] = {}
        while len(self._workers) < self._size and (job := self._next(jobs)):
            batches[self._start()] = [job]
        available = deque(worker for worker in self._workers if len(worker.jobs) <= size // 2)
        while available and (job := self._next(jobs)):
            worker = available.popleft()
            batches.setdefault(worker, []).append(job)
            if len(worker.jobs) + len(batches[worker]) < size:
                available.append(worker)
        for worker, batch in batches.items():
            worker.jobs.extend(batch)
            with suppress(OSError):  # The worker is dead; `_receive` handles it.
                worker.pipe.send(batch)

    def _next(self, jobs: Iterator[Job]) -> Job | None:
        return self._retries.popleft() if self._retries else next(jobs, None)

    def _start(self) -> _Worker:
        worker = _Worker(self._config)
        self._workers.append(worker)
        self._selector.register(worker.pipe, selectors.EVENT_READ, worker)
        return worker

    def _receive(self, worker: _Worker) -> Iterator[Outcome]:
        try:
            outcomes: list[Outcome] = worker.pipe.recv()
        except (EOFError, OSError):
            yield from self._handle_death(worker)
            return
        worker.is_ready = True
        self._failed_starts = 0
        for outcome in outcomes:
            worker.jobs.popleft()
            self._mean_s += (outcome.seconds - self._mean_s) / 16
            yield outcome

    def _handle_death(self, worker: _Worker) -> Iterator[Outcome]:
        """Retry the jobs of a dead worker, except for one that killed a worker before."""
        self._workers.remove(worker)
        self._selector.unregister(worker.pipe)
        worker.process.join(JOIN_TIMEOUT_S)
        worker.pipe.close()
        worker.remove_temporary_files()
        exit_text = describe_exit(worker.process.exitcode)
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts == MAX_FAILED_STARTS:
                raise RunError(f"worker processes exit during startup: {exit_text}")
        job = next((job for job in worker.jobs if job.number == worker.current.value), None)
        if job is not None:
            self._crashes[job.number] = crashes = self._crashes.get(job.number, 0) + 1
            if crashes == MAX_ATTEMPTS:
                worker.jobs.remove(job)
                reason = f"worker process exited twice while it processed the image: {exit_text}"
                yield Outcome(job.number, 0.0, "process_died", reason)
        self._retries.extendleft(reversed(worker.jobs))

    def _close(self) -> None:
        for worker in self._workers:
            worker.pipe.close()  # An idle worker ends when its pipe is closed.
        for worker in self._workers:
            if not worker.jobs:
                worker.process.join(JOIN_TIMEOUT_S)
            worker.process.kill()  # A busy one ignores SIGINT and SIGTERM.
            worker.process.join()
            worker.remove_temporary_files()
        self._workers.clear()
        self._selector.close()
