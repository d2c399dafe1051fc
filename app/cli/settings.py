"""The settings, for a command: wrong ones are told by name, and end it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.settings import CallerSettings, Settings

T = TypeVar("T")


def settings_or_exit() -> Settings:
    """Read the environment; where a variable has a value that its setting does not take, say so and exit with 2."""
    # Imported here: `--help` answers without what reads and checks them.
    from app.settings import load_settings  # noqa: PLC0415

    return _load_or_exit(load_settings)


def caller_settings_or_exit() -> CallerSettings:
    """Read what the environment says to those that call a service, likewise."""
    from app.settings import load_caller_settings  # noqa: PLC0415 - as above

    return _load_or_exit(load_caller_settings)


def _load_or_exit(load: Callable[[], T]) -> T:
    from pydantic import ValidationError  # noqa: PLC0415 - as above

    try:
        return load()
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            name = ".".join(str(part) for part in problem["loc"]).upper() or "settings"
            typer.echo(f"facial-service: {name}: {problem['msg']}", err=True)
        sys.exit(2)
