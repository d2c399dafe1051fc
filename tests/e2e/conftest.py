"""Fixtures of the end-to-end tests: a cluster, namespaces in it, releases of the chart."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests.alerting import Webhook
from tests.e2e.cluster import CommandError, Load, Namespace, Node, Nodes, Release, is_schedulable, list_nodes, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.cluster import Json

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "charts" / "facial-service"
IMAGE = os.environ.get("E2E_IMAGE", "")
LOAD_SCRIPT = Path(__file__).with_name("load.py").read_text(encoding="utf-8")
PROMETHEUS_LABELS = {"release": "kube-prometheus-stack"}
RESOURCES = {"requests": {"cpu": "20m", "memory": "150Mi"}, "limits": {"memory": "2Gi"}}
SMALL = {
    "api": {"replicas": 1, "workers": 1, "resources": RESOURCES},
    "worker": {"processes": 1, "resources": RESOURCES},
    "nats": {"resources": RESOURCES},
}
RUNBOOKS = "https://code.example.org/main"
SOON = {name: {"for": "10s"} for name in ("FacialServiceDown", "FacialServiceNoTaskWorkers")}
WEBHOOK_PORT = 9094
POD_SECURITY = "pod-security.kubernetes.io/enforce"


def why_not() -> str:
    """Return the reason why no cluster can be used; empty if one can."""
    if not IMAGE:  # KUBECONFIG alone must not be enough to use a cluster
        return "E2E_IMAGE names no image; `make e2e` runs these tests on the cluster of KUBECONFIG"
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            return f"{program} is not on PATH"
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster; `make kind-up` starts one"
    done = subprocess.run(
        ["kubectl", "get", "--raw", "/readyz", "--request-timeout=5s"], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else f"the cluster of KUBECONFIG does not respond: {done.stderr.strip()[:200]}"


def pytest_sessionstart(session: pytest.Session) -> None:
    """End at once, with one sentence, if the tests are required and no cluster can be used."""
    if os.environ.get("E2E_REQUIRED") and (reason := why_not()):
        pytest.exit(reason, returncode=2)


@pytest.fixture(scope="session")
def cluster() -> None:
    """Skip the test if no cluster is available or enabled."""
    if reason := why_not():
        leave_out(reason)


def leave_out(reason: str) -> NoReturn:
    """Skip the test, or fail if E2E_REQUIRED is set."""
    if os.environ.get("E2E_REQUIRED"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def nodes(cluster: None) -> Nodes:
    """Return the nodes for tests that disrupt one; skip the test if there are too few."""
    every = sorted(list_nodes(), key=is_schedulable)  # that of the control plane first
    schedulable = sum(map(is_schedulable, every))
    if len(every) < 3 or schedulable < 2:
        pytest.skip(
            f"expected at least 3 nodes, 2 of them schedulable, got {len(every)}, {schedulable} of them schedulable"
        )
    observer, *others = (Node(node["metadata"]["name"]) for node in every)
    return Nodes(observer, [node for node, item in zip(others, every[1:], strict=True) if is_schedulable(item)])


@pytest.fixture(scope="session")
def node_containers(nodes: Nodes) -> Nodes:
    """Return the same; skip the test if the nodes are no containers of this machine, as those of kind are."""
    if not all(node.is_container() for node in nodes.workers):
        pytest.skip("expected nodes that are containers of this machine")
    return nodes


@pytest.fixture(scope="session")
def make_namespace(cluster: None) -> Iterator[Callable[..., Namespace]]:
    """Return ``make_namespace()``, which creates a namespace with the restricted standard, deleted at the end."""
    made: list[str] = []

    def make(prefix: str = "e2e") -> Namespace:
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        labels = {POD_SECURITY: "restricted"}
        document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        run("kubectl", "apply", "--filename=-", stdin=json.dumps(document))
        made.append(name)
        return Namespace(name)

    yield make
    for name in made:
        run("kubectl", "delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def make_volumes(cluster: None) -> Iterator[Callable[..., None]]:
    """Return ``make_volumes(release, count=1)``, which creates volumes for its queue if the cluster cannot."""
    made: list[str] = []
    folders: list[Path] = []

    def make(release: Release, count: int = 1) -> None:
        classes = json.loads(run("kubectl", "get", "storageclasses", "--output=json"))["items"]
        default = "storageclass.kubernetes.io/is-default-class"
        if any(found["metadata"].get("annotations", {}).get(default) == "true" for found in classes):
            return
        for number in range(count):  # the node is this machine
            folder = Path(tempfile.mkdtemp(prefix="facial-e2e-"))
            folder.chmod(0o777)
            folders.append(folder)
            name = f"{release.namespace.name}-{number}"
            claim = {"namespace": release.namespace.name, "name": f"store-{release.fullname}-nats-{number}"}
            spec = {
                "capacity": {"storage": "8Gi"},
                "accessModes": ["ReadWriteOnce"],
                "hostPath": {"path": str(folder)},
                "claimRef": claim,
                "persistentVolumeReclaimPolicy": "Retain",
            }
            volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
            run("kubectl", "apply", "--filename=-", stdin=json.dumps(volume))
            made.append(name)
            # The StatefulSet adopts the claim. Its own would be bound while its pod is scheduled, and the scheduler
            # misses that at times: the pod then waits until the scheduler tries it again after five minutes.
            resources = {"requests": spec["capacity"]}
            claimed = {"accessModes": spec["accessModes"], "resources": resources, "volumeName": name}
            release.namespace.apply(
                {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": claim, "spec": claimed}
            )
            bound = ("--for=jsonpath={.status.phase}=Bound", "--timeout=60s")
            release.namespace.kubectl("wait", f"persistentvolumeclaim/{claim['name']}", *bound)

    yield make
    for name in made:
        run("kubectl", "delete", "persistentvolume", name, "--wait=false")
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def releases(
    make_namespace: Callable[..., Namespace], make_volumes: Callable[..., None]
) -> Iterator[Callable[..., Release]]:
    """Return the factory of releases, and uninstall them at the end."""
    made: list[Release] = []

    def make(name: str = "facial", *, servers: int = 1) -> Release:
        release = Release(make_namespace(), name, CHART, IMAGE)
        make_volumes(release, servers)
        made.append(release)
        return release

    yield make
    for release in made:
        try:
            release.helm("uninstall", release.name, "--ignore-not-found", "--wait")
        except CommandError as error:  # its namespace is deleted in any case
            print(error)


@pytest.fixture(scope="module")
def make_release(
    make_namespace: Callable[..., Namespace], make_volumes: Callable[..., None]
) -> Iterator[Callable[..., Release]]:
    """Return ``make_release(name="facial", servers=1)``, which prepares a release in its own namespace.

    It exists until the module ends. A node has capacity for few of them.
    """
    with releases(make_namespace, make_volumes) as make:
        yield make


@pytest.fixture(scope="session")
def make_lasting_release(
    make_namespace: Callable[..., Namespace], make_volumes: Callable[..., None]
) -> Iterator[Callable[..., Release]]:
    """Return the same for releases that exist until the end of all tests."""
    with releases(make_namespace, make_volumes) as make:
        yield make


def monitoring(kind: str) -> Json:
    """Return the values of a release with a kind of monitor."""
    return {kind: {"enabled": True}, "labels": PROMETHEUS_LABELS, "interval": "5s", "scrapeTimeout": "4s"}


@pytest.fixture(scope="session")
def watched(make_lasting_release: Callable[..., Release]) -> Release:
    """Return a release with a ServiceMonitor, rules and dashboards."""
    if not has_prometheus():
        leave_out("no Prometheus of the Operator runs in the namespace monitoring")
    release = make_lasting_release()
    rules = {"enabled": True, "labels": PROMETHEUS_LABELS, "overrides": SOON, "runbookBaseUrl": RUNBOOKS}
    release.deploy(
        {"metrics": monitoring("serviceMonitor"), "prometheusRule": rules, "dashboards": {"enabled": True}, **SMALL}
    )
    return release


@pytest.fixture(scope="session")
def watched_by_pods(watched: Release, make_lasting_release: Callable[..., Release]) -> Release:
    """Return another release, with the other kind of monitor and without rules."""
    release = make_lasting_release()
    release.deploy({"metrics": monitoring("podMonitor"), **SMALL})
    return release


def has_prometheus() -> bool:
    """Return whether the Prometheus of kube-prometheus-stack is installed."""
    found = json.loads(run("kubectl", "get", "services", "--all-namespaces", "--output=json"))["items"]
    places = {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in found}
    return ("monitoring", "prometheus-operated") in places


@pytest.fixture(scope="session", autouse=True)
def watch_early(request: pytest.FixtureRequest) -> None:
    """Start with the monitored releases, because Prometheus gets its new configuration only after minutes."""
    if any("test_monitoring" in item.nodeid for item in request.session.items) and not why_not() and has_prometheus():
        request.getfixturevalue("watched_by_pods")


@pytest.fixture
def start_load() -> Iterator[Callable[..., Load]]:
    """Return ``start_load(release, mode, callers=2, query="")``, which starts callers in a pod.

    It also accepts ``labels`` and ``node``, as ``Load`` does.
    """
    made: list[Load] = []

    def start(release: Release, mode: str, *, callers: int = 2, query: str = "", **place: Any) -> Load:
        address = f"http://{release.fullname}-api"
        load = Load(release, f"load-{mode}-{len(made)}", LOAD_SCRIPT, address, mode, str(callers), query, **place)
        made.append(load)
        return load

    yield start
    for load in made:
        load.remove()


@pytest.fixture(scope="module")
def webhook(cluster: None) -> Iterator[Webhook]:
    """Listen where the cluster's Alertmanager posts to: on this machine, at the address that the nodes reach."""
    status = json.loads(Namespace("monitoring").raw("services", "alertmanager-operated", 9093, "api/v2/status"))
    if "webhook_configs" not in status["config"]["original"]:
        pytest.skip("Alertmanager has no receiver that posts to a webhook")
    (node, *_) = json.loads(run("kubectl", "get", "nodes", "--output=json"))["items"]
    node_address = next(item["address"] for item in node["status"]["addresses"] if item["type"] == "InternalIP")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((node_address, WEBHOOK_PORT))  # sends nothing
        address = probe.getsockname()[0]
    try:
        found = Webhook(address, WEBHOOK_PORT)
    except OSError as error:
        leave_out(f"cannot listen on {address}:{WEBHOOK_PORT}, where Alertmanager would post to: {error.strerror}")
    yield found
    found.close()
