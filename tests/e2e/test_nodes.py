"""Nodes are drained and die, servers of the queue are killed and lose their volumes; no task is lost.

Three servers of the queue run on three nodes, that of the control plane included.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import Load, Node, Nodes, Release, require_no_loss, restarts, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.cluster import Json

pytestmark = [pytest.mark.e2e, pytest.mark.kind, pytest.mark.timeout(900)]
BETWEEN = 30  # responses
CALLERS = 4
SERVERS = 3
LIMIT_S = 300
MONITOR_PORT = 8222
RESOURCES = {"requests": {"cpu": "50m", "memory": "150Mi"}, "limits": {"memory": "2Gi"}}
VALUES = {
    "api": {"replicas": 2, "workers": 1, "resources": RESOURCES},
    "worker": {"replicas": 2, "processes": 1, "resources": RESOURCES},
    "nats": {"resources": RESOURCES},
    "settings": {"TASK_ACK_WAIT_S": 5},
}
ANYWHERE = [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]


@pytest.fixture(scope="module")
def clustered(nodes: Nodes, make_release: Callable[..., Release]) -> Release:
    """Install the service with three servers of the queue."""
    made = make_release("clustered", servers=SERVERS)
    nats = {**VALUES["nats"], "replicas": SERVERS, "tolerations": ANYWHERE}
    print(f"{SERVERS} servers: ready after {made.deploy({**VALUES, 'nats': nats}):.0f} s")
    places = {pod["spec"]["nodeName"] for pod in made.pods("nats")}
    assert len(places) == SERVERS, "each server runs on its own node"
    return made


@pytest.fixture(scope="module")
def single(nodes: Nodes, make_release: Callable[..., Release]) -> Release:
    """Install the service with one server of the queue."""
    made = make_release("single")
    made.deploy(VALUES)
    return made


@pytest.fixture
def start_loads(nodes: Nodes, start_load: Callable[..., Load]) -> Callable[[Release], tuple[Load, Load]]:
    """Return a function that starts callers of both routes on a node that remains."""

    def start(release: Release) -> tuple[Load, Load]:
        made = [
            start_load(release, mode, callers=callers, query="verify=pixels", node=nodes.observer.name)
            for mode, callers in (("sync", CALLERS), ("tasks", 2))
        ]
        for load in made:
            load.wait_answers(BETWEEN)
        return made[0], made[1]

    return start


def spread(nodes: Nodes, release: Release) -> Node:
    """Return a node with a pod of the API, not the callers' node.

    If all pods of a component share a node, as after a drain, they are replaced first.
    """
    for part in ("api", "worker"):
        name = f"deployment/{release.fullname}-{part}"
        if len({pod["spec"]["nodeName"] for pod in release.pods(part)}) == 1:
            release.namespace.kubectl("rollout", "restart", name)
            release.namespace.kubectl("rollout", "status", name, f"--timeout={LIMIT_S}s")
        assert len({pod["spec"]["nodeName"] for pod in release.ready(part)}) > 1
    wait_for(lambda: settled(release), "all pods", limit_s=LIMIT_S)
    return Node(min({pod["spec"]["nodeName"] for pod in release.ready("api")} - {nodes.observer.name}))


@contextmanager
def drained(node: Node, release: Release) -> Iterator[float]:
    """Drain a node during the block; yield the seconds that it took."""
    try:
        yield node.drain(release)
    finally:
        node.uncordon()


def settled(release: Release) -> bool:
    """Return whether all pods exist and are ready."""
    expected = {"api": 2, "worker": 2, "nats": release.values["nats"].get("replicas", 1)}
    return all(len(release.pods(part)) == len(release.ready(part)) == count for part, count in expected.items())


def read_streams(release: Release, server: str) -> dict[str, Json]:
    """Return the streams of a server of the queue, by name."""
    found = json.loads(release.namespace.raw("pods", server, MONITOR_PORT, "jsz?streams=true"))
    return {stream["name"]: stream for account in found["account_details"] for stream in account["stream_detail"]}


def read_led(release: Release) -> dict[str, tuple[Json, Json]]:
    """Return the leader's pod and the leader's view of every stream that has one, by name."""
    pods = {pod["metadata"]["name"]: pod for pod in release.ready("nats")}
    return {
        name: (pods[server], stream)
        for server in pods
        for name, stream in read_streams(release, server).items()
        if stream["cluster"].get("leader") == server
    }


def find_leader(release: Release) -> Json:
    """Return the pod of the server that leads the stream of tasks."""
    return wait_for(lambda: read_led(release)["TASKS"][0], "a leader")


def is_replicated(release: Release) -> bool:
    """Return whether every server has all messages of every stream."""
    led = read_led(release)
    replicas = [stream["cluster"].get("replicas", []) for _, stream in led.values()]
    return {"TASKS", "KV_TASK_RECORDS"} <= led.keys() and all(
        len(others) == SERVERS - 1 and all(each["current"] and not each.get("offline") for each in others)
        for others in replicas
    )


def test_a_drained_node_fails_no_request(
    nodes: Nodes, clustered: Release, start_loads: Callable[[Release], tuple[Load, Load]]
) -> None:
    node = spread(nodes, clustered)
    sync, tasks = start_loads(clustered)
    with drained(node, clustered) as seconds:
        for load in (sync, tasks):
            load.wait_answers(BETWEEN)
    wait_for(lambda: settled(clustered), "all pods", limit_s=LIMIT_S)
    for load in (sync, tasks):
        load.wait_answers(BETWEEN)
    accounts = sync.stop(), tasks.stop()
    print(f"drained in {seconds:.0f} s: requests {accounts[0]}; tasks {accounts[1]}")
    for account in accounts:
        require_no_loss(account)
        assert account["unconnected"] == 0


def test_the_drain_of_a_single_servers_node_ends(
    single: Release, start_loads: Callable[[Release], tuple[Load, Load]]
) -> None:
    """Its volume stays on the node, so that tasks wait until the node is back."""
    sync, tasks = start_loads(single)
    (server,) = single.ready("nats")
    with drained(Node(server["spec"]["nodeName"]), single) as seconds:
        sync.wait_answers(BETWEEN)
        assert single.ready("nats") == []
    wait_for(lambda: settled(single), "all pods", limit_s=LIMIT_S)
    tasks.wait_answers(BETWEEN)
    accounts = sync.stop(), tasks.stop()
    print(f"the only server's node drained in {seconds:.0f} s: requests {accounts[0]}; tasks {accounts[1]}")
    for account in accounts:
        require_no_loss(account)
        assert account["unconnected"] == 0


def test_the_loss_of_the_queues_leader_delays_tasks(
    node_containers: Nodes, clustered: Release, start_loads: Callable[[Release], tuple[Load, Load]]
) -> None:
    sync, tasks = start_loads(clustered)
    leader = find_leader(clustered)
    name = leader["metadata"]["name"]
    Node(leader["spec"]["nodeName"]).kill_container(name, "nats")
    wait_for(lambda: restarts(clustered.namespace.get("pod", name)) > restarts(leader), "another container")
    tasks.wait_answers(BETWEEN)
    wait_for(lambda: settled(clustered) and is_replicated(clustered), "all servers", limit_s=LIMIT_S)
    tasks.wait_answers(BETWEEN)
    accounts = sync.stop(), tasks.stop()
    print(f"leader killed: requests {accounts[0]}; tasks {accounts[1]}")
    for account in accounts:
        require_no_loss(account)
    assert accounts[0]["unconnected"] == accounts[0]["retried"] == 0, "synchronous requests do not need the queue"


def test_a_lost_volume_is_filled_again(clustered: Release, start_loads: Callable[[Release], tuple[Load, Load]]) -> None:
    _, tasks = start_loads(clustered)
    server = find_leader(clustered)["metadata"]["name"]
    claim = f"cluster-store-{server}"
    lost = clustered.namespace.get("persistentvolumeclaim", claim)["metadata"]["uid"]
    start = time.monotonic()
    clustered.namespace.kubectl("delete", "persistentvolumeclaim", claim, "--wait=false")
    clustered.namespace.kubectl("delete", "pod", server, "--wait=false")
    wait_for(
        lambda: clustered.namespace.get("persistentvolumeclaim", claim)["metadata"]["uid"] != lost,
        "another claim",
        limit_s=LIMIT_S,
    )
    wait_for(lambda: settled(clustered) and is_replicated(clustered), "a filled volume", limit_s=LIMIT_S)
    seconds = time.monotonic() - start
    tasks.wait_answers(BETWEEN)
    account = tasks.stop()
    print(f"the leader's volume lost and filled again in {seconds:.0f} s: tasks {account}")
    require_no_loss(account)


def test_a_node_that_dies_takes_only_the_requests_on_it(
    node_containers: Nodes, clustered: Release, start_loads: Callable[[Release], tuple[Load, Load]]
) -> None:
    node = spread(node_containers, clustered)
    sync, tasks = start_loads(clustered)
    start = time.monotonic()
    node.kill()
    try:
        wait_for(lambda: not node.is_ready(), "the loss of the node")
        found = time.monotonic() - start
        for load in (sync, tasks):
            load.wait_answers(BETWEEN)
    finally:
        node.start()
    wait_for(lambda: node.is_ready() and settled(clustered), "all pods", limit_s=LIMIT_S)
    wait_for(lambda: is_replicated(clustered), "all servers", limit_s=LIMIT_S)
    back = time.monotonic() - start
    for load in (sync, tasks):
        load.wait_answers(BETWEEN)
    accounts = sync.stop(), tasks.stop()
    print(f"node killed, found dead after {found:.0f} s, back after {back:.0f} s: {accounts[0]}; tasks {accounts[1]}")
    assert accounts[0]["failed"] <= CALLERS, "each caller had at most one request in flight on the node"
    assert accounts[0]["wrong"] == 0
    require_no_loss(accounts[1])
