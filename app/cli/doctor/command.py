"""The verb ``doctor``, as the command line knows it."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.doctor.names import Check

if TYPE_CHECKING:
    from app.cli.doctor.findings import Finding

CGROUP_ROOT = Path("/sys/fs/cgroup")

Only = Annotated[list[Check] | None, typer.Option("--only", help="This check alone; can be given again.")]
Skip = Annotated[list[Check] | None, typer.Option("--skip", help="All but this check; can be given again.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Leave out what is well.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 for a warning too.")]
CgroupRoot = Annotated[
    Path,
    typer.Option("--cgroup-root", help="Where control groups are mounted.", exists=True, file_okay=False),
]


def doctor(
    *,
    only: Only = None,
    skip: Skip = None,
    is_json: Json = False,
    is_quiet: Quiet = False,
    is_strict: Strict = False,
    cgroup_root: CgroupRoot = CGROUP_ROOT,
) -> None:
    """Check a deployment from here, with the environment of the service, and say what to do about what is found.

    It changes nothing. Exit status: 0 where nothing is wrong, 1 for an error, 2 for wrong usage.
    """
    checks = [check for check in only or Check if check not in (skip or ())]
    if not checks:
        typer.echo("facial-service: expected at least one check, got --skip for each of them", err=True)
        sys.exit(2)
    began = time.monotonic()
    findings = _run(checks, cgroup_root, is_watched=not is_json and sys.stderr.isatty())

    from app.cli.doctor.findings import Status  # noqa: PLC0415 - with `--help`, nothing of this is loaded
    from app.cli.doctor.report import worst_status, write  # noqa: PLC0415 - likewise

    write(findings, time.monotonic() - began, is_json=is_json, is_quiet=is_quiet)
    limit = Status.WARNING if is_strict else Status.ERROR
    code = int(worst_status(findings).rank >= limit.rank)
    if any(thread.name.startswith("doctor-") for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)  # past the interpreter's own end, which waits for what still hangs in a library
    sys.exit(code)


def _run(checks: list[Check], cgroup_root: Path, *, is_watched: bool) -> list[Finding]:
    from app.cli.doctor.runner import run_checks  # noqa: PLC0415 - as above

    if not is_watched:
        return run_checks(checks, cgroup_root)
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.progress import Progress  # noqa: PLC0415 - as above

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("Checking", total=len(checks))
        return run_checks(checks, cgroup_root, lambda _: progress.advance(bar))
