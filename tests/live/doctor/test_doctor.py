"""``facial-service doctor`` on healthy deployments, and on each fault of a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.doctor.faults import FAULTS, PASSWORD, Fault, Site, free_port, run_doctor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.live

QUIET = {"ok", "skipped", "note"}


def findings_of(text: str) -> dict[str, list[dict[str, str]]]:
    """Parse the JSON output, and group the findings by name."""
    found: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(text)["findings"]:
        found.setdefault(finding["name"], []).append(finding)
    return found


@pytest.fixture(scope="module")
def site(
    run_service: Any, run_nats: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Path], Site]]:
    folder = tmp_path_factory.mktemp("healthy")
    env: dict[str, object] = {
        "PORT": free_port(),
        "METRICS_PORT": free_port(),
        "DATA_DIR": folder / "data",
        "PROMETHEUS_MULTIPROC_DIR": folder / "metrics",
        "WORKERS": 1,
        "TASK_WORKERS": 1,
    }
    with run_service(**env) as service:
        service.wait_tasks()
        yield lambda own: Site(own, run_nats, service, env)


@pytest.fixture(scope="module")
def healthy(site: Callable[[Path], Site], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Findings of a healthy instance with an embedded NATS server."""
    # An empty folder, so that limits of the machine that runs the tests do not matter.
    none = tmp_path_factory.mktemp("no-limits")
    done = run_doctor(site(none).env, "--json", "--strict", "--cgroup-root", str(none))
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    return findings_of(done.stdout)


def test_a_healthy_instance_has_neither_errors_nor_warnings(healthy: dict[str, Any]) -> None:
    assert {finding["status"] for found in healthy.values() for finding in found} <= QUIET
    checked = {name for name, found in healthy.items() if {finding["status"] for finding in found} != {"skipped"}}
    assert {"ports.api", "queue.holder", "queue.streams", "queue.workers"} <= checked
    assert {"service.workers", "service.metrics", "metric-files.slots", "models.files", "disk.data-dir"} <= checked
    assert [finding["status"] for finding in healthy["service.workers"]] == ["ok", "ok"]


def test_a_healthy_api_and_worker_have_neither_errors_nor_warnings(
    run_service: Any, run_worker: Any, run_nats: Any, tmp_path: Path
) -> None:
    with run_nats() as server:
        shared = {"NATS_URL": server.url, "NATS_MONITOR_URL": server.monitor_url, "WORKERS": 1, "TASK_WORKERS": 1}
        api = {**shared, "PORT": free_port(), "METRICS_PORT": free_port()}
        worker = {**shared, "METRICS_PORT": free_port()}
        with run_service(**api), run_worker(**worker):
            for env, role in ((api, "api"), (worker, "worker")):
                done = run_doctor(env, "--json", "--strict", "--cgroup-root", str(tmp_path))
                assert done.returncode == 0, done.stdout
                found = findings_of(done.stdout)
                assert found["service.running"][0]["found"] == f"{role} instance"
                assert {finding["status"] for finding in found["service.workers"]} == {"ok"}
                for name in ("queue.streams", "queue.workers", "queue.storage", "metric-files.slots"):
                    assert [finding["status"] for finding in found[name]] == ["ok"], found[name]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_reported_with_advice(
    fault: Fault, site: Callable[[Path], Site], healthy: dict[str, Any], tmp_path: Path
) -> None:
    check = fault.part.partition(".")[0]
    with fault.seed(site(tmp_path)) as seeded:
        done = run_doctor(seeded.env, "--json", "--only", check, *seeded.options, ulimit=seeded.ulimit)
    assert done.returncode == (1 if fault.status == "error" else 0), done.stdout + done.stderr
    reported = [
        finding
        for finding in findings_of(done.stdout)[fault.part]
        if fault.words in f"{finding['looked_at']} {finding['found']} {finding['expected']}"
    ]
    assert [finding["status"] for finding in reported] == [fault.status], done.stdout
    assert fault.advice in reported[0]["advice"]
    assert reported[0]["expected"]
    assert PASSWORD not in done.stdout + done.stderr
    assert {finding["status"] for finding in healthy.get(fault.part, [])} <= QUIET


def test_no_files_are_left_behind(tmp_path: Path) -> None:
    folders = {"DATA_DIR": tmp_path / "data", "PROMETHEUS_MULTIPROC_DIR": tmp_path / "metrics", "TMPDIR": tmp_path}
    done = run_doctor({**folders, "LOG_FILE": tmp_path / "logs" / "log"})
    assert done.returncode == 0, done.stdout
    assert list(tmp_path.iterdir()) == []


def test_unreachable_addresses_are_reported_before_the_checks_time_out() -> None:
    # Addresses reserved for documentation: packets are dropped or refused.
    url = "nats://192.0.2.1:4222,nats://198.51.100.1:4222"
    done = run_doctor({"NATS_URL": url, "NATS_MONITOR_URL": "http://192.0.2.1:8222", "HOST": "192.0.2.1"}, "--json")
    assert done.returncode == 1
    found = findings_of(done.stdout)
    assert [finding["status"] for finding in found["queue.address"]] == ["error", "error"]
    assert {finding["status"] for finding in found["ports.metrics"]} == {"error"}
    assert not [name for name in found if name.endswith(".check")]
