"""Number of pods, and number of pods that may be unavailable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from app.tasks import stream
from tests.chart.helm import RELEASE, Values, template
from tests.chart.pods import COMPONENT

if TYPE_CHECKING:
    from tests.chart.helm import Release

NAME = f"{RELEASE}-facial-service"
HPA = {"autoscaling": {"enabled": True}}
KEDA = {"keda": {"enabled": True}}


def budgets(release: Release) -> dict[str, Any]:
    return {item["metadata"]["labels"][COMPONENT]: item["spec"] for item in release.all("PodDisruptionBudget")}


def test_replicas_are_said_by_one_alone(release: Release) -> None:
    scaled = {
        item["spec"]["scaleTargetRef"]["name"]: item for item in release.all("HorizontalPodAutoscaler", "ScaledObject")
    }
    assert len(scaled) == len(release.all("HorizontalPodAutoscaler", "ScaledObject"))
    for deployment in release.all("Deployment"):
        assert ("replicas" in deployment["spec"]) is (deployment["metadata"]["name"] not in scaled)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"api"}),
        ({"api": {"replicas": 1}}, set()),
        ({"api": {"replicas": 0}}, set()),
        ({"worker": {"replicas": 2}}, {"api", "worker"}),
        ({"api": {"replicas": 1} | HPA}, {"api"}),
        ({"api": {"replicas": 5, "autoscaling": {"enabled": True, "minReplicas": 1, "maxReplicas": 1}}}, set()),
        ({"api": {"replicas": 1, "autoscaling": {"enabled": True, "minReplicas": 1}}}, {"api"}),
        ({"worker": {"replicas": 1} | HPA}, {"api", "worker"}),
        ({"worker": {"autoscaling": {"enabled": True, "minReplicas": 2}}}, {"api", "worker"}),
        ({"worker": {"replicas": 1} | KEDA}, {"api", "worker"}),
        ({"worker": {"keda": {"enabled": True, "maxReplicas": 1}}}, {"api"}),
        ({"worker": {"keda": {"enabled": True, "minReplicas": 2}}}, {"api", "worker"}),
        ({"worker": {"replicas": 5, "enabled": False}}, {"api"}),
        ({"nats": {"replicas": 3}}, {"api", "nats"}),
        ({"nats": {"replicas": 3, "podDisruptionBudget": {"enabled": False}}}, {"api"}),
        ({"api": {"podDisruptionBudget": {"enabled": False}}}, set()),
    ],
)
def test_budget_where_there_can_be_more_than_one_pod(values: Values, expected: set[str]) -> None:
    assert budgets(template(values=values)).keys() == expected


@pytest.mark.parametrize("away", [1, "34%"])
def test_budget_says_how_many_may_be_away(away: int | str) -> None:
    spec = budgets(template(values={"api": {"podDisruptionBudget": {"maxUnavailable": away}}}))["api"]
    assert spec["maxUnavailable"] == away
    assert "minAvailable" not in spec
    # Otherwise, pods that never become ready would block the drain of a node.
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize(("values", "kept"), [({}, 1), ({"autoscaling": {"enabled": True}}, "50%")])
def test_budget_may_say_how_many_stay(values: Values, kept: int | str) -> None:
    release = template(values={"api": {"podDisruptionBudget": {"minAvailable": kept}, **values}})
    spec = budgets(release)["api"]
    assert spec["minAvailable"] == kept
    assert "maxUnavailable" not in spec


def test_keda_takes_more_triggers_and_a_fallback() -> None:
    cron = {"type": "cron", "name": "day", "metadata": {"desiredReplicas": "3"}}
    keda = {
        "enabled": True,
        "triggers": [cron],
        "formula": "max(lane0 + lane1, day * 20)",
        "fallback": {"failureThreshold": 3, "replicas": 2},
    }
    spec = template(values={"worker": {"keda": keda}}).get("ScaledObject", f"{NAME}-worker")["spec"]
    assert spec["triggers"][-1] == cron
    assert len(spec["triggers"]) == stream.LANES + 1
    assert spec["advanced"]["scalingModifiers"]["formula"] == keda["formula"]
    assert spec["fallback"] == keda["fallback"]


@pytest.mark.parametrize(
    ("values", "components"),
    [
        ({}, {"api", "worker", "nats"}),
        ({"worker": {"enabled": False}}, {"api"}),
        ({"nats": {"enabled": False}, "externalNats": {"url": "nats://a"}}, {"api", "worker"}),
    ],
)
def test_vertical_autoscaler_only_recommends(values: Values, components: set[str]) -> None:
    release = template(values=values | {"verticalPodAutoscaler": {"enabled": True}})
    found = release.all("VerticalPodAutoscaler")
    assert {item["metadata"]["labels"][COMPONENT] for item in found} == components
    for item in found:
        assert item["spec"]["updatePolicy"] == {"updateMode": "Off"}
        target = item["spec"]["targetRef"]
        assert release.get(target["kind"], target["name"])["apiVersion"] == target["apiVersion"]


@pytest.mark.parametrize("component", ["api", "worker"])
def test_hpa(component: str) -> None:
    more = {
        "type": "Resource",
        "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 9}},
    }
    values = {
        "enabled": True,
        "minReplicas": 3,
        "maxReplicas": 7,
        "targetCPUUtilizationPercentage": 55,
        "metrics": [more],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 17}},
    }
    spec = template(values={component: {"autoscaling": values}}).get("HorizontalPodAutoscaler", f"{NAME}-{component}")[
        "spec"
    ]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 7)
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 17
    cpu = spec["metrics"][0]["containerResource"]
    assert cpu == {"name": "cpu", "container": component, "target": {"type": "Utilization", "averageUtilization": 55}}
    assert spec["metrics"][1:] == [more]


def test_keda_looks_at_the_stream_that_the_service_makes() -> None:
    spec = template(values={"worker": KEDA}).get("ScaledObject", f"{NAME}-worker")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 10)
    consumers = [trigger["metadata"]["consumer"] for trigger in spec["triggers"]]
    assert consumers == [stream.consumer_name(lane) for lane in range(stream.LANES)]
    modifiers = spec["advanced"]["scalingModifiers"]
    assert modifiers["formula"].split(" + ") == [trigger["name"] for trigger in spec["triggers"]]
    assert (modifiers["target"], modifiers["metricType"]) == ("20", "AverageValue")
    trigger = spec["triggers"][0]
    assert {trigger["type"] for trigger in spec["triggers"]} == {"nats-jetstream"}
    assert trigger["metadata"]["stream"] == stream.STREAM
    assert trigger["metadata"]["account"] == "$G"
    assert trigger["metadata"]["natsServerMonitoringEndpoint"] == f"{NAME}-nats.faces.svc:8222"
    assert trigger["metadata"]["useHttps"] == "false"
    assert trigger["metadata"]["lagThreshold"] == "20"


@pytest.mark.parametrize(
    ("url", "host", "has_tls"),
    [
        ("http://nats.example.com:8222", "nats.example.com:8222", "false"),
        ("https://nats.example.com/", "nats.example.com", "true"),
    ],
)
def test_keda_looks_at_servers_elsewhere(url: str, host: str, has_tls: str) -> None:
    values = {
        "worker": KEDA,
        "nats": {"enabled": False},
        "externalNats": {"url": "nats://nats.example.com", "monitorUrl": url},
    }
    metadata = template(values=values).get("ScaledObject", f"{NAME}-worker")["spec"]["triggers"][0]["metadata"]
    assert (metadata["natsServerMonitoringEndpoint"], metadata["useHttps"]) == (host, has_tls)


def test_without_workers_nothing_of_theirs_is_there() -> None:
    values: Values = {
        "worker": {"enabled": False, "keda": {"enabled": True}},
        "networkPolicy": {"enabled": True},
        "metrics": {"serviceMonitor": {"enabled": True}},
    }
    objects = template(values=values).objects
    assert {item["metadata"]["labels"][COMPONENT] for item in objects} & {"worker", "nats"} == set()
    assert "ScaledObject" not in {item["kind"] for item in objects}
