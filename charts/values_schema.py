"""Makes values.schema.json of the keys of values.yaml: closed at every level that a note does not open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service_settings import settings_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from values_file import Key

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"}


def values_schema(keys: Sequence[Key], title: str) -> dict[str, Any]:
    """Describe the values of a chart, by draft 7, which is what Helm reads."""
    schema = _closed({key.path[-1]: key_schema(key) for key in keys})
    # Helm hands every chart the values that a chart above it shares.
    schema["properties"]["global"] = {"type": "object", "description": "What charts above this one share."}
    # And, where that one may leave this one out, the value that it asks.
    schema["properties"]["enabled"] = {
        "type": "boolean",
        "description": "For a chart above this one, as its condition.",
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": title, **schema}


def key_schema(key: Key) -> dict[str, Any]:
    """Describe one key and those under it."""
    words: dict[str, Any] = {"title": key.section} if len(key.path) == 1 else {}
    if key.meaning:
        words["description"] = key.meaning
    if key.children:
        return words | _closed({child.path[-1]: key_schema(child) for child in key.children})
    return words | _value_schema(key) | {"default": key.default}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _value_schema(key: Key) -> dict[str, Any]:
    notes = key.notes
    if "settings" in notes:
        return settings_schema(is_one_component=notes["settings"] == "one component")
    if "map" in notes:
        return {"string": _TEXTS, "env": _env_schema(), "alert": _alerts_schema()}[notes["map"]]
    schema: dict[str, Any] = {"type": _simplify(notes.get("type") or [_type_of(key.default)])}
    if "items" in notes:
        schema["items"] = {"type": _simplify(notes["items"])}
    return schema | {word: notes[word] for word in ("enum", "pattern", "minimum", "maximum") if word in notes}


def _simplify(types: list[str]) -> str | list[str]:
    return types[0] if len(types) == 1 else types


def _type_of(value: Any) -> str:
    # A bool is an int to Python, so it comes first.
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return next(name for kind, name in kinds.items() if isinstance(value, kind))


def _env_schema() -> dict[str, Any]:
    """Variables by name: a text, a source as Kubernetes has them, or null, which takes back another file's."""
    sources = ("configMapKeyRef", "fieldRef", "resourceFieldRef", "secretKeyRef")
    value_from = _closed({source: {"type": "object"} for source in sources}) | {"minProperties": 1, "maxProperties": 1}
    reference = _closed({"valueFrom": value_from}) | {"required": ["valueFrom"]}
    return {
        "type": "object",
        "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
        "additionalProperties": {"type": ["string", "object", "null"], "if": {"type": "object"}, "then": reference},
    }


def _alerts_schema() -> dict[str, Any]:
    """Changes to alerts by their names."""
    change = _closed(
        {
            "enabled": {"type": "boolean"},
            "expr": {"type": "string", "minLength": 1},
            "for": _DURATION,
            "keep_firing_for": _DURATION,
            "severity": {"type": "string"},
            "labels": _TEXTS,
            "annotations": _TEXTS,
        }
    )
    return {"type": "object", "additionalProperties": change}
