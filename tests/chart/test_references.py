"""References between objects: selectors, ports, and names of mounted or read objects."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.chart.helm import CHART, NAMESPACE, RELEASE, Release, Values, template
from tests.chart.pods import COMPONENT, Pod, find_pods, is_selected, owners, pod_of, selected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

METRICS_LABEL = "facial-service/metrics"
# Components that each object's selector matches, by the end of its name, in every scenario with the object.
SERVICES = {"-api": "api", "-api-metrics": "api", "-worker": "worker", "-nats": "nats"}


def ending(item: Mapping[str, Any]) -> str:
    name: str = item["metadata"]["name"]
    return max((end for end in SERVICES if name.endswith(end)), key=len)


def test_services_mean_their_component(release: Release) -> None:
    assert release.all("Service")
    for service in release.all("Service"):
        meant = selected(release, {"matchLabels": service["spec"]["selector"]})
        assert meant == owners(release, SERVICES[ending(service)]) != set(), service["metadata"]["name"]


def test_services_lead_to_ports_that_pods_have(release: Release) -> None:
    for service in release.all("Service"):
        ports = pod_of(release, SERVICES[ending(service)]).ports
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports, service["metadata"]["name"]


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer"])
def test_only_the_api_is_reached_from_outside(kind: str) -> None:
    release = template(values={"api": {"service": {"type": kind}}})
    api = release.get("Service", f"{RELEASE}-facial-service-api")
    assert api["spec"]["type"] == kind
    assert [port["name"] for port in api["spec"]["ports"]] == ["http"]
    others = [service["spec"] for service in release.all("Service") if service is not api]
    assert [service["clusterIP"] for service in others] == ["None"] * 3


def test_workloads_select_their_own_pods_alone(release: Release) -> None:
    for workload in release.all("Deployment", "StatefulSet"):
        name = f"{workload['kind']}/{workload['metadata']['name']}"
        assert selected(release, workload["spec"]["selector"]) == {name}
        if workload["kind"] == "StatefulSet":
            service = release.get("Service", workload["spec"]["serviceName"])
            assert service["spec"]["clusterIP"] == "None"
            assert selected(release, {"matchLabels": service["spec"]["selector"]}) == {name}


def test_helm_test_calls_the_api(release: Release) -> None:
    """`helm test` calls a Service of the release at its port, and submits a task if there are workers."""
    (pod,) = (pod for pod in find_pods(release.objects) if pod.owner["kind"] == "Pod")
    assert pod.owner["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod.containers
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    service = release.named("Service", "-api")
    (port,) = service["spec"]["ports"]
    assert variables["SERVICE_URL"] == f"http://{service['metadata']['name']}:{port['port']}"
    assert variables["HAS_TASKS"] == str(bool(owners(release, "worker"))).lower()
    assert container["args"] == [(CHART / "files" / "process_photo.py").read_text(encoding="utf-8")]


def test_selectors_tell_releases_apart() -> None:
    one, other = (template(release=name) for name in ("one", "other"))
    for item in one.all("Deployment", "StatefulSet", "Service"):
        selector = item["spec"]["selector"]
        labels = selector if item["kind"] == "Service" else selector["matchLabels"]
        assert selected(other, {"matchLabels": labels}) == set()


def test_selectors_stay_when_labels_and_versions_change() -> None:
    """They are immutable in an installed release."""
    changes: Values = {"commonLabels": {"a": "b"}, "podLabels": {"c": "d"}, "image": {"tag": "9"}}
    before, after = template(), template(values=changes)
    for item in before.all("Deployment", "StatefulSet"):
        name = item["metadata"]["name"]
        assert item["spec"]["selector"] == after.get(item["kind"], name)["spec"]["selector"]
    for pod in find_pods(after.objects):
        assert pod.labels["a"] == "b"


def test_budgets_and_scalers_mean_their_component(release: Release) -> None:
    for budget in release.all("PodDisruptionBudget"):
        component = budget["metadata"]["labels"][COMPONENT]
        assert selected(release, budget["spec"]["selector"]) == owners(release, component) != set()
    for scaler in release.all("HorizontalPodAutoscaler", "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]
        assert target.get("kind", "Deployment") == "Deployment"
        deployment = release.get("Deployment", target["name"])
        assert deployment["apiVersion"] == target.get("apiVersion", "apps/v1")
        assert deployment["metadata"]["labels"][COMPONENT] == scaler["metadata"]["labels"][COMPONENT]
        for metric in scaler["spec"].get("metrics", ()):
            if metric["type"] == "ContainerResource":
                names = {item["name"] for item in deployment["spec"]["template"]["spec"]["containers"]}
                assert metric["containerResource"]["container"] in names


@pytest.mark.parametrize("kind", ["serviceMonitor", "podMonitor"])
def test_monitors_leave_out_the_queue(kind: str) -> None:
    release = template(values={"metrics": {kind: {"enabled": True}}})
    assert owners(release, "nats")
    test_monitors_mean_api_and_workers(release)


def test_monitors_mean_api_and_workers(release: Release) -> None:
    for monitor in release.all("ServiceMonitor", "PodMonitor"):
        spec = monitor["spec"]
        assert spec["namespaceSelector"] == {"matchNames": [NAMESPACE]}
        if monitor["kind"] == "PodMonitor":
            meant, endpoints = selected(release, spec["selector"]), spec["podMetricsEndpoints"]
        else:
            services = [
                item for item in release.all("Service") if is_selected(spec["selector"], item["metadata"]["labels"])
            ]
            assert all(service["metadata"]["labels"][METRICS_LABEL] == "true" for service in services)
            pods = [selected(release, {"matchLabels": service["spec"]["selector"]}) for service in services]
            meant, endpoints = set().union(*pods), spec["endpoints"]
            # One Service per pod, because a target of two would count twice.
            assert sum(map(len, pods)) == len(meant)
            for endpoint in endpoints:
                assert all(endpoint["port"] in {port["name"] for port in item["spec"]["ports"]} for item in services)
        assert meant == owners(release, "api", "worker") != set()
        for pod in find_pods(release.objects):
            if pod.name in meant:
                assert [pod.ports[endpoint["port"]] for endpoint in endpoints] == [9000]


def test_policies_mean_their_component(release: Release) -> None:
    for policy in release.all("NetworkPolicy"):
        component = policy["metadata"]["labels"][COMPONENT]
        assert selected(release, policy["spec"]["podSelector"]) == owners(release, component) != set()


def test_probes_and_hooks_ask_ports_of_their_container(release: Release) -> None:
    asked = 0
    for pod in find_pods(release.objects):
        for container in pod.containers:
            names = {port["name"] for port in container.get("ports", ())}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if kind in container:
                    assert container[kind]["httpGet"]["port"] in names
                    asked += 1
    assert asked >= 3


def references(pod: Pod) -> Iterator[tuple[str, str, str]]:
    """Return every required ConfigMap and Secret of a pod: kind, name and key (empty for all keys)."""
    volumes = pod.spec.get("volumes", ())
    sources = [*volumes, *(source for volume in volumes for source in volume.get("projected", {}).get("sources", ()))]
    for source in sources:
        yield from _named(source, "configMap", "secret")
    for container in pod.containers:
        for source in container.get("envFrom", ()):
            yield from _named(source, "configMapRef", "secretRef")
        for variable in container.get("env", ()):
            yield from _named(variable.get("valueFrom", {}), "configMapKeyRef", "secretKeyRef")


def _named(source: Mapping[str, Any], map_word: str, secret_word: str) -> Iterator[tuple[str, str, str]]:
    for kind, word in (("ConfigMap", map_word), ("Secret", secret_word)):
        part = source.get(word)
        if part and not part.get("optional"):
            name = part.get("name") or part["secretName"]
            keys = [item["key"] for item in part.get("items", ())] or [part.get("key", "")]
            yield from ((kind, name, key) for key in keys)


def test_what_pods_read_is_there_or_named_by_the_values(release: Release, scenario: Path) -> None:
    maps = {item["metadata"]["name"]: item.get("data") or {} for item in release.all("ConfigMap")}
    assert release.all("Secret") == []
    words = scenario.read_text(encoding="utf-8")
    for pod in find_pods(release.objects):
        for kind, name, key in references(pod):
            if kind == "ConfigMap":
                assert name in maps
                assert not key or key in maps[name]
            else:
                assert name in words, f"{pod.name} reads the Secret {name}, which the values do not name"


def test_accounts_are_there_or_the_default(release: Release) -> None:
    made = {item["metadata"]["name"] for item in release.all("ServiceAccount")}
    assert {pod.spec["serviceAccountName"] for pod in find_pods(release.objects)} == (made or {"default"})


@pytest.mark.parametrize(
    ("account", "expected"),
    [
        ({"create": True}, f"{RELEASE}-facial-service"),
        ({"create": True, "name": "mine"}, "mine"),
        ({"create": False, "name": "theirs"}, "theirs"),
        ({"create": False}, "default"),
    ],
)
def test_account_is_made_or_taken(account: dict[str, Any], expected: str) -> None:
    release = template(values={"serviceAccount": account})
    assert {pod.spec["serviceAccountName"] for pod in find_pods(release.objects)} == {expected}
    assert [item["metadata"]["name"] for item in release.all("ServiceAccount")] == [expected] * account["create"]


def test_everything_is_in_the_releases_namespace_unless_told(release: Release) -> None:
    for item in release.objects:
        namespace = item["metadata"].get("namespace", NAMESPACE)
        may_be_elsewhere = item["kind"] in {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
        assert namespace == NAMESPACE or may_be_elsewhere, item["metadata"]["name"]


def test_labels_of_everything(release: Release) -> None:
    for item in release.objects:
        if item["metadata"]["name"].endswith(("-company", "-company-2")):
            continue  # objects of the user
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == RELEASE
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["helm.sh/chart"].startswith("facial-service-")


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        ({"settings": {"LOG_LEVEL": "DEBUG"}}, {"api", "worker"}),
        ({"api": {"settings": {"LOG_LEVEL": "DEBUG"}}}, {"api"}),
        ({"worker": {"settings": {"LOG_LEVEL": "DEBUG"}}}, {"worker"}),
        ({"nats": {"syncInterval": "always"}}, {"nats"}),
        ({"metrics": {"serviceMonitor": {"enabled": True}}, "dashboards": {"enabled": True}}, set()),
        ({"commonLabels": {"a": "b"}}, {"api", "worker", "nats"}),
        ({"api": {"replicas": 5}, "worker": {"replicas": 5}}, set()),
    ],
)
def test_a_change_replaces_the_pods_that_read_it(change: Values, replaced: set[str]) -> None:
    before, after = template(), template(values=change)
    differing = {
        component
        for component in ("api", "worker", "nats")
        if (pod_of(before, component).metadata, pod_of(before, component).spec)
        != (pod_of(after, component).metadata, pod_of(after, component).spec)
    }
    assert differing == replaced


def test_a_new_version_of_the_chart_alone_replaces_no_pod_of_the_queue(tmp_path: Path) -> None:
    copy = tmp_path / "chart"
    shutil.copytree(CHART, copy)
    text = (copy / "Chart.yaml").read_text(encoding="utf-8")
    (copy / "Chart.yaml").write_text(text.replace("\nversion: ", "\nversion: 9", 1), encoding="utf-8")
    before, after = template(), template(chart=copy)
    assert before.all("Deployment")[0]["metadata"]["labels"] != after.all("Deployment")[0]["metadata"]["labels"]
    for component in ("api", "worker", "nats"):
        assert pod_of(before, component).metadata == pod_of(after, component).metadata
