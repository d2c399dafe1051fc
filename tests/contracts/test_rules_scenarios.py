"""Alerts in scenarios of a release: they fire as long as an outage lasts, and are silent through normal operation.

promtool evaluates the rules for a release with all its series. A scenario changes some of them; time is in minutes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from prometheus.source.generate import groups_by_file, rule_files
from prometheus.source.model import Scope
from prometheus.source.objectives import Objectives, Texts
from tests.contracts.test_rules import ALERTS, name_of
from tests.contracts.test_rules_promtool import read_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Values = Sequence[float | None]

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "grafana" / "dashboards" / "facial-service-overview.json"
MINUTES = 200
OUTAGE_AT, OUTAGE_ENDS = 30, 180
CROP, SUBMIT, STATUS = (f"/api/v1/frontal/crop{end}" for end in ("", "/submit", "/status/{task_id}"))
TASKS = {"type": "facial_processing"}
OWN = Scope(namespace="faces", release="a", fullname="a-facial-service")
RELEASE = {"job": "facial-service", "namespace": "faces", "release": "a"}
KUBERNETES = {"namespace": "faces"}


def constant(value: float | None) -> list[float | None]:
    return [value] * MINUTES


def counter(rate: Callable[[int], float]) -> list[float | None]:
    """Return a counter that increases by ``rate(minute)`` in each minute."""
    total, values = 0.0, []
    for minute in range(MINUTES):
        total += rate(minute)
        values.append(total)
    return list(values)


def steady(per_minute: float) -> list[float | None]:
    return counter(lambda _: per_minute)


def changed(values: Values, during: range, value: float | None) -> list[float | None]:
    """Return the values with another one during some minutes; None if there is no sample."""
    return [value if minute in during else before for minute, before in enumerate(values)]


OUTAGE = range(OUTAGE_AT, OUTAGE_ENDS)


def in_outage(value: float | None, before: float | None = 0) -> list[float | None]:
    return changed(constant(before), OUTAGE, value)


def from_outage(per_minute: float, before: float = 0) -> list[float | None]:
    """Return a counter whose rate changes when the outage begins."""
    return counter(lambda minute: per_minute if minute in OUTAGE else before)


@dataclass
class Data:
    """Series by name and labels."""

    series: dict[tuple[str, frozenset[tuple[str, str]]], Values] = field(default_factory=dict)

    def set(self, name: str, values: Values, **labels: str) -> None:
        self.series[name, frozenset(labels.items())] = values

    def change(self, change: Callable[[Values], Values], name: str = ".*", **labels: str) -> None:
        """Change all series of a name that have the labels."""
        for (found, its), values in self.series.items():
            if re.fullmatch(name, found) and labels.items() <= dict(its).items():
                self.series[found, its] = change(values)

    def written(self) -> list[dict[str, str]]:
        return [
            {"series": name + selector(labels), "values": notation(values)}
            for (name, labels), values in self.series.items()
        ]


def selector(labels: Iterable[tuple[str, str]]) -> str:
    return "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(labels)) + "}"


def notation(values: Values) -> str:
    """Write values for promtool; the first missing sample after others is a staleness marker."""
    parts, before = [], None
    for value in values:
        parts.append(f"{value:g}" if value is not None else "stale" if before is not None else "_")
        before = value
    return " ".join(parts)


def pod(data: Data, name: str, role: str, *, alive: range = range(MINUTES), **more: str) -> None:
    """Add the series of one pod, which are absent while it does not live."""
    labels = {
        "job": "facial-service",
        "namespace": "faces",
        "release": "a",
        "pod": name,
        "instance": name,
        "role": role,
    }
    labels |= more
    own = Data()
    gauges = {"up": 1, "scrape_duration_seconds": 0.1, "service_ready": 1, "multiprocess_files": 6}
    gauges |= {"multiprocess_bytes": 1e6, "multiprocess_failing_processes": 0, "multiprocess_unreadable_files": 0}
    gauges |= {"queue_up": 1, "queue_writable": 1, "queue_storage_bytes": 300, "queue_storage_limit_bytes": 1000}
    gauges |= {"task_queue_used_ratio": 0.1, "result_store_used_ratio": 0.1, "task_dead_kept": 0}
    for metric, value in gauges.items():
        own.set(metric, constant(value))
    for metric, value in (("task_queue_size", 2), ("active_tasks_count", 2), ("task_oldest_age_seconds", 3)):
        own.set(metric, constant(value), **TASKS)
    for process in ("master", "exporter", "worker-0" if role == "api" else "task-0"):
        own.set("memory_usage_bytes", constant(1e8), process=process)
        own.set("cpu_usage_percent", constant(40), process=process)
    for reason in ("stopped", "killed", "timeout", "crashed"):
        own.set("app_worker_exits_total", steady(0), reason=reason)
    own.set("app_child_exits_total", steady(0), process="exporter")
    for reason in ("task_lost", "record_restored"):
        own.set("task_repairs_total", steady(0), reason=reason)
    own.set("task_redeliveries_total", steady(0), **TASKS)
    for status, rate in (("SUCCESS", 20 if role == "worker" else 0), ("FAILURE", 0), ("CANCELLED", 0)):
        own.set("task_completions_total", steady(rate), status=status, **TASKS)
    if role == "api":
        traffic(own)
    own.change(lambda values: [value if minute in alive else None for minute, value in enumerate(values)])
    for (metric, its), values in own.series.items():
        data.set(metric, values, **labels, **dict(its))


def traffic(own: Data) -> None:
    """Add requests: processing, submissions, and many more polls."""
    own.set("file_descriptors_exhausted", constant(0), process="worker-0")
    for endpoint, status in ((CROP, "200"), (SUBMIT, "202")):
        own.set("api_requests_total", steady(40), method="POST", endpoint=endpoint, status=status)
        own.set("api_requests_total", steady(0), method="POST", endpoint=endpoint, status="503")
        for bound in ("0.5", "1.0", "2.5", "+Inf"):
            name = "api_request_duration_seconds_bucket"
            own.set(name, steady(40), method="POST", endpoint=endpoint, le=bound)
        own.set("api_request_duration_seconds_count", steady(40), method="POST", endpoint=endpoint)
    own.set("api_requests_total", steady(4000), method="GET", endpoint=STATUS, status="200")
    for reason in ("saturated", "queue_full"):
        own.set("api_rejections_total", steady(0), reason=reason)
    for code in ("image_corrupt", "landmarks_count"):
        own.set("errors_total", steady(0), component="images", type=code)


def kubernetes(data: Data) -> None:
    """Add the series of kube-state-metrics, cAdvisor, the kubelet and a blackbox exporter."""
    data.set("probe_success", constant(1), **RELEASE, instance="http://a-facial-service-api.faces.svc:80/health")
    for role in ("api", "worker"):
        deployment = {**KUBERNETES, "deployment": f"a-facial-service-{role}"}
        for metric in ("spec_replicas", "status_replicas_available", "status_replicas_updated"):
            data.set(f"kube_deployment_{metric}", constant(2), **deployment)
    stateful_set = {**KUBERNETES, "statefulset": "a-facial-service-nats"}
    for metric in ("replicas", "status_replicas_ready", "status_replicas_updated"):
        data.set(f"kube_statefulset_{metric}", constant(1), **stateful_set)
    autoscaler = {**KUBERNETES, "horizontalpodautoscaler": "a-facial-service-api"}
    for metric, value in (("status_current_replicas", 2), ("spec_max_replicas", 5), ("spec_min_replicas", 2)):
        data.set(f"kube_horizontalpodautoscaler_{metric}", constant(value), **autoscaler)
    claim = {**KUBERNETES, "persistentvolumeclaim": "store-a-facial-service-nats-0"}
    for metric, value in (("available_bytes", 500), ("capacity_bytes", 1000)):
        data.set(f"kubelet_volume_stats_{metric}", constant(value), **claim)
    container = {**KUBERNETES, "pod": API_POD, "container": "api"}
    data.set("container_memory_working_set_bytes", constant(500), **container)
    data.set("kube_pod_container_resource_limits", constant(1000), resource="memory", **container)
    data.set("container_oom_events_total", steady(0), **container)
    data.set("container_cpu_cfs_throttled_periods_total", steady(0), **container)
    data.set("container_cpu_cfs_periods_total", steady(600), **container)
    data.set("kube_pod_container_status_restarts_total", steady(0), **container)
    data.set("kube_pod_container_status_last_terminated_reason", constant(0), reason="OOMKilled", **container)
    data.set("kube_pod_container_status_waiting_reason", constant(0), reason="CrashLoopBackOff", **container)


API_POD, WORKER_POD = "a-facial-service-api-5d8c7b9f6-x2k4p", "a-facial-service-worker-7f6d5c4b3-m1n2b"
NEW_API_POD = "a-facial-service-api-6c9f8d7b5-k8s7d"


def normal() -> Data:
    data = Data()
    pod(data, API_POD, "api")
    pod(data, WORKER_POD, "worker")
    kubernetes(data)
    return data


def promtool(folder: Path, rules: Mapping[str, str], tests: list[dict[str, Any]]) -> None:
    """Run tests on rules."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH; `make tools` sets it up")
    for name, text in rules.items():
        (folder / name).write_text(text, encoding="utf-8")
    order = [group["name"] for text in rules.values() for group in yaml.safe_load(text)["groups"]]
    order.sort(key=lambda name: (not name.startswith("facial-service-kubernetes.rules"), "rules" not in name))
    document = {
        "rule_files": sorted(rules),
        "evaluation_interval": "1m",
        "group_eval_order": order,
        "tests": [{"interval": "1m", **test} for test in tests],
    }
    file = folder / "scenario.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    done = subprocess.run([program, "test", "rules", file], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def expecting(expr: str, minute: int, *labels: str) -> dict[str, Any]:
    """Expect samples of the value 1 for an expression."""
    return {"expr": expr, "eval_time": f"{minute}m", "exp_samples": [{"labels": each, "value": 1} for each in labels]}


