"""Internals of typer that app/cli/typer_adapter.py relies on; a failure means that an upgrade has changed one."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer
import typer.completion
from typer import _completion_shared as shared
from typer.core import TyperCommand

from app.cli import typer_adapter


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


def test_the_completion_script_is_generated_from_three_names() -> None:
    names = set(inspect.signature(shared.get_completion_script).parameters)
    assert names == {"prog_name", "complete_var", "shell"}, (
        f"typer._completion_shared.get_completion_script has the parameters {sorted(names)}; completion_script calls it"
    )


def test_the_variable_of_completion_is_named_after_the_program() -> None:
    source = inspect.getsource(typer.completion.show_callback)
    expected = '"_{}_COMPLETE".format(prog_name.replace("-", "_").upper())'
    assert expected in source, (
        "typer names the environment variable of completion differently; completion_script repeats the rule"
    )
    assert "_FACIAL_SERVICE_COMPLETE=complete_bash" in typer_adapter.completion_script("facial-service", "bash")
