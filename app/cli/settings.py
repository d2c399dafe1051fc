"""The settings, for a command: wrong ones are told by name, and end it."""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError

from app.settings import Settings, load_settings


def settings_or_exit() -> Settings:
    """Read the environment; where a variable has a value that its setting does not take, say so and exit with 2."""
    try:
        return load_settings()
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            name = ".".join(str(part) for part in problem["loc"]).upper() or "settings"
            typer.echo(f"facial-service: {name}: {problem['msg']}", err=True)
        sys.exit(2)
