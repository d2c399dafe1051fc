"""The folder of the metric files: room, strangers, and files that processes have left behind."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from app.cli.doctor.figures import count_processes
from app.cli.doctor.findings import Finding, error, mebibytes, note, ok, skipped, warning
from app.cli.doctor.folders import Folder, look_at
from app.task_settings import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context

# As the chart reckons: an API worker that has answered every method on every path takes 0.7 MiB.
FOR_EACH = 4 * MIB
LEAST = MIB
# kind, then what a gauge does across processes, then who wrote it.
_FILE = re.compile(r"(?:counter|histogram|summary|gauge_(?P<mode>[a-z]+))_(?P<slot>[^_]+)\.db")
_SLOT = re.compile(r"(?:worker|task)-(\d+)")
_ONES = {"main", "master", "exporter", "task-master"}


def run(context: Context) -> Iterator[Finding]:
    """Look at the folder, then at what is in it."""
    if not context.settings.enable_metrics:
        yield skipped("metric-files.folder", "ENABLE_METRICS=false", "there are none")
        return
    given = context.settings.prometheus_multiproc_dir
    wanted = given or find_folder(context) or context.temporary
    if wanted is None:
        yield skipped("metric-files.folder", "temporary folder", "there is none; see `limits.temporary`")
        return
    yield _judge_folder(context, wanted, look_at(wanted))
    if wanted == context.temporary or not wanted.is_dir():
        yield skipped("metric-files.names", str(wanted), "a new folder is made at each start")
        return
    try:
        names = sorted(entry.name for entry in wanted.iterdir())
    except OSError:
        return  # told above
    yield _judge_names(wanted, names)
    yield from _judge_slots(context, wanted, names)


def find_folder(context: Context) -> Path | None:
    """Return the folder that the instance that runs here has made for itself, by the files its workers have open."""
    for worker in context.instance.metrics.report.get("workers", []):
        with suppress(psutil.Error, OSError):
            for opened in psutil.Process(worker["pid"]).open_files():
                if _FILE.fullmatch(Path(opened.path).name):
                    return Path(opened.path).parent
    return None


def _judge_folder(context: Context, wanted: Path, folder: Folder) -> Finding:
    part = "metric-files.folder"
    given = context.settings.prometheus_multiproc_dir
    place = str(wanted) if given is None else f"PROMETHEUS_MULTIPROC_DIR {given}"
    needed = FOR_EACH * (count_processes(context) + 1)
    advice = "set PROMETHEUS_MULTIPROC_DIR to another folder, in memory where possible (chart: an emptyDir of its own)"
    if folder.trouble:
        found = f"cannot be written: {folder.trouble}"
        return error(part, place, found, expected="a folder that the service's user can write", advice=advice)
    room = f"{mebibytes(folder.free)} free of {mebibytes(folder.size)}, {folder.kind or 'an unknown file system'}"
    if folder.free < LEAST:
        found = f"{room}: metrics cannot be written there"
        return error(part, place, found, expected=f"{mebibytes(needed)}", advice=advice)
    if folder.size < needed:
        expected = f"{mebibytes(needed)}, {mebibytes(FOR_EACH)} for each process"
        return warning(part, place, room, expected=expected, advice=advice)
    if not folder.is_in_memory and given is not None:
        return note(part, place, f"{room}: on a disk, which scrapes and writes may wait for", advice)
    return ok(part, place, room)


def _judge_names(folder: Path, names: list[str]) -> Finding:
    part = "metric-files.names"
    foreign = [name for name in names if not _is_ours(name)]
    if not foreign:
        return ok(part, str(folder), f"{len(names)} files, all of this service")
    return warning(
        part,
        str(folder),
        f"{len(foreign)} files of others: {', '.join(foreign[:5])}{', …' if len(foreign) > 5 else ''}",  # noqa: PLR2004
        expected="files of this instance alone",
        advice="give the instance a folder of its own in PROMETHEUS_MULTIPROC_DIR, which nothing else writes into",
    )


def _is_ours(name: str) -> bool:
    found = _FILE.fullmatch(name)
    return found is not None and (found["slot"] in _ONES or _SLOT.fullmatch(found["slot"]) is not None)


def _judge_slots(context: Context, folder: Path, names: list[str]) -> Iterator[Finding]:
    part = "metric-files.slots"
    files = [found for found in map(_FILE.fullmatch, names) if found is not None and _SLOT.fullmatch(found["slot"])]
    slots = {found["slot"] for found in files}
    if not context.instance.is_running:
        if slots:
            yield note(
                part, str(folder), f"files of {len(slots)} processes, of an earlier run; the next start clears it"
            )
        return
    report: dict[str, Any] = context.instance.metrics.report
    running = {str(worker["name"]) for worker in [*report["workers"], *report["task_workers"]]}
    stale = sorted({found["slot"] for found in files if (found["mode"] or "").startswith("live")} - running)
    if stale:
        yield warning(
            part,
            str(folder),
            f"live values of processes that are gone: {', '.join(stale)}",
            expected="live values of running processes alone",
            advice="start the instance again (`kubectl delete pod`): another one shares the folder, or its master "
            "died; see FacialServiceMetricFilesGrowing",
        )
    elif slots - running:
        gone = ", ".join(sorted(slots - running))
        yield note(part, str(folder), f"files of {gone}, which run no more; their counts go on being told")
    else:
        yield ok(part, str(folder), f"files of {len(slots)} processes, all of which run")
