"""More pods under load, fewer after it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import CommandError, Load, Namespace, Release, require_no_loss, run, wait_for
from tests.e2e.conftest import leave_out

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
SCALE_S = 240
SPREAD_S, NEW_REQUESTS = 60, 20
COMPONENTS = ("api", "worker")
AUTOSCALING = {
    "enabled": True,
    "minReplicas": 1,
    "maxReplicas": 2,
    "targetCPUUtilizationPercentage": 50,
    # The chart's values, except for the minutes before a scale-down.
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
}
KEDA = {
    "enabled": True,
    "minReplicas": 0,
    "maxReplicas": 2,
    # The chart's values, except for their duration.
    "pollingInterval": 2,
    "cooldownPeriod": 5,
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
}
RESOURCES = {"requests": {"cpu": "100m", "memory": "200Mi"}, "limits": {"memory": "2Gi"}}


@pytest.fixture(scope="module")
def release(cluster: None, make_release: Callable[..., Release]) -> Release:
    """Install with an autoscaler for both."""
    try:
        run("kubectl", "get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes")
    except CommandError:
        leave_out("the cluster has no resource metrics API (metrics-server), which an autoscaler on CPU reads")
    made = make_release()
    parts = {"autoscaling": AUTOSCALING, "resources": RESOURCES}
    made.deploy({"api": {**parts, "workers": 1}, "worker": {**parts, "processes": 1}})
    return made


def count_requests(release: Release) -> dict[str, float]:
    """Return the number of requests that each API pod has served."""
    return {
        pod["metadata"]["name"]: sum(
            float(line.rpartition(" ")[2])
            for line in release.metrics(pod).splitlines()
            if line.startswith("api_requests_total{")
        )
        for pod in release.ready("api")
    }


def test_pods_come_with_the_load_and_go_after_it(release: Release, start_load: Callable[..., Load]) -> None:
    def all_have(count: int) -> bool:
        return all(len(release.pods(part)) == len(release.ready(part)) == count for part in COMPONENTS)

    wait_for(lambda: all_have(1), "one pod of each", limit_s=SCALE_S)
    loads = [start_load(release, mode, callers=3, query="verify=pixels") for mode in ("sync", "tasks")]
    wait_for(lambda: all_have(2), "two pods of each", limit_s=SCALE_S)
    # The callers keep their connections; a new pod serves them only because those end after a while.
    start, before = time.monotonic(), count_requests(release)
    wait_for(
        lambda: all(now - before.get(pod, 0) >= NEW_REQUESTS for pod, now in count_requests(release).items()),
        "requests on each pod",
        limit_s=SPREAD_S,
    )
    print(f"load on each pod {time.monotonic() - start:.0f} s after scaling up")
    accounts = [load.stop() for load in loads]
    print(f"requests {accounts[0]}; tasks {accounts[1]}")
    for account in accounts:
        require_no_loss(account)
        assert account["unconnected"] == 0, account
    wait_for(lambda: all_have(1), "one pod of each again", limit_s=SCALE_S)
    for part in COMPONENTS:
        found = json.loads(release.namespace.kubectl("get", "hpa", f"{release.fullname}-{part}", "--output=json"))
        assert found["status"]["desiredReplicas"] == 1


@pytest.fixture(scope="module")
def scaled_by_lag(cluster: None, make_release: Callable[..., Release]) -> Release:
    """Install with a ScaledObject for the workers."""
    try:
        Namespace("keda").kubectl("rollout", "status", "deployment/keda-operator", "--timeout=1s")
    except CommandError:
        pytest.skip("KEDA is not installed in the namespace keda")
    made = make_release()
    worker = {"keda": KEDA, "resources": RESOURCES, "processes": 1}
    made.deploy({"api": {"replicas": 1, "workers": 1, "resources": RESOURCES}, "worker": worker})
    return made


@pytest.mark.kind
def test_workers_come_from_zero_with_the_lag_and_go_after_it(
    scaled_by_lag: Release, start_load: Callable[..., Load]
) -> None:
    wait_for(lambda: scaled_by_lag.pods("worker") == [], "no worker", limit_s=SCALE_S)
    start = time.monotonic()
    load = start_load(scaled_by_lag, "tasks", callers=3, query="verify=pixels")
    wait_for(lambda: scaled_by_lag.ready("worker"), "the first worker", limit_s=SCALE_S)
    first = time.monotonic() - start
    account = load.stop()
    start = time.monotonic()
    wait_for(lambda: scaled_by_lag.pods("worker") == [], "no worker again", limit_s=SCALE_S)
    idle = time.monotonic() - start
    print(f"first worker after {first:.0f} s, none {idle:.0f} s after the end")
    print(f"tasks {account}")
    require_no_loss(account)
