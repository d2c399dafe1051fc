"""A pool of processes of our own: the standard library's ends, or waits for ever, when one of its processes is killed.

Each process is sent one photo ahead, so that it need not wait for the next, and answers in turn: the first that it has
not answered is the one that it works on. Where a process dies, another takes its place and that photo is tried again;
the second time it counts as failed. Processes end with their pipe, whatever happens to this one.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import deque
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver, resource_tracker
from typing import TYPE_CHECKING, Final

from app.cli.process.jobs import Outcome, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext
    from multiprocessing.process import BaseProcess

    from app.cli.process.jobs import Job, Recipe
    from app.cli.process.stop import Stop

AHEAD: Final = 2
TRIES: Final = 2
BOOTS: Final = 3
TICK_S: Final = 0.2
READY: Final = "ready"
WORK: Final = "app.cli.process.work"
END_S: Final = 5.0


def start_server() -> None:
    """Start the process that others are forked from, which takes a while, so that it has begun when they are needed.

    It and they take no part in what a terminal sends to all of us: how to stop is decided here.
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


def work(pipe: Connection, recipe: Recipe) -> None:
    """Do photos until the pipe ends; runs in a process of its own."""
    # Imported here, where it is loaded already: the process that hands out the work has no use for it.
    from app.cli.process.work import LocalWork, attempt  # noqa: PLC0415

    here = LocalWork(recipe)
    with suppress(EOFError, OSError):
        pipe.send(READY)
        while True:
            pipe.send(attempt(pipe.recv(), here.do))


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
        self.process: BaseProcess = _context().Process(target=work, args=(theirs, recipe), daemon=True)
        with _hidden_script():
            self.process.start()
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

    def run(self, jobs: Iterator[Job], stop: Stop) -> Iterator[Outcome]:
        """Do jobs, in any order, until there are no more or it is to stop; then those that were begun.

        Raises:
            RunError: processes end before they have begun.
        """
        try:
            while True:
                self._hand_out(jobs, is_stopping=stop.is_set())
                waiting = {worker.pipe: worker for worker in self._workers if worker.held or not worker.is_ready}
                if not any(worker.held for worker in self._workers):
                    return
                for pipe in connection.wait(list(waiting), TICK_S):
                    yield from self._hear(waiting[pipe])  # type: ignore[index]  # it gives back what it was given
        finally:
            self._end()

    def _hand_out(self, jobs: Iterator[Job], *, is_stopping: bool) -> None:
        """Send to those that have least, so that the last photos are spread over all."""
        if is_stopping:
            self._again.clear()
            return
        for depth in range(AHEAD):
            position = 0
            while position < self._size:
                if position < len(self._workers) and len(self._workers[position].held) > depth:
                    position += 1
                    continue
                job = self._again.popleft() if self._again else next(jobs, None)
                if job is None:
                    return
                if position == len(self._workers):
                    self._workers.append(_Worker(self._recipe))
                self._send(self._workers[position], job)
                position += 1

    def _send(self, worker: _Worker, job: Job) -> None:
        worker.held.append(job)
        with suppress(OSError):  # it has died, which will be heard
            worker.pipe.send(job)

    def _hear(self, worker: _Worker) -> Iterator[Outcome]:
        try:
            heard = worker.pipe.recv()
        except (EOFError, OSError):
            yield from self._bury(worker)
            return
        if isinstance(heard, Outcome):
            worker.held.popleft()
            yield heard
            return
        worker.is_ready = True
        self._failed_boots = 0

    def _bury(self, worker: _Worker) -> Iterator[Outcome]:
        """Give what a dead process held to others; the photo it worked on may be what it died of."""
        self._workers.remove(worker)
        worker.process.join(END_S)
        worker.pipe.close()
        if not worker.is_ready:
            self._failed_boots += 1
            if self._failed_boots == BOOTS:
                raise RunError(f"processes end before they have begun, {tell_end(worker.process.exitcode)}")
        elif worker.held:
            job = worker.held[0]
            self._deaths[job.number] = deaths = self._deaths.get(job.number, 0) + 1
            if deaths == TRIES:
                worker.held.popleft()
                end = tell_end(worker.process.exitcode)
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
        self._workers.clear()


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
