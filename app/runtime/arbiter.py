"""gunicorn's arbiter, with stable slots for its workers and an exporter beside them."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn, cast

from gunicorn.arbiter import Arbiter
from setproctitle import setproctitle

from app.observability import multiprocess, recording
from app.observability.board import State
from app.observability.exporter import serve_exporter
from app.observability.multiprocess import SlotPool
from app.observability.rich_logging import get_logger

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from gunicorn.app.base import BaseApplication
    from prometheus_client import CollectorRegistry

    from app.observability.board import Board
    from app.runtime.worker import ServiceWorker
    from app.settings import Settings

log = get_logger("server")

EXPORTER_STOP_S = 2.0
# At least this long between two starts of the exporter, doubled while it does not stay.
EXPORTER_PAUSE_S, EXPORTER_PAUSE_MAX_S, EXPORTER_STEADY_S = 0.5, 30.0, 60.0
_PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT
_ORDERLY = {0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGQUIT}


class ServiceArbiter(Arbiter):
    """Keeps the pool of slots, which outlives reloads of the configuration, and the exporter process.

    Args:
        application: what gunicorn runs.
        settings: how to run.
        board: health, shared with every process.
        exporter_listener: bound socket of the metrics port.
        registry: what a scrape reads; None where metrics are off.
        metrics_directory: folder of the value files; None where metrics are off.
    """

    def __init__(
        self,
        application: BaseApplication,
        *,
        settings: Settings,
        board: Board,
        exporter_listener: socket.socket,
        registry: CollectorRegistry | None,
        metrics_directory: Path | None,
    ) -> None:
        self.settings = settings
        self.board = board
        self.slots = SlotPool()
        self.exporter_listener = exporter_listener
        self.registry = registry
        self.metrics_directory = metrics_directory
        self._to_replace: list[int] = []
        self._exporter_pid = 0
        self._exporter_next = 0.0
        self._exporter_pause = EXPORTER_PAUSE_S
        super().__init__(application)

    def start(self) -> None:
        """Bind the API's port, then start the exporter, so that probes get an answer while the workers boot."""
        super().start()
        self._ensure_exporter()

    def manage_workers(self) -> None:
        """Keep the number of workers, go on with a reload, and keep the exporter."""
        super().manage_workers()
        self._replace_next()
        self._ensure_exporter()

    def handle_hup(self) -> None:
        """Replace the workers one after the other, each in the slot of the one before.

        gunicorn's own reload starts all the new ones first, which would leave twice the slots and twice the files for
        every scrape from then on. The listening socket stays open, so nobody is turned away meanwhile.
        """
        log.info("Reloading: %d workers, one after the other", len(self.WORKERS))
        self._to_replace = list(self.WORKERS)

    def _replace_next(self) -> None:
        self._to_replace = [pid for pid in self._to_replace if pid in self.WORKERS]
        serving = sum(row.state is State.READY for row in self.board.rows())
        if self._to_replace and serving >= self.num_workers and not self.board.is_draining:
            self.kill_worker(self._to_replace.pop(0), signal.SIGTERM)

    def reap_workers(self) -> None:
        """Note how each worker ended before gunicorn collects it and forgets."""
        workers = cast("dict[int, ServiceWorker]", self.WORKERS)
        for pid, worker in workers.items():
            try:
                ended = os.waitid(os.P_PID, pid, _PEEK)
            except ChildProcessError:
                continue
            if ended is not None:
                is_exit = ended.si_code == os.CLD_EXITED
                worker.exit_status = ended.si_status if is_exit else -ended.si_status
        super().reap_workers()

    def stop(self, graceful: bool = True) -> None:
        """Turn unready, then stop the workers; the exporter goes on answering until `halt`."""
        if not self.board.is_draining:
            log.info("Stopping: requests in flight get up to %d s", self.settings.graceful_timeout_s)
        self.board.drain()
        super().stop(graceful)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop everything and exit; the exporter last, so that draining can be watched to its end."""
        try:
            super().halt(reason, exit_status)
        finally:
            self._stop_exporter()

    def handle_usr2(self) -> None:
        """Refuse to re-execute: two masters would write into one set of metric files."""
        log.warning("SIGUSR2 ignored: start a second instance instead of re-executing this one")

    def take_slot(self, worker: ServiceWorker) -> None:
        """Give a worker that is about to be forked its place."""
        worker.slot = self.slots.take()
        worker.board = self.board

    def free_slot(self, worker: ServiceWorker) -> str:
        """Take back the place of a worker that ended.

        Returns:
            Why it ended: ``stopped``, ``timeout``, ``killed`` or ``crashed``.
        """
        if self.metrics_directory is not None:
            multiprocess.forget_slot(worker.slot_name, self.metrics_directory)
        reason = _exit_reason(worker, self.board.state(worker.slot))
        self.board.clear(worker.slot)
        self.slots.free(worker.slot)
        recording.record_worker_exit(reason)
        return reason

    def _ensure_exporter(self) -> None:
        if self.board.is_draining or self._is_exporter_alive():
            return
        now = time.monotonic()
        if now < self._exporter_next:  # the arbiter's own second brings us back
            return
        if self._exporter_pid:
            log.error("The exporter ended (pid %d); starting another", self._exporter_pid)
        is_steady = now - self._exporter_next > EXPORTER_STEADY_S
        self._exporter_pause = EXPORTER_PAUSE_S if is_steady else min(2 * self._exporter_pause, EXPORTER_PAUSE_MAX_S)
        self._exporter_next = now + self._exporter_pause
        self._exporter_pid = os.fork()
        if not self._exporter_pid:
            self._become_exporter()

    def _become_exporter(self) -> NoReturn:
        status = 1
        try:
            for number in (*self.SIGNALS, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            # Ctrl-C reaches the whole foreground group; the exporter ends when the master says so.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for listener in self.LISTENERS:
                listener.close()
            multiprocess.set_identity("exporter")
            setproctitle(f"{self.proc_name}: exporter")
            serve_exporter(self.exporter_listener, self.board, self.registry)
            status = 0
        except Exception:
            log.exception("The exporter failed")
        finally:
            sys.stderr.flush()
            os._exit(status)  # past the master's own exit handlers, which are not this process's to run

    def _is_exporter_alive(self) -> bool:
        if not self._exporter_pid:
            return False
        try:
            return os.waitid(os.P_PID, self._exporter_pid, _PEEK) is None
        except ChildProcessError:
            return False

    def _stop_exporter(self) -> None:
        limit = time.monotonic() + EXPORTER_STOP_S
        sent: Any = signal.SIGTERM
        while self._is_exporter_alive():
            os.kill(self._exporter_pid, sent)
            time.sleep(0.02)
            sent = signal.SIGKILL if time.monotonic() > limit else 0
        self.exporter_listener.close()


def _exit_reason(worker: ServiceWorker, last_state: State) -> str:
    status = worker.exit_status
    if worker.aborted:
        return "timeout"
    # A process that ended between the look at it and its collection has no status; its last word decides.
    if status in _ORDERLY or (status is None and last_state is State.DRAINING):
        return "stopped"
    return "killed" if status in {None, -signal.SIGKILL} else "crashed"
