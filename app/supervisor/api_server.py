"""The API instance: its workers, and, unless a queue is configured, an embedded queue with task workers."""

from __future__ import annotations

import functools
import signal
from typing import TYPE_CHECKING, Any

from app.main import create_app
from app.supervisor.application import ServiceApplication, bind, listening_host
from app.supervisor.banner import announce_api, url_of
from app.supervisor.managed_processes import ManagedProcess, execute
from app.supervisor.scoreboard import Scoreboard, make_task_scoreboard
from app.supervisor.uvicorn_adapter import ApiWorker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp

    from app.settings import Settings
    from app.supervisor.gunicorn_adapter import ServiceArbiter
    from app.tasks.embedded_server import EmbeddedServer

QUEUE_STOP_S = 10.0
TASK_MARGIN_S = 5.0  # after the graceful timeout, for the master of the task workers to end


class ApiApplication(ServiceApplication):
    """One API instance."""

    def __init__(self, settings: Settings) -> None:
        self.embedded: EmbeddedServer | None = None
        self.queue: ManagedProcess | None = None
        scoreboard = Scoreboard(
            expected_workers=settings.workers,
            timeout_s=settings.timeout_s,
            task_scoreboard=make_task_scoreboard(settings) if settings.is_queue_embedded else None,
        )
        super().__init__(settings, scoreboard)

    def gunicorn_options(self) -> dict[str, Any]:
        """Return gunicorn's options for the settings."""
        settings = self.settings
        host = listening_host(settings.host)
        host = f"[{host}]" if ":" in host else host
        return super().gunicorn_options() | {
            "bind": [f"{host}:{settings.port}"],
            "workers": settings.workers,
            "worker_class": ApiWorker,
            "keepalive": settings.keep_alive_s,
            "backlog": settings.backlog,
            "forwarded_allow_ips": settings.forwarded_allow_ips,
            "when_ready": self._announce,
        }

    def load(self) -> ASGIApp:
        """Create the ASGI application once, in the master; the workers inherit it."""
        return create_app(self.settings, scoreboard=self.scoreboard, registry=self.registry)

    def prepare(self) -> None:
        """Check that the port is free, and prepare the embedded queue unless a queue is configured.

        Raises:
            OSError: the port is in use, or the queue cannot be started.
        """
        bind(self.settings.host, self.settings.port, "PORT").close()  # gunicorn's own check does not name the setting
        if self.settings.is_queue_embedded:
            # Import lazily: nats-py is not loaded when tasks are disabled.
            from app.tasks.embedded_server import ENVIRONMENT_DEFAULTS, PROGRAM, is_up, prepare  # noqa: PLC0415

            self.embedded = prepare(self.settings)
            self.settings = self.embedded.settings
            self.queue = ManagedProcess(
                PROGRAM,
                functools.partial(_run_queue, self.embedded, ENVIRONMENT_DEFAULTS),
                needs=[self.embedded.lock],
                stop_limit_s=QUEUE_STOP_S,
                is_up=functools.partial(is_up, self.settings),
                hint=str(self.embedded.log_file),
            )
            self.managed_processes += [
                self.queue,
                ManagedProcess(
                    "task-master",
                    self._run_task_workers,
                    stop_limit_s=self.settings.graceful_timeout_s + TASK_MARGIN_S,
                    quick_signal=signal.SIGQUIT,
                    is_early=False,
                ),
            ]

    def watch(self) -> None:
        """Watch the storage space of the embedded queue."""
        if self.queue is not None:
            from app.tasks.embedded_server import StorageWatch  # noqa: PLC0415 - as in `prepare`

            folder = self.settings.data_dir.absolute()
            StorageWatch(self.settings.nats_monitor_url, folder, self.queue.request_restart).start()

    def _announce(self, arbiter: ServiceArbiter) -> None:
        api_url = url_of(arbiter.listen_address)
        announce_api(self.settings, api_url, self.metrics_url, is_queue_embedded=self.embedded is not None)

    def _run_task_workers(self) -> None:
        from app.supervisor.task_server import run_embedded  # noqa: PLC0415 - as in `prepare`

        if self.scoreboard.task_scoreboard is not None:
            run_embedded(
                self.settings,
                self.scoreboard.task_scoreboard,
                self.metrics_directory,
                parent_pid=self.scoreboard.master_pid,
            )


def _run_queue(server: EmbeddedServer, defaults: Mapping[str, str]) -> None:
    server.restore_configuration()
    execute(server.command, keep=[server.lock.fileno()], output=server.log_file, defaults=defaults)


def serve(settings: Settings) -> None:
    """Run an API instance until a signal stops it."""
    ApiApplication(settings).run()
