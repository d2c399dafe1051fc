"""Differences are what happened in between, over restarts and whatever comes and goes; quantiles are Prometheus's."""

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

from app.cli.monitor.rates import Window, increase, merge_buckets, quantile
from app.cli.monitor.samples import Buckets, Samples

if TYPE_CHECKING:
    from pathlib import Path

A, B = ("facial_processing",), ("other",)
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
    ("before", "after", "grown", "is_restart"),
    [
        (counted(a=3), counted(a=5), {("a",): 2}, False),
        (counted(a=3), counted(a=3), {}, False),
        (counted(a=3), counted(a=3, b=4), {("b",): 4}, False),  # a label that is new has grown from 0
        (counted(a=3), counted(a=1), {("a",): 1}, True),  # one that fell began at 0
        (counted(a=3, b=9), counted(a=5, b=1), {("a",): 5, ("b",): 1}, True),  # and so did all beside it
        (counted(a=3, b=0), counted(a=5), {("a",): 5}, True),  # one that is gone tells the same
        (Samples(), counted(a=2), {("a",): 2}, False),
        (counted(a=3), Samples(), {}, True),
    ],
)
def test_increase(before: Samples, after: Samples, grown: dict[tuple[str, ...], float], is_restart: bool) -> None:
    found = increase(before, after, 2.0)
    assert found.grown.counters.get(NAME, {}) == grown
    assert (found.is_restart, found.seconds) == (is_restart, 2.0)


@pytest.mark.parametrize(
    ("before", "after", "grown"),
    [
        (observed(1, 2, 3), observed(1, 4, 6), (0, 2, 3)),
        (observed(1, 2, 3), observed(1, 2, 3), None),
        (observed(5, 6, 7), observed(1, 7, 9), (1, 7, 9)),  # one bucket fell: the histogram is another
        (Samples(), observed(1, 2, 3), (1, 2, 3)),
        (observed(1, 1, 1), observed(3, 2, 2), (2, 2, 2)),  # read while it was written to: never falling, all the same
    ],
)
def test_increase_of_histograms(before: Samples, after: Samples, grown: tuple[float, ...] | None) -> None:
    found = increase(before, after, 1.0).grown.histograms.get(WAIT, {})
    assert found == ({} if grown is None else {A: Buckets(BOUNDS, grown)})


def test_other_bounds_are_a_restart() -> None:
    after = Samples({NAME: {A: 7.0}}, histograms={WAIT: {A: Buckets((0.5, math.inf), (9, 9))}})
    found = increase(Samples({NAME: {A: 5.0}}, histograms=observed(1, 2, 3).histograms), after, 1.0)
    assert found.is_restart
    assert found.grown == after


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_no_time_between_scrapes_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="more than 0 s"):
        increase(Samples(), Samples(), seconds)


@given(st.lists(st.tuples(counts, cells, st.booleans()), min_size=1, max_size=20))
def test_differences_add_up_to_what_happened(rounds: list[tuple[dict[str, int], list[int], bool]]) -> None:
    """Whatever a service counts between scrapes is found, over restarts that can be told, and nothing beside it."""
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
        found = increase(before, after, 2.0)
        grown = found.grown.counters[NAME]
        assert all(value > 0 for value in grown.values())
        if found.is_restart or not restarts:
            assert grown == {(name,): count for name, count in events.items() if count}
            seen = found.grown.histograms[WAIT].get(A, Buckets(BOUNDS, (0.0,) * 3))
            assert seen.counts == tuple(accumulate(observations))
        else:  # every counter overtook itself: less is seen than there was, never more
            assert sum(grown.values()) <= sum(events.values())
        before = after


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), st.lists(st.floats(0, 1e6), min_size=3, max_size=3))
def test_nothing_ever_falls_or_is_negative(first: list[float], second: list[float]) -> None:
    before, after = observed(*accumulate(first)), observed(*accumulate(second))
    for found in increase(before, after, 1.0).grown.histograms[WAIT].values():
        assert list(found.counts) == sorted(found.counts)
        assert min(found.counts) >= 0


@pytest.mark.parametrize(
    ("q", "bounds", "observations", "expected"),
    [
        (0.5, (1, 2, math.inf), (10, 20, 20), 1.0),  # at the end of the first bucket
        (0.5, (1, 2, math.inf), (0, 20, 20), 1.5),  # in the middle of the second
        (0.25, (1, 2, math.inf), (10, 20, 20), 0.5),  # the first begins at 0
        (0.95, (1, 2, 4, math.inf), (50, 90, 100, 100), 3.0),
        (0.99, (1, 2, math.inf), (1, 2, 100), 2.0),  # beyond the last finite bound
        (0.0, (1, 2, math.inf), (0, 4, 4), 0.0),
        (1.0, (1, 2, math.inf), (0, 4, 4), 2.0),
        (0.5, (-1, 1, math.inf), (4, 4, 4), -1),  # nothing is known of where a bucket below 0 begins
        (0.5, (1, math.inf), (0, 0), None),
        (0.5, (math.inf,), (9,), None),
        (0.5, (1, 2), (3, 4), None),
        (0.5, (), (), None),
    ],
)
def test_quantile(q: float, bounds: tuple[float, ...], observations: tuple[float, ...], expected: float | None) -> None:
    assert quantile(q, Buckets(bounds, observations)) == expected


def test_nothing_observed_has_no_quantile() -> None:
    assert quantile(0.5, None) is None
    assert merge_buckets([]) is None


@given(cells, st.floats(0, 1), st.floats(0, 1))
def test_quantiles_are_within_bounds_and_ordered(observations: list[int], one: float, other: float) -> None:
    buckets = Buckets(BOUNDS, tuple(map(float, accumulate(observations))))
    low, high = (quantile(q, buckets) for q in sorted((one, other)))
    if not sum(observations):
        assert (low, high) == (None, None)
    else:
        assert 0 <= low <= high <= 1.0


def test_histograms_of_several_instances_are_merged_at_the_bounds_that_all_have() -> None:
    one, two = Buckets((1, 2, math.inf), (1, 2, 3)), Buckets((1, 4, math.inf), (10, 20, 30))
    assert merge_buckets([one, one]) == Buckets((1, 2, math.inf), (2, 4, 6))
    assert merge_buckets([one, two]) == Buckets((1, math.inf), (11, 33))


def test_quantiles_are_those_of_a_real_prometheus(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH; `make tools` sets it up")
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
        # No value is Prometheus's NaN, which is unlike itself.
        expr = f"{query} != bool {query}" if found is None else f"abs({query} - {found!r}) < bool 1e-12"
        checks.append({"expr": expr, "eval_time": "0m", "exp_samples": [{"labels": f'{{case="{case}"}}', "value": 1}]})
    document = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": checks}]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    command = [promtool, "test", "rules", str(tmp_path / "test.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_window_keeps_what_it_is_to_look_back_on() -> None:
    window = Window(10.0)
    for number in range(20):
        window.add(increase(Samples(), counted(a=number), 2.1))
    assert window.seconds == pytest.approx(10.5)
    assert window.counter(NAME) == {("a",): 15 + 16 + 17 + 18 + 19}
    window.clear()
    assert (window.seconds, window.counter(NAME), window.histogram(WAIT)) == (0.0, {}, [])


def test_window_keeps_one_difference_however_long_it_is() -> None:
    window = Window(10.0)
    window.add(increase(Samples(), counted(a=4), 60.0))
    window.add(increase(Samples(), counted(a=5), 60.0))
    assert (window.seconds, window.counter(NAME)) == (60.0, {("a",): 5})
