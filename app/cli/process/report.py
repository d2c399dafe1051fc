"""What is told of a run: a bar or a line now and then, a summary in the end, and files for programs."""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext
from typing import IO, TYPE_CHECKING, Any, Final

import orjson

from app.cli.process.inputs import show

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from rich.progress import Progress, TaskID

    from app.cli.process.jobs import Job, Outcome
    from app.cli.process.plan import Failure, Plan

EVERY_S: Final = 10.0
MOST_ROWS: Final = 50
REFRESH_HZ: Final = 4


class Tally:
    """What has come of the photos so far.

    Args:
        plan: what was to be done.
        log: gets a JSON line for each photo that something came of; None for none.
    """

    def __init__(self, plan: Plan, log: IO[bytes] | None) -> None:
        self.total = len(plan.jobs)
        self.skipped = len(plan.done)
        self.done = 0
        self.found = 0
        self.failed: list[tuple[str, str, str]] = []
        self.begun = time.perf_counter()
        self.seconds = 0.0
        self._jobs = {job.number: job for job in plan.jobs}
        self._log = log
        for failure in plan.failed:
            self._fail(*failure)

    @property
    def ended(self) -> int:
        """How many of those that were to be done have been worked on."""
        return self.total - len(self._jobs)

    @property
    def left(self) -> int:
        """How many were not begun."""
        return len(self._jobs)

    def note(self, outcome: Outcome) -> None:
        """Note what came of a photo."""
        job = self._jobs.pop(outcome.number)
        if outcome.code:
            self._fail(job.photo, outcome.code, outcome.reason)
            return
        self.done += 1
        self.found += job.landmarks is None
        if self._log is None:
            return
        self._write(
            photo=show(job.photo),
            status="done",
            results=[show(result) for result in job.results],
            landmarks="found" if job.landmarks is None else "read",
            seconds=round(outcome.seconds, 4),
        )

    def end(self) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self.begun

    def _fail(self, path: str, code: str, reason: str) -> None:
        self.failed.append((show(path), code, reason))
        self._write(photo=show(path), status="failed", code=code, reason=reason)

    def _write(self, **line: Any) -> None:
        if self._log is not None:
            self._log.write(orjson.dumps(line) + b"\n")

    def document(self, **more: Any) -> dict[str, Any]:
        """Return the summary for programs."""
        return {
            "done": self.done,
            "skipped": self.skipped,
            "failed": [{"photo": photo, "code": code, "reason": reason} for photo, code, reason in self.failed],
            "not_begun": self.left,
            "landmarks_found": self.found,
            "seconds": round(self.seconds, 3),
            **more,
        }


class Lines:
    """Tells of a run where nobody watches: a line now and then."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._told = time.perf_counter()

    def tell(self) -> None:
        """Write a line, if the last one was long enough ago."""
        now = time.perf_counter()
        if now - self._told < EVERY_S:
            return
        self._told = now
        tally = self._tally
        rate = tally.ended / (now - tally.begun)
        left_s = f"{tally.left / rate:.0f} s left" if rate else "not known how long"
        failed = f", {len(tally.failed)} failed" if tally.failed else ""
        print_line(f"{tally.ended} of {tally.total}, {rate:.1f} a second, {left_s}{failed}")


class Bar:
    """Tells of a run on a terminal.

    Args:
        tally: what there is to tell.
        progress: drawn as long as it is entered.
    """

    def __init__(self, tally: Tally, progress: Progress) -> None:
        self._tally = tally
        self._progress = progress
        self._task: TaskID = progress.add_task("photos", total=tally.total, failed="", rate="")

    def tell(self) -> None:
        """Let the bar show where we are; it is drawn some times a second, however often it is told."""
        tally = self._tally
        failed = f"{len(tally.failed)} failed" if tally.failed else ""
        rate = tally.ended / max(time.perf_counter() - tally.begun, 1e-6)
        self._progress.update(self._task, completed=tally.ended, failed=failed, rate=f"{rate:.1f}/s")


def watch(tally: Tally, *, is_terminal: bool) -> tuple[AbstractContextManager[object], Bar | Lines]:
    """Return what tells of the run, and the context in which it does."""
    if not is_terminal:
        return nullcontext(), Lines(tally)
    # Imported here: where nobody watches, the renderer would cost as much as a hundred photos.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    progress = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("[red]{task.fields[failed]}"),
        console=Console(stderr=True, highlight=False),
        refresh_per_second=REFRESH_HZ,
    )
    return progress, Bar(tally, progress)


def print_summary(tally: Tally, *, is_terminal: bool) -> None:
    """Write what came of the run."""
    found = f"landmarks found in {tally.found}" if tally.found else ""
    rate = f"{tally.ended / tally.seconds:.1f} a second" if tally.seconds and tally.ended else ""
    rows = [
        ("done", tally.done, ", ".join(filter(None, (f"in {tally.seconds:.1f} s", rate, found)))),
        ("skipped", tally.skipped, "already there"),
        ("failed", len(tally.failed), ""),
        ("not begun", tally.left, ""),
    ]
    shown = [(name, str(count), text if count else "") for name, count, text in rows if count or name != "not begun"]
    (_print_tables if is_terminal else _print_plain)(shown, tally.failed[:MOST_ROWS])
    if len(tally.failed) > MOST_ROWS:
        print_line(f"and {len(tally.failed) - MOST_ROWS} more failed; --report FILE or --json names all")


def _print_plain(rows: Sequence[tuple[str, str, str]], failed: Sequence[tuple[str, str, str]]) -> None:
    for name, count, text in rows:
        sys.stderr.write(f"{name:<10}{count:>7}  {text}".rstrip() + "\n")
    for photo, code, reason in failed:
        sys.stderr.write(f"{photo}: {code}: {reason}\n")


def _print_tables(rows: Sequence[tuple[str, str, str]], failed: Sequence[tuple[str, str, str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - as in `watch`
    from rich.table import Column, Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(stderr=True, highlight=False)
    table = Table(Column(), Column(justify="right"), Column(style="dim"), box=None, show_header=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if failed:
        names = Table(Column("photo", overflow="fold"), Column("code", style="red", no_wrap=True), "reason", box=None)
        for row in failed:
            names.add_row(*map(Text, row))  # names are no markup
        console.print()
        console.print(names)


def print_line(text: str) -> None:
    """Write one line for people."""
    sys.stderr.write(f"facial-service: {text}\n")


def print_plan(plan: Plan) -> None:
    """List what would be done, for people and for programs: a photo and its results a line."""
    for job in plan.jobs:
        sys.stdout.write(f"{show(job.photo)} -> {', '.join(map(show, job.results))}{_remark(job)}\n")
    for failure in plan.failed:
        print_line(f"{show(failure.path)}: {failure.code}: {failure.reason}")


def _remark(job: Job) -> str:
    return "" if job.landmarks is None else f" ({show(os.path.basename(job.landmarks))})"


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return what would be done, for programs."""
    return {
        "to_do": [_job_document(job) for job in plan.jobs],
        "skipped": [_job_document(job) for job in plan.done],
        "failed": [_failure_document(failure) for failure in plan.failed],
    }


def _job_document(job: Job) -> dict[str, Any]:
    return {
        "photo": show(job.photo),
        "landmarks": None if job.landmarks is None else show(job.landmarks),
        "segmentation_map": None if job.label_map is None else show(job.label_map),
        "results": [show(result) for result in job.results],
    }


def _failure_document(failure: Failure) -> dict[str, Any]:
    return {"photo": show(failure.path), "code": failure.code, "reason": failure.reason}
