"""The workers of tasks as processes: an instance of their own, or beside an API that starts the queue itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.supervisor.application import TITLE, ServiceApplication, become
from app.supervisor.arbiter import ServiceArbiter
from app.supervisor.banner import announce_workers
from app.supervisor.slots import count_task_workers, make_task_board
from app.supervisor.task_worker import TaskWorker

if TYPE_CHECKING:
    from pathlib import Path

    from app.observability.board import Board
    from app.settings import Settings

MASTER = "task-master"
GRACE_MARGIN_S = 2  # after their own time is up, for workers to take leave of the queue


class TaskApplication(ServiceApplication):
    """One set of task workers under a master.

    Args:
        settings: how to run.
        board: health, where it is shared with an API.
    """

    def __init__(self, settings: Settings, board: Board | None = None) -> None:
        super().__init__(settings, board or make_task_board(settings))

    def gunicorn_options(self) -> dict[str, Any]:
        """Translate the settings into gunicorn's names; nothing is listened on."""
        return super().gunicorn_options() | {
            "bind": [],
            "workers": count_task_workers(self.settings),
            "worker_class": TaskWorker,
            "proc_name": f"{TITLE}: {MASTER}",
            "when_ready": announce_workers,
            "graceful_timeout": self.settings.graceful_timeout_s + GRACE_MARGIN_S,
        }

    def load(self) -> Any:
        """Return what gunicorn keeps as the application, and nobody calls."""
        return None


def work_alone(settings: Settings) -> None:
    """Work on the tasks of a queue that runs elsewhere, until told to stop.

    Args:
        settings: how to work; ``nats_url`` says where the queue is.
    """
    TaskApplication(settings.model_copy(update={"enable_tasks": True})).run()  # whatever else is said of an API


def work_beside(settings: Settings, board: Board, metrics_directory: Path | None, *, master: int) -> None:
    """Work on tasks in the processes of an API instance, until told to stop; leaves by `SystemExit`.

    Args:
        settings: how to work.
        board: health, which the API's probes tell too.
        metrics_directory: the folder that the API's processes write into.
        master: the API's master, which forked this process.
    """
    become(MASTER)
    board.take_over()
    ServiceArbiter(
        TaskApplication(settings, board),
        settings=settings,
        board=board,
        companions=[],
        metrics_directory=metrics_directory,
        parent_pid=master,
    ).run()
