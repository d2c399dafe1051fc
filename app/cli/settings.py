"""Settings for commands; invalid values end the command with a message."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.settings import CallerSettings, Settings

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
            typer.echo(f"facial-service: {setting.name}: {setting.message}", err=True)
        sys.exit(2)