# --- silent through normal operation ----------------------------------------------------------------------------------


def rolling_update() -> Data:
    """A new API pod becomes ready before the old one stops; the worker is replaced too."""
    data = Data()
    pod(data, API_POD, "api", alive=range(64))
    pod(data, NEW_API_POD, "api", alive=range(61, MINUTES))
    pod(data, WORKER_POD, "worker", alive=range(64))
    pod(data, "a-facial-service-worker-5b6c7d8f9-q2w3r", "worker", alive=range(62, MINUTES))
    kubernetes(data)
    data.change(lambda values: changed(values, range(61, 62), 0), "service_ready", pod=NEW_API_POD)
    data.change(lambda values: changed(values, range(62, 64), 0), "service_ready", pod=API_POD)
    for name in ("status_replicas_updated", "status_replicas_available"):
        data.change(lambda values: changed(values, range(60, 64), 1), f"kube_deployment_{name}")
    data.change(lambda values: changed(values, range(60, 64), 0), "kube_statefulset_status_replicas_ready")
    return data


def workers_at_zero() -> Data:
    """KEDA scales the workers to zero without tasks, and back when tasks arrive."""
    data = Data()
    pod(data, API_POD, "api")
    pod(data, WORKER_POD, "worker", alive=range(60))
    pod(data, "a-facial-service-worker-7f6d5c4b3-q2w3r", "worker", alive=range(123, MINUTES))
    kubernetes(data)
    for name in ("spec_replicas", "status_replicas_available", "status_replicas_updated"):
        change = f"kube_deployment_{name}"
        data.change(lambda values: changed(values, range(60, 122), 0), change, deployment="a-facial-service-worker")
    for name in ("task_queue_size", "active_tasks_count", "task_oldest_age_seconds"):
        data.change(lambda values: changed(values, range(55, 120), 0), name)
    data.change(lambda values: changed(values, range(120, 124), 120), "task_oldest_age_seconds")
    return data


