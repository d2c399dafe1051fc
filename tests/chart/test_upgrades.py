"""Upgrades of an installed release: what changes, what must not, and what the chart reads from the cluster."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.chart.helm import CHART, NAMESPACE, RELEASE, ROOT, HelmError, Release, Values, template
from tests.chart.pods import pod_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.chart.helm import Object

NAME = f"{RELEASE}-facial-service"
# The chart before its first release, until a release is tagged.
FIRST = "6126d3f"


class Cluster(ThreadingHTTPServer):
    """API server with some objects, which `lookup` reads."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], Object] = {}

    def add(self, kind: str, name: str, spec: dict[str, Any]) -> None:
        metadata = {"name": name, "namespace": NAMESPACE}
        self.put({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec})

    def put(self, item: Object) -> None:
        self.objects[f"{item['kind'].lower()}s", item["metadata"]["name"]] = item


class _Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        parts = path.strip("/").split("/")
        status, body = 200, self._discovery(path)
        if body is None:
            body = self.server.objects.get((parts[-2], parts[-1]))
        if body is None:
            status, body = (
                404,
                {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404},
            )
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _discovery(self, path: str) -> dict[str, Any] | None:
        apps = {"groupVersion": "apps/v1", "version": "v1"}
        kinds = [
            {"name": f"{kind.lower()}s", "kind": kind, "namespaced": True, "verbs": ["get", "list"]}
            for kind in ("Deployment", "StatefulSet")
        ]
        found: dict[str, dict[str, Any]] = {
            "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/api/v1": {
                "kind": "APIResourceList",
                "groupVersion": "v1",
                "resources": [
                    {"name": "configmaps", "kind": "ConfigMap", "namespaced": True, "verbs": ["get", "list"]}
                ],
            },
            "/apis": {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [{"name": "apps", "versions": [apps], "preferredVersion": apps}],
            },
            "/apis/apps/v1": {"kind": "APIResourceList", "groupVersion": "apps/v1", "resources": kinds},
        }
        return found.get(path)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def upgrade(cluster: Cluster, tmp_path: Path) -> Any:
    """Return ``upgrade(values)``, which renders the chart as an upgrade of what runs in the cluster."""
    address = f"http://127.0.0.1:{cluster.server_address[1]}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "a", "cluster": {"server": address}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": ""}}],
        "current-context": "a",
    }
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    options = ["--kubeconfig", str(file), "--dry-run=server", "--is-upgrade", "--no-hooks"]

    def render(values: Values) -> Release:
        return template(values=values, options=options)

    return render


HPA: Values = {"autoscaling": {"enabled": True}}
KEDA: Values = {"keda": {"enabled": True}}


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("scaling", [HPA, KEDA])
def test_autoscaler_starts_from_the_pods_that_run(cluster: Cluster, upgrade: Any, scaling: Values, count: int) -> None:
    """Without `replicas`, Kubernetes would scale the Deployment to one pod until the autoscaler acts."""
    cluster.add("Deployment", f"{NAME}-worker", {"replicas": count})
    deployment = upgrade({"worker": scaling}).get("Deployment", f"{NAME}-worker")
    assert deployment["spec"]["replicas"] == count
    other = upgrade({"worker": scaling}).get("Deployment", f"{NAME}-api")
    assert other["spec"]["replicas"] == 2, "no autoscaler is enabled for it"


@pytest.mark.parametrize("scaling", [HPA, KEDA])
def test_autoscaler_of_a_new_release_owns_the_number(upgrade: Any, scaling: Values) -> None:
    assert "replicas" not in upgrade({"worker": scaling}).get("Deployment", f"{NAME}-worker")["spec"]


def test_number_of_the_values_is_that_without_an_autoscaler(cluster: Cluster, upgrade: Any) -> None:
    cluster.add("Deployment", f"{NAME}-api", {"replicas": 7})
    assert upgrade({"api": {"replicas": 3}}).get("Deployment", f"{NAME}-api")["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (1, 3, "nats.replicas: a change from 1 to 3 would lose every task"),
        (3, 1, "nats.replicas: a change from 3 to 1 would lose every task"),
        (5, 3, "nats.replicas: a change from 5 to 3 is not possible"),
        (3, 5, ""),
        (1, 1, ""),
    ],
)
def test_number_of_servers_changes_only_without_loss(
    cluster: Cluster, upgrade: Any, before: int, after: int, message: str
) -> None:
    cluster.add("StatefulSet", f"{NAME}-nats", {"replicas": before})
    values: Values = {"nats": {"replicas": after}}
    if not message:
        assert upgrade(values).objects
        return
    with pytest.raises(HelmError, match=message):
        upgrade(values)


MIB = 1 << 20
LOWER = {"TASK_QUEUE_MAX_BYTES": 128 * MIB, "RESULT_MAX_BYTES": 128 * MIB, "TASK_DEAD_MAX_BYTES": 64 * MIB}
SMALL: Values = {"nats": {"persistence": {"size": "1Gi"}}}


