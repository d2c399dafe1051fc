"""Every alert that the service itself can cause fires and resolves in a real deployment.

Four releases run. One Prometheus scrapes them and evaluates the project's rules, with shorter windows and `for`, and
one Alertmanager notifies a webhook. Faults are caused and removed while callers continue.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prometheus.source.model import Scope
from prometheus.source.slo import REQUESTS_RATE
from tests.alerting import LINKS, Monitoring, Notice, Webhook, alert_rules, monitoring, require
from tests.live.alerts import faults
from tests.live.alerts.lanes import PATIENT, Lanes, patient_job
from tests.live.alerts.rehearsal import Rehearsal, Row
from tests.live.alerts.releases import CROP, Fleet, Starter
from tests.scraping import serve_exposition

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Sample

pytestmark = [pytest.mark.live, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
QUIET_EVALUATIONS = 40
WINDOWS = ("1h", "6h", "1d", "3d")

FAULTS = {
    "a task process hangs, and there is a task": ("FacialServiceOldestTaskTooOld",),
    "callers send damaged images": ("FacialServiceErrorSurge", "FacialServiceDecodeFailures"),
    "API processes are killed one after the other": ("FacialServiceWorkerExits",),
    "files of exited processes remain": ("FacialServiceMetricFilesGrowing",),
    "a metric file is damaged": ("FacialServiceMetricsLost",),
    "responses to scrapes are delayed": ("FacialServiceScrapeSlow",),
    "the API is stopped": ("FacialServiceDown", "FacialServiceInstanceDown"),
    "Prometheus no longer finds the API": ("FacialServiceAbsent",),
    "the only process has no file descriptors": (
        "FacialServiceFileDescriptorsExhausted",
        "FacialServiceNotReady",
    ),
    "the exporter is killed repeatedly": ("FacialServiceChildExits",),
    "more large images arrive than there are slots": (
        "FacialServiceSaturated",
        "FacialServiceLatencyHigh",
        *(f"FacialServiceLatencyBudgetBurn-{window}" for window in WINDOWS),
    ),
    "one caller per thread sends large images": ("FacialServiceCpuSaturated",),
    "the queue's server is killed": (
        "FacialServiceQueueUnreachable",
        *(f"FacialServiceErrorBudgetBurn-{window}" for window in WINDOWS),
    ),
    "the workers' user is unknown to the queue": ("FacialServiceQueueUnreachableFromInstance",),
    "callers submit images that do not decode": ("FacialServiceTaskFailureRatioHigh",),
    "results exceed the storage": (
        "FacialServiceQueueStorageNearlyFull",
        "FacialServiceResultStoreNearlyFull",
    ),
    "tasks kill their worker": ("FacialServiceRedeliveries", "FacialServiceDeadTasks"),
    "the workers are stopped": ("FacialServiceNoTaskWorkers",),
    "callers keep submitting tasks": ("FacialServiceQueueBacklogGrowing",),
    "callers keep submitting large images": ("FacialServiceQueueFull", "FacialServiceQueueNearlyFull"),
}
CAUSED = [rule for rules in FAULTS.values() for rule in rules]

NOT_HERE = {
    "FacialServiceProbeFailing": "a blackbox exporter",
    "FacialServiceUnavailable": "a Deployment, from kube-state-metrics",
    "FacialServiceAllRequestsFail": "a defect that affects every request",
    "FacialServiceQueueNotWritable": "a full disk; see tests/live/test_storage.py",
    "FacialServiceTaskRepairs": "a damaged queue; see tests/tasks/test_reconciler.py",
    "FacialServiceMemoryNearLimit": "a container and its limit, from cAdvisor and kube-state-metrics",
    "FacialServiceOomKilled": "a container, from cAdvisor or kube-state-metrics",
    "FacialServiceCpuThrottled": "a container's CPU limit, from cAdvisor",
    "FacialServiceCrashLooping": "the restarts of a container, from kube-state-metrics",
    "FacialServiceReplicasMismatch": "a Deployment or a StatefulSet, from kube-state-metrics",
    "FacialServiceHpaAtMaximum": "an autoscaler, from kube-state-metrics",
    "FacialServiceVolumeFilling": "a volume of the cluster, from the kubelet",
}

# Rules of the chart select their release, and only they report that it has no targets.
BUSY = Scope(namespace="busy", release="busy", fullname="busy")
TASKS = {"type": "facial_processing"}
# In addition to the name, severity, job, namespace and, for alerts on one instance, the instance.
MORE_LABELS = {
    "FacialServiceErrorSurge": {"component": "images"},
    "FacialServiceWorkerExits": {"reason": "killed"},
    "FacialServiceChildExits": {"process": "exporter"},
    "FacialServiceLatencyHigh": {"endpoint": CROP},
    "FacialServiceOldestTaskTooOld": TASKS,
    "FacialServiceQueueBacklogGrowing": TASKS,
    "FacialServiceRedeliveries": TASKS,
    "FacialServiceTaskFailureRatioHigh": TASKS,
}


@dataclass
class Report:
    """Results of the rehearsal.

    Attributes:
        rows: one row per alert.
        quiet: notifications before the first fault.
        notices: all notifications.
        statuses: responses to normal traffic of the release without faults.
        instances: labels of the instance of each alert.
        failures: errors of the rehearsal itself.
        cores: CPU time per second of the process that saturates the CPU.
        seconds: duration.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    quiet: list[Notice] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    instances: dict[str, dict[str, str]] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)
    cores: float = 0.0
    seconds: float = 0.0