def api_at_zero() -> Data:
    """The API is scaled to zero by hand, and back after an hour."""
    data = Data()
    pod(data, API_POD, "api", alive=range(60))
    pod(data, NEW_API_POD, "api", alive=range(122, MINUTES))
    pod(data, WORKER_POD, "worker")
    kubernetes(data)
    for name in ("spec_replicas", "status_replicas_available", "status_replicas_updated"):
        change = f"kube_deployment_{name}"
        data.change(lambda values: changed(values, range(60, 121), 0), change, deployment="a-facial-service-api")
    data.change(lambda values: changed(values, range(121, 122), 0), "kube_deployment_status_replicas_available")
    data.change(lambda values: changed(values, range(60, 122), 0), "probe_success")
    return data


def night() -> Data:
    """No request arrives for two hours, and then a few, of which one fails."""
    data = normal()

    def quiet(values: Values) -> Values:
        rate = (values[1] or 0) - (values[0] or 0)
        return counter(lambda minute: 0 if minute in range(30, 150) else rate if minute < 30 else rate / 40)

    for name in ("api_requests_total", "api_request_duration_seconds_.*", "task_completions_total"):
        data.change(quiet, name)
    for name in ("task_queue_size", "active_tasks_count", "task_oldest_age_seconds"):
        data.change(lambda values: changed(values, range(30, 150), 0), name)
    failed = counter(lambda minute: minute == 160)
    data.change(lambda _: failed, "api_requests_total", method="POST", endpoint=CROP, status="503")
    return data


