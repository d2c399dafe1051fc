"""Parsing of metrics, increases over restarts and new series, and quantiles equal to those of Prometheus."""

from __future__ import annotations

import math
import random
import shutil
import subprocess
from itertools import accumulate
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from app.cli.monitor.instance import (
    Buckets,
    ResponseError,
    Samples,
    Window,
    compute_increase,
    merge_buckets,
    parse_health,
    parse_metrics,
    quantile,
    require_metric,
)
from app.observability.metrics import METRICS

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """
# HELP api_requests_total Requests.
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
# HELP node_load1 Of another exporter.
# TYPE node_load1 gauge
node_load1 17
untyped_of_another_exporter 4
"""


def test_only_declared_series_are_parsed() -> None:
    found = parse_metrics(TEXT)
    assert found.counters == {"api_requests_total": {("GET", "/a", "200"): 7.0}}
    assert found.gauges == {"active_tasks_count": {("facial_processing",): 2.0}, "queue_up": {(): 1.0}}
    assert found.histograms == {}


@given(
    st.dictionaries(st.text(), st.integers(0, 10**9), min_size=1),
    st.lists(st.floats(0, 20), max_size=50),
)
def test_output_of_the_client_library_is_parsed(counts: dict[str, int], observed: list[float]) -> None:
    registry = CollectorRegistry()
    counter = Counter("api_rejections", "Rejections.", ["reason"], registry=registry)
    histogram = Histogram("task_wait_seconds", "Wait.", ["type"], registry=registry, buckets=(0.1, 1, 10))
    for reason, count in counts.items():
        counter.labels(reason).inc(count)
    for value in observed:
        histogram.labels("a").observe(value)
    found = parse_metrics(generate_latest(registry).decode())
    assert found.counters["api_rejections_total"] == {(reason,): count for reason, count in counts.items()}
    if observed:
        expected = tuple(float(sum(value <= bound for value in observed)) for bound in (0.1, 1, 10, math.inf))
        assert found.histograms["task_wait_seconds"][("a",)] == Buckets((0.1, 1.0, 10.0, math.inf), expected)


@given(st.text() | st.text(alphabet='api_requests_total{}="\\\n #TYPE 0.e+NaInf,le'))
def test_any_other_text_raises_response_error(text: str) -> None:
    try:
        found = parse_metrics(text)
    except ResponseError:
        return
    assert found.counters or found.gauges or found.histograms


@pytest.mark.parametrize("text", ["", "<html></html>", "node_load1 17\n", "queue_up{ 1\n", "queue_up one\n"])
def test_metrics_of_other_programs_are_rejected(text: str) -> None:
    with pytest.raises(ResponseError, match="expected"):
        parse_metrics(text)


def test_every_declared_metric_is_accepted() -> None:
    assert [require_metric(spec.name, spec.kind, *spec.labels) for spec in METRICS] == [spec.name for spec in METRICS]


@pytest.mark.parametrize(
    ("name", "kind", "labels"),
    [("no_such", "gauge", ()), ("queue_up", "counter", ()), ("errors_total", "counter", ("component", "type"))],
)
def test_undeclared_metric_raises_value_error(name: str, kind: str, labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=name):
        require_metric(name, kind, *labels)  # type: ignore[arg-type]


@given(st.binary() | st.sampled_from([b"{}", b"[]", b'{"live":1}', b'{"live":true,"ready":true,"draining":false}']))
def test_other_health_bodies_are_rejected(body: bytes) -> None:
    with pytest.raises(ResponseError, match="expected the health report"):
        parse_health(body)


A = ("facial_processing",)
NAME = "task_submissions_total"
WAIT = "task_wait_seconds"
BOUNDS = (0.1, 1.0, math.inf)

counts = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 100), min_size=1)
cells = st.lists(st.integers(0, 50), min_size=3, max_size=3)


def counted(**values: float) -> Samples:
    return Samples({NAME: {(name,): float(value) for name, value in values.items()}})


def observed(*values: float) -> Samples:
    return Samples(histograms={WAIT: {A: Buckets(BOUNDS, values)}})


