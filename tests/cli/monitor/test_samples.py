"""An exposition comes to the numbers that were written into it, whatever else is in it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from app.cli.monitor.health import HealthError, parse_health
from app.cli.monitor.samples import Buckets, ExpositionError, known, parse_exposition
from app.observability.metrics import METRICS

TEXT = """
# HELP api_requests_total Requests answered.
# TYPE api_requests_total counter
api_requests_total{method="GET",endpoint="/a",status="200"} 3
api_requests_total{endpoint="/a",method="GET",status="200",zone="b"} 4
api_requests_total{endpoint="/a",method="GET",status="500"} NaN
# HELP active_tasks_count Tasks.
# TYPE active_tasks_count gauge
active_tasks_count{type="facial_processing"} 2 1700000000000
# HELP queue_up Up.
# TYPE queue_up gauge
queue_up 1
# HELP node_load1 Not ours.
# TYPE node_load1 gauge
node_load1 17
untyped_of_somebody 4
"""


def test_series_of_the_table_are_read_and_others_are_not() -> None:
    found = parse_exposition(TEXT)
    assert found.counters == {"api_requests_total": {("GET", "/a", "200"): 7.0}}
    assert found.gauges == {"active_tasks_count": {("facial_processing",): 2.0}, "queue_up": {(): 1.0}}
    assert found.histograms == {}


@given(
    st.dictionaries(st.text(), st.integers(0, 10**9), min_size=1),
    st.lists(st.floats(0, 20), max_size=50),
)
def test_what_the_client_library_writes_is_read_back(counts: dict[str, int], observed: list[float]) -> None:
    registry = CollectorRegistry()
    counter = Counter("api_rejections", "Turned away.", ["reason"], registry=registry)
    histogram = Histogram("task_wait_seconds", "Wait.", ["type"], registry=registry, buckets=(0.1, 1, 10))
    for reason, count in counts.items():
        counter.labels(reason).inc(count)
    for value in observed:
        histogram.labels("a").observe(value)
    found = parse_exposition(generate_latest(registry).decode())
    assert found.counters["api_rejections_total"] == {(reason,): count for reason, count in counts.items()}
    if observed:
        expected = tuple(float(sum(value <= bound for value in observed)) for bound in (0.1, 1, 10, math.inf))
        assert found.histograms["task_wait_seconds"][("a",)] == Buckets((0.1, 1.0, 10.0, math.inf), expected)


@given(st.text() | st.text(alphabet='api_requests_total{}="\\\n #TYPE 0.e+NaInf,le'))
def test_any_other_text_is_refused_and_nothing_else_happens(text: str) -> None:
    try:
        found = parse_exposition(text)
    except ExpositionError:
        return
    assert found.counters or found.gauges or found.histograms


@pytest.mark.parametrize("text", ["", "<html></html>", "node_load1 17\n", "queue_up{ 1\n", "queue_up one\n"])
def test_what_is_no_exposition_of_the_service_is_refused(text: str) -> None:
    with pytest.raises(ExpositionError, match="expected"):
        parse_exposition(text)


def test_every_metric_of_the_table_can_be_asked_for() -> None:
    assert [known(spec.name, spec.kind, *spec.labels) for spec in METRICS] == [spec.name for spec in METRICS]


@pytest.mark.parametrize(
    ("name", "kind", "labels"),
    [("no_such", "gauge", ()), ("queue_up", "counter", ()), ("errors_total", "counter", ("component", "type"))],
)
def test_what_the_table_does_not_have_stops_the_program(name: str, kind: str, labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=name):
        known(name, kind, *labels)  # type: ignore[arg-type]


@given(st.binary() | st.sampled_from([b"{}", b"[]", b'{"live":1}', b'{"live":true,"ready":true,"draining":false}']))
def test_what_is_no_health_is_refused(body: bytes) -> None:
    with pytest.raises(HealthError, match="expected the health"):
        parse_health(body)
