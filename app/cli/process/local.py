"""A pool of processes of our own: the standard library's ends, or waits for ever, when one of its processes is killed.

Each process is sent some photos at a time, notes in shared memory which one it works on, and tells of several at once
where they are quick: a message each would cost as much as a small photo. Where a process dies, another takes its place,
and the photo that it worked on is tried again; the second time it counts as failed. Processes end with their pipe,
whatever happens to this one.
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
from app.cli.process.outputs import remove_parts
from app.runtime.allocator import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ctypes import c_int64
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext
    from multiprocessing.process import BaseProcess

    from app.cli.process.jobs import Job, Recipe
    from app.cli.process.stop import Stop

AHEAD, AHEAD_MAX = 2, 64
AHEAD_S: Final = 0.1
"""A process holds work for about so long, but for a photo in work and one more at least."""
TOLD_S: Final = 0.025
"""Less than this passes between a photo's end and its being told of, unless another takes longer."""
TRIES: Final = 2
BOOTS: Final = 3
TICK_S: Final = 0.2
READY: Final = "ready"
WORK: Final = "app.cli.process.work"
END_S: Final = 5.0


def start_server() -> None:
    """Start the process that others are forked from, which takes a while: before it is needed.

    Harmless where it runs already. It and they take no part in what a terminal sends to all of us: how to stop is
    decided here.
    """
    _context().set_forkserver_preload([WORK])
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _context() -> ForkServerContext:
    return multiprocessing.get_context("forkserver")


def work(pipe: Connection, recipe: Recipe, current: c_int64) -> None:
    """Do photos until the pipe ends; runs in a process of its own."""
    # Imported here, where it is loaded already: the process that hands out the work has no use for it.
    from app.cli.process.work import LocalWork, attempt  # noqa: PLC0415

    # What is loaded by now stays; to look through it again and again would take a tenth of the time.
    gc.freeze()
    keep_freed_memory()
    here = LocalWork(recipe)
    outcomes: list[Outcome] = []
    with suppress(EOFError, OSError):
        pipe.send(outcomes)  # it has begun
        while True:
            told = time.monotonic()
            for job in pipe.recv():
                current.value = job.number
                outcomes.append(attempt(job, here.do))
                if time.monotonic() - told > TOLD_S:
                    pipe.send(outcomes)
                    outcomes, told = [], time.monotonic()
            if outcomes:
                pipe.send(outcomes)
                outcomes = []


@contextmanager
def _hidden_script() -> Iterator[None]:
    """Keep the standard library from running the command's script again in each process, which needs nothing of it."""
    main = vars(sys.modules["__main__"])
    script = main.pop("__file__", None)
    try:
        yield
    finally:
        if script is not None:
            main["__file__"] = script


class _Worker:
    """A process and what it has been sent."""

    def __init__(self, recipe: Recipe) -> None:
        self.pipe, theirs = connection.Pipe()
        # One word, written by one process: it needs no lock.
        self.current = sharedctypes.RawValue(ctypes.c_int64, -1)
        arguments = theirs, recipe, self.current
        self.process: BaseProcess = _context().Process(target=work, args=arguments, daemon=True)
        try:
            with _hidden_script():
                self.process.start()
        except (EOFError, OSError) as error:
            raise RunError(f"no process can be started: {str(error) or type(error).__name__}") from None
        theirs.close()
        self.is_ready = False
        self.held: deque[Job] = deque()


