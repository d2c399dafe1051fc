"""The checks of resources: limits of the container, the kernel and the user, and the folders that the service uses."""

from __future__ import annotations

import os
import re
import resource
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from app.cli.doctor.catalogue import CATALOGUE
from app.cli.doctor.findings import Finding, error, note, ok, skipped, warning
from app.observability.log_text import size_of
from app.observability.value_store import FILE_NAME
from app.service.fair_queue import EXPRESS_IMAGE_BYTES
from app.settings import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context
    from app.settings import Settings

IN_MEMORY = {"tmpfs", "ramfs"}
CONTAINER_LAYERS = {"overlay", "aufs", "fuse-overlayfs"}
WRITABLE = "a folder that the service's user can write to"
PROBE = b"\0" * 4096
MIN_DATA_BYTES, LOW_DATA_BYTES = 64 * MIB, 512 * MIB
# As in the chart: an API worker that has used every method on every path takes 0.7 MiB.
METRIC_BYTES_PER_PROCESS = 4 * MIB
MIN_METRIC_BYTES = MIB
MAX_NAMES = 5
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
    for worker in context.instance.metrics.health.workers:
        with suppress(psutil.Error, OSError):
            for file in psutil.Process(worker.pid).open_files():
                if FILE_NAME.fullmatch(Path(file.path).name):
                    return Path(file.path).parent
    return None


def _check_metrics_folder(context: Context, path: Path) -> Finding:
    part, configured, folder = "metric-files.folder", context.settings.prometheus_multiproc_dir, inspect_folder(path)
    subject = str(path) if configured is None else f"PROMETHEUS_MULTIPROC_DIR {configured}"
    need = METRIC_BYTES_PER_PROCESS * (context.worker_count + 1)
    if folder.problem:
        return error(part, subject, f"not writable: {folder.problem}", expected=WRITABLE)
    found = f"{size_of(folder.free)} free of {size_of(folder.size)}, {folder.file_system}"
    if folder.free < MIN_METRIC_BYTES:
        return error(part, subject, f"{found}: too little for metrics", expected=size_of(need))
    if folder.size < need:
        expected = f"{size_of(need)}, {size_of(METRIC_BYTES_PER_PROCESS)} for each process"
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
    found = f"{len(foreign)} unexpected files: {listed}"
    return warning(part, str(folder), found, expected="files of this instance only")


def _is_ours(name: str) -> bool:
    match = FILE_NAME.fullmatch(name)
    return match is not None and (match["slot"] in _OTHER_PROCESSES or bool(_WORKER.fullmatch(match["slot"])))


def _check_slots(context: Context, folder: Path, names: list[str]) -> Iterator[Finding]:
    part = "metric-files.slots"
    files = [match for match in map(FILE_NAME.fullmatch, names) if match and _WORKER.fullmatch(match["slot"])]
    processes = {match["slot"] for match in files}
    if not context.instance.is_running:
        if processes:
            found = f"files of {len(processes)} processes of an earlier run; the next start removes them"
            yield note(part, str(folder), found)
        return
    running = {worker.name for worker in context.instance.workers}
    stale = sorted({match["slot"] for match in files if (match["mode"] or "").startswith("live")} - running)
    if stale:
        found = f"live values of processes that no longer run: {', '.join(stale)}"
        yield warning(part, str(folder), found, expected="live values of running processes only")
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
    found = f"{size_of(folder.free)} free on {folder.file_system}"
    limits = settings.task_queue_max_bytes + settings.result_max_bytes + settings.task_dead_max_bytes
    need = size_of(STORE_HEADROOM * limits)
    if folder.free < LOW_DATA_BYTES:
        report = error if folder.free < MIN_DATA_BYTES else warning
        expected = f"{need} for a full queue, at least {size_of(LOW_DATA_BYTES)}"
        return report(part, subject, found, expected=expected)
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
    need, found = settings.log_file_max_bytes * (settings.log_file_backups + 1), f"{size_of(folder.free)} free"
    if folder.free < need:
        return warning(part, subject, found, expected=f"{size_of(need)} for the log and its backups")
    return ok(part, subject, found)


