"""The verb ``completion``: what makes a shell complete verbs, options and values."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

PROGRAM = "facial-service"
VARIABLE = "_FACIAL_SERVICE_COMPLETE"  # by which the shell's function asks the program; Typer's name for it


class Shell(StrEnum):
    """A shell that completes."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(show_default=False, help="Whose script.")]) -> None:
    """Print the script that makes a shell complete this command.

    The option --show-completion prints the same for the shell that it is called from, where it can tell which that is.
    """
    # Imported here: no other verb needs it. It is what Typer's own options print.
    from typer._completion_shared import get_completion_script  # noqa: PLC0415

    typer.echo(get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell.value))