def bad_client() -> Data:
    """One client sends invalid images, slow uploads, and a burst of which most is rejected because of load."""
    data = normal()
    data.change(lambda _: steady(80), "api_requests_total", method="POST", endpoint=CROP, status="200")
    burst = counter(lambda minute: 218 if minute in (60, 61) else 0)
    data.change(lambda _: burst, "api_requests_total", method="POST", endpoint=CROP, status="503")
    data.change(lambda _: burst, "api_rejections_total", reason="saturated")
    data.change(lambda _: steady(1), "errors_total", component="images")
    labels = {**RELEASE, "pod": API_POD, "instance": API_POD}
    for status in ("408", "422"):
        data.set("api_requests_total", steady(1), **labels, role="api", method="POST", endpoint=CROP, status=status)
    # Of its 60 requests an hour, a third is slow.
    for bound in ("0.5", "1.0"):
        slow = counter(lambda minute: 41 - (minute % 3 == 0))
        data.change(lambda _, slow=slow: slow, "api_request_duration_seconds_bucket", endpoint=CROP, le=bound)
    for name in ("api_request_duration_seconds_count", "api_request_duration_seconds_bucket"):
        labelled = {"endpoint": CROP} | ({"le": "+Inf"} if name.endswith("bucket") else {})
        data.change(lambda _: steady(41), name, **labelled)
    return data


def prometheus_restart() -> Data:
    """Prometheus scrapes nothing for three minutes."""
    data = normal()
    data.change(lambda values: changed(values, range(60, 63), None))
    return data


def worker_crash() -> Data:
    """A worker process and a task process crash, and are replaced at once; tasks are redelivered."""
    data = normal()
    data.change(lambda _: counter(lambda minute: minute == 60), "app_worker_exits_total", reason="crashed")
    data.change(lambda _: counter(lambda minute: 2 * (minute == 60)), "task_redeliveries_total")
    data.change(lambda values: changed(values, range(60, 61), None), "memory_usage_bytes", process="task-0")
    data.change(lambda _: counter(lambda minute: 2 * (minute == 60)), "task_repairs_total", reason="record_restored")
    failed = counter(lambda minute: 2 * (minute == 60))
    data.change(lambda _: failed, "api_requests_total", method="POST", endpoint=CROP, status="503")
    return data


def node_dies() -> Data:
    """One of two API pods is on a node that dies; the other pod serves all requests."""
    data = normal()
    pod(data, NEW_API_POD, "api")
    data.change(lambda values: changed(values, range(60, 69), 0), "up", pod=NEW_API_POD)
    data.change(lambda values: changed(values, range(60, 69), 10), "scrape_duration_seconds", pod=NEW_API_POD)
    gone = range(60, MINUTES)
    data.change(lambda values: changed(values, gone, None), "(?!up|scrape_duration).*", pod=NEW_API_POD)
    data.change(lambda values: changed(values, range(69, MINUTES), None), "up|scrape_.*", pod=NEW_API_POD)
    return data


def crash_loop() -> Data:
    """One of three API pods exits soon after each start, for more than two hours."""
    data = normal()
    for name in (NEW_API_POD, "a-facial-service-api-6c9f8d7b5-p3l8v"):
        pod(data, name, "api")
    gone = range(60, MINUTES)
    data.change(lambda values: changed(values, gone, None), "(?!up|scrape_duration).*", pod=NEW_API_POD)
    data.change(
        lambda _: [float(minute % 7 == 0) if minute in gone else 1 for minute in range(MINUTES)],
        "up",
        pod=NEW_API_POD,
    )
    data.change(lambda values: changed(values, gone, 0), "service_ready", pod=NEW_API_POD)
    api = {"deployment": "a-facial-service-api"}
    data.change(lambda _: constant(3), "kube_deployment_spec_replicas", **api)
    data.change(lambda _: changed(constant(3), gone, 2), "kube_deployment_status_replicas_available", **api)
    data.change(lambda values: changed(values, gone, 1), "kube_pod_container_status_waiting_reason")
    return data


def autoscaler_at_maximum() -> Data:
    """The autoscaler runs its maximum of pods for hours, which serve all requests."""
    data = normal()
    data.change(
        lambda _: changed(constant(2), range(30, MINUTES), 5), "kube_horizontalpodautoscaler_status_current_replicas"
    )
    return data


