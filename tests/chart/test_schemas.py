"""The API server accepts every object of every scenario."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from tests.chart.helm import SCENARIOS, render
from tests.chart.schemas import VERSIONS, close, is_custom, violations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.chart.helm import Object, Release


def find_violations(objects: Iterable[Object], version: str) -> dict[str, list[str]]:
    found = {f"{item['kind']}/{item['metadata']['name']}": violations(item, version) for item in objects}
    return {name: problems for name, problems in found.items() if problems}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_of_kubernetes_is_valid(release: Release, version: str) -> None:
    assert find_violations((item for item in release.objects if not is_custom(item)), version) == {}


def test_every_custom_object_is_valid(release: Release) -> None:
    assert find_violations(filter(is_custom, release.objects), VERSIONS[-1]) == {}


def test_scenarios_have_every_kind() -> None:
    kinds = {item["kind"] for file in SCENARIOS for item in render(file).objects}
    assert kinds == {
        "ConfigMap",
        "Deployment",
        "HTTPRoute",
        "HorizontalPodAutoscaler",
        "Ingress",
        "NetworkPolicy",
        "Pod",
        "PodDisruptionBudget",
        "PodMonitor",
        "Probe",
        "PrometheusRule",
        "ScaledObject",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
        "StatefulSet",
    }


def find(kind: str) -> Object:
    """Return an object of the kind, which the test then breaks."""
    return copy.deepcopy(next(item for file in SCENARIOS for item in render(file).all(kind)))


def _set(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(item: Any) -> None:
        for step in path[:-1]:
            item = item[step]
        item[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("HorizontalPodAutoscaler", _set("spec", "behaviour", value={}), "behaviour"),
        ("Deployment", _set("spec", "template", "spec", "containers", 0, "ports", 0, "port", value=1), "port"),
        ("Deployment", _set("spec", "replicas", value="2"), "'2' is not of type"),
        ("ServiceMonitor", _set("spec", "endpoints", 0, "intervall", value="15s"), "intervall"),
        ("ServiceMonitor", _set("spec", "endpoints", 0, "interval", value="15 seconds"), "15 seconds"),
        ("PodMonitor", _set("spec", "endpoints", value=[]), "endpoints"),
        ("PrometheusRule", _set("spec", "groups", 0, "rules", 0, "fro", value="1m"), "fro"),
        ("PrometheusRule", _set("spec", "groups", 0, "rules", 0, "labels", value={"a": 1}), "1 is not of type"),
        ("ScaledObject", _set("spec", "triggers", 0, "metadata", value={"lagThreshold": 20}), "20 is not of type"),
        ("ScaledObject", _set("spec", "minReplicas", value=1), "minReplicas"),
        ("HTTPRoute", _set("spec", "rules", 0, "backendRefs", 0, "port", value="http"), "'http' is not of type"),
        ("HTTPRoute", _set("spec", "hosts", value=[]), "hosts"),
        ("Service", _set("metadata", "name", value="x" * 64), "name x"),
        ("Service", _set("metadata", "labels", value={"a": "b c"}), "label a=b c"),
    ],
)
def test_what_is_wrong_is_found(kind: str, change: Callable[[Object], None], message: str) -> None:
    item = find(kind)
    assert violations(item, VERSIONS[-1]) == []
    change(item)
    assert message in "\n".join(violations(item, VERSIONS[-1]))


def test_closing_leaves_open_what_is_meant_to_be() -> None:
    part = {"type": "object", "properties": {"a": {}}}
    assert close(part)["additionalProperties"] is False
    assert "additionalProperties" not in close(part | {"x-kubernetes-preserve-unknown-fields": True})
    assert close(part | {"additionalProperties": {"type": "string"}})["additionalProperties"] == {"type": "string"}
    assert close({"type": "object"}) == {"type": "object"}
    assert close({"items": part})["items"]["additionalProperties"] is False