class LocalPool:
    """Does photos on several processes.

    Args:
        recipe: how.
        size: on how many.
    """

    def __init__(self, recipe: Recipe, size: int) -> None:
        self._recipe = recipe
        self._size = size
        self._workers: list[_Worker] = []
        self._again: deque[Job] = deque()
        self._deaths: dict[int, int] = {}
        self._failed_boots = 0
        self._ready = selectors.DefaultSelector()
        self._mean_s = AHEAD_S

    def run(self, jobs: Iterator[Job], stop: Stop) -> Iterator[Outcome]:
        """Do jobs, in any order, until there are no more or it is to stop; then those that were begun.

        Raises:
            RunError: processes end before they have begun.
        """
        try:
            while True:
                self._hand_out(jobs, is_stopping=stop.is_set())
                if not any(worker.held for worker in self._workers):
                    return
                for key, _ in self._ready.select(TICK_S):
                    yield from self._hear(key.data)
        finally:
            self._end()

    def _hand_out(self, jobs: Iterator[Job], *, is_stopping: bool) -> None:
        """Send photos to those that have few, in turn, so that the last ones are spread over all."""
        if is_stopping:
            self._again.clear()
            return
        ahead = max(AHEAD, min(AHEAD_MAX, round(AHEAD_S / self._mean_s)))
        batches: dict[_Worker, list[Job]] = {}
        while len(self._workers) < self._size and (job := self._next(jobs)):
            batches[self._start()] = [job]
        hungry = deque(worker for worker in self._workers if len(worker.held) <= ahead // 2)
        while hungry and (job := self._next(jobs)):
            worker = hungry.popleft()
            batches.setdefault(worker, []).append(job)
            if len(worker.held) + len(batches[worker]) < ahead:
                hungry.append(worker)
        for worker, batch in batches.items():
            worker.held.extend(batch)
            with suppress(OSError):  # it has died, which will be heard
                worker.pipe.send(batch)

    def _next(self, jobs: Iterator[Job]) -> Job | None:
        return self._again.popleft() if self._again else next(jobs, None)

    def _start(self) -> _Worker:
        worker = _Worker(self._recipe)
        self._workers.append(worker)
        self._ready.register(worker.pipe, selectors.EVENT_READ, worker)
        return worker

    def _hear(self, worker: _Worker) -> Iterator[Outcome]:
        try:
            outcomes: list[Outcome] = worker.pipe.recv()
        except (EOFError, OSError):
            yield from self._bury(worker)
            return
        worker.is_ready = True
        self._failed_boots = 0
        for outcome in outcomes:
            worker.held.popleft()
            self._mean_s += (outcome.seconds - self._mean_s) / 16
            yield outcome

    def _bury(self, worker: _Worker) -> Iterator[Outcome]:
        """Give what a dead process held to others; the photo it worked on may be what it died of."""
        self._workers.remove(worker)
        self._ready.unregister(worker.pipe)
        worker.process.join(END_S)
        worker.pipe.close()
        _sweep(worker)
        end = tell_end(worker.process.exitcode)
        if not worker.is_ready:
            self._failed_boots += 1
            if self._failed_boots == BOOTS:
                raise RunError(f"processes end before they have begun, {end}")
        job = next((job for job in worker.held if job.number == worker.current.value), None)
        if job is not None:
            self._deaths[job.number] = deaths = self._deaths.get(job.number, 0) + 1
            if deaths == TRIES:
                worker.held.remove(job)
                yield Outcome(job.number, 0.0, "process_died", f"the process that worked on it died twice, {end}")
        self._again.extendleft(reversed(worker.held))

    def _end(self) -> None:
        for worker in self._workers:
            worker.pipe.close()  # which ends it, unless it works
        for worker in self._workers:
            if not worker.held:
                worker.process.join(END_S)
            worker.process.kill()  # it is deaf to anything less; harmless where it has ended
            worker.process.join()
            _sweep(worker)
        self._workers.clear()
        self._ready.close()


def _sweep(worker: _Worker) -> None:
    remove_parts((result for job in worker.held for result in job.results), worker.process.pid or 0)


def tell_end(code: int | None) -> str:
    """Say how a process ended.

    Example:
        >>> tell_end(-9)
        'killed by SIGKILL, as for want of memory'
    """
    if code is None or code >= 0:
        return f"with exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"killed by {name}{', as for want of memory' if -code == signal.SIGKILL else ''}"
