"""Helpers shared by the commands: loading settings, and exiting with an error message."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.settings import CallerSettings, Settings

PROGRAM = "facial-service"
EXIT_FAILED, EXIT_USAGE = 1, 2

T = TypeVar("T")


def settings_or_exit() -> Settings:
    """Return the settings of the service; print invalid ones and exit with status 2."""
    # Imported here, because `--help` must not load pydantic.
    from app.settings import load_settings  # noqa: PLC0415

    return _load_or_exit(load_settings)


def caller_settings_or_exit() -> CallerSettings:
    """Return the settings of commands that call a service; print invalid ones and exit with status 2."""
    from app.settings import CallerSettings  # noqa: PLC0415 - see above

    return _load_or_exit(CallerSettings)


def _load_or_exit(load: Callable[[], T]) -> T:
    from pydantic import ValidationError  # noqa: PLC0415 - see above

    from app.settings import find_invalid_settings  # noqa: PLC0415 - see above

    try:
        return load()
    except ValidationError as error:
        for setting in find_invalid_settings(error):
            print_error(f"{setting.name}: {setting.message}")
        sys.exit(EXIT_USAGE)


def print_error(text: str) -> None:
    """Print an error message."""
    typer.echo(f"{PROGRAM}: {text}", err=True)


def exit_with_error(text: str, status: int = EXIT_USAGE) -> NoReturn:
    """Print an error message, and exit with a status."""
    print_error(text)
    sys.exit(status)