def frequent_restarts() -> Data:
    """The API pod restarts every seven minutes, so that its counters begin at 0 in every window."""
    data = normal()

    def reset(values: Values) -> Values:
        return [(value or 0) - (values[minute - minute % 7] or 0) for minute, value in enumerate(values)]

    data.change(reset, ".+_(total|count|bucket)", pod=API_POD)
    return data


def clock_jump() -> Data:
    """The clock of the pods is an hour ahead for a while: tasks seem old, but are completed."""
    data = normal()
    data.change(lambda values: changed(values, range(60, 90), 3603), "task_oldest_age_seconds")
    return data


def upgrade_adds_metrics() -> Data:
    """Pods of an old version lack the newer metrics, and stay next to new pods that never become ready."""
    data = normal()
    newer = "service_ready|queue_writable|task_queue_used_ratio|result_store_used_ratio|app_child_exits_total"
    data.change(lambda values: changed(values, range(MINUTES), None), newer, pod=API_POD)
    pod(data, NEW_API_POD, "api", alive=range(60, MINUTES))
    data.change(lambda values: changed(values, range(60, MINUTES), 0), "service_ready", pod=NEW_API_POD)
    return data


QUIET = (
    crash_loop,
    autoscaler_at_maximum,
    frequent_restarts,
    clock_jump,
    upgrade_adds_metrics,
    rolling_update,
    workers_at_zero,
    api_at_zero,
    night,
    bad_client,
    prometheus_restart,
    worker_crash,
    node_dies,
)
# Warnings of what is not normal, but not an outage either.
WARNINGS: dict[Callable[[], Data], tuple[str, ...]] = {
    bad_client: ("FacialServiceSaturated",),
    crash_loop: ("FacialServiceCrashLooping", "FacialServiceReplicasMismatch"),
    autoscaler_at_maximum: ("FacialServiceHpaAtMaximum",),
}
# The rules of the chart differ only in what they select, and in how they know the release.
OF_CHART = (rolling_update, api_at_zero)


@pytest.mark.parametrize(
    ("make", "scope"),
    [*((make, None) for make in QUIET), *((make, OWN) for make in OF_CHART)],
    ids=[*(make.__name__ for make in QUIET), *(f"{make.__name__}_chart" for make in OF_CHART)],
)
def test_no_alert_fires_in_normal_operation(make: Callable[[], Data], scope: Scope | None, tmp_path: Path) -> None:
    """Every alert has the series that it reads, and none fires, except for the warnings in the table."""
    data = make()
    there = {name for name, _ in data.series}
    for alert in ALERTS:
        assert read_by(alert) <= there, name_of(alert)
    firing = f'group by (alertname, severity) (count_over_time(ALERTS{{alertstate="firing"}}[{MINUTES}m]))'
    warnings = [f'{{alertname="{name}", severity="warning"}}' for name in WARNINGS.get(make, ())]
    tests = [expecting(firing, MINUTES - 1, *warnings)]
    promtool(tmp_path, rule_files(scope=scope), [{"input_series": data.written(), "promql_expr_test": tests}])


# --- firing as long as an outage lasts --------------------------------------------------------------------------------


def replaced(name: str, values: Values, **labels: str) -> Callable[[Data], None]:
    return lambda data: data.change(lambda _: values, name, **labels)


def _gone(data: Data, **labels: str) -> None:
    data.change(lambda values: changed(values, OUTAGE, None), **labels)


def _pending(data: Data) -> None:
    _gone(data, role="api")
    data.change(lambda _: in_outage(0, 2), "kube_deployment_status_replicas_available")


def _hpa_at_maximum(data: Data) -> None:
    data.change(lambda _: in_outage(5, 2), "kube_horizontalpodautoscaler_status_current_replicas")


def _oom_killed(data: Data) -> None:
    data.change(lambda _: from_outage(0.2), "container_oom_events_total")


def _failing(data: Data) -> None:
    data.change(
        lambda _: counter(lambda m: 0 if m in OUTAGE else 40), "api_requests_total", method="POST", status="20."
    )
    for endpoint, status in ((CROP, "200"), (SUBMIT, "202")):
        answered = counter(lambda minute: 0 if minute in OUTAGE else 40)
        data.change(lambda _, v=answered: v, "api_requests_total", endpoint=endpoint, status=status)
        data.change(lambda _: from_outage(40), "api_requests_total", endpoint=endpoint, status="503")


def _slow(data: Data) -> None:
    for bound in ("0.5", "1.0"):
        fast = counter(lambda minute: 0 if minute in OUTAGE else 40)
        data.change(lambda _, v=fast: v, "api_request_duration_seconds_bucket", le=bound)