@pytest.fixture(scope="module")
def report(
    run_nats: Any,
    run_service: Any,
    run_worker: Any,
    sample: Sample,
    wait_until: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Report:
    """Run the rehearsal, once for all tests."""
    for program in ("prometheus", "alertmanager"):
        require(program)
    folder, report = tmp_path_factory.mktemp("alerts"), Report()
    began = time.monotonic()
    with ExitStack() as stack:
        webhook = Webhook()
        stack.callback(webhook.close)
        rehearsal = Rehearsal(webhook, FAULTS)
        starter = Starter(stack, sample, folder, run_service, run_worker, run_nats, wait_until)
        alone = starter.alone()
        relay = faults.Relay(alone.address)
        relay_address = stack.enter_context(serve_exposition(relay.expose))
        lanes = Lanes(rehearsal, wait_until, folder, relay)
        threads = stack.enter_context(ThreadPoolExecutor())
        stack.callback(webhook.stop)
        aging = threads.submit(lanes.age, alone)
        fleet = starter.fleet(alone)
        for release in fleet.releases:
            stack.enter_context(release.traffic())
        jobs = [patient_job(relay_address)]
        watching = stack.enter_context(monitoring(folder, webhook, targets_of(fleet), jobs, absent=[BUSY]))
        wait_until(lambda: have_been_quiet(watching), limit_s=300, what="normal traffic for a while")
        report.quiet = webhook.notices()
        runs = [threads.submit(lane) for lane in lanes.side_by_side(fleet, watching)]
        wait(runs)
        runs += [aging, threads.submit(lanes.occupy, fleet.busy)]
        report.failures = [error for run in runs if (error := run.exception()) is not None]
        report.notices = webhook.notices()
        report.rows = {row.rule: row for row in rehearsal.rows}
        report.statuses = set(fleet.calm.statuses)
        report.instances = instances_of(fleet, relay_address)
        report.cores = lanes.demand.cores
        report.seconds = time.monotonic() - began
    return report


def targets_of(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the scraped addresses, with labels as in Kubernetes or without it."""
    targets: list[dict[str, Any]] = [{"targets": [fleet.alone.address]}]
    for release in (fleet.calm, fleet.apart, fleet.busy):
        labels = {"namespace": release.place, "release": release.place}
        for role, instance in (("api", release.api), ("worker", release.workers)):
            if instance is not None:
                targets.append({"targets": [instance.address], "labels": {**labels, "role": role}})
    return targets


def have_been_quiet(monitoring: Monitoring) -> bool:
    """Return whether the rules have seen traffic of every release in a number of evaluations."""
    rates = f'{REQUESTS_RATE}{{namespace!="{PATIENT}"}}'
    return len(monitoring.ask(f"count_over_time({rates}[10m]) >= {QUIET_EVALUATIONS}")) == 4


def instances_of(fleet: Fleet, relay_address: str) -> dict[str, dict[str, str]]:
    """Return the instance with the fault, for alerts on a single instance."""
    assert fleet.apart.workers is not None
    return {
        "FacialServiceMetricFilesGrowing": {"instance": fleet.alone.address},
        "FacialServiceMetricsLost": {"instance": fleet.alone.address},
        "FacialServiceScrapeSlow": {"instance": relay_address},
        "FacialServiceInstanceDown": {"instance": fleet.busy.address, "role": "api"},
        "FacialServiceFileDescriptorsExhausted": {
            "instance": fleet.busy.address,
            "role": "api",
            "process": "worker-0",
        },
        "FacialServiceQueueUnreachableFromInstance": {"instance": fleet.apart.workers.address, "role": "worker"},
    }


def test_every_alert_is_in_a_table() -> None:
    assert sorted([*CAUSED, *NOT_HERE]) == sorted(alert_rules())
    assert len({alert_rules()[rule].name for rule in CAUSED}) >= 15


def test_rehearsal_went_as_planned(report: Report) -> None:
    assert report.failures == []
    assert sorted(report.rows) == sorted(CAUSED)


def test_normal_traffic_raises_no_alert(report: Report) -> None:
    assert report.quiet == []


def test_release_without_faults_has_no_alert(report: Report) -> None:
    """The releases without faults respond, even on a busy machine."""
    assert [notice for notice in report.notices if notice.place == "calm"] == []
    assert report.statuses == {200, 202, 422}


@pytest.mark.parametrize("rule", CAUSED)
def test_alert_fires_and_resolves(report: Report, rule: str) -> None:
    row, alert = report.rows[rule], alert_rules()[rule]
    if rule == "FacialServiceCpuSaturated" and row.fired is None and report.cores < 0.9:
        pytest.skip(f"others need the machine: the process got {report.cores:.0%} of a core, and it takes 90%")
    assert row.fired is not None, f"it did not fire: {row.fault}"
    assert row.seconds_to_resolve is not None, "it did not resolve"
    assert row.seconds_to_resolve > 0, "it resolved before there was a reason to"
    place = {"namespace": row.place} if row.place else {}
    if row.place and row.place != PATIENT:
        place["release"] = row.place
    more = MORE_LABELS.get(rule, {}) | report.instances.get(rule, {}) | place
    assert row.fired.labels == {
        "alertname": alert.name,
        "severity": alert.severity,
        "job": "facial-service",
        **alert.labels,
        **more,
    }
    require_annotations(row)


def require_annotations(row: Row) -> None:
    assert row.fired is not None
    alert, annotations = alert_rules()[row.rule], row.fired.annotations
    description = annotations["description"]
    assert annotations["summary"] == alert.summary
    assert not re.search(r"{{|}}|no value|NaN|Inf|%!|  ", description), "something is not filled in"
    assert all(part in description for part in re.split(r"{{.*}}", alert.description))
    assert (f"in namespace {row.place}" in description) == bool(row.place)
    assert annotations["runbook_url"] == f"{LINKS.runbooks}/docs/runbooks/{alert.name}.md"
    assert (ROOT / "docs" / "runbooks" / f"{alert.name}.md").is_file()
    query = f"?var-namespace={row.place}" if row.place else ""
    query += f"&var-release={row.place}" if "release" in row.fired.labels else ""
    assert annotations["dashboard_url"] == f"{LINKS.dashboards}/d/{alert.dashboard}{query}"
    assert (ROOT / "grafana" / "dashboards" / f"{alert.dashboard}.json").is_file()


def test_table(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the measurements."""
    rows = report.rows.values()
    lines = ["| alert | fault | seconds to fire | seconds to resolve |", "| --- | --- | --- | --- |"]
    for row in rows:
        seconds = (row.seconds_to_fire, row.seconds_to_resolve)
        fire, resolve = ("never" if value is None else f"{value:.1f}" for value in seconds)
        lines.append(f"| {row.rule} | {row.fault} | {fire} | {resolve} |")
    beside = {(notice.rule, notice.place) for notice in report.notices} - {(row.rule, row.place) for row in rows}
    named = sorted(f"{rule} ({place or 'no namespace'})" for rule, place in beside)
    lines.append(f"\nThese came along: {', '.join(named) or 'none'}. It took {report.seconds:.0f} s.")
    with capsys.disabled():
        print("\n\n" + "\n".join(lines))  # noqa: T201
