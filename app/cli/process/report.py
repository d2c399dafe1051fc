"""The output of a run: progress, summary, report file, and the list of a dry run."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final

import orjson

from app.cli.process.inputs import Failure, escape_path
from app.cli.process.jobs import result_of_face

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from app.cli.process.inputs import IgnoredFile
    from app.cli.process.jobs import Job, Outcome, Plan

LINE_INTERVAL_S: Final = 10.0
BAR_INTERVAL_S: Final = 0.1
BAR_REFRESH_HZ: Final = 4
MAX_FAILURE_ROWS: Final = 50
MAX_IGNORED_ROWS: Final = 20


class Progress:
    """Counts of a run, and its report file, which receives a JSON line for each processed or failed image."""

    def __init__(self, plan: Plan, report: IO[bytes] | None) -> None:
        self.total = len(plan.jobs)
        self.skipped = len(plan.up_to_date)
        self.done = 0
        self.detected = 0
        self.failures: list[Failure] = []
        self.ignored = plan.ignored
        self.start = time.perf_counter()
        self.seconds = 0.0
        self._remaining = {job.number: job for job in plan.jobs}
        self._report = report
        for failure in plan.failures:
            self._fail(*failure)

    @property
    def remaining(self) -> int:
        """Number of jobs without an outcome."""
        return len(self._remaining)

    @property
    def finished(self) -> int:
        """Number of jobs with an outcome."""
        return self.total - self.remaining

    def record(self, outcome: Outcome) -> None:
        """Record the outcome of a job."""
        job = self._remaining.pop(outcome.number)
        if outcome.code:
            self._fail(job.image, outcome.code, outcome.reason)
            return
        self.done += 1
        self.detected += job.landmarks is None
        if self._report is not None:
            self._write(
                photo=escape_path(job.image),
                status="done",
                results=[
                    escape_path(result if outcome.faces is None else result_of_face(result, face))
                    for face in range(outcome.faces or 1)
                    for result in job.results
                ],
                landmarks="found" if job.landmarks is None else "read",
                seconds=round(outcome.seconds, 4),
            )

    def stop_clock(self) -> None:
        """Set the duration of the run."""
        self.seconds = time.perf_counter() - self.start

    def _fail(self, path: str, code: str, reason: str) -> None:
        self.failures.append(Failure(escape_path(path), code, reason))
        self._write(photo=escape_path(path), status="failed", code=code, reason=reason)

    def _write(self, **line: Any) -> None:
        if self._report is not None:
            self._report.write(orjson.dumps(line) + b"\n")

    def document(self, **more: Any) -> dict[str, Any]:
        """Return the machine-readable summary."""
        return {
            "done": self.done,
            "skipped": self.skipped,
            "failed": [_failure_document(failure) for failure in self.failures],
            "ignored": [_ignored_document(file) for file in self.ignored],
            "not_begun": self.remaining,
            "landmarks_found": self.detected,
            "seconds": round(self.seconds, 3),
            **more,
        }


def record_all(progress: Progress, outcomes: Iterable[Outcome], *, is_terminal: bool) -> None:
    """Record outcomes and show the progress: as a bar on a terminal, otherwise as a line every ten seconds."""
    interval_s = BAR_INTERVAL_S if is_terminal else LINE_INTERVAL_S
    with _progress_bar(progress) if is_terminal else nullcontext(partial(_print_progress, progress)) as show:
        shown = time.monotonic()
        for outcome in outcomes:
            progress.record(outcome)
            if (now := time.monotonic()) - shown >= interval_s:
                shown = now
                show()


def _print_progress(progress: Progress) -> None:
    rate = progress.finished / (time.perf_counter() - progress.start)
    failed = f", {len(progress.failures)} failed" if progress.failures else ""
    left = f"{progress.remaining / rate:.0f} s left"
    print_line(f"{progress.finished} of {progress.total} images, {rate:.1f} images/s, {left}{failed}")


@contextmanager
def _progress_bar(progress: Progress) -> Iterator[Callable[[], None]]:
    # Import lazily: without a terminal, loading the renderer would cost as much as a hundred images.
    from rich import progress as rich_progress  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    bar = rich_progress.Progress(
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(compact=True),
        rich_progress.TextColumn("[red]{task.fields[failed]}"),
        console=Console(stderr=True, highlight=False),
        refresh_per_second=BAR_REFRESH_HZ,
    )
    task = bar.add_task("images", total=progress.total, failed="", rate="")

    def show() -> None:
        failed = f"{len(progress.failures)} failed" if progress.failures else ""
        rate = progress.finished / max(time.perf_counter() - progress.start, 1e-6)
        bar.update(task, completed=progress.finished, failed=failed, rate=f"{rate:.1f}/s")

    with bar:
        yield show
        show()


def print_summary(progress: Progress, *, is_terminal: bool) -> None:
    """Print the counts and the failures of a run."""
    details = [f"in {progress.seconds:.1f} s"]
    if progress.seconds and progress.finished:
        details.append(f"{progress.finished / progress.seconds:.1f} images/s")
    if progress.detected:
        details.append(f"landmarks detected in {progress.detected}")
    rows = [
        ("done", progress.done, ", ".join(details)),
        ("skipped", progress.skipped, "up to date"),
        ("failed", len(progress.failures), ""),
        ("not started", progress.remaining, ""),
    ]
    shown = [(name, str(count), text if count else "") for name, count, text in rows if count or name != "not started"]
    (_print_tables if is_terminal else _print_plain)(shown, progress.failures[:MAX_FAILURE_ROWS])
    if len(progress.failures) > MAX_FAILURE_ROWS:
        print_line(f"{len(progress.failures) - MAX_FAILURE_ROWS} more failed; --report FILE or --json lists all")
    print_ignored(progress.ignored)


def print_ignored(ignored: Sequence[IgnoredFile]) -> None:
    """Print which files were ignored, and why."""
    for path, reason in ignored[:MAX_IGNORED_ROWS]:
        print_line(f"{escape_path(path)}: ignored: {reason}")
    if len(ignored) > MAX_IGNORED_ROWS:
        print_line(f"{len(ignored) - MAX_IGNORED_ROWS} more ignored; --json lists all")


def _print_plain(rows: Sequence[tuple[str, str, str]], failures: Sequence[Failure]) -> None:
    for name, count, text in rows:
        sys.stderr.write(f"{name:<11}{count:>7}  {text}".rstrip() + "\n")
    for path, code, reason in failures:
        sys.stderr.write(f"{path}: {code}: {reason}\n")


def _print_tables(rows: Sequence[tuple[str, str, str]], failures: Sequence[Failure]) -> None:
    from rich.console import Console  # noqa: PLC0415 - as in `_progress_bar`
    from rich.table import Column, Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(stderr=True, highlight=False)
    table = Table(Column(), Column(justify="right"), Column(style="dim"), box=None, show_header=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if failures:
        names = Table(Column("image", overflow="fold"), Column("code", style="red", no_wrap=True), "reason", box=None)
        for failure in failures:
            names.add_row(*map(Text, failure))  # Text, because a name may look like markup.
        console.print()
        console.print(names)


def print_line(text: str) -> None:
    """Print a message for the user."""
    sys.stderr.write(f"facial-service: {text}\n")


def print_json(document: dict[str, Any]) -> None:
    """Print a machine-readable document, in ASCII if standard output cannot encode it."""
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
    if _encode_for_output(text) != text:
        text = json.dumps(document, indent=2)
    sys.stdout.write(text + "\n")


def _encode_for_output(text: str) -> str:
    """Escape the characters that standard output cannot encode."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_plan(plan: Plan) -> None:
    """Print what a run would do: one line per image, with its results."""
    for job in plan.jobs:
        landmarks = "" if job.landmarks is None else f" ({escape_path(os.path.basename(job.landmarks))})"
        line = f"{escape_path(job.image)} -> {', '.join(map(escape_path, job.results))}{landmarks}\n"
        sys.stdout.write(_encode_for_output(line))
    for failure in plan.failures:
        print_line(f"{escape_path(failure.path)}: {failure.code}: {failure.reason}")
    print_line(f"{len(plan.jobs)} to process, {len(plan.up_to_date)} up to date, {len(plan.failures)} failed")
    print_ignored(plan.ignored)


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return what a run would do, machine-readable."""
    return {
        "to_do": [_job_document(job) for job in plan.jobs],
        "skipped": [_job_document(job) for job in plan.up_to_date],
        "failed": [_failure_document(failure) for failure in plan.failures],
        "ignored": [_ignored_document(file) for file in plan.ignored],
    }


def _job_document(job: Job) -> dict[str, Any]:
    return {
        "photo": escape_path(job.image),
        "landmarks": None if job.landmarks is None else escape_path(job.landmarks),
        "segmentation_map": None if job.label_map is None else escape_path(job.label_map),
        "results": [escape_path(result) for result in job.results],
    }


def _failure_document(failure: Failure) -> dict[str, Any]:
    return {"photo": escape_path(failure.path), "code": failure.code, "reason": failure.reason}


def _ignored_document(file: IgnoredFile) -> dict[str, Any]:
    return {"path": escape_path(file.path), "reason": file.reason}
