"""The options of the API as options of a command: made from the one table that has them, so that they cannot differ."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer
from msgspec import inspect as schema

from app.service.options import CropOptions

if TYPE_CHECKING:
    from collections.abc import Callable

PANEL = "Regions and overlay, as in the API"


def with_crop_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of `CropOptions`, in place of its ``**options``."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    table = schema.type_info(CropOptions)
    if not isinstance(table, schema.StructType):
        raise TypeError("expected the options to be a structure")
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what `inspect` looks for
        parameters=[*own, *(_to_parameter(field) for field in table.fields)]
    )
    return command


def _to_parameter(field: schema.Field) -> inspect.Parameter:
    described = (field.type.extra_json_schema or {}) if isinstance(field.type, schema.Metadata) else {}
    text = str(described.get("description", ""))
    annotation, bounds = _to_type(field.type)
    option = typer.Option(help=text, rich_help_panel=PANEL, **bounds)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[annotation, option]
    )


def _to_type(kind: schema.Type) -> tuple[Any, dict[str, Any]]:
    """Return what typer reads, and the bounds of a number."""
    if isinstance(kind, schema.UnionType):
        (inner,) = (one for one in kind.types if not isinstance(one, schema.NoneType))
        annotation, bounds = _to_type(inner)
        return annotation | None, bounds
    if isinstance(kind, schema.Metadata):
        return _to_type(kind.type)
    if isinstance(kind, schema.LiteralType):
        return Literal[kind.values], {}
    if isinstance(kind, schema.IntType | schema.FloatType):
        return (int if isinstance(kind, schema.IntType) else float), {"min": kind.ge, "max": kind.le}
    if isinstance(kind, schema.BoolType):
        return bool, {}
    raise TypeError(f"no option is known for {type(kind).__name__}")


def to_crop_options(given: dict[str, Any]) -> CropOptions:
    """Check options as the API does.

    Raises:
        msgspec.ValidationError: one has a value that it does not take.
    """
    return msgspec.convert(given, CropOptions)
