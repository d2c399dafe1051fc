"""A pod with a memory limit below its load: the kernel kills processes, and no task is lost."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import Load, Release, require_no_loss, restarts, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOMY = {"requests": {"cpu": "50m", "memory": "200Mi"}, "limits": {"memory": "2Gi"}}
TIGHT = "220Mi"
BIG = 3
SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


WORKER = {"replicas": 1, "processes": 1, "resources": ROOMY}
# A task is retried until memory is available.
VALUES = {"api": {"replicas": 1}, "worker": WORKER, "settings": {"TASK_ACK_WAIT_S": 5, "TASK_MAX_DELIVERIES": 100}}


def limit_memory(release: Release, limit: str) -> None:
    """Lower the workers' memory limit behind the chart's back: the chart refuses a limit below the need."""
    name = f"deployment/{release.fullname}-worker"
    release.namespace.kubectl("set", "resources", name, "--containers=worker", f"--limits=memory={limit}")
    release.namespace.kubectl("rollout", "status", name, "--timeout=180s")


def read(release: Release) -> dict[str, float]:
    """Read the worker pod's metrics: name to the sum over its labels, and exits by reason."""
    found: dict[str, float] = {}
    for name, labels, value in SAMPLE.findall(release.metrics(release.pods("worker")[0])):
        for key in (name, f"{name}{{{labels}}}"):
            found[key] = found.get(key, 0) + float(value)
    return found


def kills(release: Release) -> float:
    """Return the number of kills by the kernel: of processes, or of containers if it kills whole containers."""
    pod = release.pods("worker")[0]
    return restarts(pod) + read(release).get('app_worker_exits_total{reason="killed"}', 0)


def test_a_worker_that_is_out_of_memory_comes_back_and_loses_no_task(
    make_release: Callable[..., Release], start_load: Callable[..., Load]
) -> None:
    release = make_release()
    release.deploy(VALUES)
    limit_memory(release, TIGHT)
    small = start_load(release, "tasks", callers=1)
    small.wait_answers(20)
    files = wait_for(lambda: read(release).get("multiprocess_files"), "metrics of the worker")
    big = start_load(release, "big", callers=BIG)
    wait_for(lambda: kills(release) >= 1, "a kill for want of memory", limit_s=180)
    small.wait_answers(20)
    killed = kills(release)
    told = wait_for(lambda: (found := read(release)).get("task_completions_total") and found, "counts of tasks")
    assert told["multiprocess_files"] <= files
    release.deploy(VALUES)
    account = big.stop(limit_s=300)
    rest = small.stop()
    print(f"killed {killed:g} times for want of memory; big tasks {account}; small ones {rest}")
    require_no_loss(account)
    require_no_loss(rest)
    assert account["accepted"] == BIG
