"""gunicorn's arbiter, with stable slots for its workers and other processes beside them."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, cast

from gunicorn.arbiter import Arbiter

from app.observability import multiprocess, recording
from app.observability.board import State
from app.observability.multiprocess import SlotPool
from app.observability.rich_logging import get_logger
from app.supervisor.closing import refuse_connections

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gunicorn.app.base import BaseApplication

    from app.observability.board import Board
    from app.settings import Settings
    from app.supervisor.companions import Companion
    from app.supervisor.slots import SlotWorker

log = get_logger("server")

EARLY_S = 2.0  # what workers wait, at most, for what is started before them
POLL_S = 0.01

_PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT
_ORDERLY = {0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGQUIT}
_QUICK = {signal.SIGINT, signal.SIGQUIT}


class ServiceArbiter(Arbiter):
    """Keeps the pool of slots, which outlives reloads of the configuration, and the companions.

    Args:
        application: what gunicorn runs.
        settings: how to run.
        board: health, shared with every process.
        companions: processes beside the workers, in the order of their start; they are stopped the other way round.
        metrics_directory: folder of the value files; None where metrics are off.
        parent_pid: a process that this one shall not outlive; None where it may.
    """

    def __init__(
        self,
        application: BaseApplication,
        *,
        settings: Settings,
        board: Board,
        companions: Sequence[Companion],
        metrics_directory: Path | None,
        parent_pid: int | None = None,
    ) -> None:
        self.settings = settings
        self.board = board
        self.slots = SlotPool()
        self.companions = companions
        self.metrics_directory = metrics_directory
        self._held = [held for companion in companions for held in companion.needs]
        self._to_replace: list[int] = []
        self._is_quick = False
        self._parent_pid = parent_pid
        # gunicorn has them on the class, which a master that was forked from another would share with that one.
        self.LISTENERS = []  # type: ignore[misc]
        self.WORKERS = {}  # type: ignore[misc]
        super().__init__(application)

    def start(self) -> None:
        """Bind the API's port, then start what is to be there before the workers, such as what answers probes."""
        super().start()
        self._keep_companions(are_early=True)
        limit = time.monotonic() + EARLY_S
        while not all(companion.is_up() for companion in self.companions) and time.monotonic() < limit:
            time.sleep(POLL_S)

    def run(self) -> None:
        """Run until a signal stops it, then stop the companions; leaves by `SystemExit`."""
        try:
            super().run()
        finally:
            if os.getpid() == self.board.master_pid:  # workers leave through here too
                self._stop_companions()

    def manage_workers(self) -> None:
        """Keep the number of workers, go on with a reload, and keep the companions.

        Raises:
            StopIteration: the process that this one shall not outlive is gone.
        """
        if self._parent_pid is not None and os.getppid() != self._parent_pid:
            raise StopIteration
        super().manage_workers()
        multiprocess.maintain()
        self.board.note_master(is_failing=multiprocess.is_failing())
        self._replace_next()
        self._keep_companions(are_early=False)

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
        """Note how each process ended before gunicorn collects it and forgets."""
        for companion in self.companions:
            companion.is_alive()
        workers = cast("dict[int, SlotWorker]", self.WORKERS)
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
        """Turn unready, then stop the workers; the companions go on until these are gone."""
        if not self.board.is_draining:
            log.info("Stopping: what is in flight gets up to %d s", self.settings.graceful_timeout_s)
        self.board.drain()
        if not self.systemd:  # its socket stays open, with what waits in it, for the next instance
            for listener in self.LISTENERS:
                refuse_connections(listener.sock)
        super().stop(graceful)

    def kill_workers(self, sig: int) -> None:
        """Send a signal to every worker."""
        self._is_quick |= sig == signal.SIGQUIT
        super().kill_workers(sig)

    def handle_usr2(self) -> None:
        """Refuse to re-execute: two masters would write into one set of metric files."""
        log.warning("SIGUSR2 ignored: start a second instance instead of re-executing this one")

    def take_slot(self, worker: SlotWorker) -> None:
        """Give a worker that is about to be forked its place."""
        worker.slot = self.slots.take()
        worker.board = self.board
        worker.is_socket_shared = self.systemd

    def leave_to_worker(self) -> None:
        """Close, in a new worker, what the master holds open for its companions."""
        for held in self._held:
            held.close()

    def free_slot(self, worker: SlotWorker) -> str:
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

    def _keep_companions(self, *, are_early: bool) -> None:
        for number, companion in enumerate(self.companions):
            if not self.board.is_draining and (companion.is_early or not are_early):
                companion.keep(self._leave_to_companion)
            self.board.note_companion(number, companion.name, companion.pid)

    def _leave_to_companion(self, companion: Companion) -> None:
        for listener in self.LISTENERS:
            listener.close()
        for worker in self.WORKERS.values():
            worker.tmp.close()
        for held in self._held:
            if held not in companion.needs:
                held.close()

    def _stop_companions(self) -> None:
        for companion in reversed(self.companions):
            companion.stop(self._is_hurried)
        self.leave_to_worker()

    def _is_hurried(self) -> bool:
        while not self.SIG_QUEUE.empty():
            self._is_quick |= self.SIG_QUEUE.get_nowait() in _QUICK
        return self._is_quick


def _exit_reason(worker: SlotWorker, last_state: State) -> str:
    status = worker.exit_status
    if worker.aborted:
        return "timeout"
    # A process that ended between the look at it and its collection has no status; its last word decides.
    if status in _ORDERLY or (status is None and last_state is State.DRAINING):
        return "stopped"
    return "killed" if status in {None, -signal.SIGKILL} else "crashed"
