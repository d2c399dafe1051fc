"""The limits that the container, the kernel and the user set, against what the settings ask for."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from app.cli.doctor.cgroup import Limits, read_limits
from app.cli.doctor.figures import count_processes, most_memory, needed_memory, needed_threads
from app.cli.doctor.findings import Finding, error, mebibytes, note, ok, warning
from app.cli.doctor.folders import look_at
from app.cli.doctor.instance import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context

NEARLY_RATIO, IN_USE_RATIO, THROTTLED_RATIO = 0.8, 0.9, 0.25
FEWEST_FILES, FEW_FILES = 256, 1024


def run(context: Context) -> Iterator[Finding]:
    """Look at each limit."""
    limits = read_limits(context.cgroup_root)
    yield from _judge_memory(context, limits)
    yield _judge_cpu(context, limits)
    yield _judge_files(context)
    yield _judge_processes(context, limits)
    yield from _judge_temporary(context)


def _judge_memory(context: Context, limits: Limits) -> Iterator[Finding]:
    part, limit = "limits.memory", limits.memory
    if limit is None:
        yield ok(part, "memory limit", "none")
        return
    role = context.instance.role
    advice = f"raise the limit (chart: `{role.value}.resources.limits.memory`), or run fewer processes (WORKERS, "
    advice += f"TASK_WORKERS; chart: `{'api.workers' if role is Role.API else 'worker.processes'}`)"
    yield _judge_need(context, limit, advice)
    if limits.memory_used is not None and limits.memory_used > IN_USE_RATIO * limit:
        yield warning(
            part,
            "memory in use",
            f"{mebibytes(limits.memory_used)} of {mebibytes(limit)}",
            expected=f"less than {IN_USE_RATIO:.0%}",
            advice=f"{advice}; see FacialServiceMemoryNearLimit",
        )
    if limits.killed:
        yield warning(
            part,
            "memory",
            f"processes of this container that the kernel has killed for want of it: {limits.killed}",
            expected="none",
            advice=f"{advice}; see FacialServiceOomKilled",
        )


def _judge_need(context: Context, limit: int, advice: str) -> Finding:
    part, place, needed, most = "limits.memory", "memory limit", needed_memory(context), most_memory(context)
    takes = f"{count_processes(context)} worker processes and what is beside them take {mebibytes(needed)}"
    if needed > NEARLY_RATIO * limit:
        return (error if needed > limit else warning)(
            part,
            place,
            f"{mebibytes(limit)}; {takes}",
            expected=f"{mebibytes(needed / NEARLY_RATIO)} or more",
            advice=advice,
        )
    if most > limit:
        found = f"{mebibytes(limit)}; {takes}, and {mebibytes(most)} full of the largest bodies and pictures"
        return note(part, place, found, f"{advice}, or lower MAX_CONCURRENCY, MAX_BODY_BYTES or MAX_IMAGE_PIXELS")
    return ok(part, place, f"{mebibytes(limit)}; {takes}")


def _judge_cpu(context: Context, limits: Limits) -> Finding:
    part, place, count = "limits.cpu", "CPU limit", count_processes(context)
    if limits.cores is None:
        return ok(part, place, "none")
    role = context.instance.role.value
    found = f"{limits.cores:g} cores for {count} worker processes"
    advice = f"raise or remove the limit (chart: `{role}.resources.limits`), or run fewer processes"
    if count > 2 * limits.cores:
        return warning(part, place, found, expected="at least one core for every two of them", advice=advice)
    if limits.throttled > THROTTLED_RATIO:
        held = f"{found}; held back in {limits.throttled:.0%} of all periods"
        return note(part, place, held, f"{advice}; see FacialServiceCpuThrottled")
    if count > limits.cores:
        return note(part, place, found, advice)
    return ok(part, place, found)


def _judge_files(context: Context) -> Finding:
    part, (soft, whose) = "limits.files", _open_files(context)
    place = f"open files of {whose}"
    if soft >= FEW_FILES:
        return ok(part, place, str(soft))
    return (error if soft < FEWEST_FILES else warning)(
        part,
        place,
        f"{soft}: each connection of a worker is one",
        expected=f"{FEW_FILES} or more",
        advice="`ulimit -n 65536` before the start; systemd: LimitNOFILE=65536; Docker: --ulimit nofile=65536",
    )


def _open_files(context: Context) -> tuple[int, str]:
    master = context.instance.master
    if master is not None:
        with suppress(psutil.Error, OSError):
            soft, _ = master.rlimit(psutil.RLIMIT_NOFILE)
            return _endless(soft), "the service that runs"
    return _endless(resource.getrlimit(resource.RLIMIT_NOFILE)[0]), "this shell"


def _endless(limit: int) -> int:
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit


def _judge_processes(context: Context, limits: Limits) -> Finding:
    part, place, needed = "limits.processes", "processes and threads", needed_threads(context)
    used = limits.processes_used or 0
    if limits.processes is None:
        return ok(part, place, "no limit")
    found = f"{limits.processes} allowed, {used} in use"
    advice = "raise it: Docker: --pids-limit; Kubernetes: the kubelet's podPidsLimit; systemd: TasksMax"
    if limits.processes < needed:
        return error(part, place, found, expected=f"{needed} or more", advice=advice)
    if used > IN_USE_RATIO * limits.processes:
        return warning(part, place, found, expected=f"less than {IN_USE_RATIO:.0%} in use", advice=advice)
    return ok(part, place, found)


def _judge_temporary(context: Context) -> Iterator[Finding]:
    part, advice = "limits.temporary", "mount a tmpfs there: Docker: `--tmpfs /tmp`; the chart has a volume"
    if context.temporary is None:
        yield error(
            part,
            "temporary folder",
            "none of /tmp, /var/tmp and TMPDIR can be written",
            expected="one of these, also where the root file system is read-only",
            advice=advice,
        )
    shared = Path("/dev/shm")  # noqa: S108 - where workers show their signs of life
    for place in filter(None, (context.temporary, shared if shared.is_dir() else None)):
        folder = look_at(place)
        if folder.trouble:
            expected = "a folder that the service's user can write"
            yield error(part, str(place), f"cannot be written: {folder.trouble}", expected=expected, advice=advice)
        else:
            yield ok(part, str(place), f"{mebibytes(folder.free)} free")
