"""Base of the gunicorn applications of the API and of the task workers: hooks, exporter and metrics."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from setproctitle import setproctitle

from app import __version__
from app.main import install_metrics, log_options
from app.observability import multiprocess, recording, tracing, value_directory
from app.observability.health import WorkerState
from app.observability.metrics_log import MetricsLog
from app.observability.resources import BuildCollector, ResourceCollector
from app.observability.rich_logging import configure_logging, get_logger
from app.settings import read_environment
from app.supervisor.banner import url_of
from app.supervisor.exporter import serve_exporter
from app.supervisor.gunicorn_adapter import ServiceArbiter, ServiceLogger
from app.supervisor.managed_processes import ManagedProcess
from app.supervisor.processes import end_with_parent, keep_freed_memory

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from app.settings import Settings
    from app.supervisor.gunicorn_adapter import SlotWorker
    from app.supervisor.scoreboard import Scoreboard

log = get_logger("server")

TITLE = "facial-service"
EXPORTER_STOP_S = 2.0
PORT_WAIT_S = 5.0  # how long to wait for a port, because the processes of a killed instance may still hold it
NOTICE_S, POLL_S = 0.5, 0.05
ANY_IPV4, ANY_IPV6 = "0.0.0.0", "::"  # noqa: S104 - compared
RESPONSE_MARGIN_S = 3  # after the graceful timeout, for workers to respond to the remaining requests


class ServiceApplication(BaseApplication):
    """One instance: a master, its workers and its managed processes, which share the scoreboard."""

    def __init__(self, settings: Settings, scoreboard: Scoreboard) -> None:
        self.settings = settings
        self.scoreboard = scoreboard
        self.managed_processes: list[ManagedProcess] = []  # in the order of their start
        # Read by scrapes, and the directory of the value files; None if metrics are disabled.
        self.registry: CollectorRegistry | None = None
        self.metrics_directory: Path | None = None
        self.metrics_url = ""
        super().__init__()

    def load_config(self) -> None:
        """Configure gunicorn from the settings alone; its own files and variables are not read."""
        for name, value in self.gunicorn_options().items():
            self.cfg.set(name, value)

    def gunicorn_options(self) -> dict[str, Any]:
        """Return gunicorn's options for the settings."""
        shared_memory = Path("/dev/shm")  # noqa: S108 - heartbeat files on a disk can block
        return {
            "timeout": self.settings.timeout_s,
            "graceful_timeout": self.settings.graceful_timeout_s + RESPONSE_MARGIN_S,
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
        """Prepare what the workers need, and add managed processes; the exporter has been added already."""

    def watch(self) -> None:
        """Start the background work of the exporter process."""

    def run(self) -> None:
        """Run until a signal stops the instance, which raises `SystemExit`.

        Raises:
            OSError: a port is in use, a configured directory or file is not writable, or a file is invalid.
        """
        configure_logging(log_options(self.settings))
        if self.settings.enable_tasks and self.settings.nats_creds_file is not None:
            from app.tasks.nats_client import require_credentials  # noqa: PLC0415 - as in `_make_registry`

            require_credentials(self.settings.nats_creds_file)
        tracing.prepare(read_environment())
        keep_freed_memory()
        multiprocess.set_identity("master")
        with bind(self.settings.host, self.settings.metrics_port, "METRICS_PORT") as listener:
            self.metrics_url = url_of(listener.getsockname())
            self.managed_processes.append(self._make_exporter(listener))
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
                scoreboard=self.scoreboard,
                managed_processes=self.managed_processes,
                metrics_directory=self.metrics_directory,
            ).run()
        finally:
            # Workers end here too. A directory that the operator configured is kept.
            is_own = self.settings.prometheus_multiproc_dir is None
            if self.metrics_directory is not None and is_own and os.getpid() == master:
                value_directory.remove(self.metrics_directory)

    def _make_registry(self, directory: Path) -> CollectorRegistry:
        collectors = [ResourceCollector(self.scoreboard), BuildCollector(__version__)]
        if self.settings.enable_tasks:
            # Import lazily: nats-py is not loaded when tasks are disabled.
            from app.tasks.collector import QueueCollector  # noqa: PLC0415

            return multiprocess.scrape_registry(directory, [*collectors, QueueCollector(self.settings)])
        return multiprocess.scrape_registry(directory, collectors)

    def _start_metrics_log(self) -> MetricsLog | None:
        if self.metrics_directory is None or not self.settings.log_metrics_interval:
            return None
        metrics_log = MetricsLog(
            multiprocess.ValueCollector(self.metrics_directory), self.settings.log_metrics_interval
        )
        metrics_log.start()
        return metrics_log

    def _make_exporter(self, listener: socket.socket) -> ManagedProcess:
        def run() -> None:
            set_process_name("exporter")
            # On stop, the queue ends before this process does; that is not an error.
            get_logger("tasks").addFilter(lambda _: not self.scoreboard.is_draining)
            self.watch()
            metrics_log = self._start_metrics_log()
            serve_exporter(listener, self.scoreboard, self.registry)
            if metrics_log is not None:
                metrics_log.stop()

        return ManagedProcess("exporter", run, needs=[listener], stop_limit_s=EXPORTER_STOP_S)


