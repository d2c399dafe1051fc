"""From settings to running processes: the application that gunicorn runs, its configuration and hooks."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from setproctitle import setproctitle

from app import __version__
from app.main import create_app, install_metrics, log_options
from app.observability import multiprocess
from app.observability.board import Board, State
from app.observability.resources import BuildCollector, ResourceCollector
from app.observability.rich_logging import configure_logging, get_logger
from app.runtime.arbiter import ServiceArbiter
from app.runtime.banner import announce
from app.runtime.worker import ServiceWorker

if TYPE_CHECKING:
    from gunicorn.config import Config
    from prometheus_client import CollectorRegistry
    from starlette.types import ASGIApp

    from app.settings import Settings

log = get_logger("server")


class ServiceLogger(Logger):
    """Leads gunicorn's and uvicorn's lines into the service's handlers."""

    def setup(self, cfg: Config) -> None:
        """Replace gunicorn's own set-up."""
        self.cfg = cfg
        # uvicorn's worker takes over this list of handlers and stops propagation, so an empty one would lose lines.
        self.error_log.handlers = list(logging.getLogger().handlers)
        self.error_log.propagate = False
        self._access_log_enabled = False


def pre_fork(arbiter: ServiceArbiter, worker: ServiceWorker) -> None:
    """Give the worker its slot while both sides of the fork can see it."""
    arbiter.take_slot(worker)


def post_fork(arbiter: ServiceArbiter, worker: ServiceWorker) -> None:
    """Write under the slot's name from here on; the metrics port is not the worker's to hold open."""
    multiprocess.set_identity(worker.slot_name)
    setproctitle(f"{arbiter.proc_name}: {worker.slot_name}")
    if arbiter.metrics_directory is not None:
        arbiter.metrics_directory.mkdir(parents=True, exist_ok=True)  # cleaners of temporary folders are about
    arbiter.exporter_listener.close()
    worker.board.beat(worker.slot, State.STARTING)


def child_exit(arbiter: ServiceArbiter, worker: ServiceWorker) -> None:
    """Free the slot and say why the worker ended."""
    reason = arbiter.free_slot(worker)
    level = logging.INFO if reason == "stopped" else logging.ERROR
    log.log(level, "%s ended: %s (pid %d)", worker.slot_name, reason, worker.pid, extra={"reason": reason})


class ServiceApplication(BaseApplication):
    """One API instance.

    Args:
        settings: how to run.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.board = Board(expected_workers=settings.workers, timeout_s=settings.timeout_s)
        self.registry: CollectorRegistry | None = None
        self.metrics_directory: Path | None = None
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's configuration from the settings alone; its own files and variables are not read."""
        for name, value in gunicorn_options(self.settings).items():
            self.cfg.set(name, value)

    def load(self) -> ASGIApp:
        """Build the application once, in the master; workers inherit it."""
        return create_app(self.settings, board=self.board, registry=self.registry)

    def run(self) -> None:
        """Run until a signal stops it; leaves by `SystemExit`.

        Raises:
            OSError: a port is taken, or a folder or file of the settings cannot be written.
        """
        configure_logging(log_options(self.settings))
        multiprocess.set_identity("master")
        bind(self.settings.host, self.settings.port, "PORT").close()  # gunicorn would try for five seconds
        listener = bind(self.settings.host, self.settings.metrics_port, "METRICS_PORT")
        if self.settings.enable_metrics:
            self.metrics_directory = install_metrics(self.settings)
            collectors = [ResourceCollector(self.board), BuildCollector(__version__)]
            self.registry = multiprocess.scrape_registry(self.metrics_directory, collectors)
        master = os.getpid()
        try:
            ServiceArbiter(
                self,
                settings=self.settings,
                board=self.board,
                exporter_listener=listener,
                registry=self.registry,
                metrics_directory=self.metrics_directory,
            ).run()
        finally:
            # Workers leave through here too. A folder that was named in the settings stays, for whoever named it.
            is_own = self.metrics_directory is not None and self.settings.prometheus_multiproc_dir is None
            if is_own and os.getpid() == master:
                shutil.rmtree(str(self.metrics_directory), ignore_errors=True)


def gunicorn_options(settings: Settings) -> dict[str, Any]:
    """Translate the settings into gunicorn's names."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    shared_memory = Path("/dev/shm")  # noqa: S108 - the kernel's, for the heartbeat: on a disk it can block
    return {
        "bind": [f"{host}:{settings.port}"],
        "workers": settings.workers,
        "worker_class": ServiceWorker,
        "timeout": settings.timeout_s,
        "graceful_timeout": settings.graceful_timeout_s,
        "keepalive": settings.keep_alive_s,
        "backlog": settings.backlog,
        "forwarded_allow_ips": settings.forwarded_allow_ips,
        "preload_app": True,
        "control_socket_disable": True,
        "proc_name": "facial-service",
        "logger_class": ServiceLogger,
        "worker_tmp_dir": str(shared_memory) if shared_memory.is_dir() else None,
        "pre_fork": pre_fork,
        "post_fork": post_fork,
        "child_exit": child_exit,
        "when_ready": announce,
    }


def bind(host: str, port: int, setting: str) -> socket.socket:
    """Bind and listen; done in the master, so that a taken port stops the start and a new exporter finds it open."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        is_any = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=is_any)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}:{port} ({setting}): {error.strerror}") from error


def serve(settings: Settings) -> None:
    """Run the API until it is told to stop."""
    ServiceApplication(settings).run()
