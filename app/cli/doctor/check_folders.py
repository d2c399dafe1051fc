"""The checks of folders: metric files, `DATA_DIR` and the folder of the log file."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from app.cli.doctor.findings import Finding, error, format_bytes, note, ok, skipped, warning
from app.settings import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context
    from app.settings import Settings

WRITABLE = "a folder that the service's user can write to"
IN_MEMORY = {"tmpfs", "ramfs"}
CONTAINER_LAYERS = {"overlay", "aufs", "fuse-overlayfs"}
PROBE = b"\0" * 4096
MIN_DATA_BYTES, LOW_DATA_BYTES = 64 * MIB, 512 * MIB
# As in the chart: an API worker that has used every method on every path takes 0.7 MiB.
METRIC_BYTES_PER_PROCESS = 4 * MIB
MIN_METRIC_BYTES = MIB
MAX_NAMES = 5
# The metric type, the multi-process mode of a gauge, and the process that wrote the file.
_METRIC_FILE = re.compile(r"(?:counter|histogram|summary|gauge_(?P<mode>[a-z]+))_(?P<process>[^_]+)\.db")
_WORKER = re.compile(r"(?:worker|task)-\d+")
_OTHER_PROCESSES = {"main", "master", "exporter", "task-master"}


class Folder(NamedTuple):
    """A folder, or its nearest existing parent."""

    path: Path  # the folder that was inspected
    exists: bool  # whether it is the requested folder
    problem: str  # why it is not writable; empty if it is
    file_system: str  # type of the file system, such as ``ext4``; "unknown file system" if it cannot be determined
    free: int  # free space, in bytes
    size: int  # size of the file system, in bytes


def inspect_folder(requested: Path) -> Folder:
    """Inspect a folder, and try to write to it."""
    path = requested.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    problem = _try_write(path) if path.is_dir() else "not a folder"
    try:
        space = os.statvfs(path)
        free, size = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    except OSError:
        free = size = 0
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    real = path.resolve()
    file_system = next((mounts[folder] for folder in (real, *real.parents) if folder in mounts), "unknown file system")
    return Folder(path, path == requested.absolute(), problem, file_system, free, size)


def _try_write(path: Path) -> str:
    name = ""
    try:
        descriptor, name = tempfile.mkstemp(prefix=".facial-service-doctor-", dir=path)
        try:
            os.write(descriptor, PROBE)
            os.fsync(descriptor)  # because some file systems report a full disk only now
        finally:
            os.close(descriptor)
    except OSError as failure:
        return os.strerror(failure.errno).lower() if failure.errno else type(failure).__name__
    finally:
        if name:
            with suppress(OSError):
                os.unlink(name)  # noqa: PTH108 - a name from `mkstemp`
    return ""


def check_metric_files(context: Context) -> Iterator[Finding]:
    """Check the folder of the metric files, then the files."""
    part = "metric-files.folder"
    if not context.settings.enable_metrics:
        yield skipped(part, "ENABLE_METRICS=false", "metrics are disabled")
        return
    folder = context.settings.prometheus_multiproc_dir or _find_metrics_folder(context) or context.temporary
    if folder is None:
        yield skipped(part, "temporary folder", "none is writable; see limits.temporary")
        return
    yield _check_metrics_folder(context, folder)
    if folder == context.temporary or not folder.is_dir():
        yield skipped("metric-files.names", str(folder), "each start creates a new folder")
        return
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return  # reported above
    yield _check_names(folder, names)
    yield from _check_slots(context, folder, names)


def _find_metrics_folder(context: Context) -> Path | None:
    """Return the folder that the running instance has created, by the files that its workers have open."""
    for worker in context.instance.metrics.health.get("workers", []):
        with suppress(psutil.Error, OSError):
            for file in psutil.Process(worker["pid"]).open_files():
                if _METRIC_FILE.fullmatch(Path(file.path).name):
                    return Path(file.path).parent
    return None


def _check_metrics_folder(context: Context, path: Path) -> Finding:
    part, configured, folder = "metric-files.folder", context.settings.prometheus_multiproc_dir, inspect_folder(path)
    subject = str(path) if configured is None else f"PROMETHEUS_MULTIPROC_DIR {configured}"
    need = METRIC_BYTES_PER_PROCESS * (context.worker_count + 1)
    if folder.problem:
        return error(part, subject, f"not writable: {folder.problem}", expected=WRITABLE)
    found = f"{format_bytes(folder.free)} free of {format_bytes(folder.size)}, {folder.file_system}"
    if folder.free < MIN_METRIC_BYTES:
        return error(part, subject, f"{found}: too little for metrics", expected=format_bytes(need))
    if folder.size < need:
        expected = f"{format_bytes(need)}, {format_bytes(METRIC_BYTES_PER_PROCESS)} for each process"
        return warning(part, subject, found, expected=expected)
    if folder.file_system not in IN_MEMORY and configured is not None:
        advice = "use a folder in memory (chart: an `emptyDir` with `medium: Memory`)"
        return note(part, subject, f"{found}: on a disk, which can delay scrapes and requests", advice)
    return ok(part, subject, found)


def _check_names(folder: Path, names: list[str]) -> Finding:
    part, foreign = "metric-files.names", [name for name in names if not _is_ours(name)]
    if not foreign:
        return ok(part, str(folder), f"{len(names)} files, all of this service")
    listed = ", ".join([*foreign[:MAX_NAMES], *["…"] * (len(foreign) > MAX_NAMES)])
    return warning(
        part, str(folder), f"{len(foreign)} unexpected files: {listed}", expected="files of this instance only"
    )


def _is_ours(name: str) -> bool:
    match = _METRIC_FILE.fullmatch(name)
    return match is not None and (match["process"] in _OTHER_PROCESSES or bool(_WORKER.fullmatch(match["process"])))


def _check_slots(context: Context, folder: Path, names: list[str]) -> Iterator[Finding]:
    part = "metric-files.slots"
    files = [match for match in map(_METRIC_FILE.fullmatch, names) if match and _WORKER.fullmatch(match["process"])]
    processes = {match["process"] for match in files}
    if not context.instance.is_running:
        if processes:
            found = f"files of {len(processes)} processes of an earlier run; the next start removes them"
            yield note(part, str(folder), found)
        return
    running = {str(worker["name"]) for worker in context.instance.workers}
    stale = sorted({match["process"] for match in files if (match["mode"] or "").startswith("live")} - running)
    if stale:
        yield warning(
            part,
            str(folder),
            f"live values of processes that no longer run: {', '.join(stale)}",
            expected="live values of running processes only",
        )
    elif processes - running:
        stopped = ", ".join(sorted(processes - running))
        yield note(part, str(folder), f"files of {stopped}, which no longer run; their counters are still exported")
    else:
        yield ok(part, str(folder), f"files of {len(processes)} processes, all running")


def check_disk(context: Context) -> Iterator[Finding]:
    """Check the folders that outlive the process."""
    settings = context.settings
    if settings.is_queue_embedded:
        yield _check_data_folder(settings)
    else:
        reason = "NATS_URL names another server" if settings.nats_url else "tasks are disabled"
        yield skipped("disk.data-dir", "DATA_DIR", reason)
    if settings.log_file is None:
        yield skipped("disk.log-file", "LOG_FILE", "empty: the log goes to standard error")
    else:
        yield _check_log_folder(settings, settings.log_file)


def _check_data_folder(settings: Settings) -> Finding:
    from app.tasks.embedded_server import STORE_HEADROOM  # noqa: PLC0415 - imports nats-py, which other checks do not need

    part, subject = "disk.data-dir", f"DATA_DIR {settings.data_dir.absolute()}"
    folder = inspect_folder(settings.data_dir)
    if folder.problem:
        location = "" if folder.exists else f" (in {folder.path}, where it would be created)"
        return error(part, subject, f"not writable: {folder.problem}{location}", expected="a writable folder")
    found = f"{format_bytes(folder.free)} free on {folder.file_system}"
    limits = settings.task_queue_max_bytes + settings.result_max_bytes + settings.task_dead_max_bytes
    need = format_bytes(STORE_HEADROOM * limits)
    if folder.free < LOW_DATA_BYTES:
        judge = error if folder.free < MIN_DATA_BYTES else warning
        return judge(part, subject, found, expected=f"{need} for a full queue, at least {format_bytes(LOW_DATA_BYTES)}")
    if folder.file_system in IN_MEMORY:
        found += ": in memory, so a restart of the machine or container deletes all tasks"
        return warning(part, subject, found, expected="a disk")
    if folder.file_system in CONTAINER_LAYERS:
        found += ": in the writable layer, which is deleted with the container"
        return note(part, subject, found, "mount a volume there")
    if folder.free < STORE_HEADROOM * limits:
        return note(part, subject, f"{found}; a full queue needs up to {need}")
    return ok(part, subject, found)


def _check_log_folder(settings: Settings, file: Path) -> Finding:
    part, subject, folder = "disk.log-file", f"LOG_FILE {file}", inspect_folder(file.parent)
    if folder.problem:
        return error(part, subject, f"not writable: {folder.problem}", expected=WRITABLE)
    need, found = settings.log_file_max_bytes * (settings.log_file_backups + 1), f"{format_bytes(folder.free)} free"
    if folder.free < need:
        return warning(part, subject, found, expected=f"{format_bytes(need)} for the log and its backups")
    return ok(part, subject, found)
