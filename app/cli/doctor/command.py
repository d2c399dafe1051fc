"""The ``doctor`` command."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.doctor.catalogue import Check

if TYPE_CHECKING:
    from app.cli.doctor.findings import Finding

CGROUP_ROOT = Path("/sys/fs/cgroup")

Only = Annotated[list[Check] | None, typer.Option("--only", help="Run only this check; repeatable.")]
Skip = Annotated[list[Check] | None, typer.Option("--skip", help="Skip this check; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Write machine-readable JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only notes, warnings and errors.")]
Strict = Annotated[bool, typer.Option("--strict", help="Treat warnings as errors in the exit status.")]
CgroupRoot = Annotated[
    Path,
    typer.Option("--cgroup-root", help="Mount point of the cgroup v2 file system.", exists=True, file_okay=False),
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
    """Check this deployment and print a remedy for each problem. Run it in the environment of the service.

    The command changes nothing. Exit status: 0 without errors, 1 with errors, 2 for invalid usage.
    """
    checks = [check for check in only or Check if check not in (skip or ())]
    if not checks:
        typer.echo("facial-service: --skip: expected at least one remaining check, got none", err=True)
        sys.exit(2)
    started_at = time.monotonic()
    findings = _run(checks, cgroup_root, show_progress=not is_json and sys.stderr.isatty())

    from app.cli.doctor.findings import Status, worst_status, write_report  # noqa: PLC0415 - keeps `--help` fast

    write_report(findings, time.monotonic() - started_at, is_json=is_json, is_quiet=is_quiet)
    limit = Status.WARNING if is_strict else Status.ERROR
    code = int(worst_status(findings).rank >= limit.rank)
    if any(thread.name.startswith("doctor-") for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)  # because a normal exit would wait for a library call that hangs in a check's thread
    sys.exit(code)


def _run(checks: list[Check], cgroup_root: Path, *, show_progress: bool) -> list[Finding]:
    from app.cli.doctor.runner import run_checks  # noqa: PLC0415 - as above

    if not show_progress:
        return run_checks(checks, cgroup_root)
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.progress import Progress  # noqa: PLC0415 - as above

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("Checking", total=len(checks))
        return run_checks(checks, cgroup_root, lambda _: progress.advance(bar))