def _shed(data: Data) -> None:
    data.change(lambda _: from_outage(40), "api_requests_total", endpoint=CROP, status="503")
    data.change(lambda _: from_outage(40), "api_rejections_total", reason="saturated")


def _queue_full(data: Data) -> None:
    data.change(lambda _: from_outage(40), "api_requests_total", endpoint=SUBMIT, status="503")
    data.change(lambda _: from_outage(40), "api_rejections_total", reason="queue_full")


def _stuck(data: Data) -> None:
    data.change(lambda _: counter(lambda minute: 0 if minute in OUTAGE else 20), "task_completions_total")
    data.change(lambda _: [60.0 * max(0, minute - OUTAGE_AT) for minute in range(MINUTES)], "task_oldest_age_seconds")


def _unready_stateful_set(data: Data) -> None:
    data.change(lambda _: in_outage(0, 1), "kube_statefulset_status_replicas_ready")


OUTAGES: dict[str, Callable[[Data], None]] = {
    "FacialServiceErrorBudgetBurn": _failing,
    "FacialServiceLatencyBudgetBurn": _slow,
    "FacialServiceDown": replaced("up", in_outage(0, 1), role="api"),
    "FacialServiceNotReady": replaced("service_ready", in_outage(0, 1), role="api"),
    "FacialServiceAbsent": lambda data: _gone(data, role="api"),
    "FacialServiceProbeFailing": replaced("probe_success", in_outage(0, 1)),
    "FacialServiceInstanceDown": replaced("up", in_outage(0, 1), role="worker"),
    "FacialServiceAllRequestsFail": _failing,
    "FacialServiceSaturated": _shed,
    "FacialServiceQueueFull": _queue_full,
    "FacialServiceLatencyHigh": _slow,
    "FacialServiceErrorSurge": replaced("errors_total", from_outage(3000), component="images"),
    "FacialServiceDecodeFailures": replaced("errors_total", from_outage(40), type="image_corrupt"),
    "FacialServiceQueueUnreachable": replaced("queue_up", in_outage(0, 1)),
    "FacialServiceQueueNotWritable": replaced("queue_writable", in_outage(0, 1)),
    "FacialServiceQueueUnreachableFromInstance": replaced("queue_up", in_outage(0, 1), role="worker"),
    "FacialServiceQueueStorageNearlyFull": replaced("queue_storage_bytes", in_outage(900, 300)),
    "FacialServiceQueueNearlyFull": replaced("task_queue_used_ratio", in_outage(0.9)),
    "FacialServiceResultStoreNearlyFull": replaced("result_store_used_ratio", in_outage(0.9)),
    "FacialServiceQueueBacklogGrowing": replaced("task_queue_size", from_outage(50)),
    "FacialServiceOldestTaskTooOld": _stuck,
    "FacialServiceNoTaskWorkers": lambda data: _gone(data, role="worker"),
    "FacialServiceTaskFailureRatioHigh": replaced("task_completions_total", from_outage(20), status="FAILURE"),
    "FacialServiceRedeliveries": replaced("task_redeliveries_total", from_outage(20)),
    "FacialServiceTaskRepairs": replaced("task_repairs_total", from_outage(1), reason="task_lost"),
    "FacialServiceDeadTasks": replaced("task_dead_kept", in_outage(3)),
    "FacialServiceWorkerExits": replaced("app_worker_exits_total", from_outage(1), reason="killed"),
    "FacialServiceChildExits": replaced("app_child_exits_total", from_outage(1)),
    "FacialServiceFileDescriptorsExhausted": replaced("file_descriptors_exhausted", in_outage(1)),
    "FacialServiceMetricsLost": replaced("multiprocess_failing_processes", in_outage(1)),
    "FacialServiceCpuSaturated": replaced("cpu_usage_percent", in_outage(99, 40), process="worker-0"),
    "FacialServiceMetricFilesGrowing": replaced("multiprocess_files", in_outage(90, 6)),
    "FacialServiceScrapeSlow": replaced("scrape_duration_seconds", in_outage(5, 0.1)),
    "FacialServiceUnavailable": _pending,
    "FacialServiceMemoryNearLimit": replaced("container_memory_working_set_bytes", in_outage(950, 500)),
    "FacialServiceOomKilled": _oom_killed,
    "FacialServiceCpuThrottled": replaced("container_cpu_cfs_throttled_periods_total", from_outage(400)),
    "FacialServiceCrashLooping": replaced("kube_pod_container_status_waiting_reason", in_outage(1)),
    "FacialServiceReplicasMismatch": _unready_stateful_set,
    "FacialServiceHpaAtMaximum": _hpa_at_maximum,
    "FacialServiceVolumeFilling": replaced("kubelet_volume_stats_available_bytes", in_outage(30, 500)),
}


