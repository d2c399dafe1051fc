"""Modules that generate the chart's files, imported as `python charts/generate.py` imports them."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import pytest

from tests.chart.helm import CHART, ROOT

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "charts"))
    import generate
    import service_settings
    import values_file
    import values_schema

__all__ = ["generate", "keys", "schema", "service_settings", "values_file", "values_schema"]


@lru_cache
def keys() -> tuple[values_file.Key, ...]:
    """The keys of values.yaml."""
    return values_file.read_values((CHART / "values.yaml").read_text(encoding="utf-8"))


@lru_cache
def schema() -> dict[str, Any]:
    """The committed schema."""
    read: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return read
