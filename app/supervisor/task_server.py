"""Task worker processes: an instance of their own, or embedded in an API instance that starts its own queue."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import uvloop

from app.observability import tracing
from app.observability.health import WorkerState
from app.observability.rich_logging import get_logger
from app.supervisor.application import TITLE, ServiceApplication, set_process_name
from app.supervisor.banner import announce_task_workers
from app.supervisor.gunicorn_adapter import BOOT_ERROR, ServiceArbiter, SlotWorker
from app.supervisor.scoreboard import count_task_workers, make_task_scoreboard
from app.tasks.worker import work

if TYPE_CHECKING:
    from pathlib import Path

    from app.settings import Settings
    from app.supervisor.scoreboard import Scoreboard

log = get_logger("tasks")

MASTER = "task-master"
CLOSE_MARGIN_S = 2  # after the graceful timeout, for workers to disconnect from the queue
HEARTBEAT_S = 1.0
FLUSH_S, MAX_FLUSH_S = 0.5, 5.0  # for the export of traces: the rest of the graceful timeout, but always a moment
QUICK_STOP_S = 1.0  # time to return tasks to the queue in a quick stop


class TaskWorker(SlotWorker):
    """A process that works on tasks."""

    _has_started = False  # whether it has reached the queue
    _stop_by = 0.0  # end of the graceful timeout, by the monotonic clock

    def run(self) -> None:
        """Work on tasks until a signal stops the process."""
        # Ready without the queue: otherwise, the replacement of an evicted worker would wait for a queue that cannot
        # return before the next eviction, which waits for the replacement.
        self._state = WorkerState.READY
        status = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(self._work())
        tracing.stop(max(FLUSH_S, min(self._stop_by - time.monotonic(), MAX_FLUSH_S)))
        sys.stderr.flush()
        # Any other exit would wait for threads, even if their tasks have been returned to the queue.
        os._exit(status)

    async def _work(self) -> int:
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._working = asyncio.create_task(
            work(self.settings, stop=self._stop, on_ready=self._note_start, name=self.slot_name)
        )
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGQUIT, self._stop_quickly)
        while not self._working.done():
            if self.is_orphan():
                self._stop_quickly()
            self.send_heartbeat(self._state)
            await asyncio.wait([self._working], timeout=HEARTBEAT_S)
        error = None if self._working.cancelled() else self._working.exception()
        if error is None:
            return 0
        log.error("%s failed", self.slot_name, exc_info=error)
        # A worker that failed to start would fail again. So the master exits too, and its own supervisor backs off.
        return 1 if self._has_started else BOOT_ERROR

    def _note_start(self) -> None:
        self._has_started = True

    def _drain(self) -> None:
        self._state = WorkerState.DRAINING
        self.send_heartbeat(self._state)
        self._stop_by = time.monotonic() + self.settings.graceful_timeout_s
        self._stop.set()

    def _stop_quickly(self) -> None:
        self._state = WorkerState.DRAINING
        self._stop.set()
        self._working.cancel()
        # Work in a thread cannot be cancelled, and the exit would wait for it; the queue redelivers its task.
        asyncio.get_running_loop().call_later(QUICK_STOP_S, os._exit, 0)


class TaskApplication(ServiceApplication):
    """One set of task workers under a master; an API instance shares its scoreboard."""

    def __init__(self, settings: Settings, scoreboard: Scoreboard | None = None) -> None:
        super().__init__(settings, scoreboard or make_task_scoreboard(settings))

    def gunicorn_options(self) -> dict[str, Any]:
        """Return gunicorn's options for the settings; the workers listen on no port."""
        return super().gunicorn_options() | {
            "bind": [],
            "workers": count_task_workers(self.settings),
            "worker_class": TaskWorker,
            "proc_name": f"{TITLE}: {MASTER}",
            "when_ready": self._announce,
            "graceful_timeout": self.settings.graceful_timeout_s + CLOSE_MARGIN_S,
        }

    def load(self) -> Any:
        """Return no application: gunicorn requires this method, but task workers do not call the result."""

    def _announce(self, _arbiter: ServiceArbiter) -> None:
        if self.metrics_url:  # embedded task workers share the metrics port of the API
            announce_task_workers(self.settings, self.metrics_url)


def run_standalone(settings: Settings) -> None:
    """Run task workers for the queue at ``NATS_URL`` until a signal stops them."""
    # ENABLE_TASKS applies to the API alone.
    TaskApplication(settings.model_copy(update={"enable_tasks": True})).run()


def run_embedded(
    settings: Settings, scoreboard: Scoreboard, metrics_directory: Path | None, *, parent_pid: int
) -> None:
    """Run task workers as part of an API instance until a signal stops them, which raises `SystemExit`.

    The API's probes report the scoreboard too, and its master, the parent process, has created the directory.
    """
    set_process_name(MASTER)
    scoreboard.take_over()
    ServiceArbiter(
        TaskApplication(settings, scoreboard),
        settings=settings,
        scoreboard=scoreboard,
        managed_processes=[],
        metrics_directory=metrics_directory,
        parent_pid=parent_pid,
    ).run()
