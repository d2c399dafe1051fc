"""Every command has help, an example, and a description of each option."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from app.cli.main import cli

if TYPE_CHECKING:
    from collections.abc import Iterator


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path of each command without subcommands, and the command."""
    below = getattr(command, "commands", None)
    if not below:
        yield path, command
        return
    for name, child in below.items():
        yield from leaves(child, (*path, name))


LEAVES = dict(leaves(typer.main.get_command(cli)))
EACH = pytest.mark.parametrize("path", LEAVES, ids=" ".join)


def test_the_tree_is_walked() -> None:
    assert {("serve",), ("worker",), ("version",), ("doctor",), ("completion",), ("tasks", "dead", "list")} <= set(
        LEAVES
    )


@EACH
def test_it_has_an_example_of_itself(path: tuple[str, ...]) -> None:
    epilog = LEAVES[path].epilog or ""
    assert epilog.startswith("Example: ")
    words = shlex.split(epilog.removeprefix("Example: ").replace("<(", " ").replace(")", " "))
    start = words.index("facial-service")
    assert tuple(words[start + 1 : start + 1 + len(path)]) == path


@EACH
def test_its_help_explains_each_option(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert LEAVES[path].help
    parameters = [parameter for parameter in LEAVES[path].params if parameter.name != "help"]
    assert [parameter.name for parameter in parameters if not getattr(parameter, "help", None)] == []
