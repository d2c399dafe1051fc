"""Pods of every scenario: admission, probes, termination and spreading."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from app.tasks.connection import is_supported_server
from tests.chart.helm import CHART, Values, template
from tests.chart.pod_security import policy_violations, restricted_violations
from tests.chart.pods import Pod, find_pods, is_selected, owners, pod_of

if TYPE_CHECKING:
    from tests.chart.helm import Release

PROBES = {
    "api": {"startupProbe": "/health/ready", "readinessProbe": "/health/ready", "livenessProbe": "/health/live"},
    # Readiness depends on the queue; liveness does not, because a restart would not bring the queue back.
    "worker": {"startupProbe": "/health/live", "readinessProbe": "/health/ready", "livenessProbe": "/health/live"},
    "nats": {
        "startupProbe": "/healthz?js-server-only=true",
        "readinessProbe": "/healthz?js-server-only=true",
        "livenessProbe": "/healthz?js-enabled-only=true",
    },
}
LONG_RUNNING = sorted(PROBES)
UNITS = {"Mi": 2**20, "Gi": 2**30}


def claims_of(pod: Pod) -> frozenset[str]:
    claims = pod.owner["spec"].get("volumeClaimTemplates", ())
    return frozenset(claim["metadata"]["name"] for claim in claims)


def test_restricted_standard_admits_every_pod(release: Release) -> None:
    pods = find_pods(release.objects)
    assert {"api", "test"} <= {pod.component for pod in pods}
    assert {pod.name: found for pod in pods if (found := restricted_violations(pod.spec))} == {}


def test_every_pod_keeps_our_rules(release: Release) -> None:
    pods = find_pods(release.objects)
    assert {pod.name: found for pod in pods if (found := policy_violations(pod.spec, claims_of(pod)))} == {}


def test_service_account_has_no_token(release: Release) -> None:
    for account in release.all("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    # No object grants permissions either.
    assert release.all("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding") == []


def test_probes_ask_the_port_that_answers_while_workers_are_busy(release: Release) -> None:
    for pod in find_pods(release.objects):
        if pod.component not in PROBES:
            continue
        port = "monitor" if pod.component == "nats" else "metrics"
        expected = dict(PROBES[pod.component])
        if pod.component == "nats" and pod.owner["spec"]["replicas"] > 1:
            # The next server stops after this one has caught up with the others.
            expected["startupProbe"] = "/healthz"
        for name, path in expected.items():
            assert pod.main[name]["httpGet"] == {"path": path, "port": port}, name


def test_start_gets_longer_than_a_life_may_hang(release: Release) -> None:
    for component in owners_of_long_running(release):
        main = pod_of(release, component).main
        startup, liveness = main["startupProbe"], main["livenessProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 30
        # The master replaces a worker without heartbeats for TIMEOUT_S (30); the pod must not be restarted earlier.
        assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 30


def owners_of_long_running(release: Release) -> list[str]:
    return [component for component in LONG_RUNNING if owners(release, component)]


def test_grace_covers_the_parts(release: Release) -> None:
    for component in {"api", "worker"} & set(owners_of_long_running(release)):
        pod = pod_of(release, component)
        sleep = pod.main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        graceful = {item["name"]: item.get("value") for item in pod.main["env"]}["GRACEFUL_TIMEOUT_S"]
        assert pod.spec["terminationGracePeriodSeconds"] >= sleep + int(graceful) + 5


@pytest.mark.parametrize(
    ("values", "component", "seconds"),
    [
        ({}, "api", 10 + 30 + 5),
        ({}, "worker", 30 + 7),
        ({"api": {"preStopSeconds": 0, "gracefulTimeoutSeconds": 5}}, "api", 10),
        ({"api": {"preStopSeconds": 25, "gracefulTimeoutSeconds": 90}}, "api", 120),
        ({"api": {"terminationGracePeriodSeconds": 300}}, "api", 300),
        ({"worker": {"gracefulTimeoutSeconds": 120}}, "worker", 127),
        ({"nats": {"terminationGracePeriodSeconds": 200}}, "nats", 200),
    ],
)
def test_grace_is_the_sum_or_what_is_said(values: Values, component: str, seconds: int) -> None:
    assert pod_of(template(values=values), component).spec["terminationGracePeriodSeconds"] == seconds


def test_no_sleep_is_no_hook() -> None:
    assert pod_of(template(), "api").main["lifecycle"] == {"preStop": {"sleep": {"seconds": 10}}}
    assert "lifecycle" not in pod_of(template(values={"api": {"preStopSeconds": 0}}), "api").main


def test_rollouts_take_no_pod_before_its_successor_is_ready(release: Release) -> None:
    for deployment in release.all("Deployment"):
        update = deployment["spec"]["strategy"]["rollingUpdate"]
        assert update["maxUnavailable"] == 0
        assert update["maxSurge"] not in {0, "0%"}


def test_spread_counts_the_components_own_pods(release: Release) -> None:
    pods = find_pods(release.objects)
    for pod in pods:
        for constraint in pod.spec.get("topologySpreadConstraints", ()):
            meant = {other.name for other in pods if is_selected(constraint["labelSelector"], other.labels)}
            assert meant == {pod.name}
            assert constraint["topologyKey"]
    spread = {pod.component for pod in pods if pod.spec.get("topologySpreadConstraints")}
    assert spread == set(owners_of_long_running(release))


@pytest.mark.parametrize("processes", [1, 2, 8, 64])
def test_metric_files_find_room_in_memory(processes: int) -> None:
    unlimited: Values = {"resources": {"limits": None}}
    values = {"api": {"workers": processes, **unlimited}, "worker": {"processes": processes, **unlimited}}
    release = template(values=values)
    for component in ("api", "worker"):
        volumes = {volume["name"]: volume for volume in pod_of(release, component).spec["volumes"]}
        metrics = volumes["metrics"]["emptyDir"]
        assert metrics["medium"] == "Memory"
        # A process that has served every route takes 0.7 MiB, and the master little.
        assert to_bytes(metrics["sizeLimit"]) >= (processes + 1) * 2 * 2**20
        assert {"name": "metrics", "mountPath": "/run/metrics"} in pod_of(release, component).main["volumeMounts"]
        assert volumes["tmp"]["emptyDir"].get("medium") is None


def to_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([MG]i)", text)
    assert match is not None, text
    return int(match[1]) * UNITS[match[2]]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({}, "ghcr.io/facial-service/facial-service:{version}"),
        ({"tag": "7"}, "ghcr.io/facial-service/facial-service:7"),
        ({"registry": "r.example.com:5000", "tag": "7"}, "r.example.com:5000/facial-service/facial-service:7"),
        ({"registry": "r.example.com:5000", "repository": "a/b", "tag": "7"}, "r.example.com:5000/a/b:7"),
        ({"repository": "facial-service", "tag": "7"}, "facial-service:7"),
        ({"tag": "7", "digest": "sha256:" + "a" * 64}, "ghcr.io/facial-service/facial-service@sha256:" + "a" * 64),
    ],
)
def test_one_image_is_enough(image: dict[str, str], expected: str) -> None:
    """Without an image of its own, the queue runs from the service's."""
    values: Values = {"image": image | {"pullPolicy": "Always"}}
    values["nats"] = {"auth": {"existingSecret": "token"}, "image": {"repository": ""}}
    release = template(values=values)
    assert {item["imagePullPolicy"] for pod in find_pods(release.objects) for item in pod.containers} == {"Always"}
    version = re.search(r"^appVersion: (\S+)$", (CHART / "Chart.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    images = {item["image"] for pod in find_pods(release.objects) for item in pod.containers}
    assert images == {expected.format(version=version[1])}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({}, r"docker\.io/library/nats@sha256:[0-9a-f]{64}"),
        ({"tag": "2.14.6-alpine", "digest": ""}, r"docker\.io/library/nats:2\.14\.6-alpine"),
        ({"registry": "r.example.com", "digest": ""}, r"r\.example\.com/library/nats:[0-9.]+-alpine"),
        (
            {"repository": "r.example.com/a/nats", "digest": "sha256:" + "b" * 64},
            r"r\.example\.com/a/nats@sha256:b{64}",
        ),
    ],
)
def test_queue_has_an_image_of_its_own(image: dict[str, str], expected: str) -> None:
    values: Values = {"image": {"pullPolicy": "Always"}, "nats": {"image": image}}
    container = pod_of(template(values=values), "nats").main
    assert re.fullmatch(expected, container["image"])
    assert container["imagePullPolicy"] == "IfNotPresent"