@pytest.mark.parametrize(
    ("before", "after", "expected", "is_reset"),
    [
        (counted(a=3), counted(a=5), {("a",): 2}, False),
        (counted(a=3), counted(a=3), {}, False),
        (counted(a=3), counted(a=3, b=4), {("b",): 4}, False),  # a new series has increased from 0
        (counted(a=3), counted(a=1), {("a",): 1}, True),  # a counter that decreased started at 0
        (counted(a=3, b=9), counted(a=5, b=1), {("a",): 5, ("b",): 1}, True),  # and so did all other counters
        (counted(a=3, b=0), counted(a=5), {("a",): 5}, True),  # a missing series is a restart, too
        (Samples(), counted(a=2), {("a",): 2}, False),
        (counted(a=3), Samples(), {}, True),
    ],
)
def test_increase(before: Samples, after: Samples, expected: dict[tuple[str, ...], float], is_reset: bool) -> None:
    found = compute_increase(before, after, 2.0)
    assert found.samples.counters.get(NAME, {}) == expected
    assert (found.is_reset, found.seconds) == (is_reset, 2.0)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (observed(1, 2, 3), observed(1, 4, 6), (0, 2, 3)),
        (observed(1, 2, 3), observed(1, 2, 3), None),
        (observed(5, 6, 7), observed(1, 7, 9), (1, 7, 9)),  # one bucket decreased: the service restarted
        (Samples(), observed(1, 2, 3), (1, 2, 3)),
        (observed(1, 1, 1), observed(3, 2, 2), (2, 2, 2)),  # read during a write: still never decreasing
    ],
)
def test_increase_of_histograms(before: Samples, after: Samples, expected: tuple[float, ...] | None) -> None:
    found = compute_increase(before, after, 1.0).samples.histograms.get(WAIT, {})
    assert found == ({} if expected is None else {A: Buckets(BOUNDS, expected)})


def test_other_bounds_mean_a_restart() -> None:
    after = Samples({NAME: {A: 7.0}}, histograms={WAIT: {A: Buckets((0.5, math.inf), (9, 9))}})
    found = compute_increase(Samples({NAME: {A: 5.0}}, histograms=observed(1, 2, 3).histograms), after, 1.0)
    assert found.is_reset
    assert found.samples == after


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_scrapes_without_time_between_them_are_rejected(seconds: float) -> None:
    with pytest.raises(ValueError, match="more than 0 s"):
        compute_increase(Samples(), Samples(), seconds)


@given(st.lists(st.tuples(counts, cells, st.booleans()), min_size=1, max_size=20))
def test_increases_equal_the_events(rounds: list[tuple[dict[str, int], list[int], bool]]) -> None:
    """Every event between scrapes is counted once, over every restart that can be detected."""
    current: dict[str, int] = {}
    buckets = [0, 0, 0]
    before = Samples()
    for events, observations, restarts in rounds:
        if restarts:
            current, buckets = {}, [0, 0, 0]
        current = {name: current.get(name, 0) + events.get(name, 0) for name in {**current, **events}}
        buckets = [old + new for old, new in zip(buckets, observations, strict=True)]
        after = counted(**current)
        after.histograms[WAIT] = {A: Buckets(BOUNDS, tuple(map(float, accumulate(buckets))))}
        found = compute_increase(before, after, 2.0)
        increases = found.samples.counters[NAME]
        assert all(value > 0 for value in increases.values())
        if found.is_reset or not restarts:
            assert increases == {(name,): count for name, count in events.items() if count}
            histogram = found.samples.histograms[WAIT].get(A, Buckets(BOUNDS, (0.0,) * 3))
            assert histogram.counts == tuple(accumulate(observations))
        else:  # every counter exceeds its old value: too few events are counted, never too many
            assert sum(increases.values()) <= sum(events.values())
        before = after


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), st.lists(st.floats(0, 1e6), min_size=3, max_size=3))
def test_histogram_increases_never_decrease_and_are_never_negative(first: list[float], second: list[float]) -> None:
    before, after = observed(*accumulate(first)), observed(*accumulate(second))
    for found in compute_increase(before, after, 1.0).samples.histograms[WAIT].values():
        assert list(found.counts) == sorted(found.counts)
        assert min(found.counts) >= 0