def test_every_alert_has_an_outage() -> None:
    assert set(OUTAGES) == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize(
    ("alert", "scope"),
    [
        *((alert, None) for alert in OUTAGES),
        *((alert, OWN) for alert in ("FacialServiceAbsent", "FacialServiceUnavailable")),
    ],
)
def test_alert_still_fires_two_hours_into_an_outage(alert: str, scope: Scope | None, tmp_path: Path) -> None:
    data = normal()
    OUTAGES[alert](data)
    firing = f'group(ALERTS{{alertname="{alert}", alertstate="firing"}})'
    tests = [expecting(firing, OUTAGE_AT - 1), expecting(firing, OUTAGE_AT + 120, "{}")]
    if alert not in {"FacialServiceErrorBudgetBurn", "FacialServiceLatencyBudgetBurn"}:
        # It was firing all the time, once it had begun, and at the latest after an hour.
        always = f'min_over_time(group(ALERTS{{alertname="{alert}", alertstate="firing"}})[60m:1m])'
        tests.append(expecting(f"group({always}) and on () (count_over_time(({firing})[60m:1m]) >= 60)", 150, "{}"))
    files = {name for name, groups in groups_by_file().items() if any(alert_in(alert, group) for group in groups)}
    # Recordings of the Kubernetes file are read by another one.
    rules = {name: text for name, text in rule_files(scope=scope).items() if name.removesuffix(".yaml") in files}
    promtool(tmp_path, rules, [{"input_series": data.written(), "promql_expr_test": tests}])


def alert_in(alert: str, group: Any) -> bool:
    return any(getattr(rule, "hold", None) and rule.name == alert for rule in group.rules)


# --- several releases and clusters ------------------------------------------------------------------------------------


def labelled(data: Data, **labels: str) -> Data:
    """Return the series with other labels of the release."""
    renamed = Data()
    for (name, its), values in data.series.items():
        renamed.set(name, values, **{**dict(its), **labels})
    return renamed


def of_service(make: Callable[[Data], None] = lambda _: None) -> Data:
    data = Data()
    pod(data, API_POD, "api")
    pod(data, WORKER_POD, "worker")
    make(data)
    return data


@pytest.mark.parametrize("label", ["release", "cluster", "namespace"])
def test_an_outage_is_that_of_one_release_and_names_it(label: str, tmp_path: Path) -> None:
    """Two releases differ in one label, and one of them is wholly down."""
    down = labelled(of_service(OUTAGES["FacialServiceDown"]), **{label: "down"})
    good = labelled(of_service(), **{label: "good"})
    firing = f'group by ({label}) (ALERTS{{severity="critical", alertstate="firing"}})'
    test = {
        "input_series": [*down.written(), *good.written()],
        "promql_expr_test": [expecting(firing, minute, f'{{{label}="down"}}') for minute in (40, 60, 150)],
    }
    promtool(tmp_path, rule_files(), [test])


def test_pending_pods_are_an_outage_until_callers_are_served_again(tmp_path: Path) -> None:
    """Another release lives elsewhere."""
    data = normal()
    _pending(data)
    other = labelled(of_service(), namespace="others", release="others")
    firing = 'group by (alertname, namespace) (ALERTS{severity="critical", alertstate="firing"})'
    unavailable = '{alertname="FacialServiceUnavailable", namespace="faces"}'
    for folder, scope, alerts in (
        ("files", None, [unavailable]),
        ("chart", OWN, ['{alertname="FacialServiceAbsent", namespace="faces"}', unavailable]),
    ):
        test = {
            "input_series": [*data.written(), *other.written()],
            "promql_expr_test": [
                *(expecting(firing, minute, *alerts) for minute in (50, 100, 179)),
                expecting(firing, OUTAGE_ENDS + 5),
            ],
        }
        (tmp_path / folder).mkdir()
        promtool(tmp_path / folder, rule_files(scope=scope), [test])


