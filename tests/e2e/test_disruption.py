"""Nothing is lost while pods come and go."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import Load, Nodes, Release, require_no_loss, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
BETWEEN = 30  # responses
RESOURCES = {"requests": {"cpu": "50m", "memory": "200Mi"}, "limits": {"memory": "2Gi"}}
VALUES = {
    "api": {"replicas": 3, "workers": 1, "resources": RESOURCES},
    "worker": {"replicas": 2, "processes": 1, "resources": RESOURCES},
    "settings": {"TASK_ACK_WAIT_S": 5},
}


@pytest.fixture(scope="module")
def release(make_release: Callable[..., Release]) -> Release:
    """Install three API pods and two workers."""
    made = make_release()
    made.deploy(VALUES)
    return made


@pytest.fixture(scope="module")
def other_image(node_containers: Nodes, release: Release) -> str:
    """Give the image another name on every node, and return it."""
    other = f"{release.image}-next"
    for node in node_containers.workers:
        node.tag_image(release.image, other)
    return other


def settled(release: Release, count: int) -> bool:
    """Return whether the API has this number of pods, all ready."""
    return len(release.pods("api")) == len(release.ready("api")) == count


def test_a_rolling_update_a_scale_down_and_an_eviction_fail_no_request(
    release: Release, start_load: Callable[..., Load]
) -> None:
    load = start_load(release, "sync", callers=4)
    load.wait_answers(BETWEEN)
    before = {pod["metadata"]["name"] for pod in release.pods("api")}
    release.deploy({**VALUES, "settings": {**VALUES["settings"], "RETRY_AFTER_S": 2}})
    assert before.isdisjoint({pod["metadata"]["name"] for pod in release.pods("api")})
    load.wait_answers(BETWEEN)
    release.namespace.kubectl("scale", f"deployment/{release.fullname}-api", "--replicas=2")
    wait_for(lambda: settled(release, 2), "two API pods")
    load.wait_answers(BETWEEN)
    release.namespace.kubectl("scale", f"deployment/{release.fullname}-api", "--replicas=3")
    wait_for(lambda: settled(release, 3), "three API pods")
    gone = release.ready("api")[0]["metadata"]["name"]
    release.namespace.evict(gone)
    wait_for(
        lambda: settled(release, 3) and gone not in {pod["metadata"]["name"] for pod in release.pods("api")},
        "another pod",
    )
    load.wait_answers(BETWEEN)
    # Wait until the last terminating pod is gone.
    wait_for(lambda: len(release.namespace.items("pods", labels="app.kubernetes.io/component=api")) == 3, "three pods")
    load.wait_answers(BETWEEN)
    account = load.stop()
    print(f"rolling update, scale down, eviction: {account}")
    require_no_loss(account)
    assert account["unconnected"] == 0, account
    assert account["answered"] > 5 * BETWEEN


@pytest.mark.kind
def test_an_upgrade_to_another_image_fails_no_request_and_leaves_the_queue_alone(
    other_image: str, release: Release, start_load: Callable[..., Load]
) -> None:
    repository, _, tag = release.image.rpartition(":")
    values = {**VALUES, "nats": {"image": {"repository": repository, "tag": tag, "digest": ""}}}
    release.deploy(values)
    (server,) = release.pods("nats")
    loads = [start_load(release, mode, callers=3, query="verify=pixels") for mode in ("sync", "tasks")]
    for load in loads:
        load.wait_answers(BETWEEN)
    seconds = replace(release, image=other_image).deploy(values)
    images = {pod["spec"]["containers"][0]["image"] for part in ("api", "worker") for pod in release.pods(part)}
    assert images == {other_image}
    assert [pod["metadata"]["uid"] for pod in release.ready("nats")] == [server["metadata"]["uid"]]
    for load in loads:
        load.wait_answers(BETWEEN)
    accounts = [load.stop() for load in loads]
    print(f"another image after {seconds:.0f} s: requests {accounts[0]}; tasks {accounts[1]}")
    for account in accounts:
        require_no_loss(account)
        assert account["unconnected"] == 0, account


def test_no_task_is_lost_while_workers_and_the_queues_server_are_killed(
    release: Release, start_load: Callable[..., Load]
) -> None:
    load = start_load(release, "tasks", callers=3, query="verify=pixels")
    for number in range(5):
        load.wait_answers(BETWEEN)
        workers = wait_for(lambda: release.ready("worker"), "a worker")
        name = random.choice(workers)["metadata"]["name"]
        release.namespace.kubectl("delete", "pod", name, "--grace-period=0", "--force")
        if number == 2:
            server = release.ready("nats")[0]["metadata"]
            release.namespace.kubectl("delete", "pod", server["name"], "--wait=false")
            wait_for(
                lambda uid=server["uid"]: [pod for pod in release.ready("nats") if pod["metadata"]["uid"] != uid],
                "the queue's next pod",
            )
    load.wait_answers(BETWEEN)
    account = load.stop()
    print(f"workers and the queue killed: {account}")
    require_no_loss(account)
