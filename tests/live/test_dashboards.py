"""Every query of every dashboard has data while the service runs, with and without labels of Kubernetes.

Two Prometheus servers scrape the same API, worker and NATS server. One has only their addresses, as under compose. The
other adds namespaces and pods, and a recorded exposition of kube-state-metrics, cAdvisor and the kubelet.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.dashboards import RULES, Target, fill, load, targets
from tests.scraping import Server, exporter, job, prometheus, recorded_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Sample
    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"Content-Type": "application/json"}
WORKERS, TASK_WORKERS = 2, 2
RELEASE = "faces-facial-service"
PLACES = {
    role: {"namespace": "faces", "pod": recorded_pod(f"{RELEASE}-{role}"), "role": role} for role in ("api", "worker")
}
TARGETS = targets()
APART = [target for target in TARGETS if target.needs - {RULES}]
OWN = [target for target in TARGETS if target not in APART]


def send_traffic(service: RunningService, sample: Sample) -> None:
    """Send every kind of request that has its own metric, some of them invalid, for half a minute."""
    crop = [
        sample.json(),
        sample.json(image=sample.png, verify="pixels"),
        sample.json(segmentation_map=sample.labels),
        sample.json(segmentation_map={"mouth": [61, 0, 291, 17]}),
        sample.json(landmarks=[]),
        sample.json(image=sample.jpeg[:-200]),
        b"{",
    ]
    submit = [sample.json(show_labels=True), sample.json(image=sample.png_file(512, 512, b"none"), verify="pixels")]
    ends = time.monotonic() + 30
    with httpx.Client(base_url=service.api, headers=JSON, timeout=30) as client:
        while time.monotonic() < ends:
            for content in crop:
                client.post(CROP, content=content)
            for content in submit:
                client.get(client.post(f"{CROP}/submit", content=content).raise_for_status().headers["location"])
            client.post(CROP, content=submit[0])  # served from the record of the task after it has ended
            time.sleep(0.2)


@pytest.fixture(scope="module")
def servers(
    run_nats: Callable[..., Any],
    run_service: Callable[..., Any],
    run_worker: Callable[..., Any],
    sample: Sample,
    wait_until: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Server]]:
    """Return both Prometheus servers after the service has run for a while."""
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as stack:
        nats = stack.enter_context(run_nats(cluster=3))
        queue = {"NATS_URL": nats.url, "NATS_MONITOR_URL": nats.monitor_url, "NATS_REPLICAS": 3, "RESULT_CACHE": "true"}
        service = stack.enter_context(run_service(WORKERS=WORKERS, **queue))
        worker = stack.enter_context(run_worker(TASK_WORKERS=TASK_WORKERS, **queue))
        own = {"api": service.metrics, "worker": worker.metrics}
        own = {role: address.removeprefix("http://") for role, address in own.items()}
        placed = [{"targets": [address], "labels": PLACES[role]} for role, address in own.items()]
        kubernetes = job("kubernetes", [{"targets": [stack.enter_context(exporter())]}], honor_labels=True)
        jobs = {
            "plain": [job("facial-service", [{"targets": list(own.values())}])],
            "kubernetes": [job("facial-service", placed), kubernetes],
        }
        running = {
            name: stack.enter_context(prometheus(folder / name, each, wait_until)) for name, each in jobs.items()
        }
        began = time.time()
        wait_until(lambda: service.scrape().get(("queue_up", frozenset())) == 1, limit_s=60, what="the queue")
        send_traffic(service, sample)
        for server in running.values():
            server.start, server.end = began, time.time()
        yield running


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    return load()


@pytest.fixture(scope="module")
def opened(servers: dict[str, Server], documents: dict[str, Any]) -> dict[tuple[str, str], dict[str, str]]:
    """Return the initial values of the variables, by server and dashboard."""
    return {
        (name, uid): server.values(document) for name, server in servers.items() for uid, document in documents.items()
    }


def draw(server: Server, target: Target, values: dict[str, str]) -> list[dict[str, Any]]:
    return server.draw(fill(target.expr, values), is_instant=bool(target.query["instant"]))


@pytest.mark.parametrize("target", OWN, ids=lambda target: target.name)
@pytest.mark.parametrize("name", ["plain", "kubernetes"])
def test_query_has_data(servers: dict[str, Server], opened: dict[Any, Any], target: Target, name: str) -> None:
    assert draw(servers[name], target, opened[name, target.dashboard])


@pytest.mark.parametrize("target", APART, ids=lambda target: target.name)
def test_query_of_kubernetes_has_data_of_this_service(
    servers: dict[str, Server], opened: dict[Any, Any], target: Target
) -> None:
    found = draw(servers["kubernetes"], target, opened["kubernetes", target.dashboard])
    assert found
    for series in found:
        names = {value for label, value in series["metric"].items() if label not in {"namespace", "container"}}
        assert all(RELEASE in name for name in names), "another release's"
    # On the other server, these panels are empty without an error.
    assert draw(servers["plain"], target, opened["plain", target.dashboard]) == []


def test_variables_offer_what_there_is(servers: dict[str, Server], documents: dict[str, Any]) -> None:
    queries = {
        variable["name"]: variable["query"]["query"]
        for variable in documents["facial-service-overview"]["templating"]["list"][1:]
    }
    plain = servers["plain"].values(documents["facial-service-overview"])
    assert servers["plain"].options(queries["namespace"], plain) == []
    assert servers["plain"].options(queries["job"], plain) == ["facial-service"]
    assert servers["plain"].options(queries["pod"], plain) == []
    assert len(servers["plain"].options(queries["instance"], plain)) == 2
    placed = servers["kubernetes"].values(documents["facial-service-overview"])
    assert servers["kubernetes"].options(queries["namespace"], placed) == ["faces"]
    assert servers["kubernetes"].options(queries["pod"], placed) == sorted(place["pod"] for place in PLACES.values())


@pytest.mark.parametrize("role", PLACES)
def test_a_pod_can_be_picked(servers: dict[str, Server], documents: dict[str, Any], role: str) -> None:
    pod = PLACES[role]["pod"]
    values = servers["kubernetes"].values(documents["facial-service-resources"], namespace="faces", pod=pod)
    shown = {"api": {"worker-0", "worker-1", "master", "exporter"}, "worker": {"task-0", "task-1"}}
    (target,) = (target for target in TARGETS if target.name == "resources/CPU by process/A")
    found = [series["metric"] for series in draw(servers["kubernetes"], target, values)]
    assert {series["place"] for series in found} == {pod}
    assert shown[role] <= {series["process"] for series in found}
    (target,) = (target for target in TARGETS if target.name == "resources/CPU by pod/A")
    assert {series["metric"]["pod"] for series in draw(servers["kubernetes"], target, values)} == {pod}


@pytest.mark.parametrize("name", ["plain", "kubernetes"])
def test_numbers_are_right(servers: dict[str, Server], opened: dict[Any, Any], name: str) -> None:
    def last(title: str) -> float:
        (target,) = (target for target in TARGETS if target.name == title)
        (series,) = draw(servers[name], target, opened[name, target.dashboard])
        return float(series["values"][-1][1])

    assert (last("overview/Instances/A"), last("overview/Instances/B")) == (2, 0)
    assert last("overview/Alerts firing/B") == 1
    assert (last("overview/Success (30d)/A"), last("overview/Budget (30d)/A")) == (1, 1)
    assert (last("tasks/Queue/A"), last("tasks/Workers/A")) == (1, TASK_WORKERS)
    assert 0 < last("tasks/Failure ratio/A") < 1
    assert (last("tasks/Dead letters/A"), last("resources/Slowest scrape/A") < 2) == (0, True)
    # Two of ten images are unreadable, and one of seven results has a custom region.
    assert 0.05 < last("images/Decode failures/A") < 0.4
    assert 5 < last("images/Regions per result/A") < 13
    assert 0 < last("images/Cache hit ratio/A") < 1


@pytest.mark.parametrize("name", ["plain", "kubernetes"])
def test_annotations_have_events(servers: dict[str, Server], documents: dict[str, Any], name: str) -> None:
    document = documents["facial-service-overview"]
    values = servers[name].values(document)
    found = {
        annotation["name"]: servers[name].draw(fill(annotation["expr"], values))
        for annotation in document["annotations"]["list"]
    }
    (version,) = found["New version"]
    assert len(version["values"]) == 1, "one event, when it was seen first"
    assert "FacialServiceOfThisTest" in {series["metric"]["alertname"] for series in found["Alert firing"]}
    changed = {series["metric"]["deployment"] for series in found["Deployment changed (requires kube-state-metrics)"]}
    assert changed == ({f"{RELEASE}-api", f"{RELEASE}-worker"} if name == "kubernetes" else set())
