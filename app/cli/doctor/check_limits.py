"""The check of resource limits: what the container, the kernel and the user allow, and what the settings need."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from app.cli.doctor.catalogue import CATALOGUE
from app.cli.doctor.check_folders import inspect_folder
from app.cli.doctor.findings import Finding, error, format_bytes, note, ok, skipped, warning
from app.settings import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context

OWN_CGROUP = Path("/proc/self/cgroup")
HIGH_RATIO, IN_USE_RATIO, THROTTLED_RATIO = 0.8, 0.9, 0.25
MIN_FILES, FEW_FILES = 256, 1024
# Measured on x86-64 Linux after images of 0.5 megapixels without landmarks: 115 to 120 MB resident for each worker, of
# the API and of tasks. Master and exporter share most of their memory with them. An idle nats-server takes 33 MB.
WORKER_BYTES = 120 * MIB
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
    """Read the limits of this process's cgroup, of a file system mounted at `root`.

    Returns:
        The limits, or None if the file system is not cgroup v2.
    """
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
        yield warning(
            part,
            "memory in use",
            f"{format_bytes(limits.memory_used)} of {format_bytes(limit)}",
            expected=f"less than {IN_USE_RATIO:.0%}",
            advice=f"{remedy}; see FacialServiceMemoryNearLimit",
        )
    if limits.oom_kills:
        found = f"processes killed by the kernel because of the limit: {limits.oom_kills}"
        yield warning(part, "memory", found, expected="none", advice=f"{remedy}; see FacialServiceOomKilled")


def _check_memory_need(context: Context, limit: int) -> Finding:
    part, settings, workers = "limits.memory", context.settings, context.worker_count
    need = MASTER_BYTES + WORKER_BYTES * workers + (NATS_SERVER_BYTES if settings.is_queue_embedded else 0)
    bodies = settings.max_concurrency * settings.max_body_bytes * context.api_worker_count
    images = BYTES_PER_PIXEL * settings.max_image_pixels * settings.work_threads * workers
    maximum = need + bodies + images
    found = f"{format_bytes(limit)}; {workers} workers and the other processes need {format_bytes(need)}"
    if need > HIGH_RATIO * limit:
        judge = error if need > limit else warning
        return judge(part, "memory limit", found, expected=f"at least {format_bytes(need / HIGH_RATIO)}")
    if maximum > limit:
        found += f", and {format_bytes(maximum)} with the largest bodies and images in every slot"
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
    judge = error if limit < MIN_FILES else warning
    return judge(part, subject, f"{limit}, and each connection counts", expected=f"at least {FEW_FILES}")


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
            yield error(part, str(path), found, expected="a folder that the service's user can write to")
        else:
            yield ok(part, str(path), f"{format_bytes(folder.free)} free")
