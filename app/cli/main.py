"""``facial-service``: the command and its verbs."""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError

from app import __version__
from app.settings import Settings, load_settings

cli = typer.Typer(
    name="facial-service",
    help="Face regions from a photo and its MediaPipe landmarks, over HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@cli.callback()
def root() -> None:
    """Name the group, so that a single verb stays a verb."""


@cli.command(epilog="Example: WORKERS=4 PORT=8080 facial-service serve")
def serve() -> None:
    """Serve the API, with metrics and probes beside it. Settings come from the environment; the README lists them."""
    settings = _settings_or_exit()
    # Imported here: `--help` and `version` answer without loading the picture libraries.
    from app.runtime.server import serve as run  # noqa: PLC0415

    try:
        run(settings)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"facial-service: {place}{error.strerror or error}", err=True)
        sys.exit(1)


@cli.command(epilog="Example: facial-service version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _settings_or_exit() -> Settings:
    try:
        return load_settings()
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            name = ".".join(str(part) for part in problem["loc"]).upper() or "settings"
            typer.echo(f"facial-service: {name}: {problem['msg']}", err=True)
        sys.exit(2)


def main() -> None:
    """Run the command."""
    cli()