@pytest.mark.parametrize(
    ("before", "after", "is_possible"),
    [
        ({}, {"settings": LOWER}, True),
        ({}, {"settings": LOWER} | SMALL, False),
        ({"settings": LOWER}, {"settings": LOWER} | SMALL, True),
        ({"settings": LOWER}, {"settings": LOWER, "nats": {"persistence": {"size": "712Mi"}}}, True),
        ({}, {"settings": LOWER, "nats": {"persistence": {"size": "1Gi", "enabled": False}}}, True),
        ({"worker": {"enabled": False}}, {"settings": LOWER} | SMALL, True),
    ],
    ids=["lower", "lower-and-smaller", "smaller", "much-smaller", "no-volume", "no-queue"],
)
def test_storage_is_not_less_than_the_streams_reserve(
    cluster: Cluster, upgrade: Any, before: Values, after: Values, is_possible: bool
) -> None:
    """The streams keep the limits of the earlier release until the service has updated them."""
    for item in template(values=before).all("ConfigMap"):
        cluster.put(item)
    if is_possible:
        assert upgrade(after).objects
        return
    with pytest.raises(HelmError) as caught:
        upgrade(after)
    assert (
        "nats.persistence.size: 1Gi is too small for the existing streams, which reserve 1280Mi until the service has "
        "lowered their limits; upgrade with the lower limits in `settings` and the current size first, then lower the "
        "size"
    ) in " ".join(str(caught.value).split())


@pytest.mark.parametrize(
    "values",
    [{}, {"nats": {"replicas": 3}}, {"nats": {"auth": {"existingSecret": "a"}, "tls": {"existingSecret": "b"}}}],
    ids=["default", "cluster", "auth-tls"],
)
def test_new_image_of_the_service_leaves_the_queue_byte_for_byte(values: Values) -> None:
    before, after = (template(values=values | {"image": {"tag": tag}}) for tag in ("1", "2"))
    assert before.text != after.text
    for kind in ("StatefulSet", "ConfigMap", "Service"):
        old, new = ([yaml.safe_dump(item) for item in release.all(kind)] for release in (before, after))
        assert old == new, kind
    texts = [
        next(part for part in release.text.split("\n---\n") if "\nkind: StatefulSet\n" in part)
        for release in (before, after)
    ]
    assert texts[0] == texts[1]


def test_new_image_of_the_service_restarts_a_queue_that_runs_from_it() -> None:
    values: Values = {"nats": {"image": {"repository": ""}}}
    images = {pod_of(template(values=values | {"image": {"tag": tag}}), "nats").main["image"] for tag in ("1", "2")}
    assert len(images) == 2


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart of the newest release, or the first one if none is tagged."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not on PATH")

    def run_git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([git, *arguments], cwd=ROOT, capture_output=True, check=False)

    tags = run_git("tag", "--list", "v*", "--sort=-version:refname").stdout.decode().split()
    revision = tags[0] if tags else FIRST
    folder = tmp_path_factory.mktemp("previous")
    done = run_git("archive", "--format=tar", revision, "charts/facial-service")
    if done.returncode:
        pytest.skip(f"the history of this clone does not contain {revision}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "charts" / "facial-service"


# Fields that Kubernetes does not change, and for StatefulSets those that it changes.
IMMUTABLE = {"Deployment": {"selector"}, "Service": {"clusterIP"}}
MUTABLE = {
    "minReadySeconds",
    "ordinals",
    "persistentVolumeClaimRetentionPolicy",
    "replicas",
    "revisionHistoryLimit",
    "template",
    "updateStrategy",
}


def rejected_changes(before: Release, after: Release) -> list[str]:
    """Return the fields that differ although Kubernetes does not change them."""
    found = []
    for item in before.all("StatefulSet", *IMMUTABLE):
        old, new = item["spec"], after.get(item["kind"], item["metadata"]["name"])["spec"]
        fields = IMMUTABLE.get(item["kind"]) or (old.keys() | new.keys()) - MUTABLE
        found += [f"{item['kind']} {name}" for name in sorted(fields) if old.get(name) != new.get(name)]
    return found


def old_scenarios() -> list[str]:
    return sorted(file.name for file in (CHART / "ci").glob("*-values.yaml"))


@pytest.mark.parametrize("scenario", old_scenarios())
def test_release_of_the_previous_chart_can_be_upgraded(previous: Path, scenario: str) -> None:
    """The values of its scenarios are still accepted, and no field changes that Kubernetes does not change."""
    file = previous / "ci" / scenario
    if not file.is_file():
        pytest.skip("the scenario is new")
    assert rejected_changes(template([file], chart=previous), template([file])) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "change"),
    [
        ("nats-statefulset.yaml", "podManagementPolicy: Parallel", "", "StatefulSet podManagementPolicy"),
        ("nats-statefulset.yaml", "storage: ", "storage: 1", "StatefulSet volumeClaimTemplates"),
        ("nats-statefulset.yaml", 'serviceName: {{ include "', 'serviceName: x{{ include "', "StatefulSet serviceName"),
        ("nats-service.yaml", "clusterIP: None", "", "Service clusterIP"),
        (
            "_helpers.tpl",
            "app.kubernetes.io/component: {{ ",
            "app.kubernetes.io/component: x{{ ",
            "Deployment selector",
        ),
    ],
)
def test_change_that_kubernetes_rejects_is_found(file: str, old: str, new: str, change: str, tmp_path: Path) -> None:
    copy = tmp_path / "facial-service"
    shutil.copytree(CHART, copy)
    changed = copy / "templates" / file
    text = changed.read_text(encoding="utf-8")
    assert old in text
    changed.write_text(text.replace(old, new), encoding="utf-8")
    assert change in rejected_changes(template(), template(chart=copy))
