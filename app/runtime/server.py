"""The API as processes: its workers, and, where no queue is named, a queue and the workers of tasks beside them."""

from __future__ import annotations

import functools
import signal
from typing import TYPE_CHECKING, Any

from app.main import create_app
from app.observability.board import Board
from app.runtime.application import ServiceApplication, bind
from app.runtime.banner import announce
from app.runtime.companions import Companion, execute
from app.runtime.slots import make_task_board
from app.runtime.worker import ServiceWorker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp

    from app.settings import Settings
    from app.tasks.embedded_server import EmbeddedServer

QUEUE_STOP_S = 10.0
TASK_MARGIN_S = 5.0  # what the master of the task workers gets after their own time is up


class ApiApplication(ServiceApplication):
    """One API instance.

    Args:
        settings: how to run.
    """

    def __init__(self, settings: Settings) -> None:
        self.embedded: EmbeddedServer | None = None
        self.queue: Companion | None = None
        tasks = make_task_board(settings) if settings.is_queue_embedded else None
        super().__init__(settings, Board(expected_workers=settings.workers, timeout_s=settings.timeout_s, beside=tasks))

    def gunicorn_options(self) -> dict[str, Any]:
        """Translate the settings into gunicorn's names."""
        settings = self.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return super().gunicorn_options() | {
            "bind": [f"{host}:{settings.port}"],
            "workers": settings.workers,
            "worker_class": ServiceWorker,
            "keepalive": settings.keep_alive_s,
            "backlog": settings.backlog,
            "forwarded_allow_ips": settings.forwarded_allow_ips,
            "when_ready": announce,
        }

    def load(self) -> ASGIApp:
        """Build the application once, in the master; workers inherit it."""
        return create_app(self.settings, board=self.board, registry=self.registry)

    def prepare(self) -> None:
        """Look whether the port is free, and get the queue ready where none is named.

        Raises:
            OSError: the port is taken, or the queue cannot be started.
        """
        bind(self.settings.host, self.settings.port, "PORT").close()  # gunicorn would try for five seconds
        if self.settings.is_queue_embedded:
            # Imported here: whoever takes no tasks shall not pay for what they need.
            from app.tasks.embedded_server import ENVIRONMENT_DEFAULTS, PROGRAM, is_up, prepare  # noqa: PLC0415

            self.embedded = prepare(self.settings)
            self.settings = self.embedded.settings
            self.queue = Companion(
                PROGRAM,
                functools.partial(_run_queue, self.embedded, ENVIRONMENT_DEFAULTS),
                needs=[self.embedded.lock],
                stop_limit_s=QUEUE_STOP_S,
                is_up=functools.partial(is_up, self.settings),
                hint=str(self.embedded.log_file),
            )
            self.companions += [
                self.queue,
                Companion(
                    "task-master",
                    self._work_on_tasks,
                    stop_limit_s=self.settings.graceful_timeout_s + TASK_MARGIN_S,
                    quick_signal=signal.SIGQUIT,
                    is_early=False,
                ),
            ]

    def watch(self) -> None:
        """Watch the storage of the queue that this instance has started."""
        if self.queue is not None:
            from app.tasks.embedded_server import StorageWatch  # noqa: PLC0415 - as in `prepare`

            folder = self.settings.data_dir.absolute()
            StorageWatch(self.settings.nats_monitor_url, folder, self.queue.request_restart).start()

    def _work_on_tasks(self) -> None:
        from app.runtime.task_server import work_beside  # noqa: PLC0415 - as in `prepare`

        if self.board.beside is not None:
            work_beside(self.settings, self.board.beside, self.metrics_directory, master=self.board.master_pid)


def _run_queue(server: EmbeddedServer, defaults: Mapping[str, str]) -> None:
    server.restore_configuration()
    execute(server.command, keep=[server.lock.fileno()], output=server.log_file, defaults=defaults)


def serve(settings: Settings) -> None:
    """Run the API until it is told to stop."""
    ApiApplication(settings).run()