OWN_CGROUP = Path("/proc/self/cgroup")
HIGH_RATIO, IN_USE_RATIO, THROTTLED_RATIO = 0.8, 0.9, 0.25
MIN_FILES, FEW_FILES = 256, 1024
# Measured on x86-64 Linux after images of 0.6 megapixels without landmarks: 132 MB resident for each worker, of
# the API and of tasks. Master and exporter share most of their memory with them. An idle nats-server takes 33 MB.
WORKER_BYTES = 128 * MIB
MASTER_BYTES = 100 * MIB
NATS_SERVER_BYTES = 64 * MIB
BYTES_PER_PIXEL = 12  # a PNG with transparency while OpenCV decodes it
# An API worker has 2 threads and WORK_THREADS more. A nats-server has about 8, and a few for each core.
WORKER_THREADS, OTHER_THREADS = 4, 24


class CgroupLimits(NamedTuple):
    """Limits and usage of a cgroup; a limit of None means unlimited."""

    memory: int | None  # memory limit, in bytes
    memory_used: int | None  # memory in use without reclaimable file cache, in bytes; None if unknown
    oom_kills: int  # processes killed because of the memory limit
    cores: float | None  # CPU limit, in cores
    throttled: float  # fraction of periods in which the CPU limit throttled the cgroup
    processes: int | None  # limit on processes and threads
    processes_used: int | None  # current number of processes and threads; None if unknown


def check_limits(context: Context) -> Iterator[Finding]:
    """Check each limit."""
    limits = read_cgroup(context.cgroup_root)
    if limits is None:
        for part, subject in (
            ("limits.memory", "memory limit"),
            ("limits.cpu", "CPU limit"),
            ("limits.processes", "processes and threads"),
        ):
            yield skipped(part, subject, f"{context.cgroup_root} is not a cgroup v2 file system")
    else:
        yield from _check_memory(context, limits)
        yield _check_cpu(context, limits)
        yield _check_processes(context, limits)
    yield _check_open_files(context)
    yield from _check_temporary(context)


def read_cgroup(root: Path) -> CgroupLimits | None:
    """Read the limits of this process's cgroup below the mount point `root`; None if that is not cgroup v2."""
    if not (root / "cgroup.controllers").exists() and not (root / "memory.max").exists():
        return None
    chain = _cgroup_chain(root)  # because the limits of the parents apply as well
    own = chain[0]
    used = _read_int(own / "memory.current")
    cpu = _read_fields(own / "cpu.stat")
    return CgroupLimits(
        memory=min(filter(None, (_read_int(folder / "memory.max") for folder in chain)), default=None),
        memory_used=None if used is None else max(0, used - _read_fields(own / "memory.stat").get("inactive_file", 0)),
        oom_kills=_read_fields(own / "memory.events").get("oom_kill", 0),
        cores=min(filter(None, (_read_quota(folder / "cpu.max") for folder in chain)), default=None),
        throttled=cpu.get("nr_throttled", 0) / max(1, cpu.get("nr_periods", 0)),
        processes=min(filter(None, (_read_int(folder / "pids.max") for folder in chain)), default=None),
        processes_used=_read_int(own / "pids.current"),
    )


def _cgroup_chain(root: Path) -> list[Path]:
    """Return the folder of this process's cgroup, then those of its parents.

    With its own cgroup namespace, a container sees its cgroup as the root.
    """
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    own = root / path
    if not own.is_dir():
        return [root]
    return [folder for folder in (own, *own.parents) if folder == root or root in folder.parents]


def _read_int(file: Path) -> int | None:
    try:
        value = int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # missing, or "max"
        return None
    return value if value >= 0 else None


def _read_quota(file: Path) -> float | None:
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _read_fields(file: Path) -> dict[str, int]:
    try:
        pairs = (line.split() for line in file.read_text(encoding="ascii").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}  # noqa: PLR2004
    except (OSError, ValueError):
        return {}


def _check_memory(context: Context, limits: CgroupLimits) -> Iterator[Finding]:
    part, limit, remedy = "limits.memory", limits.memory, CATALOGUE["limits.memory"].remedy
    if limit is None:
        yield ok(part, "memory limit", "none")
        return
    yield _check_memory_need(context, limit)
    if limits.memory_used is not None and limits.memory_used > IN_USE_RATIO * limit:
        found = f"{size_of(limits.memory_used)} of {size_of(limit)}"
        advice = f"{remedy}; see FacialServiceMemoryNearLimit"
        yield warning(part, "memory in use", found, expected=f"less than {IN_USE_RATIO:.0%}", advice=advice)
    if limits.oom_kills:
        found = f"processes killed by the kernel because of the limit: {limits.oom_kills}"
        yield warning(part, "memory", found, expected="none", advice=f"{remedy}; see FacialServiceOomKilled")