def test_mirror_serves_every_image() -> None:
    values: Values = {"global": {"imageRegistry": "mirror.example.com", "imagePullSecrets": ["a", {"name": "b"}]}}
    values["imagePullSecrets"] = [{"name": "b"}, "c"]
    pods = find_pods(template(values=values).objects)
    for pod in pods:
        assert [secret["name"] for secret in pod.spec["imagePullSecrets"]] == ["b", "c", "a"]
    images = {
        item["image"].partition("@")[0].rpartition(":")[0] or item["image"].partition("@")[0]
        for pod in pods
        for item in pod.containers
    }
    assert images <= {"mirror.example.com/facial-service/facial-service", "mirror.example.com/library/nats"}
    own = template(values=values | {"image": {"registry": "own.example.com"}})
    assert pod_of(own, "api").main["image"].startswith("own.example.com/facial-service/")


def test_default_image_of_the_queue_is_one_that_the_service_supports() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["nats"]["image"]
    assert is_supported_server(defaults["tag"])
    checks = (CHART / "templates" / "_checks.tpl").read_text(encoding="utf-8")
    assert f'(ne .tag "{defaults["tag"]}") (eq .digest "{defaults["digest"]}")' in checks


def test_extra_parts_reach_api_and_workers_alone() -> None:
    extra: dict[str, Any] = {
        "extraVolumes": [{"name": "extra", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
        "extraContainers": [{"name": "additional", "image": "a:1"}],
        "extraInitContainers": [{"name": "before", "image": "a:1"}],
    }
    release = template(values=extra)
    for pod in find_pods(release.objects):
        names = {
            *(item["name"] for item in pod.containers),
            *(item["name"] for item in pod.spec.get("volumes", ())),
        }
        assert ({"extra", "additional", "before"} <= names) is (pod.component in {"api", "worker"})
        assert pod.component == "test" or pod.main["name"] == pod.component


def test_cluster_of_servers_hands_over_before_it_ends() -> None:
    alone, many = (pod_of(template(values={"nats": {"replicas": count}}), "nats") for count in (1, 3))
    assert "lifecycle" not in alone.main
    assert many.main["lifecycle"]["preStop"]["exec"]["command"] == ["nats-server", "--signal", "ldm=1"]
    assert alone.owner["spec"]["podManagementPolicy"] == many.owner["spec"]["podManagementPolicy"] == "Parallel"


def test_names_stay_short_and_apart(release: Release) -> None:
    names = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in release.objects]
    assert len(set(names)) == len(names)
    # A Deployment adds 17 characters to the names of its pods, which are host names.
    assert max(len(item["metadata"]["name"]) for item in release.objects) <= 63


def test_long_names_stay_apart() -> None:
    """Names that differ only after their 40th character are different objects."""
    names = [template(release=f"{'x' * 45}-{end}").all("StatefulSet")[0]["metadata"]["name"] for end in ("a", "b")]
    assert names[0] != names[1]
    one = template(values={"fullnameOverride": f"{'x' * 45}-a"}).all("StatefulSet")[0]["metadata"]["name"]
    assert (
        one
        == template(values={"fullnameOverride": f"{'x' * 45}-a"}, release="b").all("StatefulSet")[0]["metadata"]["name"]
    )
    assert one not in names
    assert (
        template(values={"fullnameOverride": "x" * 40}).all("StatefulSet")[0]["metadata"]["name"] == f"{'x' * 40}-nats"
    )


@pytest.mark.parametrize(
    "release_name", ["a", "facial-service", "x" * 53, "my-facial-service-of-the-vision-team-in-europe"]
)
def test_long_and_short_names_of_releases(release_name: str) -> None:
    everything: Values = {
        "worker": {"autoscaling": {"enabled": True}},
        "metrics": {"serviceMonitor": {"enabled": True}, "namespace": "m" * 20},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
        "networkPolicy": {"enabled": True},
    }
    release = template(values=everything, release=release_name)
    for item in release.objects:
        name = item["metadata"]["name"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name), name
