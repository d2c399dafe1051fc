"""Offline validation of objects with the schemas of Kubernetes and of custom resources."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator
from referencing import Registry, Resource

if TYPE_CHECKING:
    from tests.chart.helm import Object

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))  # tools is not a package
    import setup

# The oldest version that the chart supports, and the newest one with schemas.
VERSIONS = ("1.30.0", kubernetes_validate.latest_version())

# Definitions of custom resources, by API group.
_SOURCES = {
    "autoscaling.k8s.io": "vertical-pod-autoscaler",
    "gateway.networking.k8s.io": "gateway-api",
    "keda.sh": "keda",
    "monitoring.coreos.com": "prometheus-operator",
}

# Combined schemas are not closed, because the schema around them names their fields.
_LOGIC = ("allOf", "anyOf", "oneOf", "not")


def is_custom(item: Object) -> bool:
    """Return whether an object is a custom resource."""
    return item["apiVersion"].partition("/")[0] in _SOURCES


def violations(item: Object, version: str) -> list[str]:
    """Return the fields that the API server of a version would reject.

    Skips the test for custom resources whose definitions are not installed.
    """
    validator: Draft7Validator | Draft202012Validator
    if is_custom(item):
        validator = _custom_validator(item["apiVersion"].partition("/")[0], item["kind"])
    else:
        validator = _core_validator(version, item["apiVersion"], item["kind"])
    found = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(item)]
    return found + _metadata_violations(item)


@lru_cache
def _core_validator(version: str, api_version: str, kind: str) -> Draft202012Validator:
    group, _, number = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], number)))
    schema = _read_core(version, name)
    registry: Registry[Any] = Registry()
    for part in (schema, _read_core(version, "_definitions")):
        registry = Resource.from_contents(part) @ registry
    return Draft202012Validator(schema, registry=registry)


@lru_cache(maxsize=4)
def _read_core(version: str, name: str) -> dict[str, Any]:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    schema: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return schema


@lru_cache
def _custom_validator(group: str, kind: str) -> Draft7Validator:
    (source,) = (source for source in setup.DEFINITIONS if source.name == _SOURCES[group])
    for file in source.files:
        path = source.folder_in(setup.HOME) / file
        if not path.is_file():
            pytest.skip(f"{path.name} is missing; run `make tools`, which needs Go")
        for definition in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if definition and definition["spec"]["names"]["kind"] == kind:
                version = next(item for item in definition["spec"]["versions"] if item["storage"])
                return Draft7Validator(close(version["schema"]["openAPIV3Schema"]))
    raise LookupError(f"{kind} of {group} has no definition")


def close(schema: Any) -> Any:
    """Convert a structural schema into one that rejects unknown fields, like strict validation of the API server."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for word in ("properties", "patternProperties"):
        if word in schema:
            closed[word] = {name: close(part) for name, part in schema[word].items()}
    for word in ("items", "additionalProperties"):
        if word in schema:
            closed[word] = close(schema[word])
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not is_open:
        closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed | {word: schema[word] for word in _LOGIC if word in schema}


_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LONGEST_NAME = 63


def _metadata_violations(item: Object) -> list[str]:
    """Check the form of names and labels, which schemas do not contain."""
    name, labels = item["metadata"]["name"], item["metadata"].get("labels", {})
    template = item.get("spec", {}).get("template", {}).get("metadata", {})
    pairs = [*labels.items(), *template.get("labels", {}).items()]
    return [
        *([] if _NAME.fullmatch(name) and len(name) <= _LONGEST_NAME else [f"name {name}"]),
        *(f"label {key}={value}" for key, value in pairs if not _is_label(key, value)),
    ]


def _is_label(key: str, value: Any) -> bool:
    return bool(_LABEL_KEY.fullmatch(key)) and isinstance(value, str) and bool(_LABEL_VALUE.fullmatch(value))
