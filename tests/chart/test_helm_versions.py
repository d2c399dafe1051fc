"""Helm 4 renders and rejects what Helm 3 does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.chart.helm import CHART, KUBERNETES, HelmError, render, run_helm, template
from tests.chart.test_combinations import COMBINATIONS, rendered

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chart.helm import Values

OTHER = "helm4"


def test_versions_are_different() -> None:
    versions = [run_helm("version", "--short", program=program) for program in ("helm", OTHER)]
    assert [version.partition(".")[0] for version in versions] == ["v3", "v4"]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combination_is_the_same(name: str) -> None:
    assert template(values=COMBINATIONS[name], program=OTHER).objects == rendered(name).objects


def test_scenario_is_the_same(scenario: Path) -> None:
    assert template([scenario], program=OTHER).objects == render(scenario).objects
    said = run_helm("lint", "--strict", "--kube-version", KUBERNETES, "--values", scenario, CHART, program=OTHER)
    assert "1 chart(s) linted, 0 chart(s) failed" in said


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"api": {"replica": 2}}, "additional properties 'replica' not allowed"),
        ({"image": {"tag": 2024}}, "at '/image/tag': got number, want string"),
        ({"api": {"service": None}}, "at '/api': missing property 'service'"),
        ({"worker": {"autoscaling": {"enabled": True}, "keda": {"enabled": True}}}, "only one autoscaler can manage"),
        ({"nats": {"enabled": False}}, "nats.enabled: workers need a queue"),
    ],
)
def test_refusal_is_the_same(values: Values, message: str) -> None:
    for program in ("helm", OTHER):
        with pytest.raises(HelmError, match=re.escape(message)):
            template(values=values, program=program)
