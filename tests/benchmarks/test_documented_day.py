"""The simulated day in docs/scaling.md is that of the current simulation, chart and figures."""

from __future__ import annotations

import pytest

from benchmarks.scaling_figures import load
from benchmarks.simulation import DAYS, DRAWN, PICTURE, document_day


@pytest.mark.timeout(900)
def test_documented_day_is_fresh() -> None:
    documented = load()["days"]["figures"]
    assert list(documented) == list(DAYS)
    figures, chart = document_day(DRAWN)
    assert figures == documented[DRAWN], "run `python -m benchmarks.simulation --document`, then `make generate`"
    assert PICTURE.read_text(encoding="utf-8") == chart