@pytest.mark.parametrize(
    ("q", "bounds", "observations", "expected"),
    [
        (0.5, (1, 2, math.inf), (10, 20, 20), 1.0),  # end of the first bucket
        (0.5, (1, 2, math.inf), (0, 20, 20), 1.5),  # middle of the second bucket
        (0.25, (1, 2, math.inf), (10, 20, 20), 0.5),  # the first bucket starts at 0
        (0.95, (1, 2, 4, math.inf), (50, 90, 100, 100), 3.0),
        (0.99, (1, 2, math.inf), (1, 2, 100), 2.0),  # above the last finite bound
        (0.0, (1, 2, math.inf), (0, 4, 4), 0.0),
        (1.0, (1, 2, math.inf), (0, 4, 4), 2.0),
        (0.5, (-1, 1, math.inf), (4, 4, 4), -1),  # the start of a bucket below 0 is unknown
        (0.5, (1, math.inf), (0, 0), None),
        (0.5, (math.inf,), (9,), None),
        (0.5, (1, 2), (3, 4), None),
        (0.5, (), (), None),
    ],
)
def test_quantile(q: float, bounds: tuple[float, ...], observations: tuple[float, ...], expected: float | None) -> None:
    assert quantile(q, Buckets(bounds, observations)) == expected


def test_no_observations_have_no_quantile() -> None:
    assert quantile(0.5, None) is None
    assert merge_buckets([]) is None


@given(cells, st.floats(0, 1), st.floats(0, 1))
def test_quantiles_are_ordered_and_within_bounds(observations: list[int], one: float, other: float) -> None:
    buckets = Buckets(BOUNDS, tuple(map(float, accumulate(observations))))
    low, high = (quantile(q, buckets) for q in sorted((one, other)))
    if not sum(observations):
        assert (low, high) == (None, None)
    else:
        assert 0 <= low <= high <= 1.0


def test_histograms_are_merged_at_their_common_bounds() -> None:
    one, two = Buckets((1, 2, math.inf), (1, 2, 3)), Buckets((1, 4, math.inf), (10, 20, 30))
    assert merge_buckets([one, one]) == Buckets((1, 2, math.inf), (2, 4, 6))
    assert merge_buckets([one, two]) == Buckets((1, math.inf), (11, 33))


def test_quantiles_equal_those_of_prometheus(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH; run `make tools`")
    choose = random.Random(5)
    series, checks = [], []
    for case in range(60):
        bounds = sorted(choose.sample([0.001, 0.0025, 0.01, 0.1, 0.5, 1, 2.5, 10], choose.randint(1, 8)))
        values = [
            float(value) for value in accumulate(choose.choice([0, 0, 1, 7, 120]) for _ in range(len(bounds) + 1))
        ]
        q = choose.choice([0.01, 0.5, 0.95, 0.99, 1.0])
        found = quantile(q, Buckets((*map(float, bounds), math.inf), tuple(values)))
        for bound, value in zip([*map(str, bounds), "+Inf"], values, strict=True):
            series.append({"series": f'h_bucket{{case="{case}",le="{bound}"}}', "values": str(value)})
        query = f'histogram_quantile({q}, h_bucket{{case="{case}"}})'
        # None corresponds to NaN, which does not equal itself.
        expr = f"{query} != bool {query}" if found is None else f"abs({query} - {found!r}) < bool 1e-12"
        checks.append({"expr": expr, "eval_time": "0m", "exp_samples": [{"labels": f'{{case="{case}"}}', "value": 1}]})
    document = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": checks}]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    command = [promtool, "test", "rules", str(tmp_path / "test.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_window_keeps_the_increases_within_its_length() -> None:
    window = Window(10.0)
    for number in range(20):
        window.add(compute_increase(Samples(), counted(a=number), 2.1))
    assert window.seconds == pytest.approx(10.5)
    assert window.counter(NAME) == {("a",): 15 + 16 + 17 + 18 + 19}
    window.clear()
    assert (window.seconds, window.counter(NAME), window.histogram(WAIT)) == (0.0, {}, [])


def test_window_keeps_the_latest_increase_even_if_it_is_longer() -> None:
    window = Window(10.0)
    window.add(compute_increase(Samples(), counted(a=4), 60.0))
    window.add(compute_increase(Samples(), counted(a=5), 60.0))
    assert (window.seconds, window.counter(NAME)) == (60.0, {("a",): 5})