def _check_memory_need(context: Context, limit: int) -> Finding:
    part, settings, workers = "limits.memory", context.settings, context.worker_count
    need = MASTER_BYTES + WORKER_BYTES * workers + (NATS_SERVER_BYTES if settings.is_queue_embedded else 0)
    bodies = settings.max_concurrency * settings.max_body_bytes * context.api_worker_count
    images = BYTES_PER_PIXEL * settings.max_image_pixels * settings.work_threads * workers
    images += EXPRESS_IMAGE_BYTES * context.api_worker_count
    maximum = need + bodies + images
    found = f"{size_of(limit)}; {workers} workers and the other processes need {size_of(need)}"
    if need > HIGH_RATIO * limit:
        report = error if need > limit else warning
        return report(part, "memory limit", found, expected=f"at least {size_of(need / HIGH_RATIO)}")
    if maximum > limit:
        found += f", and {size_of(maximum)} with the largest bodies and images in every slot"
        advice = f"{CATALOGUE[part].remedy}, or lower MAX_CONCURRENCY, MAX_BODY_BYTES or MAX_IMAGE_PIXELS"
        return note(part, "memory limit", found, advice)
    return ok(part, "memory limit", found)


def _check_cpu(context: Context, limits: CgroupLimits) -> Finding:
    part, subject, workers = "limits.cpu", "CPU limit", context.worker_count
    if limits.cores is None:
        return ok(part, subject, "none")
    found, remedy = f"{limits.cores:g} CPU for {workers} workers", CATALOGUE[part].remedy
    if workers > 2 * limits.cores:
        return warning(part, subject, found, expected="at least one core for every two workers")
    if limits.throttled > THROTTLED_RATIO:
        found += f"; throttled in {limits.throttled:.0%} of all periods"
        return note(part, subject, found, f"{remedy}; see FacialServiceCpuThrottled")
    if workers > limits.cores:
        return note(part, subject, found, remedy)
    return ok(part, subject, found)


def _check_processes(context: Context, limits: CgroupLimits) -> Finding:
    part, subject, used = "limits.processes", "processes and threads", limits.processes_used or 0
    if limits.processes is None:
        return ok(part, subject, "no limit")
    need = OTHER_THREADS + (WORKER_THREADS + context.settings.work_threads) * context.worker_count
    found = f"limit {limits.processes}, {used} in use"
    if limits.processes < need:
        return error(part, subject, found, expected=f"at least {need}")
    if used > IN_USE_RATIO * limits.processes:
        return warning(part, subject, found, expected=f"less than {IN_USE_RATIO:.0%} in use")
    return ok(part, subject, found)


def _check_open_files(context: Context) -> Finding:
    part, (limit, owner) = "limits.files", _read_open_files(context)
    subject = f"open files of {owner}"
    if limit >= FEW_FILES:
        return ok(part, subject, str(limit))
    report = error if limit < MIN_FILES else warning
    return report(part, subject, f"{limit}, and each connection counts", expected=f"at least {FEW_FILES}")


def _read_open_files(context: Context) -> tuple[int, str]:
    limit, owner = resource.getrlimit(resource.RLIMIT_NOFILE)[0], "this shell"
    master = context.instance.master
    if master is not None:
        with suppress(psutil.Error, OSError):
            limit, owner = master.rlimit(psutil.RLIMIT_NOFILE)[0], "the running service"
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit, owner


def _check_temporary(context: Context) -> Iterator[Finding]:
    part = "limits.temporary"
    if context.temporary is None:
        yield error(part, "temporary folder", "none is writable", expected="TMPDIR, /tmp or /var/tmp, writable")
    shared_memory = Path("/dev/shm")  # noqa: S108 - where workers write their heartbeats
    for path in filter(None, (context.temporary, shared_memory if shared_memory.is_dir() else None)):
        folder = inspect_folder(path)
        if folder.problem:
            found = f"not writable: {folder.problem}"
            yield error(part, str(path), found, expected=WRITABLE)
        else:
            yield ok(part, str(path), f"{size_of(folder.free)} free")
