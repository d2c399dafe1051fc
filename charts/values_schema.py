"""Generator for values.schema.json, which rejects unknown keys at every level that a tag does not open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service_settings import settings_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from values_file import Key

_STRING_MAP = {"type": "object", "additionalProperties": {"type": "string"}}
_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"}


def values_schema(keys: Sequence[Key], title: str) -> dict[str, Any]:
    """Return the schema of a chart's values, in draft 7, which Helm supports."""
    schema = _closed({key.path[-1]: key_schema(key) for key in keys}) | _required(keys)
    # Helm passes the global values of a parent chart to every subchart.
    schema["properties"].setdefault("global", {"type": "object"})["additionalProperties"] = True
    # A parent chart can use this value as the condition of the dependency.
    schema["properties"]["enabled"] = {
        "type": "boolean",
        "description": "Condition of the dependency, for parent charts.",
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": title, **schema}


def key_schema(key: Key) -> dict[str, Any]:
    """Return the schema of a key and the keys below it."""
    keywords: dict[str, Any] = {"title": key.section} if len(key.path) == 1 else {}
    if key.description:
        keywords["description"] = key.description
    if key.children:
        closed = _closed({child.path[-1]: key_schema(child) for child in key.children})
        return keywords | closed | _required(key.children)
    return keywords | _value_schema(key) | {"default": key.default}


def _required(keys: Sequence[Key]) -> dict[str, Any]:
    """Return the keyword that rejects null for the keys that the chart needs.

    Helm removes a key whose value is null, and validates the values together with the defaults. The chart treats a
    missing map, list or optional string as an empty one. It needs every other key.
    """
    names = [key.path[-1] for key in keys if key.path != ("global",) and (key.children or _is_needed(key.default))]
    return {"required": names} if names else {}


def _is_needed(default: Any) -> bool:
    return default not in (None, "") and not isinstance(default, list | dict)


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _value_schema(key: Key) -> dict[str, Any]:
    tags = key.tags
    if "settings" in tags:
        return settings_schema(is_one_component=tags["settings"] == "one component")
    if "map" in tags:
        return {"string": _STRING_MAP, "env": _env_schema(), "alert": _alerts_schema()}[tags["map"]]
    schema: dict[str, Any] = {"type": _simplify(tags.get("type") or [_type_of(key.default)])}
    if "items" in tags:
        schema["items"] = {"type": _simplify(tags["items"])}
        if "choices" in tags:
            schema["items"]["enum"] = tags["choices"]
    return schema | {name: tags[name] for name in ("enum", "pattern", "minimum", "maximum") if name in tags}


def _simplify(types: list[str]) -> str | list[str]:
    return types[0] if len(types) == 1 else types


def _type_of(value: Any) -> str:
    # bool is a subclass of int, so it comes first.
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return next(name for python_type, name in names.items() if isinstance(value, python_type))


def _env_schema() -> dict[str, Any]:
    """Return the schema of environment variables.

    A variable is a string, a Kubernetes `valueFrom`, or null, which resets the value of another values file.
    """
    name = "^[A-Za-z_][A-Za-z0-9_]*$"
    sources = ("configMapKeyRef", "fieldRef", "resourceFieldRef", "secretKeyRef")
    value_from = _closed({source: {"type": "object"} for source in sources}) | {"minProperties": 1, "maxProperties": 1}
    reference = _closed({"valueFrom": value_from}) | {"required": ["valueFrom"]}
    item = _closed({"name": {"type": "string", "pattern": name}, "value": {"type": "string"}, "valueFrom": value_from})
    return {
        "type": ["object", "array", "null"],
        "items": item | {"required": ["name"]},
        "propertyNames": {"pattern": name},
        "additionalProperties": {"type": ["string", "object", "null"], "if": {"type": "object"}, "then": reference},
    }


def _alerts_schema() -> dict[str, Any]:
    """Return the schema of alert overrides by alert name."""
    override = _closed(
        {
            "enabled": {"type": "boolean"},
            "expr": {"type": "string", "minLength": 1},
            "for": _DURATION,
            "keep_firing_for": _DURATION,
            "severity": {"type": "string"},
            "labels": _STRING_MAP,
            "annotations": _STRING_MAP,
        }
    )
    return {"type": "object", "additionalProperties": override}