def set_process_name(name: str) -> None:
    """Set the name under which this process writes metrics and appears in process lists."""
    multiprocess.set_identity(name)
    setproctitle(f"{TITLE}: {name}")


def pre_fork(arbiter: ServiceArbiter, worker: SlotWorker) -> None:
    """Assign the worker's slot before the fork, so that master and worker both know it.

    The garbage collector of a worker writes to each object that it examines, and a page that is written to is no longer
    shared with the master. So objects that exist before the fork are excluded from collections.
    """
    arbiter.assign_slot(worker)
    gc.collect()
    gc.freeze()


def post_fork(arbiter: ServiceArbiter, worker: SlotWorker) -> None:
    """Set the worker's name, and close what the master keeps open for its managed processes."""
    set_process_name(worker.slot_name)
    tracing.start(worker.slot_name, __version__, recording.record_spans_dropped)
    # Until a handler is installed, the signal ends the process.
    end_with_parent(arbiter.pid, signal.SIGQUIT)
    arbiter.close_resources()
    worker.scoreboard.heartbeat(worker.slot, WorkerState.STARTING)


def child_exit(arbiter: ServiceArbiter, worker: SlotWorker) -> None:
    """Free the worker's slot and log why it exited."""
    reason = arbiter.free_slot(worker)
    level = logging.INFO if reason == "stopped" else logging.ERROR
    log.log(level, "%s exited: %s (pid %d)", worker.slot_name, reason, worker.pid, extra={"reason": reason})


def listening_host(host: str) -> str:
    """Return the address to listen on for `HOST`: for ``::``, ``0.0.0.0`` if this machine has no IPv6.

    A socket on ``::`` accepts connections of both families.
    """
    return ANY_IPV4 if host == ANY_IPV6 and not socket.has_dualstack_ipv6() else host


def bind(host: str, port: int, setting: str) -> socket.socket:
    """Bind a port and listen on it.

    The master binds, so that a port in use stops the start, and a restarted exporter finds the socket open. A port in
    use is retried for `PORT_WAIT_S`, because the processes of an instance that was killed need a moment to end.

    Raises:
        OSError: the address is not available, or the port stays in use.
    """
    host = listening_host(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    start, is_logged = time.monotonic(), False
    while True:
        try:
            return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=host == ANY_IPV6)
        except OSError as error:
            waited = time.monotonic() - start
            if error.errno != errno.EADDRINUSE or waited > PORT_WAIT_S:
                raise OSError(error.errno, f"cannot listen on {host}:{port} ({setting}): {error.strerror}") from error
        if waited > NOTICE_S and not is_logged:
            is_logged = True
            log.warning("%s %d is in use; waiting up to %g s for it to become free", setting, port, PORT_WAIT_S)
        time.sleep(POLL_S)
