"""Dashboard queries are valid PromQL, name only existing metrics and labels, and fit the metric type."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.face.errors import PUBLIC_CODES
from app.main import create_app
from app.observability.metrics import METRICS
from app.settings import Settings
from app.web.error_handlers import UNSENT_CODES
from app.web.problems import PROBLEMS, TASK_ERRORS
from prometheus.source.model import LABELS
from tests.dashboards import ROOT, RULES, Target, alerts, fill, load, needs, panels, targets
from tests.promql import COUNTER_FUNCTIONS, GAUGE_FUNCTIONS, TARGET_LABELS, Expression, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.promql import Use

# Unique values, so that the use of a variable in a query is visible.
RATE_WINDOW_S = 73.0
VALUES = {
    "cluster": "a-cluster",
    "namespace": "a-namespace",
    "release": "a-release",
    "job": "a-job",
    "pod": "a-pod",
    "instance": "an-instance",
    "__rate_interval": f"{RATE_WINDOW_S:.0f}s",
    "__interval": "7s",
}
SELECTED = {name: VALUES[name] for name in (*LABELS, "pod", "instance")}
OF_SCRAPES = ("up", "scrape_duration_seconds", "scrape_samples_scraped")
EXPORTERS = {"kube_": "kube-state-metrics", "container_": "cAdvisor", "kubelet_": "the kubelet"}
SEVERITY_COLOURS = {"critical": {"red", "dark-red"}, "warning": {"orange", "yellow"}, "info": {"blue"}}
SPECS = {spec.name: spec for spec in METRICS}
TARGETS = targets()
EACH = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
PANELS = [panel for document in load().values() for panel in panels(document)]


def rules() -> Iterator[dict[str, Any]]:
    for path in sorted((ROOT / "prometheus" / "rules").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def of_service() -> Iterator[tuple[str, Metric]]:
    for spec in METRICS:
        labels = TARGET_LABELS | set(spec.labels)
        if spec.kind == "histogram":
            yield f"{spec.name}_bucket", Metric("counter", labels | {"le"})
            yield from ((f"{spec.name}_{end}", Metric("counter", labels)) for end in ("sum", "count"))
        else:
            yield spec.name, Metric(spec.kind, labels)


def of_kubernetes() -> Iterator[tuple[str, Metric]]:
    text = (ROOT / "tests" / "kubernetes.prom").read_text(encoding="utf-8")
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, Metric(family.type, frozenset(sample.labels) | {"cluster", "job", "instance"})


@cache
def metrics() -> dict[str, Metric]:
    """Return all metrics that a query may name: of the service, of scrapes, of Kubernetes, and recorded by rules."""
    alert = frozenset({"alertname", "alertstate", "severity", *LABELS})
    known = {name: Metric("gauge", TARGET_LABELS) for name in OF_SCRAPES} | {"ALERTS": Metric("gauge", alert)}
    known |= dict(of_service()) | dict(of_kubernetes())
    for rule in rules():
        if "record" in rule:
            known[rule["record"]] = Metric("gauge", Expression(rule["expr"], known).labels)
    return known


def parse(text: str) -> Expression:
    return Expression(fill(text, VALUES), metrics())


@EACH
def test_query_names_metrics_and_labels_that_exist(target: Target) -> None:
    labels = parse(target.expr).labels
    shown = set(re.findall(r"\{\{(\w+)\}\}", target.query["legendFormat"]))
    assert shown <= labels, f"the legend has {shown - labels}"
    for transformation in target.panel.get("transformations", ()):
        assert set(transformation["options"]["renameByName"]) <= labels


@EACH
def test_counters_are_rated_and_gauges_are_not(target: Target) -> None:
    for use in parse(target.expr).uses:
        kind = metrics()[use.name].kind
        if kind == "counter":
            assert use.function in COUNTER_FUNCTIONS, f"{use.name} is a counter"
        else:
            assert use.function not in COUNTER_FUNCTIONS, f"{use.name} is a gauge"
        if use.function in COUNTER_FUNCTIONS | GAUGE_FUNCTIONS:
            assert use.window_s == RATE_WINDOW_S, "the window is $__rate_interval"


@EACH
def test_query_selects_by_the_variables(target: Target) -> None:
    """Each selector uses every variable for which its metric has a label; recorded metrics cover all instances."""
    for use in parse(target.expr).uses:
        matched = {name: (operator, value) for name, operator, value in use.matchers if value in SELECTED.values()}
        wanted = selected_by(use)
        assert matched == {name: ("MatchOp.Re", VALUES[name]) for name in wanted}, use.name


def selected_by(use: Use) -> set[str]:
    if use.name == "ALERTS":
        return {"cluster", "namespace", "release"}
    if use.name.startswith(tuple(EXPORTERS)):
        return {"cluster", "namespace", "pod"} & metrics()[use.name].labels
    if ":" in use.name:
        return set(LABELS)
    return set(SELECTED)


@EACH
def test_values_of_labels_exist(target: Target) -> None:
    for use in parse(target.expr).uses:
        spec = SPECS.get(use.name) or SPECS.get(re.sub("_(bucket|sum|count)$", "", use.name))
        for name, operator, value in use.matchers:
            if spec is None or name not in spec.labels or value in SELECTED.values():
                continue
            pattern = value if "Re" in operator else re.escape(value)
            known = values_of(spec.name, name)
            assert any(re.fullmatch(pattern, one) for one in known), f"{use.name}: no {name} is {value}"


def values_of(metric: str, label: str) -> set[str]:
    known = SPECS[metric].labels[label]
    if not isinstance(known, str):
        return set(known)
    if label == "endpoint":
        return set(create_app(Settings()).openapi()["paths"])
    if label == "status":
        return {str(status) for status in range(100, 600)}
    if label == "method":
        return {"GET", "POST", "DELETE"}
    if (metric, label) == ("errors_total", "type"):
        return {*PROBLEMS, *PUBLIC_CODES, *TASK_ERRORS, *UNSENT_CODES.values()}
    return set(re.findall("`([^`]+)`", known))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_says_who_else_has_to_export_something(panel: dict[str, Any]) -> None:
    named = {use.name for target in panel["targets"] for use in parse(target["expr"]).uses}
    wanted = {exporter for prefix, exporter in EXPORTERS.items() for name in named if name.startswith(prefix)}
    if any(":" in name for name in named):
        wanted.add(RULES)
    assert needs(panel) == wanted


def test_panels_of_kubernetes_are_the_lesser_part() -> None:
    apart = [target.name for target in TARGETS if target.needs - {RULES}]
    assert 10 < len(apart) < len(TARGETS) / 4


def test_annotations_are_promql() -> None:
    for document in load().values():
        for annotation in document["annotations"]["list"]:
            labels = parse(annotation["expr"]).labels
            assert set(re.findall(r"\{\{(\w+)\}\}", annotation["titleFormat"])) <= labels
            assert set(annotation["tagKeys"].split(",")) <= labels


def test_every_metric_of_the_service_is_on_a_dashboard() -> None:
    named = {use.name for target in TARGETS for use in parse(target.expr).uses}
    shown = {name for name in SPECS if any(re.fullmatch(f"{name}(_bucket|_sum|_count)?", used) for used in named)}
    assert set(SPECS) - shown == set()


def test_thresholds_are_those_of_the_alerts() -> None:
    """Thresholds equal those of the committed rules, and colours match severities."""
    fired: dict[str, list[tuple[dict[str, Any], float]]] = {}
    for rule in rules():
        if "alert" in rule:
            for first, _ in Expression(rule["expr"], metrics()).limits():
                fired.setdefault(rule["alert"], []).append((rule, first))
    seen = set()
    for panel in PANELS:
        steps = {step["value"]: step["color"] for step in panel_steps(panel)}
        possible = [at for name in alerts(panel) for at in fired[name]]
        for value, colour in steps.items():
            # A count above 0 is one of 1.
            rule = next((rule for rule, number in possible if number == value or (number, value) == (0, 1)), None)
            if alerts(panel):
                assert rule is not None, f"{panel['title']}: nothing fires at {value}"
                assert colour in SEVERITY_COLOURS[rule["labels"]["severity"]]
                seen.add(rule["alert"])
        if any(name.endswith("BudgetBurn") for name in alerts(panel)):
            assert set(steps) == {number for _, number in possible}
    assert len(seen) >= 15


def test_lines_without_an_alert_are_few_and_known() -> None:
    unnamed = {panel["title"]: panel_steps(panel) for panel in PANELS if panel["type"] == "timeseries"}
    unnamed = {title: steps for title, steps in unnamed.items() if steps}
    titles = {panel["title"] for panel in PANELS if alerts(panel)}
    assert set(unnamed) - titles == {"Errors by route"}
    (line,) = unnamed["Errors by route"]
    burn = next(rule for rule in rules() if rule.get("alert") == "FacialServiceErrorBudgetBurn")
    ((_, fastest),) = Expression(burn["expr"], metrics()).limits()
    assert line["value"] == pytest.approx(fastest)


def panel_steps(panel: dict[str, Any]) -> list[dict[str, Any]]:
    return panel["fieldConfig"]["defaults"].get("thresholds", {"steps": [None]})["steps"][1:]
