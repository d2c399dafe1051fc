"""The directory of the metric files: creation, locking, and removal of those of dead instances.

An instance holds a lock (``flock``) on its directory. Its processes inherit the lock, and the kernel releases it when
the last of them has ended.
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
from app.observability.value_store import FILE_NAME

log = get_logger("server")

PREFIX: Final = "facial-service-metrics-"
NAME: Final = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9_]+")
PREDECESSOR_S: Final = 10.0  # time that the processes of a killed instance have to end
NOTICE_S: Final = 0.5
POLL_S: Final = 0.05

_held = -1  # descriptor of the directory that this process has claimed


def make() -> Path:
    """Remove the directories of dead instances, and create and claim one in the temporary directory.

    Raises:
        OSError: the directory cannot be created.
    """
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError:  # every candidate is full, but the service can start without files
        parent = Path("/tmp")  # noqa: S108 - mkdtemp creates a private directory
    remove_stale(parent)
    # Rename it only once it is locked, because an unlocked directory with the final name counts as stale.
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
    _hold(_lock(hidden))
    return hidden.rename(parent / hidden.name.removeprefix("."))


def claim(directory: Path) -> Path:
    """Claim a configured directory, and remove the files of an earlier run from it.

    Raises:
        OSError: the directory cannot be created or emptied, or another instance uses it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _hold(None)
    start, is_logged = time.monotonic(), False
    while (lock := _lock(directory)) is None:
        waited = time.monotonic() - start
        if waited > PREDECESSOR_S:
            reason = "in use by another instance; set another PROMETHEUS_MULTIPROC_DIR for this one"
            raise OSError(None, reason, str(directory))
        if waited > NOTICE_S and not is_logged:
            is_logged = True
            log.warning(
                "Metrics directory %s is in use; waiting up to %g s for the other instance to exit",
                directory,
                PREDECESSOR_S,
            )
        time.sleep(POLL_S)
    _hold(lock)
    _remove_files(directory)
    return directory


def remove(directory: Path) -> None:
    """Remove a directory that `make` created, if possible, and those of instances that have ended since."""
    shutil.rmtree(directory, ignore_errors=True)
    remove_stale(directory.parent)


def remove_stale(parent: Path) -> None:
    """Remove the directories of instances that have ended without removing them.

    A directory is stale if it has the name and the mode that `make` uses, belongs to this user, and is not locked.
    Files that this service did not create stay, and so does their directory.
    """
    with suppress(OSError):
        for entry in os.scandir(parent):
            if NAME.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_if_stale(Path(entry.path))


def _remove_if_stale(directory: Path) -> None:
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:  # noqa: PLR2004 - the mode of mkdtemp
        return
    lock = _lock(directory)
    if lock is not None:
        try:
            _remove_files(directory)
            directory.rmdir()
            log.info("Removed %s, the metrics directory of an instance that has exited", directory)
        finally:
            os.close(lock)


def _remove_files(directory: Path) -> None:
    for file in directory.iterdir():  # only by name, because the directory may contain files of others
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
    global _held  # noqa: PLW0603 - a process has one directory
    if _held >= 0:
        os.close(_held)
    _held = -1 if lock is None else lock
