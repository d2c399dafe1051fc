"""Scenarios of `ci/`, each rendered once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chart.helm import SCENARIOS, Release, render

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=SCENARIOS, ids=lambda file: file.name.removesuffix("-values.yaml"))
def scenario(request: pytest.FixtureRequest) -> Path:
    """Values file of one scenario."""
    file: Path = request.param
    return file


@pytest.fixture
def release(scenario: Path) -> Release:
    """Rendered objects of one scenario."""
    return render(scenario)
