"""The limits of the container, as the kernel shows them: control groups, version 2 or 1."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

# Version 1 writes "no limit" as a number near the largest there is.
_NO_LIMIT = 1 << 60
OWN = Path("/proc/self/cgroup")


class Limits(NamedTuple):
    """What holds for this container; None is no limit, or not told.

    Attributes:
        memory: bytes.
        memory_used: bytes in use, less what the kernel would give back of files.
        killed: processes that the kernel has killed for want of memory.
        cores: CPU time a second.
        throttled: share of periods in which the CPU limit held it back; 0 to 1.
        processes: processes and threads.
        processes_used: those there are.
    """

    memory: int | None
    memory_used: int | None
    killed: int
    cores: float | None
    throttled: float
    processes: int | None
    processes_used: int | None


def read_limits(root: Path) -> Limits:
    """Read the limits.

    Args:
        root: where control groups are mounted: ``/sys/fs/cgroup``.
    """
    if (root / "cgroup.controllers").exists() or (root / "memory.max").exists():
        return _read_version_2(_chain(root, ""))
    return _read_version_1(root)


def _read_version_2(folders: list[Path]) -> Limits:
    memory = min(filter(None, (_number(folder / "memory.max") for folder in folders)), default=None)
    processes = min(filter(None, (_number(folder / "pids.max") for folder in folders)), default=None)
    quotas = [(folder / "cpu.max") for folder in folders]
    used, files = _number(folders[0] / "memory.current"), _fields(folders[0] / "memory.stat").get("inactive_file", 0)
    cpu = _fields(folders[0] / "cpu.stat")
    return Limits(
        memory=memory,
        memory_used=None if used is None else max(0, used - files),
        killed=_fields(folders[0] / "memory.events").get("oom_kill", 0),
        cores=min(filter(None, map(_quota, quotas)), default=None),
        throttled=cpu.get("nr_throttled", 0) / max(1, cpu.get("nr_periods", 0)),
        processes=processes,
        processes_used=_number(folders[0] / "pids.current"),
    )


def _read_version_1(root: Path) -> Limits:
    memories, cpus, pids = (_chain(root / kind, kind) for kind in ("memory", "cpu", "pids"))
    used = _number(memories[0] / "memory.usage_in_bytes")
    files = _fields(memories[0] / "memory.stat").get("total_inactive_file", 0)
    cpu = _fields(cpus[0] / "cpu.stat")
    quotas = [(_number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")) for folder in cpus]
    return Limits(
        memory=min(filter(None, (_number(folder / "memory.limit_in_bytes") for folder in memories)), default=None),
        memory_used=None if used is None else max(0, used - files),
        killed=_fields(memories[0] / "memory.oom_control").get("oom_kill", 0),
        cores=min((quota / period for quota, period in quotas if quota and period), default=None),
        throttled=cpu.get("nr_throttled", 0) / max(1, cpu.get("nr_periods", 0)),
        processes=min(filter(None, (_number(folder / "pids.max") for folder in pids)), default=None),
        processes_used=_number(pids[0] / "pids.current"),
    )


def _chain(root: Path, controller: str) -> list[Path]:
    """Return the folder of this process's own group and those above it, whose limits hold too.

    A container that has its own view of the groups sees itself as the root.
    """
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = root / path.lstrip("/")
            if own.is_dir():
                return [folder for folder in (own, *own.parents) if folder == root or root in folder.parents]
    return [root]


def _number(file: Path) -> int | None:
    try:
        value = int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # `max`
        return None
    return value if 0 <= value < _NO_LIMIT else None


def _quota(file: Path) -> float | None:
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _fields(file: Path) -> dict[str, int]:
    try:
        pairs = (line.split() for line in file.read_text(encoding="ascii").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}  # noqa: PLR2004
    except (OSError, ValueError):
        return {}
