"""Monitors, rules and dashboards: those of the generators for the release and its objectives, with overrides."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest

from grafana.builder.__main__ import dashboard_files
from prometheus.source.generate import rule_files
from prometheus.source.model import Scope
from prometheus.source.objectives import Objectives, ObjectivesError, Texts
from prometheus.source.render import Links
from tests.chart.helm import NAMESPACE, RELEASE, ROOT, HelmError, Values, read_objects, template

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.chart.helm import Release

RULE_FILES = sorted((ROOT / "prometheus" / "rules").glob("*.yaml"))
DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
OFF = "facial-service-kubernetes"
"""Group of alerts that kube-prometheus-stack defines itself."""

Group = dict[str, Any]


OWN = Scope(namespace=NAMESPACE, release=RELEASE, fullname=f"{RELEASE}-facial-service")


@lru_cache
def read_rules(file: Path) -> dict[str, Any]:
    """Return the rules of a file for the release."""
    (rules,) = read_objects(rule_files(scope=OWN)[file.name])
    return rules


def file_groups() -> list[Group]:
    return [copy.deepcopy(group) for file in RULE_FILES for group in read_rules(file)["groups"]]


def rendered_groups(release: Release) -> list[Group]:
    return [group for rule in release.all("PrometheusRule") for group in rule["spec"]["groups"]]


def by_name(groups: Iterable[Group]) -> dict[str, Group]:
    found = {group["name"]: group for group in groups}
    assert found
    return found


def with_rules(**values: Any) -> Release:
    return template(values={"prometheusRule": {"enabled": True} | values})


def alerts(groups: Iterable[Group]) -> list[dict[str, Any]]:
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def once() -> str:
    """An enabled alert with a single rule."""
    names = Counter(rule["alert"] for rule in alerts(file_groups()))
    return next(
        rule["alert"]
        for group in file_groups()
        if group["name"] != OFF
        for rule in alerts([group])
        if names[rule["alert"]] == 1
    )


def several() -> str:
    """An alert with several rules."""
    return Counter(rule["alert"] for rule in alerts(file_groups())).most_common(1)[0][0]


def test_groups_are_those_of_the_files() -> None:
    assert len(RULE_FILES) >= 3
    groups = rendered_groups(with_rules(kubernetes={"enabled": True}))
    assert by_name(groups) == by_name(file_groups())
    assert len(groups) == len(file_groups())


def test_what_kube_prometheus_stack_has_is_off() -> None:
    groups = by_name(rendered_groups(with_rules()))
    expected = by_name(file_groups())
    del expected[OFF]
    assert groups == expected


def test_one_object_a_file_in_the_files_order() -> None:
    rules = with_rules(kubernetes={"enabled": True}).all("PrometheusRule")
    assert len(rules) == len(RULE_FILES)
    for rule, file in zip(sorted(rules, key=lambda item: item["metadata"]["name"]), RULE_FILES, strict=True):
        assert rule["metadata"]["name"].endswith(f"-{file.stem}")
        assert rule["spec"] == read_rules(file)


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ({"expr": "vector(1) > 0"}, ("expr",), "vector(1) > 0"),
        ({"for": "17m"}, ("for",), "17m"),
        ({"keep_firing_for": "3m"}, ("keep_firing_for",), "3m"),
        ({"severity": "info"}, ("labels", "severity"), "info"),
        ({"labels": {"team": "a"}}, ("labels", "team"), "a"),
        ({"annotations": {"summary": "{{ $labels.pod }}"}}, ("annotations", "summary"), "{{ $labels.pod }}"),
    ],
)
def test_override_changes_what_it_says_and_nothing_else(
    override: dict[str, Any], place: tuple[str, ...], value: str
) -> None:
    groups = by_name(rendered_groups(with_rules(kubernetes={"enabled": True}, overrides={once(): override})))
    expected = by_name(file_groups())
    (rule,) = (rule for rule in alerts(expected.values()) if rule["alert"] == once())
    assert rule.get(place[0]) != value
    part = rule
    for step in place[:-1]:
        part = part.setdefault(step, {})
    part[place[-1]] = value
    assert groups == expected


def test_override_by_name_reaches_every_rule_of_that_name() -> None:
    release = with_rules(overrides={several(): {"severity": "info"}})
    changed = [rule for rule in alerts(rendered_groups(release)) if rule["alert"] == several()]
    assert len(changed) > 1
    assert {rule["labels"]["severity"] for rule in changed} == {"info"}


def test_alert_that_is_turned_off_is_gone_alone() -> None:
    expected = by_name(file_groups())
    for group in expected.values():
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert") != several()]
    groups = rendered_groups(with_rules(kubernetes={"enabled": True}, overrides={several(): {"enabled": False}}))
    # A group without enabled rules is omitted.
    assert by_name(groups) == {name: group for name, group in expected.items() if group["rules"]}


def test_one_alert_of_a_group_that_is_off_is_turned_on() -> None:
    name = next(rule["alert"] for group in file_groups() if group["name"] == OFF for rule in alerts([group]))
    groups = by_name(rendered_groups(with_rules(overrides={name: {"enabled": True}})))
    assert [rule["alert"] for rule in groups[OFF]["rules"]] == [name]


def test_labels_for_all_yield_to_those_of_an_alert() -> None:
    groups = rendered_groups(with_rules(additionalLabels={"team": "a", "severity": "none"}))
    assert {rule["labels"]["team"] for rule in alerts(groups)} == {"a"}
    assert "none" not in {rule["labels"]["severity"] for rule in alerts(groups)}


def test_links_lead_to_where_pages_and_dashboards_are() -> None:
    bases = {"runbookBaseUrl": "https://git.example.com/faces/", "dashboardBaseUrl": "https://grafana.example.com"}
    links = Links(runbooks="https://git.example.com/faces", dashboards="https://grafana.example.com")
    expected = [group for text in rule_files(links, scope=OWN).values() for group in read_objects(text)[0]["groups"]]
    found = by_name(rendered_groups(with_rules(kubernetes={"enabled": True}, **bases)))
    assert found == by_name(expected)
    assert all(rule["annotations"]["runbook_url"].startswith("https://") for rule in alerts(found.values()))


def test_a_link_without_its_address_is_left_out() -> None:
    annotations = [rule["annotations"] for rule in alerts(rendered_groups(with_rules()))]
    assert not any({"runbook_url", "dashboard_url"} & each.keys() for each in annotations)


OBJECTIVES: list[Values] = [
    {},
    {"availability": {"objective": 0.995}, "latency": {"objective": 0.95, "threshold": 0.5}},
    {"countShedding": True, "windowDays": 28, "taskDeadlineSeconds": 900, "routes": "/api/v1/frontal/.+"},
    {"availability": {"objective": 0.9999}, "latency": {"threshold": 2.5}, "windowDays": 7},
]


@pytest.mark.parametrize("slo", OBJECTIVES, ids=str)
def test_objectives_change_rules_dashboards_and_service_alike(slo: Values) -> None:
    """The chart computes the same texts as the generator."""
    values = {
        "slo": slo,
        "prometheusRule": {"enabled": True, "kubernetes": {"enabled": True}},
        "dashboards": {"enabled": True},
    }
    release = template(values=values)
    texts = Texts.of(Objectives.from_values(values))
    expected = [
        group for text in rule_files(texts=texts, scope=OWN).values() for group in read_objects(text)[0]["groups"]
    ]
    assert by_name(rendered_groups(release)) == by_name(expected)
    shown = {name: json.loads(text) for name, text in dashboard_files(texts).items()}
    assert dashboards_of(release) == shown
    (container,) = release.named("Deployment", "-api")["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert float(environment["SLO_LATENCY_THRESHOLD_S"] or 0) == float(texts.latency_seconds)


def dashboards_of(release: Release) -> dict[str, Any]:
    maps = [item for item in release.all("ConfigMap") if "grafana_dashboard" in item["metadata"]["labels"]]
    return {name: json.loads(text) for item in maps for name, text in item["data"].items()}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slo": {"latency": {"threshold": 0.3}}}, "slo.latency.threshold: expected a boundary of"),
        ({"slo": {"availability": {"objective": 0.9}}}, "slo.availability.objective: expected more than 0.9306"),
        ({"slo": {"latency": {"objective": 0.6}}}, "slo.latency.objective: expected more than 0.9306"),
        ({"settings": {"REQUEST_DURATION_BUCKETS": [0.5, 2]}}, "slo.latency.threshold: expected a boundary of"),
        ({"slo": {"latency": {"limit": 1}}}, "additional properties 'limit' not allowed"),
    ],
)
def test_an_impossible_objective_is_refused(values: Values, message: str) -> None:
    with pytest.raises(HelmError, match=re.escape(message)):
        template(values=values)
    with pytest.raises(ObjectivesError, match=r"slo"):
        Objectives.from_values(values)


def test_custom_buckets_with_the_threshold_are_accepted() -> None:
    values: Values = {"slo": {"latency": {"threshold": 2}}, "settings": {"REQUEST_DURATION_BUCKETS": "0.5,2"}}
    assert template(values=values).objects
    assert Objectives.from_values(values).latency_threshold_s == 2


@pytest.mark.parametrize(("interval", "is_refused"), [("60s", False), ("2m", True), ("61s", True)])
def test_scrape_interval_leaves_two_samples_in_each_window(interval: str, *, is_refused: bool) -> None:
    values = {"metrics": {"interval": interval}, "prometheusRule": {"enabled": True}}
    if not is_refused:
        template(values=values)
        return
    with pytest.raises(HelmError, match=r"metrics.interval: expected at most 1m"):
        template(values=values)


def test_rules_select_a_cluster_if_targets_have_the_label() -> None:
    groups = by_name(rendered_groups(with_rules(cluster="eu-1", kubernetes={"enabled": True})))
    scope = Scope(namespace=OWN.namespace, release=OWN.release, fullname=OWN.fullname, cluster=', cluster="eu-1"')
    expected = [group for text in rule_files(scope=scope).values() for group in read_objects(text)[0]["groups"]]
    assert groups == by_name(expected)


def test_two_releases_in_one_namespace_have_rules_of_their_own() -> None:
    """Each series that a rule reads is of its own release, or of Kubernetes objects with its own names."""
    values = {"prometheusRule": {"enabled": True, "kubernetes": {"enabled": True}}}
    releases = {name: rendered_groups(template(values=values, release=name)) for name in ("a", "b")}
    for name, groups in releases.items():
        for rule in (rule for group in groups for rule in group["rules"]):
            assert rule["expr"].count('job="facial-service"') == rule["expr"].count(f'release="{name}"')


def test_groups_of_ones_own_come_along() -> None:
    own = {"name": "own", "rules": [{"alert": "Own", "expr": "vector(1)", "annotations": {"a": "{{ $value }}"}}]}
    groups = by_name(rendered_groups(with_rules(additionalGroups=[own])))
    assert groups.pop("own") == own
    assert groups == by_name(rendered_groups(with_rules()))


def test_rules_keep_their_words_and_templates() -> None:
    """Templates of Prometheus and of Helm use the same braces."""
    texts = [rule["annotations"]["description"] for rule in alerts(rendered_groups(with_rules()))]
    assert any("{{ $labels." in text for text in texts)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"FacialServiceDwon": {"severity": "info"}}, "unknown alert FacialServiceDwon; expected one of: "),
        ({several(): {"expr": "vector(1)"}}, f"rules have the name {several()}, each with a different expression"),
        ({once(): {"severty": "info"}}, "additional properties 'severty' not allowed"),
        ({once(): {"enabled": "false"}}, "got string, want boolean"),
        ({once(): {"for": "5 minutes"}}, "does not match pattern"),
    ],
)
def test_override_that_would_do_nothing_is_refused(overrides: Values, message: str) -> None:
    with pytest.raises(HelmError) as caught:
        with_rules(overrides=overrides)
    assert message in " ".join(str(caught.value).split())


def test_dashboards_are_the_files_byte_by_byte() -> None:
    assert len(DASHBOARDS) >= 3
    release = template(values={"dashboards": {"enabled": True}})
    maps = [item for item in release.all("ConfigMap") if "grafana_dashboard" in item["metadata"]["labels"]]
    carried: dict[str, str] = {}
    for item in maps:
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert item["metadata"]["annotations"] == {"grafana_folder": "facial-service"}
        # All keys must differ, because the sidecar writes them into one folder.
        assert len(item["data"]) == 1
        assert not carried.keys() & item["data"].keys()
        carried |= item["data"]
    assert {name: json.loads(text) for name, text in carried.items()} == {
        file.name: json.loads(file.read_bytes()) for file in DASHBOARDS
    }
    for name, text in carried.items():
        assert name.startswith("facial-service")
        assert len(text.encode()) < 2**20
        assert json.loads(text)["uid"]


@pytest.mark.parametrize(("has_logs", "has_traces"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("base", ["", "https://git.example.com/faces/"])
def test_dashboards_have_the_links_whose_addresses_are_known(base: str, *, has_logs: bool, has_traces: bool) -> None:
    values = {
        "dashboards": {"enabled": True, "logs": has_logs, "traces": has_traces},
        "prometheusRule": {"runbookBaseUrl": base},
    }
    links = Links(runbooks=base.rstrip("/") or None)
    files = dashboard_files(links=links, has_logs=has_logs, has_traces=has_traces)
    expected = {name: json.loads(text) for name, text in files.items()}
    assert dashboards_of(template(values=values)) == expected


def test_dashboards_have_uids_of_their_own() -> None:
    uids = [json.loads(file.read_text(encoding="utf-8"))["uid"] for file in DASHBOARDS]
    assert len(set(uids)) == len(uids)


PROBE: Values = {"enabled": True, "proberUrl": "blackbox.monitoring.svc:9115"}


def test_probe_has_the_labels_that_rules_select() -> None:
    values: Values = {
        "metrics": {"probe": PROBE, "interval": "1m", "scrapeTimeout": "20s", "labels": {"release": "stack"}},
        "prometheusRule": {"cluster": "eu"},
        "api": {"service": {"port": 8080}},
    }
    (probe,) = template(values=values).all("Probe")
    assert probe["metadata"]["labels"]["release"] == "stack"
    spec = probe["spec"]
    assert (spec["interval"], spec["scrapeTimeout"], spec["module"]) == ("1m", "20s", "http_2xx")
    assert spec["prober"] == {"url": "blackbox.monitoring.svc:9115"}
    assert spec["targets"]["staticConfig"] == {
        "static": [f"http://{RELEASE}-facial-service-api.{NAMESPACE}.svc:8080/health"],
        "labels": {"namespace": NAMESPACE, "release": RELEASE, "cluster": "eu"},
    }
    # `up` keeps the job of the Probe, so that the exporter does not count as an instance of the service.
    assert spec["jobName"] != "facial-service"
    assert spec["metricRelabelings"] == [{"targetLabel": "job", "replacement": "facial-service"}]


def test_probe_requests_another_address_if_it_is_given() -> None:
    values: Values = {"metrics": {"probe": PROBE | {"url": "https://faces.example.com/openapi.json", "module": "tls"}}}
    spec = template(values=values).all("Probe")[0]["spec"]
    assert spec["module"] == "tls"
    assert spec["targets"]["staticConfig"] == {
        "static": ["https://faces.example.com/openapi.json"],
        "labels": {"namespace": NAMESPACE, "release": RELEASE},
    }


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"proberUrl": ""}, "metrics.probe.proberUrl: expected host and port of a blackbox exporter"),
        ({"proberUrl": "http://blackbox:9115"}, "proberUrl"),
        ({"url": "faces.example.com"}, "url"),
    ],
)
def test_probe_that_could_not_work_is_refused(probe: Values, message: str) -> None:
    with pytest.raises(HelmError, match=re.escape(message)):
        template(values={"metrics": {"probe": PROBE | probe}})


@pytest.mark.parametrize("kind", ["serviceMonitor", "podMonitor"])
def test_targets_are_called_what_rules_look_for(kind: str) -> None:
    values: Values = {
        "metrics": {
            kind: {"enabled": True},
            "interval": "1m",
            "scrapeTimeout": "20s",
            "labels": {"release": "stack"},
            "sampleLimit": 7,
            "labelLimit": 8,
            "relabelings": [{"targetLabel": "own", "replacement": "x"}],
            "metricRelabelings": [{"action": "labeldrop", "regex": "a"}],
            "podTargetLabels": ["tier"],
        }
    }
    (monitor,) = template(values=values).all("ServiceMonitor", "PodMonitor")
    assert monitor["kind"].lower() == kind.lower()
    assert monitor["metadata"]["labels"]["release"] == "stack"
    spec = monitor["spec"]
    assert (spec["sampleLimit"], spec["labelLimit"], spec["podTargetLabels"]) == (7, 8, ["tier"])
    (endpoint,) = spec.get("endpoints") or spec["podMetricsEndpoints"]
    assert (endpoint["interval"], endpoint["scrapeTimeout"]) == ("1m", "20s")
    assert (endpoint["port"], endpoint["path"], endpoint["honorLabels"]) == ("metrics", "/metrics", False)
    relabelings = endpoint["relabelings"]
    assert {"targetLabel": "job", "replacement": "facial-service"} in relabelings
    assert {"targetLabel": "release", "replacement": RELEASE} in relabelings
    role = next(item for item in relabelings if item["targetLabel"] == "role")
    assert role["sourceLabels"] == ["__meta_kubernetes_pod_label_app_kubernetes_io_component"]
    assert relabelings[-1] == {"targetLabel": "own", "replacement": "x"}
    assert endpoint["metricRelabelings"] == [{"action": "labeldrop", "regex": "a"}]


def test_no_limit_is_no_field() -> None:
    values = {"metrics": {"serviceMonitor": {"enabled": True}, "sampleLimit": 0, "labelLimit": 0}}
    (monitor,) = template(values=values).all("ServiceMonitor")
    assert not {"sampleLimit", "labelLimit"} & monitor["spec"].keys()


def test_limit_leaves_room_for_what_a_pod_has() -> None:
    (monitor,) = template(values={"metrics": {"serviceMonitor": {"enabled": True}}}).all("ServiceMonitor")
    assert monitor["spec"]["sampleLimit"] >= 10_000


def test_nothing_of_the_operators_is_there_until_asked_for() -> None:
    groups = {item["apiVersion"].partition("/")[0] for item in template().objects}
    assert groups == {"v1", "apps", "policy"}


@pytest.mark.parametrize("part", ["metrics", "prometheusRule", "dashboards"])
def test_other_namespace_says_where_it_comes_from(part: str) -> None:
    values: Values = {
        "metrics": {"serviceMonitor": {"enabled": True}, "probe": PROBE},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    }
    values[part]["namespace"] = "elsewhere"
    moved = [item for item in template(values=values).objects if item["metadata"].get("namespace") == "elsewhere"]
    assert moved
    assert all(item["metadata"]["name"].startswith(f"{NAMESPACE}-") for item in moved)
    if part == "metrics":
        probe, monitor = sorted(moved, key=lambda item: item["kind"])
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": [NAMESPACE]}
        assert probe["spec"]["targets"]["staticConfig"]["labels"]["namespace"] == NAMESPACE


@pytest.mark.parametrize("monitor", [None, "serviceMonitor", "podMonitor"])
def test_annotations_for_prometheus_stand_in_where_no_monitor_is(monitor: str | None) -> None:
    release = template(values={"metrics": {monitor: {"enabled": True}}} if monitor else {})
    annotated = [item for item in release.all("Service") if "annotations" in item["metadata"]]
    assert len(annotated) == (0 if monitor else 2)
    for service in annotated:
        annotations = service["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == str(service["spec"]["ports"][0]["port"]) == "9000"
