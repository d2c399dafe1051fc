"""What the master knows of each of its worker processes, of whichever kind."""

from __future__ import annotations

from typing import Any

from app.observability.board import Board
from app.settings import Settings, count_usable_cores


class SlotWorker:
    """A worker process in a slot; mixed into a worker class of gunicorn.

    Attributes:
        slot: number of the slot, set by the arbiter before the fork.
        board: shared with the master and the exporter, set by the arbiter before the fork.
        is_socket_shared: whether the listening socket outlives the instance, set by the arbiter before the fork.
        exit_status: signal (negative) or exit code, set by the arbiter when the process has ended.
        pid: its process id, set by gunicorn.
        aborted: whether gunicorn ended it for its silence.
    """

    slot: int
    board: Board
    is_socket_shared: bool = False
    exit_status: int | None = None
    pid: Any  # gunicorn's own has a text in it at first
    aborted: bool

    @property
    def slot_name(self) -> str:
        """The name that the process's metrics are kept under."""
        return self.board.worker_name(self.slot)


def count_task_workers(settings: Settings) -> int:
    """Count the processes that work on tasks: as many as are asked for, else one a usable core."""
    return settings.task_workers or count_usable_cores()


def make_task_board(settings: Settings) -> Board:
    """Make the board of the processes that work on tasks."""
    return Board(expected_workers=count_task_workers(settings), timeout_s=settings.timeout_s, worker_name="task")
