"""The folder of the value files: made or claimed at start, and removed if its instance is dead.

An instance holds a lock (``flock``) on its folder. Its processes inherit the lock, and the kernel releases it when the
last of them has ended, in whatever way.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from app.observability.rich_logging import get_logger
from app.observability.value_files import FILE_NAME

log = get_logger("server")

PREFIX: Final = "facial-service-metrics-"
NAME: Final = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9_]+")
PREDECESSOR_S: Final = 10.0  # how long the processes of an instance that was killed may take to end
NOTICE_S: Final = 0.5
POLL_S: Final = 0.05

_held = -1  # descriptor of the folder that this process has claimed


def make() -> Path:
    """Make and claim a folder under the temporary folder, after those of dead instances are removed.

    Raises:
        OSError: no folder can be made.
    """
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError:  # every candidate is full, which is no reason not to start
        parent = Path("/tmp")  # noqa: S108 - mkdtemp makes a folder that is this user's alone
    remove_stale(parent)
    # Renamed once it is locked, because a folder of its final name without a lock is taken for a dead instance's.
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
    _hold(_lock(hidden))
    return hidden.rename(parent / hidden.name.removeprefix("."))


def claim(directory: Path) -> Path:
    """Claim a folder that the settings name, and remove the files of an earlier run from it.

    Raises:
        OSError: the folder cannot be made or emptied, or another instance uses it.
    """
    global _held  # noqa: PLW0603 - as below
    directory.mkdir(parents=True, exist_ok=True)
    if _held >= 0:
        os.close(_held)
        _held = -1
    start, is_told = time.monotonic(), False
    while (lock := _lock(directory)) is None:
        waited = time.monotonic() - start
        if waited > PREDECESSOR_S:
            reason = "in use by another instance; set another PROMETHEUS_MULTIPROC_DIR for this one"
            raise OSError(None, reason, str(directory))
        if waited > NOTICE_S and not is_told:
            is_told = True
            log.warning(
                "Metrics folder %s is in use; waiting up to %g s for its instance to end", directory, PREDECESSOR_S
            )
        time.sleep(POLL_S)
    _hold(lock)
    _remove_files(directory)
    return directory


def remove(directory: Path) -> None:
    """Remove a folder that `make` has made, if that is possible, and those of instances that have ended meanwhile."""
    shutil.rmtree(directory, ignore_errors=True)
    remove_stale(directory.parent)


def remove_stale(parent: Path) -> None:
    """Remove the folders of instances that have ended without removing them.

    Only a folder of this user, with the name and the mode that `make` gives, and that no process holds. Files that this
    service has not made stay, and their folder with them.
    """
    with suppress(OSError):
        for entry in os.scandir(parent):
            if NAME.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_if_stale(Path(entry.path))


def _remove_if_stale(directory: Path) -> None:
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:  # noqa: PLR2004 - as mkdtemp makes it
        return
    lock = _lock(directory)
    if lock is not None:
        try:
            _remove_files(directory)
            directory.rmdir()
            log.info("Removed %s, the metrics folder of an instance that has ended", directory)
        finally:
            os.close(lock)


def _remove_files(directory: Path) -> None:
    for file in directory.iterdir():  # by their names, because the folder may contain files of others
        if FILE_NAME.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _lock(directory: Path) -> int | None:
    """Return a descriptor that holds the lock, or None if another process holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks
        return descriptor
    return descriptor


def _hold(lock: int | None) -> None:
    global _held  # noqa: PLW0603 - one folder a process is the point
    if _held >= 0:
        os.close(_held)
    _held = -1 if lock is None else lock
