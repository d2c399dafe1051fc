"""Monitors and rules in the Operator's Prometheus, and alerts in Alertmanager."""

from __future__ import annotations

import json
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.cluster import Namespace, Release, require_no_loss, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.alerting import Webhook
    from tests.e2e.cluster import Load

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
MONITORING = Namespace("monitoring")
ALERT_LIMIT_S = 180


def ask(path: str, **query: str) -> Any:
    """Query Prometheus."""
    encoded = f"?{urllib.parse.urlencode(query)}" if query else ""
    return json.loads(MONITORING.raw("services", "prometheus-operated", 9090, f"api/v1/{path}{encoded}"))["data"]


def targets(release: Release) -> list[dict[str, Any]]:
    """Return the targets of this release."""
    found = ask("targets", state="active")["activeTargets"]
    return [target for target in found if target["labels"].get("namespace") == release.namespace.name]


def require_targets(release: Release, kind: str) -> None:
    """Wait until every pod is a target that is up, by a kind of monitor, and check the labels."""

    def all_up() -> list[dict[str, Any]]:
        found = [target for target in targets(release) if target["scrapePool"].startswith(f"{kind}/")]
        return found if len(found) >= 2 and all(target["health"] == "up" for target in found) else []

    found = wait_for(all_up, "two targets that are up", limit_s=180)
    told = {(target["labels"]["role"], target["labels"]["pod"]) for target in found}
    pods = {(role, pod["metadata"]["name"]) for role in ("api", "worker") for pod in release.ready(role)}
    assert told == pods
    assert {target["labels"]["job"] for target in found} == {"facial-service"}
    assert {target["labels"]["release"] for target in found} == {release.name}
    assert all(target["lastError"] == "" for target in found)


def test_every_pod_is_a_target_and_its_labels_are_right(watched: Release, watched_by_pods: Release) -> None:
    require_targets(watched, "serviceMonitor")
    require_targets(watched_by_pods, "podMonitor")


def test_the_rules_are_loaded_and_evaluate(watched: Release) -> None:
    objects = watched.namespace.items("prometheusrules")
    wanted = {group["name"] for item in objects for group in item["spec"]["groups"]}
    assert wanted

    def evaluated() -> list[dict[str, Any]]:
        groups = [group for group in ask("rules")["groups"] if watched.namespace.name in group["file"]]
        done = [group for group in groups if all(rule["health"] == "ok" for rule in group["rules"])]
        return done if {group["name"] for group in done} == wanted else []

    groups = wait_for(evaluated, "every group of rules", limit_s=180)
    assert not [rule for group in groups for rule in group["rules"] if rule.get("lastError")]


def test_the_counts_in_prometheus_are_the_callers(watched: Release, start_load: Callable[..., Any]) -> None:
    load = start_load(watched, "sync")
    load.wait_answers(50)
    account = load.stop()
    require_no_loss(account)
    query = (
        f'sum(api_requests_total{{namespace="{watched.namespace.name}",'
        'endpoint="/api/v1/frontal/crop",method="POST",status="200"})'
    )

    def counted() -> float:
        result = ask("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else 0.0

    wait_for(lambda: counted() == account["answered"], f"{account['answered']} answers in Prometheus", limit_s=60)


def test_each_dashboard_is_a_config_map_that_the_sidecar_looks_for(watched: Release) -> None:
    found = watched.namespace.items("configmaps", labels="grafana_dashboard=1")
    names = [name for item in found for name in item["data"]]
    assert len(names) == len(set(names)) == len(found) > 0
    for item in found:
        for text in item["data"].values():
            assert json.loads(text)["uid"].startswith("facial-service")


def wait_firing(webhook: Webhook, release: Release, alert: str) -> None:
    """Wait for the notification of an alert on a release, and return it."""
    place, start = release.namespace.name, time.monotonic()
    assert webhook.wait_for(lambda: bool(webhook.firing(alert, place)), limit_s=ALERT_LIMIT_S), f"no {alert} came"
    (notice,) = webhook.firing(alert, place)
    assert notice.labels["severity"] == "critical"
    assert f"in namespace {place}" in notice.annotations["description"]
    assert notice.annotations["runbook_url"].endswith(f"/docs/runbooks/{alert}.md")
    print(f"{alert}: at the webhook {notice.at - start:.0f} s after the fault")


def wait_resolved(webhook: Webhook, release: Release, alert: str) -> None:
    """Wait for the notification that an alert on a release is resolved."""
    place, start = release.namespace.name, time.monotonic()
    assert webhook.wait_for(lambda: not webhook.firing(alert, place), limit_s=ALERT_LIMIT_S), f"{alert} stayed"
    print(f"{alert}: resolved {time.monotonic() - start:.0f} s after the fault's end")


def scale(release: Release, component: str, replicas: int) -> None:
    """Scale a component, as an operator would."""
    release.namespace.kubectl("scale", f"deployment/{release.fullname}-{component}", f"--replicas={replicas}")
    wait_for(lambda: len(release.pods(component)) == replicas, f"{replicas} pods of {component}")


def test_tasks_that_nobody_works_on_call_somebody(
    watched: Release, webhook: Webhook, start_load: Callable[..., Load]
) -> None:
    alert = "FacialServiceNoTaskWorkers"
    require_targets(watched, "serviceMonitor")
    assert webhook.notices(alert, watched.namespace.name) == []
    scale(watched, "worker", 0)
    load = start_load(watched, "tasks", callers=1)
    wait_firing(webhook, watched, alert)
    scale(watched, "worker", 1)
    wait_resolved(webhook, watched, alert)
    account = load.stop()
    require_no_loss(account)


def test_an_api_that_does_not_start_calls_somebody(watched: Release, webhook: Webhook) -> None:
    alert = "FacialServiceDown"
    require_targets(watched, "serviceMonitor")
    assert webhook.notices(alert, watched.namespace.name) == []
    scale(watched, "api", 0)
    watched.namespace.kubectl("set", "env", f"deployment/{watched.fullname}-api", "WORKERS=none")
    scale(watched, "api", 1)
    wait_firing(webhook, watched, alert)
    watched.deploy(watched.values)
    wait_resolved(webhook, watched, alert)
    assert len(watched.ready("api")) == 1
