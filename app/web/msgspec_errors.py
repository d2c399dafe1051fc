"""Adapter for msgspec: its errors as problems of the form ``field: expected X, got Y``.

msgspec reports errors as sentences only, so this module parses them. `tests/contracts/test_web_internals.py` lists each
sentence. No text of the request is copied: msgspec quotes only types, positions and names of our own fields, except in
the two sentences about unknown fields and enumerations, whose quotation is dropped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from app.service.options import CropOptions
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Sequence

_TYPES: Final = {
    "array": "an array",
    "bool": "a boolean",
    "float": "a number",
    "int": "an integer",
    "null": "null",
    "object": "an object",
    "str": "a string",
}
_PATH: Final = " - at `$"
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")
_TYPE: Final = re.compile(r"Expected `([a-z |]+)`, got `([a-z]+)`")
_RANGE: Final = re.compile(r"Expected `([a-z]+)` (of length )?(>=|<=) ([\d.]+)")
_OUT_OF_RANGE: Final = "Number out of range"
_MALFORMED: Final = "JSON is malformed: "
_TRUNCATED: Final = "Input data was truncated"

_SCHEMA_TYPES: Final = {"integer": "an integer", "number": "a number", "null": "null"}


def _list_choices(schema: dict[str, Any]) -> str:
    """List the documented values of an option, and the other types that it accepts."""
    forms = schema.get("anyOf", [schema])
    texts = [
        text
        for form in forms
        for text in (map(repr, form["enum"]) if "enum" in form else [_SCHEMA_TYPES[form["type"]]])
    ]
    return " or ".join(texts)


_CHOICES: Final = {
    name: _list_choices(schema)
    for name, schema in msgspec.json.schema(CropOptions)["$defs"]["CropOptions"]["properties"].items()
    if any("enum" in form for form in schema.get("anyOf", [schema]))
}


def validation_problem(error: msgspec.ValidationError, source: str, fields: Sequence[str]) -> ProblemError:
    """Convert an error about a value that does not fit its structure.

    The source is what was decoded: ``body``, ``query`` or a field. It may contain the `fields`.
    """
    text, _, path = str(error).rpartition(_PATH)
    text, field = (text, _name(source, path.rstrip("`"))) if text else (path, source)
    if text.startswith("Object contains unknown field"):
        return ProblemError("field_unknown", f"{source}: expected only {', '.join(fields)}; got an unknown field")
    if missing := _MISSING.fullmatch(text):
        name = missing[1] if field in {"body", "query"} else f"{field}.{missing[1]}"
        return ProblemError("field_missing", f"{name}: expected a value, got none")
    return ProblemError("field_invalid", f"{field}: {_describe(text, field)}")


def syntax_problem(error: msgspec.DecodeError | UnicodeDecodeError | RecursionError, source: str) -> ProblemError:
    """Convert an error about text that is not JSON."""
    received = "malformed text"
    if isinstance(error, UnicodeDecodeError):
        received = "text that is not UTF-8"
    elif isinstance(error, RecursionError):
        received = "values that are nested too deeply"
    elif str(error).startswith(_MALFORMED):
        received = f"malformed text: {str(error).removeprefix(_MALFORMED)}"
    elif str(error) == _TRUNCATED:
        received = "truncated text"
    return ProblemError("invalid_json", f"{source}: expected JSON, got {received}")


def _name(source: str, path: str) -> str:
    """Return the name of a field: paths begin with a dot inside an object, and with a bracket inside an array."""
    return path[1:] if path.startswith(".") else source + path


def _describe(text: str, field: str) -> str:
    if text.startswith("Invalid enum value"):
        return f"expected {_CHOICES.get(field, 'a documented value')}, got another string"
    if (wrong := _TYPE.fullmatch(text)) and wrong[1] == "int | str" and field in _CHOICES:
        received = "another string" if wrong[2] == "str" else _TYPES.get(wrong[2], wrong[2])
        return f"expected {_CHOICES[field]}, got {received}"
    if wrong:
        expected = " or ".join(_TYPES.get(name, name) for name in wrong[1].split(" | "))
        return f"expected {expected}, got {_TYPES.get(wrong[2], wrong[2])}"
    if outside := _RANGE.fullmatch(text):
        kind, length, operator, bound = outside.groups("")
        received = "length" if length else "value"
        return f"expected {_TYPES.get(kind, kind)} {length}{operator} {float(bound):g}, got another {received}"
    if text == _OUT_OF_RANGE:
        return "expected a finite number, got one out of range"
    return "expected a valid value, got another"
