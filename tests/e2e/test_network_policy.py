"""Network policies block what they should, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import Namespace, Release, restarts, wait_for
from tests.e2e.conftest import SMALL, has_prometheus, monitoring
from tests.e2e.test_monitoring import require_targets

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.e2e, pytest.mark.kind, pytest.mark.timeout(600)]
PORTS = {"api": 8000, "metrics": 9000, "queue": 4222, "queue's monitor": 8222}
CALLER = {"e2e/caller": "allowed"}
CONNECT = """
import json, socket, sys
reached = {}
for name, (host, port) in json.loads(sys.argv[1]).items():
    try:
        socket.create_connection((host, port), 2).close()
        reached[name] = True
    except OSError:
        reached[name] = False
print(json.dumps(reached))
"""
LISTEN = "import http.server; http.server.HTTPServer(('', 8000), http.server.BaseHTTPRequestHandler).serve_forever()"
Addresses = dict[str, tuple[str, int]]


def start_pod(release: Release, space: Namespace, name: str, script: str, labels: dict[str, str] | None = None) -> str:
    """Start a pod that runs a Python script, and return its address once it runs."""
    container = {
        "name": "main",
        "image": release.image,
        "command": ["python", "-c", script],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"securityContext": security, "terminationGracePeriodSeconds": 0, "containers": [container]}
    metadata = {"name": name, "labels": {"app": name, **(labels or {})}}
    space.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    wait_for(lambda: space.get("pod", name)["status"]["phase"] == "Running", f"the pod {name}")
    address: str = space.get("pod", name)["status"]["podIP"]
    return address


def reach(space: Namespace, pod: str, addresses: Addresses) -> dict[str, bool]:
    """Return which addresses a pod can connect to."""
    found: dict[str, bool] = json.loads(
        space.kubectl("exec", pod, "--", "python", "-c", CONNECT, json.dumps(addresses))
    )
    return found


@pytest.fixture(scope="module")
def release(cluster: None, make_release: Callable[..., Release]) -> Release:
    """Install with policies, for one kind of caller and Prometheus."""
    made = make_release()
    sleep = "import time; time.sleep(3600)"
    address = start_pod(made, made.namespace, "listener", LISTEN)
    start_pod(made, made.namespace, "stranger", sleep)
    require_enforcement(made.namespace, {"listener": (address, 8000)})
    start_pod(made, made.namespace, "caller", sleep, CALLER)
    prometheus = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    policy = {"enabled": True, "ingressFrom": [{"podSelector": {"matchLabels": CALLER}}], "metricsFrom": prometheus}
    monitors = {"metrics": monitoring("serviceMonitor")} if has_prometheus() else {}
    made.deploy({**SMALL, "networkPolicy": policy, **monitors})
    return made


def require_enforcement(space: Namespace, listener: Addresses) -> None:
    """Skip the test if the network of the cluster ignores policies."""
    wait_for(lambda: reach(space, "stranger", listener)["listener"], "a connection without a policy")
    name = {"name": "closed"}
    spec = {"podSelector": {"matchLabels": {"app": "listener"}}, "policyTypes": ["Ingress"]}
    space.apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": name, "spec": spec})
    try:
        wait_for(lambda: not reach(space, "stranger", listener)["listener"], "a policy in force", limit_s=20)
    except TimeoutError:
        pytest.skip("the cluster's network ignores NetworkPolicies")
    finally:
        space.kubectl("delete", "networkpolicy", "closed")


@pytest.fixture(scope="module")
def addresses(release: Release) -> Addresses:
    """Return the addresses of the service's pods, by what listens there."""
    pods = {part: release.ready(part)[0]["status"]["podIP"] for part in ("api", "worker", "nats")}
    return {
        "api": (pods["api"], PORTS["api"]),
        "api's metrics": (pods["api"], PORTS["metrics"]),
        "worker's metrics": (pods["worker"], PORTS["metrics"]),
        "queue": (pods["nats"], PORTS["queue"]),
        "queue's monitor": (pods["nats"], PORTS["queue's monitor"]),
    }


def test_each_pod_reaches_only_what_it_needs(release: Release, addresses: Addresses) -> None:
    def require(pod: str, expected: set[str]) -> None:
        found: dict[str, bool] = {}

        def agrees() -> bool:
            found.update(reach(release.namespace, pod, addresses | outside))
            return {name for name, is_reached in found.items() if is_reached} == expected

        try:
            wait_for(agrees, f"connections from {pod}", limit_s=20)
        except TimeoutError:
            pytest.fail(f"{pod}: expected {sorted(expected)}, got {found}")
        print(f"{pod} reaches {sorted(expected)} and nothing else of {sorted(found)}")

    listener: str = release.namespace.get("pod", "listener")["status"]["podIP"]
    outside: Addresses = {"other pod": (listener, 8000), "Kubernetes API": ("kubernetes.default.svc", 443)}
    everywhere = {"other pod", "Kubernetes API"}
    require("stranger", everywhere)
    require("caller", {"api", *everywhere})
    # No policy applies to a pod's connections to itself.
    for component, own in {"api": {"api", "api's metrics"}, "worker": {"worker's metrics"}}.items():
        require(release.ready(component)[0]["metadata"]["name"], {"queue", "queue's monitor", *own})


def test_callers_probes_and_prometheus_get_through(release: Release) -> None:
    assert "Succeeded" in release.helm("test", release.name, "--timeout=120s")
    for component in ("api", "worker", "nats"):
        (pod,) = release.ready(component)  # by the kubelet's probes
        assert restarts(pod) == 0
    if not has_prometheus():
        pytest.skip("no Prometheus of the Operator runs in the namespace monitoring")
    require_targets(release, "serviceMonitor")
