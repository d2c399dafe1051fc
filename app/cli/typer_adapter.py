"""Adapter for typer's internals, which tests/contracts/test_typer.py checks after an upgrade."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from typer.core import TyperCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

F = TypeVar("F", bound="Callable[..., Any]")


class EagerCommand(TyperCommand):
    """Command that can start work before typer parses its arguments."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Start the work, unless a shell completes the command line, and parse the arguments."""
        if not extra.get("resilient_parsing"):
            self.prepare(args)
        return super().make_context(info_name, args, *rest, **extra)

    def prepare(self, arguments: list[str]) -> None:
        """Start the work for these arguments, which may be invalid."""
        raise NotImplementedError


def replace_parameters(command: F, parameters: Iterable[inspect.Parameter]) -> F:
    """Set the parameters that typer turns into options, and return the command."""
    signature = inspect.signature(command, eval_str=True)
    command.__signature__ = signature.replace(parameters=list(parameters))  # type: ignore[attr-defined]
    return command
