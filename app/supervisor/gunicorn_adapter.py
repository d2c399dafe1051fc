"""gunicorn's arbiter, workers and logger, extended with stable slots and managed processes.

This is the only module that overrides methods of gunicorn or uses attributes that it does not document.
`tests/contracts/test_server_internals.py` checks each of them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, cast

from gunicorn import sock as gunicorn_sock
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.sock import TCP6Socket
from gunicorn.workers.base import Worker

from app.observability import multiprocess, recording
from app.observability.health import WorkerState
from app.observability.log_text import count_of
from app.observability.rich_logging import get_logger
from app.supervisor.connections import refuse_connections
from app.supervisor.scoreboard import SlotPool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gunicorn.app.base import BaseApplication
    from gunicorn.config import Config

    from app.settings import Settings
    from app.supervisor.managed_processes import ManagedProcess
    from app.supervisor.scoreboard import Scoreboard

log = get_logger("server")

BOOT_ERROR: int = Arbiter.WORKER_BOOT_ERROR  # a worker with this exit status stops the master
EARLY_S = 2.0  # maximum time that workers wait for the processes that start before them
POLL_S = 0.01

_PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT
_ORDERLY = {0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGQUIT}
_QUICK = {signal.SIGINT, signal.SIGQUIT}


class DualStackSocket(TCP6Socket):
    """IPv6 socket that also accepts IPv4 connections on ``::``, regardless of `net.ipv6.bindv6only`."""

    def bind(self, sock: socket.socket) -> None:
        """Bind the socket, for both families if the address is ``::``."""
        if self.cfg_addr[0] == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().bind(sock)


gunicorn_sock.TCP6Socket = DualStackSocket  # type: ignore[misc]


class ServiceLogger(Logger):
    """Sends the log lines of gunicorn and uvicorn to the service's handlers."""

    def setup(self, cfg: Config) -> None:
        """Replace gunicorn's own set-up."""
        self.cfg = cfg
        # uvicorn-worker copies this list of handlers and stops propagation, so an empty one would lose lines.
        self.error_log.handlers = list(logging.getLogger().handlers)
        self.error_log.propagate = False
        self._access_log_enabled = False


