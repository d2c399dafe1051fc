"""Installation, use, upgrade, rollback and removal, as documented in the README."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.cluster import Load, Release, require_no_loss, run, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
EXAMPLES = Path(__file__).parents[2] / "app" / "web" / "static" / "examples.json"
READY_S = 60
WAITING = 30  # tasks
REPORT = "seconds from helm install to ready"


@pytest.fixture(scope="module")
def installed(make_release: Callable[..., Release]) -> Release:
    """Install the chart with no values except the image."""
    release = make_release()
    seconds = release.deploy(limit_s=READY_S)
    print(f"{seconds:.1f} {REPORT}")
    return release


@pytest.fixture(scope="module")
def photo() -> dict[str, Any]:
    """Return the example request of the package."""
    found: dict[str, Any] = json.loads(EXAMPLES.read_text(encoding="utf-8"))["catalogue"]["value"]
    return found


@contextmanager
def forwarded(release: Release, target: str, port: int) -> Iterator[str]:
    """Forward a free local port, as an operator would; yield its address."""
    command = ["kubectl", "--namespace", release.namespace.name, "port-forward", target, f":{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found is not None
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.communicate()


def test_everything_is_ready_within_a_minute(installed: Release) -> None:
    for component, count in {"api": 2, "worker": 1, "nats": 1}.items():
        assert len(installed.ready(component)) == count


def test_helm_test_processes_the_sample(installed: Release) -> None:
    assert "Succeeded" in installed.helm("test", installed.name, "--timeout=120s")


def test_a_forwarded_port_and_the_sample_give_an_overlay(installed: Release, photo: dict[str, Any]) -> None:
    with forwarded(installed, f"service/{installed.fullname}-api", 80) as url:
        answer = httpx.post(f"{url}/api/v1/frontal/crop", json=photo, headers={"Accept": "image/svg+xml"}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert answer.text.count('id="') > 10


def test_the_queues_server_is_told_of(installed: Release) -> None:
    def figures() -> dict[str, float]:
        text = installed.metrics(installed.ready("api")[0])
        return {name: float(value) for name, value in re.findall(r"^(queue_\w+) (\S+)$", text, re.MULTILINE)}

    found = wait_for(lambda: (told := figures()).get("queue_up") and told, "the queue's figures")
    assert found["queue_memory_bytes"] > 1e6
    assert found["queue_connections"] >= 2
    assert 2**30 < found["queue_storage_limit_bytes"] < 8 * 2**30
    assert "queue_storage_bytes" in found


def test_an_operator_watches_it_through_forwarded_ports(installed: Release) -> None:
    services = (f"service/{installed.fullname}-api-metrics", f"service/{installed.fullname}-worker")
    with forwarded(installed, services[0], 9000) as api, forwarded(installed, services[1], 9000) as worker:
        command = [sys.executable, "-m", "app", "monitor", "--once", "--json", "--interval", "0.5", api, worker]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert [instance["state"] for instance in told["instances"]] == ["ready", "ready"]
    processes = [process for instance in told["instances"] for process in instance["processes"]]
    assert {process["kind"] for process in processes if process["state"] == "ready"} == {"api", "tasks"}


@pytest.mark.parametrize("component", ["api", "worker"])
def test_the_doctor_finds_nothing_wrong(installed: Release, component: str) -> None:
    command = ("facial-service", "doctor", "--strict", "--json")
    told = json.loads(installed.namespace.kubectl("exec", f"deploy/{installed.fullname}-{component}", "--", *command))
    assert [finding for finding in told["findings"] if finding["status"] in {"warning", "error"}] == []
    looked = {finding["name"] for finding in told["findings"] if finding["status"] == "ok"}
    assert looked >= {"queue.access", "queue.streams", "limits.files", "models.files", "service.health"}


def test_an_upgrade_changes_what_was_changed_and_a_rollback_takes_it_back(installed: Release) -> None:
    def retention() -> str:
        found = installed.namespace.get("configmap", f"{installed.fullname}-settings")
        return str((found.get("data") or {}).get("RESULT_TTL", ""))

    before = {pod["metadata"]["name"] for pod in installed.pods("api")}
    original = retention()
    installed.deploy({"settings": {"RESULT_TTL": 120}})
    assert retention() == "120"
    assert before.isdisjoint({pod["metadata"]["name"] for pod in installed.pods("api")})
    installed.helm("rollback", installed.name, "1", "--wait", "--timeout=120s")
    assert retention() == original
    assert "Succeeded" in installed.helm("test", installed.name, "--timeout=120s")


def test_what_is_removed_leaves_the_volume_claim_and_its_tasks(
    installed: Release, start_load: Callable[..., Load]
) -> None:
    """Tasks that wait are completed after the next installation."""
    worker = f"deployment/{installed.fullname}-worker"
    installed.namespace.kubectl("scale", worker, "--replicas=0")
    wait_for(lambda: installed.pods("worker") == [], "no worker")
    load = start_load(installed, "tasks")
    load.wait_answers(WAITING)
    installed.helm("uninstall", installed.name, "--wait", "--timeout=120s")
    kinds = run("kubectl", "api-resources", "--verbs=list", "--namespaced", "--output=name").split()
    # Objects that the cluster creates in every namespace, or keeps after a deletion.
    kinds = [kind for kind in kinds if not kind.startswith(("events", "endpoints", "endpointslices", "pods.metrics"))]

    def left() -> list[str]:
        listed = json.loads(installed.namespace.kubectl("get", ",".join(kinds), "--output=json"))["items"]
        found = [f"{item['kind']}/{item['metadata']['name']}" for item in listed]
        others = {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default", f"Pod/{load.name}"}
        return [name for name in found if name not in others]

    claim = f"PersistentVolumeClaim/store-{installed.fullname}-nats-0"
    wait_for(lambda: left() == [claim], "only the claim")
    seconds = installed.deploy()
    account = load.stop()
    print(f"installed again in {seconds:.0f} s: {account}")
    require_no_loss(account)
    assert account["accepted"] >= WAITING
