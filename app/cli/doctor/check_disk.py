"""Disk: DATA_DIR, and the folder of the log file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.cli.doctor.findings import Finding, error, mebibytes, note, ok, skipped, warning
from app.cli.doctor.folders import Folder, look_at
from app.task_settings import MIB
from app.tasks.embedded import STORE_HEADROOM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context
    from app.settings import Settings

LEAST, LITTLE = 64 * MIB, 512 * MIB
LAYERS = {"overlay", "aufs", "fuse-overlayfs"}


def run(context: Context) -> Iterator[Finding]:
    """Look at both."""
    settings = context.settings
    if settings.is_queue_embedded:
        yield _judge_data(context, look_at(settings.data_dir))
    else:
        why = "the queue is elsewhere" if settings.nats_url else "no tasks are taken"
        yield skipped("disk.data-dir", "DATA_DIR", why)
    if settings.log_file is None:
        yield skipped("disk.log-file", "LOG_FILE", "empty: the log goes to standard error alone")
    else:
        yield _judge_log(settings, look_at(settings.log_file.parent))


def _judge_data(context: Context, folder: Folder) -> Finding:
    settings = context.settings
    part, place = "disk.data-dir", f"DATA_DIR {settings.data_dir.absolute()}"
    elsewhere = "set DATA_DIR to a folder on a volume, which this user can write"
    lower = "lower TASK_QUEUE_MAX_BYTES, RESULT_MAX_BYTES and TASK_DEAD_MAX_BYTES"
    if folder.trouble:
        found = f"cannot be written: {folder.trouble}"
        found += "" if folder.is_there else f" (in {folder.path}, where it would be made)"
        free = "make room, or " if "space" in folder.trouble else ""
        return error(part, place, found, expected="a folder that can be written", advice=free + elsewhere)
    room = f"{mebibytes(folder.free)} free on {folder.kind or 'an unknown file system'}"
    bounds = settings.task_queue_max_bytes + settings.result_max_bytes + settings.task_dead_max_bytes
    if folder.free < LITTLE:
        return (error if folder.free < LEAST else warning)(
            part,
            place,
            room,
            expected=f"{mebibytes(STORE_HEADROOM * bounds)} for a queue that is full, {mebibytes(LITTLE)} at least",
            advice=f"make room, or {elsewhere}, or {lower}",
        )
    if folder.is_in_memory:
        return warning(
            part,
            place,
            f"{room}: in memory, tasks are gone when the machine or the container stops",
            expected="a disk",
            advice=elsewhere,
        )
    if folder.kind in LAYERS:
        return note(part, place, f"{room}: the container's own layer, which goes with it", "mount a volume there")
    if folder.free < STORE_HEADROOM * bounds:
        return note(part, place, f"{room}; a queue that is full takes up to {mebibytes(STORE_HEADROOM * bounds)}")
    return ok(part, place, room)


def _judge_log(settings: Settings, folder: Folder) -> Finding:
    part, place = "disk.log-file", f"LOG_FILE {settings.log_file}"
    if folder.trouble:
        return error(
            part,
            place,
            f"cannot be written: {folder.trouble}",
            expected="a folder that the service's user can write",
            advice="set LOG_FILE to another folder, or let the user write there",
        )
    most = settings.log_file_max_bytes * (settings.log_file_backups + 1)
    if folder.free < most:
        return warning(
            part,
            place,
            f"{mebibytes(folder.free)} free",
            expected=f"{mebibytes(most)} for the log and its old files",
            advice="make room, or lower LOG_FILE_MAX_BYTES or LOG_FILE_BACKUPS",
        )
    return ok(part, place, f"{mebibytes(folder.free)} free")
