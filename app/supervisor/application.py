"""What the API and the workers of tasks have in common as programs: gunicorn's hooks, the exporter, the metrics."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from setproctitle import setproctitle

from app import __version__
from app.main import install_metrics, log_options
from app.observability import multiprocess, value_folder
from app.observability.board import State
from app.observability.exporter import serve_exporter
from app.observability.resources import BuildCollector, ResourceCollector
from app.observability.rich_logging import configure_logging, get_logger
from app.supervisor.allocator import keep_freed_memory
from app.supervisor.arbiter import ServiceArbiter
from app.supervisor.banner import url_of
from app.supervisor.companions import Companion
from app.supervisor.parent import end_with_parent

if TYPE_CHECKING:
    from gunicorn.config import Config
    from prometheus_client import CollectorRegistry

    from app.observability.board import Board
    from app.settings import Settings
    from app.supervisor.slots import SlotWorker

log = get_logger("server")

TITLE = "facial-service"
EXPORTER_STOP_S = 2.0
PREDECESSOR_S = 5.0  # how long a port may stay taken, by the processes of an instance that was killed
NOTICE_S, POLL_S = 0.5, 0.05
ANSWER_MARGIN_S = 3  # after the time of requests in flight, for workers to respond to those that remain


class ServiceLogger(Logger):
    """Leads gunicorn's and uvicorn's lines into the service's handlers."""

    def setup(self, cfg: Config) -> None:
        """Replace gunicorn's own set-up."""
        self.cfg = cfg
        # uvicorn's worker takes over this list of handlers and stops propagation, so an empty one would lose lines.
        self.error_log.handlers = list(logging.getLogger().handlers)
        self.error_log.propagate = False
        self._access_log_enabled = False


class ServiceApplication(BaseApplication):
    """One instance: a master, its workers, and what runs beside them.

    Attributes:
        settings: how to run.
        board: health, shared by all its processes.
        companions: what runs beside the workers, in the order of its start.
        registry: what a scrape reads; None where metrics are off.
        metrics_directory: folder of the value files; None where metrics are off.
        metrics_url: where metrics and probes are.

    Args:
        settings: see above.
        board: see above.
    """

    def __init__(self, settings: Settings, board: Board) -> None:
        self.settings = settings
        self.board = board
        self.companions: list[Companion] = []
        self.registry: CollectorRegistry | None = None
        self.metrics_directory: Path | None = None
        self.metrics_url = ""
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's configuration from the settings alone; its own files and variables are not read."""
        for name, value in self.gunicorn_options().items():
            self.cfg.set(name, value)

    def gunicorn_options(self) -> dict[str, Any]:
        """Translate the settings into gunicorn's names."""
        shared_memory = Path("/dev/shm")  # noqa: S108 - the kernel's, for the heartbeat: on a disk it can block
        return {
            "timeout": self.settings.timeout_s,
            "graceful_timeout": self.settings.graceful_timeout_s + ANSWER_MARGIN_S,
            "preload_app": True,
            "control_socket_disable": True,
            "proc_name": TITLE,
            "logger_class": ServiceLogger,
            "worker_tmp_dir": str(shared_memory) if shared_memory.is_dir() else None,
            "pre_fork": pre_fork,
            "post_fork": post_fork,
            "child_exit": child_exit,
        }

    def prepare(self) -> None:
        """Get ready what the workers need, and add companions; the exporter is there already."""

    def watch(self) -> None:
        """Start what the exporter's process does in the background."""

    def run(self) -> None:
        """Run until a signal stops it; leaves by `SystemExit`.

        Raises:
            OSError: a port is taken, or a folder or file of the settings cannot be written.
        """
        configure_logging(log_options(self.settings))
        keep_freed_memory()
        multiprocess.set_identity("master")
        with bind(self.settings.host, self.settings.metrics_port, "METRICS_PORT") as listener:
            self.metrics_url = url_of(listener.getsockname())
            self.companions.append(self._make_exporter(listener))
            self.prepare()
            self._run()

    def _run(self) -> None:
        if self.settings.enable_metrics:
            self.metrics_directory = install_metrics(self.settings)
            self.registry = self._make_registry(self.metrics_directory)
        master = os.getpid()
        try:
            ServiceArbiter(
                self,
                settings=self.settings,
                board=self.board,
                companions=self.companions,
                metrics_directory=self.metrics_directory,
            ).run()
        finally:
            # Workers leave through here too. A folder that was named in the settings stays, for whoever named it.
            is_own = self.settings.prometheus_multiproc_dir is None
            if self.metrics_directory is not None and is_own and os.getpid() == master:
                value_folder.remove(self.metrics_directory)

    def _make_registry(self, directory: Path) -> CollectorRegistry:
        collectors = [
            multiprocess.FailureCollector(self.board),
            ResourceCollector(self.board),
            BuildCollector(__version__),
        ]
        if self.settings.enable_tasks:
            # Imported here: whoever takes no tasks shall not pay for the memory of a client of the queue.
            from app.tasks.collector import QueueCollector  # noqa: PLC0415

            return multiprocess.scrape_registry(directory, [*collectors, QueueCollector(self.settings)])
        return multiprocess.scrape_registry(directory, collectors)

    def _make_exporter(self, listener: socket.socket) -> Companion:
        def run() -> None:
            become("exporter")
            # On stop the queue ends before this process does, which is no news.
            get_logger("tasks").addFilter(lambda _: not self.board.is_draining)
            self.watch()
            serve_exporter(listener, self.board, self.registry)

        return Companion("exporter", run, needs=[listener], stop_limit_s=EXPORTER_STOP_S)


def become(name: str) -> None:
    """Write under this name from here on, and show it in the list of processes."""
    multiprocess.set_identity(name)
    setproctitle(f"{TITLE}: {name}")


def pre_fork(arbiter: ServiceArbiter, worker: SlotWorker) -> None:
    """Give the worker its slot while both sides of the fork can see it."""
    arbiter.take_slot(worker)


def post_fork(arbiter: ServiceArbiter, worker: SlotWorker) -> None:
    """Take the slot's name, and close what the master holds open for its companions."""
    become(worker.slot_name)
    # Before a handler is installed, the signal ends the process.
    end_with_parent(arbiter.pid, signal.SIGQUIT)
    arbiter.leave_to_worker()
    worker.board.beat(worker.slot, State.STARTING)


def child_exit(arbiter: ServiceArbiter, worker: SlotWorker) -> None:
    """Free the slot and say why the worker ended."""
    reason = arbiter.free_slot(worker)
    level = logging.INFO if reason == "stopped" else logging.ERROR
    log.log(level, "%s ended: %s (pid %d)", worker.slot_name, reason, worker.pid, extra={"reason": reason})


def bind(host: str, port: int, setting: str) -> socket.socket:
    """Bind and listen; done in the master, so that a taken port stops the start and a new exporter finds it open.

    A taken port is waited for, because the processes of an instance that was killed need a moment to end.

    Raises:
        OSError: the address cannot be listened on, or the port stays taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    is_any = host == "::" and socket.has_dualstack_ipv6()
    start, is_told = time.monotonic(), False
    while True:
        try:
            return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=is_any)
        except OSError as error:
            waited = time.monotonic() - start
            if error.errno != errno.EADDRINUSE or waited > PREDECESSOR_S:
                raise OSError(error.errno, f"cannot listen on {host}:{port} ({setting}): {error.strerror}") from error
        if waited > NOTICE_S and not is_told:
            is_told = True
            log.warning("%s %d is in use; waiting up to %g s for it to become free", setting, port, PREDECESSOR_S)
        time.sleep(POLL_S)
