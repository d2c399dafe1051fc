"""Who has DATA_DIR, where `serve` starts the queue itself."""

from __future__ import annotations

import fcntl
from enum import Enum
from typing import TYPE_CHECKING

from app.tasks.embedded import LOCK

if TYPE_CHECKING:
    from pathlib import Path

    from app.cli.doctor.context import Context


class Holder(Enum):
    """Who it is, as seen from the settings."""

    NOBODY = "nobody"
    THIS = "the instance that runs here"
    OTHER = "another instance"
    HIDDEN = "nobody that this user may see"
    UNKNOWN = "an instance"


def find_holder(context: Context) -> Holder:
    """Tell who has the folder.

    The lock is looked at by sharing it for a moment, where it is free; it is not made where it is not there.
    """
    file = context.settings.data_dir / LOCK
    try:
        if not _is_held(file):
            return Holder.NOBODY
    except PermissionError:
        return Holder.HIDDEN
    instance = context.instance
    master = instance.master if instance.is_running else None
    if master is not None and _read_pid(file) == master.pid:
        return Holder.THIS
    return Holder.OTHER if context.settings.metrics_port else Holder.UNKNOWN


def _is_held(file: Path) -> bool:
    try:
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    return False


def _read_pid(file: Path) -> int:
    try:
        return int(file.read_bytes())
    except (OSError, ValueError):
        return 0