class SlotWorker(Worker):
    """A worker process that occupies a slot and reports its health on the scoreboard.

    The arbiter sets the first four attributes before the fork.
    """

    slot: int
    scoreboard: Scoreboard  # shared with the master and the exporter
    settings: Settings
    is_socket_shared: bool = False  # the listening socket outlives the instance
    exit_code: int | None = None  # exit status, or the negative number of the signal that ended the process
    pid: Any  # a text until the process has been forked
    aborted: bool  # whether gunicorn ended the process because it sent no heartbeat

    @property
    def slot_name(self) -> str:
        """Name of the process, under which it also writes its metrics."""
        return self.scoreboard.worker_name(self.slot)

    def init_signals(self) -> None:
        """Reset the signal handlers; the event loop installs its own."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # Ctrl-C reaches the whole foreground group; the process stops when its master signals it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, self.handle_usr1)
        signal.siginterrupt(signal.SIGUSR1, False)

    def send_heartbeat(self, state: WorkerState) -> None:
        """Send a heartbeat to gunicorn and to the scoreboard; called about once a second."""
        self.notify()
        multiprocess.maintain()
        self.scoreboard.heartbeat(self.slot, state, is_failing=multiprocess.is_failing())

    def is_orphan(self) -> bool:
        """Return whether the master has ended, so that this process is neither supervised nor measured."""
        return os.getppid() != self.scoreboard.master_pid


class ServiceArbiter(Arbiter):
    """Master process: supervises the workers, each in a slot, and the managed processes.

    Managed processes are started in their order and stopped in the reverse one. If the process `parent_pid` ends, the
    master stops. The directory of the value files is None if metrics are disabled.
    """

    def __init__(
        self,
        application: BaseApplication,
        *,
        settings: Settings,
        scoreboard: Scoreboard,
        managed_processes: Sequence[ManagedProcess],
        metrics_directory: Path | None,
        parent_pid: int | None = None,
    ) -> None:
        self.settings = settings
        self.scoreboard = scoreboard
        self.slots = SlotPool()
        self.managed_processes = managed_processes
        self.metrics_directory = metrics_directory
        self._resources = [resource for process in managed_processes for resource in process.needs]
        self._to_replace: list[int] = []
        self._is_quick = False
        self._parent_pid = parent_pid
        # gunicorn has these on the class, which a master forked from another one would share with it.
        self.LISTENERS = []  # type: ignore[misc]
        self.WORKERS = {}  # type: ignore[misc]
        super().__init__(application)

    @property
    def listen_address(self) -> tuple[Any, ...]:
        """The address on which the API listens."""
        return cast("tuple[Any, ...]", self.LISTENERS[0].sock.getsockname())

    def start(self) -> None:
        """Bind the API's port, then start the managed processes that must run before the workers."""
        super().start()
        self._keep_processes_running(are_early=True)
        limit = time.monotonic() + EARLY_S
        while not all(process.is_up() for process in self.managed_processes) and time.monotonic() < limit:
            time.sleep(POLL_S)

    def run(self) -> None:
        """Run until a signal arrives, which raises `SystemExit`, then stop the managed processes."""
        try:
            super().run()
        finally:
            if os.getpid() == self.scoreboard.master_pid:  # workers end here too
                self._stop_processes()

    def manage_workers(self) -> None:
        """Keep the workers and the managed processes running, and continue a reload.

        Raises:
            StopIteration: the parent process has ended.
        """
        if self._parent_pid is not None and os.getppid() != self._parent_pid:
            raise StopIteration
        super().manage_workers()
        multiprocess.maintain()
        self.scoreboard.record_master(is_failing=multiprocess.is_failing())
        self._replace_next()
        self._keep_processes_running(are_early=False)

    def handle_hup(self) -> None:
        """Replace the workers one by one; each new worker takes the slot of its predecessor.

        gunicorn's own reload starts all new workers first, which would permanently double the slots and the files that
        each scrape reads. The listening socket stays open, so no connection is refused in the meantime.
        """
        log.info("Reloading %s one by one", count_of(len(self.WORKERS), "worker"))
        self._to_replace = list(self.WORKERS)

    def _replace_next(self) -> None:
        self._to_replace = [pid for pid in self._to_replace if pid in self.WORKERS]
        serving = sum(worker.state is WorkerState.READY for worker in self.scoreboard.workers())
        if self._to_replace and serving >= self.num_workers and not self.scoreboard.is_draining:
            self.kill_worker(self._to_replace.pop(0), signal.SIGTERM)

    def reap_workers(self) -> None:
        """Record how each process ended before gunicorn reaps it and discards the status."""
        for process in self.managed_processes:
            process.is_alive()
        workers = cast("dict[int, SlotWorker]", self.WORKERS)
        for pid, worker in workers.items():
            try:
                ended = os.waitid(os.P_PID, pid, _PEEK)
            except ChildProcessError:
                continue
            if ended is not None:
                is_exit = ended.si_code == os.CLD_EXITED
                worker.exit_code = ended.si_status if is_exit else -ended.si_status
        super().reap_workers()

    def stop(self, graceful: bool = True) -> None:
        """Become unready, then stop the workers; the managed processes run until the workers have ended."""
        if not self.scoreboard.is_draining and self._parent_pid is None:  # a parent process has logged this
            log.info("Stopping: work in progress has up to %d s to finish", self.settings.graceful_timeout_s)
        self.scoreboard.drain()
        if not self.systemd:  # systemd keeps its socket open, with the waiting connections, for the next instance
            for listener in self.LISTENERS:
                refuse_connections(listener.sock)
        super().stop(graceful)

    def kill_workers(self, sig: int) -> None:
        """Send a signal to every worker."""
        self._is_quick |= sig == signal.SIGQUIT
        super().kill_workers(sig)

    def handle_usr2(self) -> None:
        """Refuse to re-execute: two masters would write to the same metric files."""
        log.warning("SIGUSR2 ignored: start a second instance instead of re-executing this one")

    def assign_slot(self, worker: SlotWorker) -> None:
        """Assign a slot to a worker that is about to be forked."""
        worker.slot = self.slots.acquire()
        worker.scoreboard = self.scoreboard
        worker.settings = self.settings
        worker.is_socket_shared = self.systemd

    def close_resources(self) -> None:
        """Close the resources of the managed processes; also called in each new worker."""
        for resource in self._resources:
            resource.close()

    def free_slot(self, worker: SlotWorker) -> str:
        """Free the slot of a worker; return why it exited: ``stopped``, ``timeout``, ``killed`` or ``crashed``."""
        if self.metrics_directory is not None:
            multiprocess.forget_slot(worker.slot_name, self.metrics_directory)
        reason = _exit_reason(worker, self.scoreboard.state(worker.slot))
        self.scoreboard.clear(worker.slot)
        self.slots.release(worker.slot)
        recording.record_worker_exit(reason)
        return reason

    def _keep_processes_running(self, *, are_early: bool) -> None:
        for number, process in enumerate(self.managed_processes):
            if not self.scoreboard.is_draining and (process.is_early or not are_early):
                process.keep_running(self._close_unneeded)
            self.scoreboard.record_managed_process(number, process.name, process.pid)

    def _close_unneeded(self, process: ManagedProcess) -> None:
        """Close, in a new managed process, everything of the master that it does not need."""
        for listener in self.LISTENERS:
            listener.close()
        for worker in self.WORKERS.values():
            worker.tmp.close()
        for resource in self._resources:
            if resource not in process.needs:
                resource.close()

    def _stop_processes(self) -> None:
        for process in reversed(self.managed_processes):
            process.stop(self._is_hurried)
        self.close_resources()

    def _is_hurried(self) -> bool:
        while not self.SIG_QUEUE.empty():
            self._is_quick |= self.SIG_QUEUE.get_nowait() in _QUICK
        return self._is_quick


def _exit_reason(worker: SlotWorker, last_state: WorkerState) -> str:
    if worker.aborted:
        return "timeout"
    # A process that ended between the peek and gunicorn's reaping has no exit code; its last state decides.
    code = worker.exit_code
    if code in _ORDERLY or (code is None and last_state is WorkerState.DRAINING):
        return "stopped"
    return "killed" if code in {None, -signal.SIGKILL} else "crashed"
