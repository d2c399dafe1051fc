"""Rules name only existing metrics and labels and fit the metric type; alerts have complete annotations."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from app.face.errors import PUBLIC_CODES
from app.main import create_app
from app.observability.metrics import METRICS
from app.settings import Settings
from app.supervisor.scoreboard import Scoreboard, make_task_scoreboard
from app.web.error_handlers import UNSENT_CODES
from app.web.problems import PROBLEMS, TASK_ERRORS
from prometheus.source.api import SCALED_TO_ZERO
from prometheus.source.kubernetes import FULLNAMES
from prometheus.source.model import LABELS
from tests.promql import COUNTER_FUNCTIONS, GAUGE_FUNCTIONS, TARGET_LABELS, Expression, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.promql import Use

ROOT = Path(__file__).parents[2]
RULES = ROOT / "prometheus" / "rules"
SEVERITIES = {"critical", "warning", "info"}
OF_SCRAPES = ("up", "scrape_duration_seconds")
OF_PROBER = ("probe_success",)
OVER_TIME = {"avg_over_time", "max_over_time", "last_over_time", "sum_over_time"}
# Values from Kubernetes: names of pods, and reasons.
FOREIGN = {
    "reason": {"OOMKilled", "CrashLoopBackOff"},
    "resource": {"memory"},
    "role": {"api", "worker"},
}
NAMED = {
    "pod": {"faces-api-5d8c7b9f6-x2k4p", "faces-worker-7f6d5c4b3-m1n2b", "faces-nats-0"},
    "container": {"api", "worker", "nats"},
    "deployment": {"faces-api", "faces-worker"},
    "statefulset": {"faces-nats"},
    "horizontalpodautoscaler": {"faces-api", "keda-hpa-faces-worker"},
    "persistentvolumeclaim": {"store-faces-nats-0", "cluster-store-faces-nats-0"},
}
# Labels in templates of Prometheus, and labels that alerts of some kinds do not have.
TEMPLATE = re.compile(r"\$labels\.(\w+)")
HUMAN = re.compile(r"{{ \$value \| (humanize|humanizePercentage|humanizeDuration|printf \"%\.0f\") }}")


def groups() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(RULES.glob("*.yaml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield path.stem, group


RULE_LIST = [(file, rule) for file, group in groups() for rule in group["rules"]]
ALERTS = [rule for _, rule in RULE_LIST if "alert" in rule]


def name_of(item: Any) -> str:
    rule = item[1] if isinstance(item, tuple) else item
    return str(rule.get("record") or f"{rule['alert']}-{rule['labels'].get('long', '')}".rstrip("-"))


EACH_RULE = pytest.mark.parametrize(("file", "rule"), RULE_LIST, ids=[name_of(item) for item in RULE_LIST])
EACH_ALERT = pytest.mark.parametrize("alert", ALERTS, ids=name_of)


def of_service() -> Iterator[tuple[str, Metric]]:
    for spec in METRICS:
        labels = TARGET_LABELS | set(spec.labels)
        if spec.kind == "histogram":
            yield f"{spec.name}_bucket", Metric("counter", labels | {"le"})
            yield from ((f"{spec.name}_{end}", Metric("counter", labels)) for end in ("sum", "count"))
        else:
            yield spec.name, Metric(spec.kind, labels)


def of_kubernetes() -> dict[str, Metric]:
    text = (ROOT / "tests" / "kubernetes.prom").read_text(encoding="utf-8")
    return {
        sample.name: Metric(family.type, frozenset(sample.labels) | {"cluster", "job", "instance"})
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@cache
def metrics() -> dict[str, Metric]:
    """Return all metrics that a rule may name: of the service, scrapes, Kubernetes and earlier rules."""
    known = {name: Metric("gauge", TARGET_LABELS) for name in (*OF_SCRAPES, *OF_PROBER)}
    known |= dict(of_service()) | of_kubernetes()
    for _, rule in RULE_LIST:
        if "record" in rule:
            known[rule["record"]] = Metric("gauge", Expression(rule["expr"], known).labels)
    return known


def parse(rule: dict[str, Any]) -> Expression:
    return Expression(rule["expr"], metrics())


def spec_of(use: Use) -> Any:
    names = {use.name, re.sub("_(bucket|sum|count)$", "", use.name)}
    return next((spec for spec in METRICS if spec.name in names), None)


@EACH_RULE
def test_rule_names_metrics_and_labels_that_exist(file: str, rule: dict[str, Any]) -> None:
    for use in parse(rule).uses:
        is_foreign = use.name in of_kubernetes()
        assert not is_foreign or file == "facial-service-kubernetes", f"{use.name} is not there without Kubernetes"
    assert parse(rule).labels


@EACH_RULE
def test_counters_are_rated_and_gauges_are_not(file: str, rule: dict[str, Any]) -> None:
    del file
    # This alert also checks which series exist.
    others = {"", "last_over_time"} if rule.get("alert") == "FacialServiceAllRequestsFail" else set()
    for use in parse(rule).uses:
        if metrics()[use.name].kind == "counter":
            assert use.function in COUNTER_FUNCTIONS | others, f"{use.name} is a counter"
        else:
            assert use.function not in COUNTER_FUNCTIONS, f"{use.name} is a gauge"
            assert (use.window_s is not None) == (use.function in GAUGE_FUNCTIONS | OVER_TIME)


@EACH_RULE
def test_rule_is_about_our_job_alone(file: str, rule: dict[str, Any]) -> None:
    """Generic names such as `queue_up` need a job; metrics of Kubernetes are joined with the names of our objects."""
    uses = parse(rule).uses
    for use in uses:
        if use.name not in of_kubernetes():
            assert ("job", "MatchOp.Equal", "facial-service") in use.matchers, use.name
    if file == "facial-service-kubernetes" and any(use.name in of_kubernetes() for use in uses):
        assert FULLNAMES in {use.name for use in uses}
        assert "* on (cluster, namespace, fullname) group_left (release, job)" in " ".join(rule["expr"].split())


@EACH_RULE
def test_releases_and_clusters_are_judged_separately(file: str, rule: dict[str, Any]) -> None:
    """Aggregations and joins keep the labels of a release, so that none hides or blames another one."""
    del file
    assert set(LABELS) <= parse(rule).labels
    for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"]):
        named = set(labels.split(", "))
        is_of_kubernetes = {"cluster", "namespace"} <= named and "job" not in named
        is_absent = named == {"job"} and rule.get("alert") == "FacialServiceAbsent"
        assert set(LABELS) <= named or is_of_kubernetes or is_absent, labels


@EACH_RULE
def test_values_of_labels_exist(file: str, rule: dict[str, Any]) -> None:
    del file
    for use in parse(rule).uses:
        for name, operator, value in use.matchers:
            if (known := values_of(use, name)) is not None and value:
                pattern = value if "Re" in operator else re.escape(value)
                for part in alternatives(pattern):
                    assert any(re.fullmatch(part, one) for one in known), f"{use.name}: no {name} is {part}"


def alternatives(pattern: str) -> list[str]:
    """Split a pattern into its alternatives, so that each one must exist."""
    choice = re.search(r"\((?:\?:)?([^()|]+(?:\|[^()|]+)+)\)", pattern)
    if choice:
        parts = choice[1].split("|")
        return [one for part in parts for one in alternatives(pattern.replace(choice[0], part, 1))]
    return pattern.split("|") if "(" not in pattern else [pattern]


def values_of(use: Use, label: str) -> set[str] | None:  # noqa: PLR0911 - one case per label
    if label == "job":
        return {"facial-service"}
    spec = spec_of(use)
    if spec is None or label not in spec.labels:
        return bounds(use) if label == "le" else FOREIGN.get(label) or NAMED.get(label)
    known = spec.labels[label]
    if not isinstance(known, str):
        return set(known)
    if label == "endpoint":
        return set(paths())
    if label == "status":
        return {str(status) for status, _ in PROBLEMS.values()} | {"200", "202"}
    if label == "method":
        return {method.upper() for path in paths().values() for method in path}
    if label == "process":
        scoreboards = (Scoreboard(expected_workers=1, timeout_s=1), make_task_scoreboard(Settings()))
        return {scoreboard.worker_name(slot) for scoreboard in scoreboards for slot in (0, 11)}
    if (spec.name, label) == ("errors_total", "type"):
        return {*PROBLEMS, *PUBLIC_CODES, *TASK_ERRORS, *UNSENT_CODES.values()}
    return set(re.findall("`([^`]+)`", known))


@cache
def paths() -> dict[str, Any]:
    return dict(create_app(Settings()).openapi()["paths"])


def bounds(use: Use) -> set[str]:
    defaults = Settings.model_fields[spec_of(use).buckets].default
    return {floatToGoString(bound) for bound in defaults} | {"+Inf"}


def test_a_value_that_does_not_exist_is_found() -> None:
    use = Expression('errors_total{job="facial-service"}', metrics()).uses[0]
    codes = values_of(use, "type") or set()
    assert alternatives("image_(corrupt|trunkated)") == ["image_corrupt", "image_trunkated"]
    assert not any(re.fullmatch("image_trunkated", code) for code in codes)
    assert any(re.fullmatch("image_corrupt", code) for code in codes)


@EACH_RULE
def test_windows_see_several_scrapes(file: str, rule: dict[str, Any]) -> None:
    """A rate needs two samples, and a scrape can fail: with the usual interval of up to a minute, two minutes."""
    del file
    assert all(use.window_s is None or use.window_s >= 120 for use in parse(rule).uses)


def test_recordings_are_named_by_the_convention() -> None:
    for _, rule in RULE_LIST:
        if "record" in rule:
            level, metric, operations = rule["record"].split(":")
            assert set(parse(rule).labels) == set(level.split("_")), rule["record"]
            assert not metric.endswith("_total")
            assert re.fullmatch(r"(ratio(_rate\d+[mhd]|_max)?|rate5m|max|last|group|sum)", operations)
            if (named := window_named(rule["record"])) is not None:
                assert {use.window_s or window_named(use.name) for use in parse(rule).uses} == {named}, rule["record"]


def window_named(recording: str) -> int | None:
    found = re.search(r"(\d+)([mhd])$", recording)
    return int(found[1]) * {"m": 60, "h": 3600, "d": 86400}[found[2]] if found else None


def test_groups_are_named_by_what_they_do() -> None:
    names = [group["name"] for _, group in groups()]
    assert len(names) == len(set(names))
    for file, group in groups():
        assert group["name"].startswith(file)
        records = {"record" in rule for rule in group["rules"]}
        assert records == {group["name"].endswith(".rules")}, group["name"]


def test_alerts_of_kubernetes_are_a_group_that_can_be_left_out() -> None:
    own = {name_of(rule) for file, rule in RULE_LIST if file == "facial-service-kubernetes"}
    others = [rule for file, rule in RULE_LIST if file != "facial-service-kubernetes"]
    assert own
    used = {use.name for rule in others for use in parse(rule).uses if use.name in own}
    assert used == {SCALED_TO_ZERO}
    for rule in others:
        if any(use.name == SCALED_TO_ZERO for use in parse(rule).uses):
            assert "unless" in rule["expr"].split(SCALED_TO_ZERO)[0], "without the recording, the alert can fire"


def test_only_alerts_on_objectives_share_a_name() -> None:
    """Unique names allow overrides of a single rule."""
    names = [alert["alert"] for alert in ALERTS if "slo" not in alert["labels"]]
    assert len(names) == len(set(names))
    assert len({name_of(alert) for alert in ALERTS}) == len(ALERTS)


@EACH_ALERT
def test_alert_says_what_there_is_to_say(alert: dict[str, Any]) -> None:
    assert alert["alert"].startswith("FacialService")
    assert alert["labels"]["severity"] in SEVERITIES
    assert alert["for"]
    annotations = alert["annotations"]
    # The addresses are not known; a path would not open.
    assert set(annotations) == {"summary", "description"}
    assert "{{" not in annotations["summary"]
    for name in ("summary", "description"):
        assert re.match(r"[A-Z0-9{]", annotations[name])
        assert annotations[name].endswith(".")
    assert annotations["summary"] != annotations["description"]


@EACH_ALERT
def test_description_has_only_labels_that_the_alert_has(alert: dict[str, Any]) -> None:
    labels = parse(alert).labels | set(alert["labels"])
    for name, text in alert["annotations"].items():
        assert set(TEMPLATE.findall(text)) <= labels, name
        assert text.count("{{ $value") == len(HUMAN.findall(text)), "a value is for people: humanize it"


@EACH_ALERT
def test_alert_is_of_a_namespace_and_says_which(alert: dict[str, Any]) -> None:
    assert "namespace" in parse(alert).labels
    assert "$labels.namespace" in alert["annotations"]["description"]


@EACH_ALERT
def test_ratio_has_a_floor_of_traffic(alert: dict[str, Any]) -> None:
    """Ratios need a minimum rate: one failed request of two is already half."""
    uses = parse(alert).uses
    if (
        sum(use.function == "rate" for use in uses) > 1
        or "histogram_quantile" in alert["expr"]
        or "slo" in alert["labels"]
    ):
        # The number of requests in a window; a minimum per minute may be lower.
        floors = [int(number) for number in re.findall(r"increase\(.+\) >= (\d+)", alert["expr"])]
        assert any(use.function == "increase" for use in uses)
        assert min(floors) >= 10
