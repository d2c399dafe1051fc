"""Command line ``facial-service``. ``tasks`` and ``process`` are defined in modules of their own."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app import __version__
from app.cli.common import EXIT_FAILED, PROGRAM, exit_with_error, settings_or_exit
from app.cli.doctor.catalogue import Check
from app.cli.process.command import ProcessCommand, process
from app.cli.tasks import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.cli.doctor.findings import Finding
    from app.settings import Settings

EXIT_INTERRUPTED = 130
CGROUP_ROOT = Path("/sys/fs/cgroup")
MONITOR_URL = "http://127.0.0.1:9000"
MIN_S, MAX_S = 0.2, 3600.0  # of the monitor's options

cli = typer.Typer(
    name=PROGRAM,
    help="Segment faces in images into labelled regions: as an HTTP service, from a task queue, or in batches.",
    epilog="Example: facial-service serve",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(__version__)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
]


@cli.callback()
def _options(*, is_version: Version = False) -> None:
    """Declare the options of the program itself."""


@cli.command(epilog="Example: WORKERS=4 PORT=8080 facial-service serve")
def serve() -> None:
    """Serve the API, and metrics and probes on a separate port.

    Settings are environment variables; docs/settings.md lists them.
    If NATS_URL is empty, the command also runs an embedded NATS server and task workers.
    """
    settings = settings_or_exit()
    # Imported here, because `--help` and `--version` must not load the image libraries.
    from app.supervisor.api_server import serve as run  # noqa: PLC0415

    _run(run, settings)


@cli.command(epilog="Example: NATS_URL=nats://queue:4222 TASK_WORKERS=4 facial-service worker")
def worker() -> None:
    """Process tasks from the NATS server at NATS_URL, and serve metrics and probes."""
    settings = settings_or_exit()
    if not settings.nats_url:
        exit_with_error(
            "NATS_URL: expected the URL of a NATS server, got nothing; "
            f"without one, `{PROGRAM} serve` processes tasks itself"
        )
    from app.supervisor.task_server import run_standalone  # noqa: PLC0415 - see above

    _run(run_standalone, settings)


CHECKS = ", ".join(Check)
Only = Annotated[
    list[Check] | None,
    typer.Option("--only", metavar="CHECK", help=f"Run only this check; repeatable. One of {CHECKS}."),
]
Skip = Annotated[
    list[Check] | None,
    typer.Option("--skip", metavar="CHECK", help="Skip this check; repeatable. The names are those of --only."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also show checks that passed or were skipped.")]
Strict = Annotated[bool, typer.Option("--strict", help="Treat warnings as errors in the exit status.")]
CgroupRoot = Annotated[
    Path,
    typer.Option(
        "--cgroup-root",
        metavar="DIR",
        help="Mount point of the cgroup v2 file system.",
        exists=True,
        file_okay=False,
    ),
]


@cli.command(epilog="Example: facial-service doctor --only queue --json")
def doctor(
    *,
    only: Only = None,
    skip: Skip = None,
    is_json: Annotated[bool, typer.Option("--json", help="Write machine-readable JSON.")] = False,
    is_verbose: Verbose = False,
    is_strict: Strict = False,
    cgroup_root: CgroupRoot = CGROUP_ROOT,
) -> None:
    """Check this deployment and print a remedy for each problem. Run it in the environment of the service.

    Errors are printed last, before the summary. The command changes nothing.
    Exit status: 0 without errors, 1 with errors, 2 for invalid usage.
    """
    checks = [check for check in only or Check if check not in (skip or ())]
    if not checks:
        exit_with_error("--skip: expected at least one remaining check, got none")
    started_at = time.monotonic()
    try:
        findings = _run_checks(checks, cgroup_root, show_progress=not is_json and sys.stderr.isatty())
    except KeyboardInterrupt:
        os._exit(EXIT_INTERRUPTED)  # because a normal exit would wait for a library call that hangs in a thread

    from app.cli.doctor.findings import Status, worst_status, write_report  # noqa: PLC0415 - keeps `--help` fast

    write_report(findings, time.monotonic() - started_at, is_json=is_json, is_verbose=is_verbose)
    limit = Status.WARNING if is_strict else Status.ERROR
    code = int(worst_status(findings).rank >= limit.rank)
    if any(thread.name.startswith("doctor-") for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)  # as above
    sys.exit(code)


def _run_checks(checks: list[Check], cgroup_root: Path, *, show_progress: bool) -> list[Finding]:
    from app.cli.doctor.runner import run_checks  # noqa: PLC0415 - as above

    if not show_progress:
        return run_checks(checks, cgroup_root)
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.progress import Progress  # noqa: PLC0415 - as above

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("Checking", total=len(checks))
        return run_checks(checks, cgroup_root, lambda _: progress.advance(bar))


Urls = Annotated[
    list[str] | None,
    typer.Argument(metavar="URL", show_default=False, help=f"Metrics port of each instance; default: {MONITOR_URL}"),
]
Interval = Annotated[float, typer.Option("--interval", "-n", metavar="SECONDS", help="Time between scrapes.")]
Window = Annotated[float, typer.Option("--window", metavar="SECONDS", help="Time window of rates and quantiles.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Response timeout per instance.")]
Once = Annotated[bool, typer.Option("--once", help="Print one frame and exit; status 1 if an instance is not ready.")]


@cli.command(epilog="Example: facial-service monitor http://127.0.0.1:9000 http://127.0.0.1:9001")
def monitor(
    urls: Urls = None,
    *,
    interval: Interval = 2.0,
    window: Window = 10.0,
    timeout: Timeout = 3.0,
    is_once: Once = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per interval.")] = False,
) -> None:
    """Watch running instances in the terminal: health, requests, latency, errors, tasks and processes.

    Pass one URL per instance, such as an API pod and a worker pod, to sum their counters.
    Press q or Ctrl-C to quit. If standard output is not a terminal, frames are printed as text.
    """
    for name, value in (("--interval", interval), ("--window", window), ("--timeout", timeout)):
        if not (math.isfinite(value) and MIN_S <= value <= MAX_S):
            exit_with_error(f"{name}: expected {MIN_S:g} to {MAX_S:g} seconds, got {value:g}")
    # Import lazily: `--help` does not load the HTTP client, the metrics parser and the renderer.
    from app.cli.monitor.scraper import AddressError, parse_targets  # noqa: PLC0415

    try:
        targets = parse_targets(urls or [MONITOR_URL])
    except AddressError as error:
        exit_with_error(f"URL: {error}")
    from app.cli.monitor.watch import Watch  # noqa: PLC0415 - lazily, as above

    watch = Watch(
        targets=targets,
        interval_s=interval,
        window_s=max(window, interval),
        timeout_s=timeout,
        is_once=is_once,
        is_json=is_json,
    )
    sys.exit(asyncio.run(watch.run()))


cli.add_typer(tasks, name="tasks")
cli.command(
    cls=ProcessCommand, epilog="Example: facial-service process photos/ --out regions --format svg --format json"
)(process)


class Shell(StrEnum):
    """Shell with support for completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@cli.command(epilog="Example: source <(facial-service completion bash)")
def completion(
    shell: Annotated[
        Shell, typer.Argument(metavar="bash|zsh|fish", show_default=False, help="Shell that runs the script.")
    ],
) -> None:
    """Print a script that enables completion of commands, options and values in a shell.

    The option --show-completion prints the script for the current shell, if it can detect the shell.
    """
    # The protocol of shell completion: the program prints the script instead of running a command.
    os.environ[f"_{PROGRAM.replace('-', '_').upper()}_COMPLETE"] = f"source_{shell}"
    cli(prog_name=PROGRAM)


@cli.command(epilog="Example: facial-service version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _run(program: Callable[[Settings], None], settings: Settings) -> None:
    try:
        program(settings)
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        exit_with_error(f"{path}{error.strerror or error}", EXIT_FAILED)


def main() -> None:
    """Run the command line."""
    cli()
