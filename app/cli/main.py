"""``facial-service``: the command and its verbs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from app import __version__
from app.cli.completion import completion
from app.cli.doctor.command import doctor
from app.cli.monitor.command import monitor
from app.cli.process.command import ProcessCommand, process
from app.cli.settings import settings_or_exit
from app.cli.tasks import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.settings import Settings

cli = typer.Typer(
    name="facial-service",
    help="Face regions from a photo and its MediaPipe landmarks, over HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli.add_typer(tasks, name="tasks")
cli.command(epilog="Example: facial-service doctor --only queue --json")(doctor)
cli.command(epilog="Example: source <(facial-service completion bash)")(completion)
cli.command(epilog="Example: facial-service monitor http://127.0.0.1:9000 http://127.0.0.1:9001")(monitor)
cli.command(
    cls=ProcessCommand, epilog="Example: facial-service process photos/ --out regions --format svg --format json"
)(process)


@cli.callback()
def root() -> None:
    """Name the group, so that a single verb stays a verb."""


@cli.command(epilog="Example: WORKERS=4 PORT=8080 facial-service serve")
def serve() -> None:
    """Serve the API, with metrics and probes beside it. Settings come from the environment; the README lists them.

    Where NATS_URL is empty, the queue of tasks and what works on them run beside it too.
    """
    settings = settings_or_exit()
    # Imported here: `--help` and `version` answer without loading the picture libraries.
    from app.supervisor.api_server import serve as run  # noqa: PLC0415

    _run(run, settings)


@cli.command(epilog="Example: NATS_URL=nats://queue:4222 TASK_WORKERS=4 facial-service worker")
def worker() -> None:
    """Work on the tasks of the queue at NATS_URL, with metrics and probes beside it."""
    settings = settings_or_exit()
    if not settings.nats_url:
        typer.echo(
            "facial-service: NATS_URL: expected the server that the tasks are on, got nothing; "
            "without one, `facial-service serve` works on them itself",
            err=True,
        )
        sys.exit(2)
    from app.supervisor.task_server import run_standalone  # noqa: PLC0415 - as above

    _run(run_standalone, settings)


@cli.command(epilog="Example: facial-service version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _run(program: Callable[[Settings], None], settings: Settings) -> None:
    try:
        program(settings)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"facial-service: {place}{error.strerror or error}", err=True)
        sys.exit(1)


def main() -> None:
    """Run the command."""
    cli()