def test_a_full_volume_warns_before_it_pages(tmp_path: Path) -> None:
    """The volume of the queue fills up, nothing can be stored for half an hour, and then it has space again."""
    data = normal()
    free = [max(0.0, 500 - 10 * max(0, minute - 30)) if minute < 110 else 800.0 for minute in range(MINUTES)]
    data.change(lambda _: free, "kubelet_volume_stats_available_bytes")
    data.change(lambda values: changed(values, range(80, 110), 0), "queue_writable")
    firing = 'group by (alertname) (ALERTS{alertstate="firing"})'
    warning, page = '{alertname="FacialServiceVolumeFilling"}', '{alertname="FacialServiceQueueNotWritable"}'
    expected = ((60, ()), (79, (warning,)), (84, (warning, page)), (109, (warning, page)), (115, ()))
    tests = [expecting(firing, minute, *alerts) for minute, alerts in expected]
    promtool(tmp_path, rule_files(), [{"input_series": data.written(), "promql_expr_test": tests}])


def test_an_uninstalled_release_is_no_outage(tmp_path: Path) -> None:
    """The rules of the remaining release stay, and those of the other one have gone with it."""
    gone = normal()
    gone.change(lambda values: changed(values, range(60, MINUTES), None))
    other = labelled(of_service(), namespace="others", release="others")
    silent = {"expr": f'ALERTS{{alertstate=~"firing|pending"}}[{MINUTES - 60}m]', "eval_time": "199m"}
    silent = {"expr": f"count_over_time({silent['expr']})", "eval_time": "199m", "exp_samples": []}
    for folder, scope in (("files", None), ("chart", Scope(namespace="others", release="others", fullname="others"))):
        (tmp_path / folder).mkdir()
        test = {"input_series": [*gone.written(), *other.written()], "promql_expr_test": [silent]}
        promtool(tmp_path / folder, rule_files(scope=scope), [test])


def test_shedding_counts_if_the_objectives_include_it(tmp_path: Path) -> None:
    data = normal()
    _shed(data)
    firing = 'group by (severity) (ALERTS{alertname="FacialServiceErrorBudgetBurn", alertstate="firing"})'
    for folder, is_counted in (("ignored", False), ("counted", True)):
        (tmp_path / folder).mkdir()
        samples = ['{severity="critical"}'] if is_counted else []
        test = {"input_series": data.written(), "promql_expr_test": [expecting(firing, 60, *samples)]}
        texts = Texts.of(Objectives(count_shedding=is_counted))
        promtool(tmp_path / folder, {"slo.yaml": rule_files(texts=texts)["facial-service-slo.yaml"]}, [test])


def test_failures_page_soon_although_polls_outnumber_them(tmp_path: Path) -> None:
    """All processing requests fail, and 100 times as many polls succeed."""
    data = normal()
    _failing(data)
    firing = 'group(ALERTS{alertname="FacialServiceErrorBudgetBurn", severity="critical", alertstate="firing"})'
    test = {"input_series": data.written(), "promql_expr_test": [expecting(firing, OUTAGE_AT + 10, "{}")]}
    promtool(tmp_path, {"slo.yaml": rule_files()["facial-service-slo.yaml"]}, [test])


def test_a_missed_deadline_pages_if_it_is_a_value(tmp_path: Path) -> None:
    """Tasks are completed, but the oldest one waits for a quarter of an hour."""
    data = normal()
    data.change(lambda _: in_outage(900, 3), "task_oldest_age_seconds")
    firing = 'group(ALERTS{alertname="FacialServiceOldestTaskTooOld", alertstate="firing"})'
    for folder, deadline in (("without", None), ("with", Decimal(600))):
        (tmp_path / folder).mkdir()
        samples = [] if deadline is None else ["{}"]
        test = {"input_series": data.written(), "promql_expr_test": [expecting(firing, 60, *samples)]}
        texts = Texts.of(Objectives(task_deadline_s=deadline))
        promtool(tmp_path / folder, {"tasks.yaml": rule_files(texts=texts)["facial-service-tasks.yaml"]}, [test])


def test_a_fresh_install_shows_that_nothing_fires(tmp_path: Path) -> None:
    """The panel has a value before the first request."""
    data = of_service()
    data.change(lambda _: steady(0), "api_requests_total")
    dashboard = yaml.safe_load(DASHBOARD.read_text(encoding="utf-8"))
    panel = next(panel for panel in dashboard["panels"] if panel["title"] == "Alerts firing")
    tests = [
        {
            "expr": re.sub(r"\$\w+", ".*", target["expr"]),
            "eval_time": "5m",
            "exp_samples": [{"labels": "{}", "value": 0}],
        }
        for target in panel["targets"]
    ]
    test = {"input_series": data.written(), "promql_expr_test": tests}
    promtool(tmp_path, {"api.yaml": rule_files()["facial-service-api.yaml"]}, [test])
