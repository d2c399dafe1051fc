"""The worker process of tasks: what `app.tasks.worker` does, under gunicorn's care."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import uvloop
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from app.observability import multiprocess
from app.observability.board import State
from app.observability.rich_logging import get_logger
from app.supervisor.slots import SlotWorker
from app.tasks.worker import work

if TYPE_CHECKING:
    from app.supervisor.task_server import TaskApplication

log = get_logger("tasks")

BEAT_S = 1.0
QUICK_STOP_S = 1.0  # what the work gets to give its tasks back where the stop is to be quick


class TaskWorker(SlotWorker, Worker):
    """One process that works on tasks, in one slot.

    Attributes:
        app: the application that gunicorn runs, for its settings.
    """

    app: TaskApplication

    def init_signals(self) -> None:
        """Leave what stops the process to the event loop."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # Ctrl-C reaches the whole foreground group; the process ends when its master says so.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, self.handle_usr1)
        signal.siginterrupt(signal.SIGUSR1, False)

    def run(self) -> None:
        """Work until told to stop."""
        self._state = State.STARTING
        status = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(self._work())
        sys.stderr.flush()
        # A thread that still works on what was given back would be waited for on every other way out.
        os._exit(status)

    async def _work(self) -> int:
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._working = asyncio.create_task(
            work(self.app.settings, stop=self._stop, on_ready=self._note_ready, name=self.slot_name)
        )
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGQUIT, self._stop_at_once)
        while not self._working.done():
            self._beat()
            await asyncio.wait([self._working], timeout=BEAT_S)
        error = None if self._working.cancelled() else self._working.exception()
        if error is None:
            return 0
        log.error("%s cannot work", self.slot_name, exc_info=error)
        # Where it never began it would fail again: the master ends, and whoever started that waits longer each time.
        return Arbiter.WORKER_BOOT_ERROR if self._state is State.STARTING else 1

    def _beat(self) -> None:
        self.notify()
        multiprocess.maintain()
        if os.getppid() != self.board.master_pid:
            self._stop_at_once()
        self.board.beat(self.slot, self._state, is_failing=multiprocess.is_failing())

    def _note_ready(self) -> None:
        if self._state is State.STARTING:
            self._state = State.READY
            self._beat()

    def _drain(self) -> None:
        self._state = State.DRAINING
        self._beat()
        self._stop.set()

    def _stop_at_once(self) -> None:
        self._state = State.DRAINING
        self._stop.set()
        self._working.cancel()
        # Work on a thread cannot be cancelled, and would be waited for; the queue gives its task to another.
        asyncio.get_running_loop().call_later(QUICK_STOP_S, os._exit, 0)
