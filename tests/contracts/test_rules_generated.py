"""The committed rules are what the tables say, the tables what the SRE workbook says, and tests can shorten them."""

from __future__ import annotations

import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.utils import floatToGoString

from app.settings import Settings
from prometheus.source.generate import FILES, rule_files
from prometheus.source.model import Alert
from prometheus.source.render import Links, SpeedUp, format_duration, parse_duration_ms
from prometheus.source.slo import BURNS, LATENCY_S, LEAST_BAD, OBJECTIVES, PERIOD_DAYS, WINDOWS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "prometheus" / "rules"
RANGE = re.compile(r"\[(\w+)\]")


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prometheus.source.generate", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def rules(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def test_committed_rules_and_list_are_what_the_tables_say() -> None:
    done = generate("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_committed_rules_say_where_they_come_from() -> None:
    assert {path.name for path in RULES.iterdir()} == {f"{name}.yaml" for name in FILES}
    for path in RULES.iterdir():
        assert path.read_text(encoding="utf-8").startswith("# Written by `make generate`")


def test_yaml_says_what_the_tables_say() -> None:
    """The emitter is our own, so that the files are laid out for people."""
    for name, text in rule_files().items():
        written = yaml.safe_load(text)["groups"]
        groups = FILES[name.removesuffix(".yaml")]
        assert [group["name"] for group in written] == [group.name for group in groups]
        assert [group.get("interval") for group in written] == [group.interval for group in groups]
        for rule, table in zip(rules(text), (rule for group in groups for rule in group.rules), strict=True):
            assert rule["expr"] == table.expr
            if isinstance(table, Alert):
                assert (rule["alert"], rule["for"]) == (table.name, table.hold)
                assert rule["labels"] == {"severity": table.severity, **table.labels}
                assert rule["annotations"]["summary"] == table.summary
                assert rule["annotations"]["description"] == table.description
            else:
                assert rule["record"] == table.name


def test_check_finds_what_was_changed_by_hand(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    for source in ("prometheus/source", "prometheus/rules", "docs/runbooks"):
        (folder / source).mkdir(parents=True)
        for path in (ROOT / source).iterdir():
            if path.is_file():
                (folder / source / path.name).write_bytes(path.read_bytes())
    changed = folder / "prometheus" / "rules" / "facial-service-api.yaml"
    changed.write_text(changed.read_text(encoding="utf-8").replace("> 0.05", "> 0.06"), encoding="utf-8")
    (folder / "prometheus" / "rules" / "left-behind.yaml").write_text("groups: []\n", encoding="utf-8")
    command = [sys.executable, "-m", "prometheus.source.generate", "--check"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "facial-service-api.yaml" in done.stderr
    assert "left-behind.yaml" in done.stderr


def test_burn_rates_are_those_of_the_workbook() -> None:
    """A factor is the share of the budget that the long window may use, times how often it fits into the period."""
    shares = {"1h": "0.02", "6h": "0.05", "1d": "0.10", "3d": "0.10"}
    period_ms = PERIOD_DAYS * parse_duration_ms("1d")
    for burn in BURNS:
        long_ms, short_ms = parse_duration_ms(burn.long), parse_duration_ms(burn.short)
        assert burn.factor == Decimal(shares[burn.long]) * period_ms / long_ms
        assert long_ms == 12 * short_ms
        assert parse_duration_ms(burn.hold) <= short_ms
        assert {burn.long, burn.short} <= set(WINDOWS)
    assert [burn.severity for burn in BURNS] == ["critical", "critical", "warning", "warning"]


@pytest.mark.parametrize("slo", OBJECTIVES, ids=lambda slo: slo.name)
def test_every_alert_on_an_objective_can_fire_and_none_on_one_request(slo: Any) -> None:
    for burn in BURNS:
        assert 0 < burn.factor * slo.budget < 1, "no share of requests is above one"
    assert LEAST_BAD > 1


def test_latency_is_measured_at_a_bound_of_the_default_buckets() -> None:
    bounds = Settings.model_fields["request_duration_buckets"].default
    assert LATENCY_S in {floatToGoString(bound) for bound in bounds}


def test_durations_are_read_and_written_as_prometheus_does() -> None:
    for text in ("833ms", "5s", "90s", "5m", "2h", "3d"):
        assert format_duration(parse_duration_ms(text)) == text
    assert parse_duration_ms("1h30m") == 90 * 60_000
    assert format_duration(1500) == "1500ms"
    for text in ("5", "m", "5 m", "5m ", ""):
        with pytest.raises(ValueError, match="expected a duration"):
            parse_duration_ms(text)


def test_speed_up_shortens_windows_and_for_and_nothing_else() -> None:
    speed_up = SpeedUp(factor=360, least_window_ms=5000)
    for name, text in rule_files().items():
        fast = rule_files(speed_up=speed_up)[name]
        for group, shortened in zip(yaml.safe_load(text)["groups"], yaml.safe_load(fast)["groups"], strict=True):
            if "interval" in group:
                assert ms(shortened["interval"]) == round(ms(group["interval"]) / 360)
            for rule, quick in zip(group["rules"], shortened["rules"], strict=True):
                windows, short = RANGE.findall(rule["expr"]), RANGE.findall(quick["expr"])
                assert [ms(window) for window in short] == [max(5000, round(ms(window) / 360)) for window in windows]
                assert RANGE.sub("[]", quick.pop("expr")) == RANGE.sub("[]", rule.pop("expr"))
                if "for" in rule:
                    assert ms(quick.pop("for")) == round(ms(rule.pop("for")) / 360)
                assert quick == rule


def ms(duration: str) -> int:
    return parse_duration_ms(duration)


def test_addresses_are_put_before_the_paths(tmp_path: Path) -> None:
    addresses = ("--runbooks", "https://code.example.org/main/", "--dashboards", "https://grafana.example.org")
    assert generate("--output", str(tmp_path), *addresses).returncode == 0
    links = Links(runbooks="https://code.example.org/main", dashboards="https://grafana.example.org")
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == rule_files(links)
    for path in tmp_path.iterdir():
        for rule in rules(path.read_text(encoding="utf-8")):
            if "alert" in rule:
                annotations = rule["annotations"]
                assert annotations["runbook_url"].startswith("https://code.example.org/main/docs/runbooks/Facial")
                assert annotations["dashboard_url"].startswith("https://grafana.example.org/d/facial-service-")


def test_the_committed_rules_are_never_written_in_another_form() -> None:
    for arguments in (["--speed-up", "60"], ["--dashboards", "https://grafana.example.org"]):
        done = generate(*arguments)
        assert done.returncode == 2
        assert "--output" in done.stderr
