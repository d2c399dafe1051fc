"""Folders: whether files can be written there, on what they are, and how much room there is."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

IN_MEMORY = {"tmpfs", "ramfs"}
PROBE = b"\0" * 4096


class Folder(NamedTuple):
    """A folder, or the nearest one above it where it is not there yet.

    Attributes:
        path: that folder.
        is_there: whether it is the one that was asked for.
        trouble: why nothing can be written; empty where it can.
        kind: of the file system, such as ``ext4``; empty where it is not known.
        free: bytes that may still be written.
        size: bytes of the file system.
    """

    path: Path
    is_there: bool
    trouble: str
    kind: str
    free: int
    size: int

    @property
    def is_in_memory(self) -> bool:
        """Whether what is in it is gone when the machine stops."""
        return self.kind in IN_MEMORY


def look_at(wanted: Path) -> Folder:
    """Look at a folder, and leave nothing behind."""
    path = wanted.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    trouble = _try(path) if path.is_dir() else "it is no folder"
    try:
        room = os.statvfs(path)
        free, size = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    except OSError:
        free = size = 0
    return Folder(path, path == wanted.absolute(), trouble, _kind_of(path), free, size)


def _try(path: Path) -> str:
    name = ""
    try:
        descriptor, name = tempfile.mkstemp(prefix=".facial-service-doctor-", dir=path)
        try:
            os.write(descriptor, PROBE)
            os.fsync(descriptor)  # a disk that is full may say so only here
        finally:
            os.close(descriptor)
    except OSError as fault:
        return os.strerror(fault.errno).lower() if fault.errno else type(fault).__name__
    finally:
        if name:
            with suppress(OSError):
                os.unlink(name)  # noqa: PTH108 - what `mkstemp` gave, as it gave it
    return ""


def _kind_of(path: Path) -> str:
    real = path.resolve()
    kinds = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((kinds[folder] for folder in (real, *real.parents) if folder in kinds), "")
