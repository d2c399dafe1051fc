"""Two releases in one namespace, each evaluated separately in the Operator's Prometheus and in Alertmanager."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.dashboards import fill, load, panels
from tests.e2e.cluster import Release, wait_for
from tests.e2e.conftest import PROMETHEUS_LABELS, RUNBOOKS, SMALL, SOON, has_prometheus, leave_out, monitoring
from tests.e2e.test_monitoring import MONITORING, ask, scale, wait_firing, wait_resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.alerting import Webhook

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
PROMETHEUSES = "prometheuses.monitoring.coreos.com"


@pytest.fixture(scope="module")
def cluster_label(cluster: None) -> Iterator[str]:
    """Give Prometheus the external label ``cluster``, and return its value."""
    if not has_prometheus():
        leave_out("no Prometheus of the Operator runs in the namespace monitoring")
    (name, *_) = (item["metadata"]["name"] for item in MONITORING.items(PROMETHEUSES))

    def set_label(value: str | None) -> None:
        patch = json.dumps({"spec": {"externalLabels": {"cluster": value}}})
        MONITORING.kubectl("patch", PROMETHEUSES, name, "--type=merge", f"--patch={patch}")

    set_label("e2e")
    yield "e2e"
    set_label(None)


def shown(release: Release, title: str) -> list[float]:
    """Return the values of a panel of the Overview dashboard for a release, one for each query."""
    everything = dict.fromkeys(("cluster", "pod", "instance"), ".*")
    values = {**everything, "job": "facial-service", "namespace": release.namespace.name, "release": release.name}
    (panel,) = (panel for panel in panels(load()["facial-service-overview"]) if panel["title"] == title)
    results = [ask("query", query=fill(target["expr"], values))["result"] for target in panel["targets"]]
    return [float(found["value"][1]) for result in results for found in result]


def test_an_outage_of_one_release_does_not_hide_behind_another_in_its_namespace(
    cluster_label: str, make_release: Callable[..., Release], webhook: Webhook
) -> None:
    """Two releases run in one namespace, and one is down. The external label of the cluster reaches Alertmanager."""
    alert = "FacialServiceDown"
    rules = {"enabled": True, "labels": PROMETHEUS_LABELS, "overrides": SOON, "runbookBaseUrl": RUNBOOKS}
    values = {**SMALL, "metrics": monitoring("serviceMonitor"), "prometheusRule": rules}
    values |= {"worker": {"enabled": False}, "nats": {"enabled": False}}
    down = make_release()
    good = Release(down.namespace, "good", down.chart, down.image)
    for release in (down, good):
        release.deploy(values)
    wait_for(lambda: f"cluster: {cluster_label}" in ask("status/config")["yaml"], "the external label", limit_s=180)
    for release in (down, good):
        wait_for(lambda one=release: shown(one, "Instances") == [1, 0], "a target that is up", limit_s=180)
        wait_for(lambda one=release: shown(one, "Alerts firing") == [0, 0], "the rules", limit_s=180)

    scale(down, "api", 0)
    down.namespace.kubectl("set", "env", f"deployment/{down.fullname}-api", "WORKERS=none")
    scale(down, "api", 1)
    wait_firing(webhook, down, alert)
    (notice,) = webhook.firing(alert, down.namespace.name)
    assert (notice.labels["release"], notice.labels["cluster"]) == (down.name, cluster_label)
    assert f"of release {down.name} in namespace {down.namespace.name}" in notice.annotations["description"]
    wait_for(lambda: shown(down, "Alerts firing")[0] >= 1, "the alert on the dashboard")
    assert shown(down, "Instances") == [0, 1]
    assert (shown(good, "Instances"), shown(good, "Alerts firing")) == ([1, 0], [0, 0])

    down.deploy(values)
    wait_resolved(webhook, down, alert)
    assert {each.labels["release"] for each in webhook.notices(place=down.namespace.name)} == {down.name}
