"""Network access: routes from outside, and policies within the cluster."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.chart.environment import environment, read_settings
from tests.chart.helm import NAMESPACE, Values, template
from tests.chart.pods import is_selected, pod_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

    from tests.chart.helm import Object, Release

INSIDE = ("/metrics", "/metrics/", "/health", "/health/ready", "/health/live", "/version", "/metricsx", "//metrics")
ROUTES: Values = {
    "ingress": {"enabled": True, "hosts": ["a.example.com", "b.example.com"]},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
}


def routed_paths(item: Object) -> Iterator[tuple[str, bool]]:
    """Return the paths of an Ingress or an HTTPRoute, and whether each is a prefix."""
    if item["kind"] == "Ingress":
        for rule in item["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert path["pathType"] in {"Prefix", "Exact", "ImplementationSpecific"}
                # ingress-nginx rejects other types for a path with a dot.
                assert (path["pathType"] == "ImplementationSpecific") is ("." in path["path"])
                yield path["path"], path["pathType"] == "Prefix"
        assert "defaultBackend" not in item["spec"]
    else:
        for rule in item["spec"]["rules"]:
            # A rule without matches applies to every path.
            for match in rule["matches"]:
                assert match["path"]["type"] in {"PathPrefix", "Exact"}
                yield match["path"]["value"], match["path"]["type"] == "PathPrefix"


def is_routed(item: Object, path: str) -> bool:
    """Return whether a path is routed; a prefix matches whole elements, as for both kinds."""
    return any(
        path == taken or (is_prefix and (path + "/").startswith(taken.rstrip("/") + "/"))
        for taken, is_prefix in routed_paths(item)
    )


@pytest.mark.parametrize("path", INSIDE)
def test_what_is_inside_is_never_routed(release: Release, path: str) -> None:
    for item in release.all("Ingress", "HTTPRoute"):
        assert not is_routed(item, path)


async def get(app: FastAPI, path: str) -> str:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://a.example.com") as client:
        return (await client.get(path)).raise_for_status().text


@pytest.mark.parametrize("kind", ["Ingress", "HTTPRoute"])
def test_api_and_its_pages_are_routed_whole(kind: str) -> None:
    (item,) = template(values=ROUTES).all(kind)
    app = create_app(Settings())
    paths = {path for path in app.openapi()["paths"] if path.startswith("/api/")} | {"/", "/docs"}
    docs, page = (asyncio.run(get(app, path)) for path in ("/docs", "/"))
    paths |= set(re.findall(r"(?:href|src|url)\s*[=:]\s*[\"'](/[^\"']*)", docs))
    paths |= {f"/{link}" for link in re.findall(r"(?:href|src)=[\"']([^#\"']+)", page)}
    assert {"/openapi.json", "/api/v1/frontal/crop"} <= paths
    assert any(path.startswith("/page/") and path.endswith("/main.js") for path in paths)
    assert any(path.startswith("/docs/") and path.endswith(".js") for path in paths)
    assert [path for path in paths if not is_routed(item, path)] == []
    assert [path for path in app.openapi()["paths"] if path not in paths and is_routed(item, path)] == []


def test_routes_lead_to_the_api(release: Release) -> None:
    for item in release.all("Ingress"):
        for rule in item["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                ports = release.get("Service", backend["name"])["spec"]["ports"]
                assert backend["port"]["name"] in {port["name"] for port in ports}
                assert backend["name"].endswith("-api")
    for item in release.all("HTTPRoute"):
        for rule in item["spec"]["rules"]:
            (backend,) = rule["backendRefs"]
            ports = release.get("Service", backend["name"])["spec"]["ports"]
            assert backend["port"] in {port["port"] for port in ports}
            assert backend["name"].endswith("-api")


def test_ingress_has_every_host_and_its_tls() -> None:
    values: Values = {"ingress": {**ROUTES["ingress"], "tls": [{"secretName": "s", "hosts": ["a.example.com"]}]}}
    (ingress,) = template(values=values).all("Ingress")
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == ["a.example.com", "b.example.com"]
    assert ingress["spec"]["tls"] == values["ingress"]["tls"]
    assert "ingressClassName" not in ingress["spec"]


def test_host_may_have_paths_of_its_own() -> None:
    paths = [{"path": "/api", "pathType": "ImplementationSpecific"}, {"path": "/docs"}]
    hosts = [{"host": "{{ .Release.Name }}.example.com", "paths": paths}, {"host": "b.example.com"}, "c.example.com"]
    (ingress,) = template(values={"ingress": {"enabled": True, "hosts": hosts}}).all("Ingress")
    rules = {rule["host"]: rule["http"]["paths"] for rule in ingress["spec"]["rules"]}
    assert rules.keys() == {"trial.example.com", "b.example.com", "c.example.com"}
    own = [(path["path"], path["pathType"]) for path in rules["trial.example.com"]]
    assert own == [("/api", "ImplementationSpecific"), ("/docs", "Prefix")]
    assert rules["b.example.com"] == rules["c.example.com"]
    assert len(rules["b.example.com"]) == 5


@pytest.mark.parametrize("kind", ["Ingress", "HTTPRoute"])
def test_prefix_is_that_of_every_path(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    release = template(values=ROUTES | {"pathPrefix": "/faces"})
    (item,) = release.all(kind)
    for path in (
        "/faces",
        "/faces/",
        "/faces/api/v1/frontal/crop",
        "/faces/docs",
        "/faces/openapi.json",
        "/faces/page/a",
    ):
        assert is_routed(item, path)
    for path in ("/", "/api", "/facesx", "/faces/metrics", "/faces/health", *INSIDE):
        assert not is_routed(item, path), path
    settings = read_settings(monkeypatch, environment(release, pod_of(release, "api")))
    assert settings.root_path == "/faces"


def test_route_has_what_a_route_can_have() -> None:
    filters = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}]}}]
    route = {
        **ROUTES["httpRoute"],
        "filters": filters,
        "labels": {"a": "b"},
        "annotations": {"c": "{{ .Release.Name }}"},
    }
    (item,) = template(values={"httpRoute": route | {"hostnames": ["{{ .Release.Namespace }}.example.com"]}}).all(
        "HTTPRoute"
    )
    assert item["spec"]["rules"][0]["filters"] == filters
    assert item["spec"]["hostnames"] == ["faces.example.com"]
    assert item["metadata"]["labels"]["a"] == "b"
    assert item["metadata"]["annotations"] == {"c": "trial"}


SERVICE: Values = {
    "type": "LoadBalancer",
    "loadBalancerClass": "example.com/internal",
    "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"],
    "externalTrafficPolicy": "Local",
    "annotations": {"example.com/name": "{{ .Release.Name }}"},
    "labels": {"a": "b"},
    "extraPorts": [{"name": "sidecar", "port": 9443, "targetPort": 8443}],
}


def test_service_has_what_a_service_can_have() -> None:
    service = template(values={"api": {"service": SERVICE}}).named("Service", "-api")
    for name in ("type", "loadBalancerClass", "loadBalancerSourceRanges", "externalTrafficPolicy"):
        assert service["spec"][name] == SERVICE[name]
    assert service["metadata"]["annotations"] == {"example.com/name": "trial"}
    assert service["metadata"]["labels"]["a"] == "b"
    assert service["spec"]["ports"][1:] == SERVICE["extraPorts"]


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ({}, True),
        ({"type": "LoadBalancer"}, False),
        ({"type": "NodePort"}, False),
        ({"type": "LoadBalancer", "exposeMetrics": True}, True),
    ],
)
def test_metrics_are_on_the_api_port_only_within_the_cluster(
    service: Values, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = template(values={"api": {"service": service}})
    settings = read_settings(monkeypatch, environment(release, pod_of(release, "api")))
    assert settings.metrics_on_api_port is expected


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (None, True),
        ([{"path": "/api"}, {"path": "/", "pathType": "Exact"}], True),
        ([{"path": "/"}], False),
        ([{"path": "/", "pathType": "ImplementationSpecific"}], False),
        ([{"path": "/faces"}], False),
        ([{"path": "/faces/metrics", "pathType": "Exact"}], False),
        ([{"path": "/metrics"}], False),
    ],
)
def test_metrics_are_not_on_a_port_that_an_ingress_opens_whole(
    paths: list[Values] | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    host: Values = {"host": "a.example.com"} | ({"paths": paths} if paths else {})
    values: Values = {"pathPrefix": "/faces", "ingress": {"enabled": True, "hosts": [host]}}
    for more, is_served in (({}, expected), ({"type": "NodePort", "exposeMetrics": True}, True)):
        release = template(values=values | {"api": {"service": more}})
        settings = read_settings(monkeypatch, environment(release, pod_of(release, "api")))
        assert settings.metrics_on_api_port is is_served


def test_policy_opens_the_ports_of_the_service() -> None:
    ports = [{"name": "a", "port": 9, "targetPort": 90, "protocol": "UDP"}, {"name": "b", "port": 10}]
    values: Values = {"api": {"service": {"extraPorts": ports}}, "networkPolicy": {"enabled": True}}
    rule = template(values=values).named("NetworkPolicy", "-api")["spec"]["ingress"][0]
    assert rule["ports"][1:] == [{"port": 90, "protocol": "UDP"}, {"port": 10, "protocol": "TCP"}]


@dataclass(frozen=True)
class Peer:
    """Source or destination of a connection.

    Attributes:
        labels: labels of the pod.
        namespace: its namespace.
        namespace_labels: labels of the namespace.
        address: IP address, outside of the cluster.
    """

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    address: str = ""

    @property
    def namespace_labels(self) -> dict[str, str]:
        return {"kubernetes.io/metadata.name": self.namespace}


def means(peer: dict[str, Any], who: Peer) -> bool:
    if "ipBlock" in peer:
        raise NotImplementedError
    if who.address:
        return False
    if "namespaceSelector" in peer:
        is_there = is_selected(peer["namespaceSelector"], who.namespace_labels)
    else:
        is_there = who.namespace == NAMESPACE
    return is_there and is_selected(peer.get("podSelector", {}), who.labels)


def may(release: Release, direction: str, whose: Peer, other: Peer, port: int) -> bool:
    """Return whether the policies allow Ingress to or Egress from a pod on a TCP port."""
    policies = [
        item["spec"]
        for item in release.all("NetworkPolicy")
        if whose.namespace == NAMESPACE
        and not whose.address
        and is_selected(item["spec"]["podSelector"], whose.labels)
        and direction in item["spec"]["policyTypes"]
    ]
    word = {"Ingress": "from", "Egress": "to"}[direction]
    rules = [rule for policy in policies for rule in policy.get(direction.lower()) or ()]
    return not policies or any(
        _has_port(rule.get("ports"), port) and (not rule.get(word) or any(means(peer, other) for peer in rule[word]))
        for rule in rules
    )


def _has_port(ports: list[dict[str, Any]] | None, port: int) -> bool:
    return not ports or any(item["port"] == port and item.get("protocol", "TCP") == "TCP" for item in ports)


def reaches(release: Release, caller: Peer, called: Peer, port: int) -> bool:
    return may(release, "Egress", caller, called, port) and may(release, "Ingress", called, caller, port)


POLICIES: Values = {
    "nats": {"replicas": 3},
    "networkPolicy": {
        "enabled": True,
        "ingressFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "web"}}}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "natsMonitorFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}],
        "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "traces"}}}]}],
    },
}
WEB, MONITORING, KEDA, TRACES, DNS = (
    Peer(namespace=name) for name in ("web", "monitoring", "keda", "traces", "kube-system")
)
STRANGER, WORLD = Peer({"app": "other"}), Peer(address="192.0.2.1")


@pytest.fixture(scope="module")
def policies() -> Release:
    return template(values=POLICIES)


def peer(release: Release, name: str) -> Peer:
    known = {"web": WEB, "monitoring": MONITORING, "keda": KEDA, "traces": TRACES, "dns": DNS, "stranger": STRANGER}
    known["world"] = WORLD
    return known.get(name) or Peer(pod_of(release, name).labels)


@pytest.mark.parametrize(
    ("caller", "called", "port", "expected"),
    [
        ("web", "api", 8000, True),
        ("test", "api", 8000, True),
        ("stranger", "api", 8000, False),
        ("worker", "api", 8000, False),
        ("web", "api", 9000, False),
        ("web", "worker", 9000, False),
        ("monitoring", "api", 9000, True),
        ("monitoring", "worker", 9000, True),
        ("monitoring", "api", 8000, False),
        ("monitoring", "nats", 8222, False),
        ("stranger", "worker", 9000, False),
        ("stranger", "nats", 4222, False),
        ("stranger", "nats", 8222, False),
        ("test", "nats", 4222, False),
        ("api", "nats", 4222, True),
        ("api", "nats", 8222, True),
        ("api", "nats", 6222, False),
        ("worker", "nats", 4222, True),
        ("worker", "nats", 8222, True),
        ("worker", "nats", 6222, False),
        ("nats", "nats", 6222, True),
        ("nats", "nats", 4222, False),
        ("keda", "nats", 8222, True),
        ("keda", "nats", 4222, False),
        ("keda", "api", 9000, False),
        ("api", "worker", 9000, False),
        ("api", "traces", 4317, True),
        ("worker", "traces", 4317, True),
        ("nats", "traces", 4317, False),
        ("api", "dns", 53, True),
        ("worker", "dns", 53, True),
        ("nats", "dns", 53, True),
        ("api", "world", 443, False),
        ("worker", "world", 443, False),
        ("nats", "world", 443, False),
        ("api", "stranger", 80, False),
        ("nats", "api", 8000, False),
    ],
)
def test_policies(policies: Release, caller: str, called: str, port: int, expected: bool) -> None:
    assert reaches(policies, peer(policies, caller), peer(policies, called), port) is expected


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector:4318", 4318),
        ("http://collector", 80),
        ("https://traces.example.com/otlp", 443),
        ("https://traces.example.com:8443/otlp", 8443),
        ("http://[2001:db8::1]:4318", 4318),
    ],
)
def test_policies_allow_the_collector_of_traces(endpoint: str, port: int) -> None:
    release = template(values={**POLICIES, "tracing": {"endpoint": endpoint}})
    for component, expected in (("api", True), ("worker", True), ("nats", False)):
        own = peer(release, component)
        assert may(release, "Egress", own, WORLD, port) is expected
        assert not may(release, "Egress", own, WORLD, 8080)


@pytest.mark.parametrize(
    ("caller", "called", "port"),
    [("stranger", "api", 8000), ("world", "api", 8000), ("stranger", "worker", 9000), ("monitoring", "api", 9000)],
)
def test_lists_that_are_empty_let_everyone(caller: str, called: str, port: int) -> None:
    release = template(values={"networkPolicy": {"enabled": True}})
    assert reaches(release, peer(release, caller), peer(release, called), port)
    # Metrics are not reachable from outside the cluster.
    assert not reaches(release, WORLD, peer(release, "api"), 9000)
    assert not reaches(release, STRANGER, peer(release, "nats"), 4222)


def test_server_alone_calls_nobody() -> None:
    release = template(values={"networkPolicy": {"enabled": True}})
    nats = peer(release, "nats")
    assert not any(may(release, "Egress", nats, other, port) for other in (DNS, WORLD, nats) for port in (53, 6222))


@pytest.mark.parametrize(
    ("url", "monitor", "ports"),
    [
        ("nats://a.example.com", "", {4222}),
        (
            "tls://a.example.com:4443,tls://b.example.com:4444",
            "https://a.example.com:8443",
            {4443, 4444, 8443},
        ),
        ("nats://a.example.com", "http://a.example.com", {4222, 80}),
        ("nats://a.example.com", "https://a.example.com/", {4222, 443}),
    ],
)
def test_policies_open_the_ports_of_servers_elsewhere(url: str, monitor: str, ports: set[int]) -> None:
    values: Values = {
        "nats": {"enabled": False},
        "externalNats": {"url": url, "monitorUrl": monitor},
        "networkPolicy": {"enabled": True},
    }
    release = template(values=values)
    for component in ("api", "worker"):
        who = peer(release, component)
        assert {
            port for port in (80, 443, 4222, 4443, 4444, 8222, 8443) if may(release, "Egress", who, WORLD, port)
        } == ports


@pytest.mark.parametrize(
    ("policy", "families"),
    [
        ("", []),
        ("SingleStack", ["IPv6"]),
        ("PreferDualStack", []),
        ("PreferDualStack", ["IPv6", "IPv4"]),
        ("RequireDualStack", ["IPv4", "IPv6"]),
    ],
)
def test_every_service_has_the_families(policy: str, families: list[str]) -> None:
    release = template(values={"ipFamilyPolicy": policy, "ipFamilies": families, "nats": {"replicas": 3}})
    services = release.all("Service")
    assert len(services) == 4
    for service in services:
        assert service["spec"].get("ipFamilyPolicy", "") == policy
        assert service["spec"].get("ipFamilies", []) == families


def test_ports_of_policies_are_those_of_pods(release: Release) -> None:
    for policy in release.all("NetworkPolicy"):
        pod = pod_of(release, policy["metadata"]["labels"]["app.kubernetes.io/component"])
        for rule in policy["spec"].get("ingress") or ():
            assert {port["port"] for port in rule["ports"]} <= set(pod.ports.values())
