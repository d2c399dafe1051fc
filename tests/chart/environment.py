"""Environment of a rendered container, as the kubelet creates it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from app.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from tests.chart.helm import Release
    from tests.chart.pods import Pod

_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")

Secrets = dict[str, dict[str, str]]


def environment(release: Release, pod: Pod, secrets: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, str]:
    """Return the environment of a pod's main container.

    Args:
        release: release with the ConfigMaps.
        pod: pod of the container.
        secrets: values of Secrets, by name and key; others are empty.
    """
    found: dict[str, str] = {}
    for source in pod.main.get("envFrom", ()):
        if "configMapRef" in source:
            found |= release.get("ConfigMap", source["configMapRef"]["name"]).get("data") or {}
        else:
            found |= (secrets or {}).get(source["secretRef"]["name"], {})
    for variable in pod.main.get("env", ()):
        found[variable["name"]] = _value(variable, found, secrets or {})
    return found


def _value(variable: Mapping[str, Any], found: Mapping[str, str], secrets: Mapping[str, Mapping[str, str]]) -> str:
    if "value" in variable:
        assert isinstance(variable["value"], str), f"{variable['name']} is no text"
        # References to variables that are not defined above are kept unchanged.
        return _REFERENCE.sub(lambda match: found.get(match[1], match[0]), variable["value"])
    source = variable["valueFrom"]
    if "secretKeyRef" in source:
        return secrets.get(source["secretKeyRef"]["name"], {}).get(source["secretKeyRef"]["key"], "")
    return f"from {source['fieldRef']['fieldPath']}"


def read_settings(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> Settings:
    """Read the settings as the service would from these variables alone."""
    with monkeypatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        return Settings()
