"""promtool accepts the rules, and their tests show when each alert fires and when it does not."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from prometheus.source.generate import rule_files
from prometheus.source.render import SpeedUp, parse_duration_ms
from tests.contracts.test_rules import ALERTS, RULE_LIST, metrics, name_of, parse

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "prometheus" / "rules").glob("*.yaml"))
TESTS = sorted((ROOT / "prometheus" / "tests").glob("*.yaml"))
NORMAL = "normal"

FILES = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in TESTS}
CASES = {
    name: [(test, case) for test in file["tests"] for case in test.get("alert_rule_test", ())]
    for name, file in FILES.items()
}
RECORDED = {rule["record"]: rule for _, rule in RULE_LIST if "record" in rule}
EACH_ALERT = pytest.mark.parametrize("alert", ALERTS, ids=name_of)


def promtool(*arguments: str | Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH; `make tools` sets it up")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_has_nothing_against_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)


def test_promtool_has_nothing_against_the_rules_for_tests(tmp_path: Path) -> None:
    for name, text in rule_files(speed_up=SpeedUp(factor=360, min_window_ms=5000)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted(tmp_path.iterdir()))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    promtool("test", "rules", path)


def labels_of(case: dict[str, Any]) -> list[dict[str, str]]:
    return [expected["exp_labels"] for expected in case.get("exp_alerts") or ()]


@EACH_ALERT
def test_each_alert_is_shown_to_fire_just_in_time(alert: dict[str, Any]) -> None:
    """A test expects the complete alert, and no alert of that name at the evaluation before."""
    wanted = {name: str(value) for name, value in alert["labels"].items()}
    shown = []
    for file, cases in CASES.items():
        step_ms = parse_duration_ms(FILES[file]["evaluation_interval"])
        silent = defaultdict(set)
        for test, case in cases:
            at = parse_duration_ms(case["eval_time"])
            if case["alertname"] != alert["alert"]:
                continue
            if not case.get("exp_alerts"):
                silent[test["name"]].add(at)
            fired = [labels for labels in labels_of(case) if wanted.items() <= labels.items()]
            if fired and at - step_ms in silent[test["name"]]:
                shown.append(test["name"])
    assert shown


@EACH_ALERT
def test_each_alert_is_shown_to_be_silent_in_normal_traffic(alert: dict[str, Any]) -> None:
    """The test has the metrics of the alert; without them, every alert is silent."""
    for test, case in CASES[NORMAL]:
        if case["alertname"] == alert["alert"]:
            assert not case.get("exp_alerts")
            there = {series["series"].partition("{")[0] for series in test["input_series"]}
            assert read_by(alert) <= there, f"{test['name']}: there is no {read_by(alert) - there}"
            return
    pytest.fail("no test of normal traffic")


def read_by(rule: dict[str, Any]) -> set[str]:
    """Return the metrics that a rule reads, directly or through recording rules."""
    names = {use.name for use in parse(rule).uses}
    return {found for name in names for found in (read_by(RECORDED[name]) if name in RECORDED else {name})}


def test_expectations_are_whole() -> None:
    annotations = {"summary", "description"}
    for cases in CASES.values():
        for test, case in cases:
            for expected in case.get("exp_alerts") or ():
                assert set(expected["exp_annotations"]) == annotations, test["name"]
                assert "severity" in expected["exp_labels"], test["name"]


def test_tests_name_series_that_exist() -> None:
    """A test with a metric that no process exports would prove nothing."""
    for file in FILES.values():
        for test in file["tests"]:
            for series in test["input_series"]:
                name, _, rest = series["series"].partition("{")
                labels = {part.partition("=")[0].strip() for part in split_labels(rest.rstrip("}"))}
                assert labels <= metrics()[name].labels, f"{test['name']}: {series['series']}"


def split_labels(text: str) -> list[str]:
    parts, depth = [""], False
    for letter in text:
        depth ^= letter == '"'
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
