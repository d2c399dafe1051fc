"""Internals of typer that app/cli/typer_adapter.py relies on; a failure means that an upgrade has changed one."""

from __future__ import annotations

import inspect
from typing import Annotated

import pytest
import typer
from typer.core import TyperCommand
from typer.testing import CliRunner

from app.cli import typer_adapter
from app.cli.main import cli


def test_make_context_takes_the_arguments() -> None:
    names = list(inspect.signature(TyperCommand.make_context).parameters)[:3]
    assert names == ["self", "info_name", "args"], (
        f"typer.core.TyperCommand.make_context has the parameters {names}; "
        "EagerCommand.make_context overrides it to read the arguments before typer parses them"
    )


def test_completion_parses_without_side_effects() -> None:
    prepared: list[list[str]] = []

    class Command(typer_adapter.EagerCommand):
        def prepare(self, arguments: list[str]) -> None:
            prepared.append(list(arguments))

    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(lambda: None)
    command = typer.main.get_command(app)
    command.make_context("program", [], resilient_parsing=True)
    assert not prepared, "typer does not mark completion with resilient_parsing; EagerCommand relies on it"
    command.make_context("program", [])
    assert prepared == [[]], "typer does not call TyperCommand.make_context; EagerCommand overrides it"


def test_parameters_are_read_from_the_signature() -> None:
    def command(**options: int) -> None:
        assert options

    option = inspect.Parameter(
        "size", inspect.Parameter.KEYWORD_ONLY, default=3, annotation=Annotated[int, typer.Option(help="Size.")]
    )
    app = typer.Typer(add_completion=False)
    app.command()(typer_adapter.replace_parameters(command, [option]))
    names = [parameter.name for parameter in typer.main.get_command(app).params]
    assert names == ["size"], (
        f"typer read the parameters {names} from a replaced __signature__; replace_parameters expects ['size']"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_printed_on_request_of_the_environment(shell: str) -> None:
    env = {"_FACIAL_SERVICE_COMPLETE": f"source_{shell}"}
    requested = CliRunner().invoke(cli, [], env=env, prog_name="facial-service")
    assert "_FACIAL_SERVICE_COMPLETE=complete_" in requested.output, (
        "typer no longer prints the script for _FACIAL_SERVICE_COMPLETE=source_SHELL, as `completion` expects"
    )
    printed = CliRunner().invoke(cli, ["completion", shell], env={"_FACIAL_SERVICE_COMPLETE": None})
    assert (printed.exit_code, printed.output) == (0, requested.output)
