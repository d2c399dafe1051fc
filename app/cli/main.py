"""Command line ``facial-service``, with the commands that need no module of their own."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from app import __version__
from app.cli.doctor.command import doctor
from app.cli.monitor.command import monitor
from app.cli.process.command import ProcessCommand, process
from app.cli.settings import settings_or_exit
from app.cli.tasks import tasks
from app.cli.typer_adapter import completion_script

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.settings import Settings

PROGRAM = "facial-service"

cli = typer.Typer(
    name=PROGRAM,
    help="Face regions from an image and its MediaPipe landmarks, over HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli.add_typer(tasks, name="tasks")
cli.command(epilog="Example: facial-service doctor --only queue --json")(doctor)
cli.command(epilog="Example: facial-service monitor http://127.0.0.1:9000 http://127.0.0.1:9001")(monitor)
cli.command(
    cls=ProcessCommand, epilog="Example: facial-service process photos/ --out regions --format svg --format json"
)(process)


class Shell(StrEnum):
    """Shell with support for completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@cli.command(epilog="Example: source <(facial-service completion bash)")
def completion(shell: Annotated[Shell, typer.Argument(show_default=False, help="Shell that runs the script.")]) -> None:
    """Print a script that enables completion of commands, options and values in a shell.

    The option --show-completion prints the script for the current shell, if it can detect the shell.
    """
    typer.echo(completion_script(PROGRAM, shell.value))


@cli.command(epilog="Example: WORKERS=4 PORT=8080 facial-service serve")
def serve() -> None:
    """Serve the API, and metrics and probes on a separate port.

    Settings are environment variables; the README lists them.
    If NATS_URL is empty, the command also runs an embedded NATS server and task workers.
    """
    settings = settings_or_exit()
    # Imported here, because `--help` and `version` must not load the image libraries.
    from app.supervisor.api_server import serve as run  # noqa: PLC0415

    _run(run, settings)


@cli.command(epilog="Example: NATS_URL=nats://queue:4222 TASK_WORKERS=4 facial-service worker")
def worker() -> None:
    """Process the tasks of the NATS server at NATS_URL, and serve metrics and probes."""
    settings = settings_or_exit()
    if not settings.nats_url:
        typer.echo(
            f"{PROGRAM}: NATS_URL: expected the URL of a NATS server, got nothing; "
            f"without one, `{PROGRAM} serve` processes tasks itself",
            err=True,
        )
        sys.exit(2)
    from app.supervisor.task_server import run_standalone  # noqa: PLC0415 - see above

    _run(run_standalone, settings)


@cli.command(epilog="Example: facial-service version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _run(program: Callable[[Settings], None], settings: Settings) -> None:
    try:
        program(settings)
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        typer.echo(f"{PROGRAM}: {path}{error.strerror or error}", err=True)
        sys.exit(1)


def main() -> None:
    """Run the command line."""
    cli()
