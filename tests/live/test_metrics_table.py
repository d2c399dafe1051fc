"""A scrape of the service contains every metric of the table, with its labels."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.observability.metrics import METRICS, MetricSpec

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
JSON = {"Content-Type": "application/json"}
# Only in a cluster (see test_queue_cluster), and only in a container with a limit (see test_resources).
OPTIONAL = {"queue_cluster_has_leader", "memory_limit_bytes"}


@pytest.fixture(scope="module")
def families(service: Any, sample: Any) -> dict[str, Any]:
    """Scrape after one request of each kind that has its own metric."""
    crop = f"{service.api}/api/v1/frontal/crop"
    httpx.post(crop, content=sample.json(), headers=JSON, timeout=30).raise_for_status()
    assert httpx.post(crop, content=b"{", headers=JSON, timeout=30).status_code == 400
    text = httpx.get(f"{service.metrics}/metrics", timeout=30).text
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize("spec", [spec for spec in METRICS if spec.name not in OPTIONAL], ids=lambda spec: spec.name)
def test_metric_is_scraped_as_declared(families: dict[str, Any], spec: MetricSpec) -> None:
    family = families[spec.name.removesuffix("_total")]
    assert family.type == spec.kind
    labels = defaultdict(set)
    for sample in family.samples:
        for name, value in sample.labels.items():
            labels[name].add(value)
    labels.pop("le", None)
    assert set(labels) == set(spec.labels)
    for name, known in spec.labels.items():
        if isinstance(known, tuple):
            assert labels[name] <= set(known)


def test_nothing_is_scraped_that_the_table_does_not_declare(families: dict[str, Any]) -> None:
    declared = {spec.name.removesuffix("_total") for spec in METRICS}
    assert set(families) - OPTIONAL == declared - OPTIONAL


def test_every_recorded_gauge_says_how_processes_become_one() -> None:
    gauges = [spec for spec in METRICS if spec.kind == "gauge" and not spec.is_collected]
    assert gauges
    assert all(spec.mode for spec in gauges)
