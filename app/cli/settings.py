"""The settings, for a command: wrong ones are told by name, and end it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from app.settings import Settings


def settings_or_exit() -> Settings:
    """Read the environment; where a variable has a value that its setting does not take, say so and exit with 2."""
    # Imported here: `--help` answers without what reads and checks them.
    from pydantic import ValidationError  # noqa: PLC0415

    from app.settings import load_settings  # noqa: PLC0415

    try:
        return load_settings()
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            name = ".".join(str(part) for part in problem["loc"]).upper() or "settings"
            typer.echo(f"facial-service: {name}: {problem['msg']}", err=True)
        sys.exit(2)
