"""The simulation of the task queue reproduces known results of queueing theory and the algorithm of the autoscaler."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.autoscaling import DEFAULT_BEHAVIOR, Scaling, read_values, scaling_of
from benchmarks.simulation import Arrivals, Day, Pods, simulate, simulate_day

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TASKS = 100_000
SEED = 4


def fixed(pods: int) -> Scaling:
    return Scaling(kind="fixed", min_pods=pods, max_pods=pods)


def arrivals_of(times_s: NDArray[np.float64], service_s: NDArray[np.float64], lanes: Any = 0) -> Arrivals:
    return Arrivals(times_s=times_s, lanes=np.broadcast_to(lanes, len(times_s)), service_s=service_s)


def exponential(random: np.random.Generator, mean: float) -> NDArray[np.float64]:
    return random.exponential(mean, TASKS)


def constant(_: np.random.Generator, mean: float) -> NDArray[np.float64]:
    return np.full(TASKS, mean)


def two_kinds(random: np.random.Generator, mean: float) -> NDArray[np.float64]:
    return random.choice([0.5 * mean, 1.5 * mean], TASKS)


def erlang_wait(servers: int, load: float) -> float:
    """Return the mean wait of M/M/c for a mean service time of 1, with Erlang's C formula."""
    offered = servers * load
    full = offered**servers / math.factorial(servers) / (1 - load)
    waits = full / (sum(offered**count / math.factorial(count) for count in range(servers)) + full)
    return waits / (servers * (1 - load))


def pollaczek_khinchine_wait(load: float, variation: float) -> float:
    """Return the mean wait of M/G/1 for a mean service time of 1 and its squared coefficient of variation."""
    return load * (1 + variation) / (2 * (1 - load))


@pytest.mark.parametrize(
    ("service", "servers", "load", "expected"),
    [
        (exponential, 1, 0.5, erlang_wait(1, 0.5)),
        (exponential, 1, 0.7, erlang_wait(1, 0.7)),
        (exponential, 4, 0.8, erlang_wait(4, 0.8)),
        (constant, 1, 0.7, pollaczek_khinchine_wait(0.7, 0)),
        (two_kinds, 1, 0.7, pollaczek_khinchine_wait(0.7, 0.25)),
    ],
)
def test_mean_wait_is_that_of_queueing_theory(
    service: Callable[[np.random.Generator, float], NDArray[np.float64]], servers: int, load: float, expected: float
) -> None:
    random = np.random.default_rng(SEED)
    times = np.cumsum(random.exponential(1 / (servers * load), TASKS))
    result = simulate(arrivals_of(times, service(random, 1.0)), Pods(processes=servers, prefetch=0), fixed(1))
    assert result.waits_s.mean() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", ["fixed", "keda", "hpa"])
@pytest.mark.parametrize("until_s", [10.0, 500.0, 3600.0])
def test_every_task_is_done_running_or_waiting(kind: str, until_s: float) -> None:
    day = Day(mean_rate=5, bursts=2, burst_tasks=500)
    arrivals = day.arrivals([0.1, 0.3], SEED, duration_s=1000)
    scaling = Scaling(kind=kind, min_pods=1, max_pods=5, target=1, behavior=DEFAULT_BEHAVIOR)
    result = simulate(arrivals, Pods(processes=2), scaling, until_s)
    arrived = arrivals.times_s <= until_s
    assert result.done + result.running + result.waiting == len(arrivals.times_s)
    assert not np.isfinite(result.waits_s[~arrived]).any(), "no task starts before it arrives"
    assert result.running <= 2 * result.pods.max() * 2
    assert (result.waits_s[np.isfinite(result.waits_s)] >= 0).all()
    ended = np.isfinite(result.ends_s)
    assert result.ends_s[ended] == pytest.approx((arrivals.times_s + result.waits_s + arrivals.service_s)[ended])
    if until_s == 3600:
        assert result.done == len(arrivals.times_s)


def test_no_task_waits_longer_with_more_pods() -> None:
    random = np.random.default_rng(SEED)
    arrivals = arrivals_of(np.cumsum(random.exponential(0.1, 20_000)), random.exponential(0.15, 20_000))
    waits = [simulate(arrivals, Pods(processes=1, prefetch=0), fixed(pods)).waits_s for pods in (1, 2, 3, 5)]
    for fewer, more in itertools.pairwise(waits):
        assert (more <= fewer + 1e-9).all()
    assert waits[0].mean() > 100 * waits[1].mean()


def test_a_caller_with_a_backlog_does_not_delay_another_lane() -> None:
    times = np.concatenate([np.zeros(1000), [0.5]])
    lanes = np.concatenate([np.zeros(1000, int), [3]])
    result = simulate(arrivals_of(times, np.full(1001, 0.1), lanes), Pods(processes=2), fixed(1))
    assert result.waits_s[-1] <= 0.3 < result.waits_s[-2]


@pytest.mark.parametrize(
    ("kind", "target", "busy", "expected", "error"),
    [
        ("keda", 10, 100, 10, None),  # 100 unfinished tasks
        ("keda", 10, 1000, 12, None),  # maxReplicas
        ("keda", 1000, 100, 1, None),
        ("hpa", 0.5, 100, 4, None),  # two processes use two cores
        ("other", 1, 100, 0, KeyError),
    ],
)
def test_pods_follow_the_target(
    kind: str, target: float, busy: int, expected: int, error: type[Exception] | None
) -> None:
    arrivals = arrivals_of(np.zeros(busy), np.full(busy, 1000.0 if kind == "keda" else 1.0))
    if error:
        with pytest.raises(error):
            read_values([f"worker.{kind}.enabled=true"])
        return
    scaling = Scaling(kind=kind, min_pods=1, max_pods=12, target=target, behavior=DEFAULT_BEHAVIOR)
    pods = Pods(processes=2 if kind == "hpa" else 1, start_s=1e6)
    result = simulate(arrivals, pods, scaling, 45 if kind == "hpa" else 100)
    assert result.pods.max() <= expected
    assert simulate(arrivals, pods, scaling, 121).pods[-1] == expected


def test_pods_are_added_and_removed_as_the_policies_allow() -> None:
    behavior = {
        "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
        "scaleDown": {
            "stabilizationWindowSeconds": 120,
            "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}],
        },
    }
    busy = np.full(100, 600.0)
    scaling = Scaling(kind="keda", min_pods=1, max_pods=9, target=1, behavior=behavior)
    result = simulate(arrivals_of(np.zeros(100), busy), Pods(processes=25, start_s=0.0, prefetch=0), scaling, 1200)
    by_minute = result.pods.tolist()
    assert by_minute[:6] == [1, 3, 5, 7, 9, 9]
    down = by_minute[by_minute.index(9) :]
    down = down[down.index(next(count for count in down if count < 9)) :]
    assert down[:4] == [4, 2, 1, 1]


def test_keda_stops_all_pods_after_the_cooldown_and_starts_one_for_a_task() -> None:
    scaling = Scaling(
        kind="keda", min_pods=0, max_pods=3, target=20, polling_s=15, cooldown_s=300, behavior=DEFAULT_BEHAVIOR
    )
    arrivals = arrivals_of(np.array([1000.0, 2000.0]), np.full(2, 1.0))
    result = simulate(arrivals, Pods(processes=1, start_s=5.0), scaling, 3000)
    assert 5 <= result.waits_s.min() <= result.waits_s.max() <= 20
    at = dict(zip(result.sampled_s.tolist(), result.pods.tolist(), strict=True))
    assert (at[960], at[1080], at[1260], at[1380], at[2040]) == (0, 1, 1, 0, 1)


@pytest.mark.parametrize(
    ("changes", "kind", "expected", "error"),
    [
        ((), "fixed", {"min_pods": 1, "max_pods": 1}, None),
        (("worker.replicas=3",), "fixed", {"min_pods": 3}, None),
        (("worker.keda.enabled=true",), "keda", {"min_pods": 0, "max_pods": 10, "target": 20, "polling_s": 15}, None),
        (("worker.keda.enabled=true", "worker.keda.lagThreshold=5"), "keda", {"target": 5}, None),
        (("worker.autoscaling.enabled=true",), "hpa", {"max_pods": 10, "target": 0.175}, None),
        (("worker.autoscaling.enabled=true", "worker.resources.requests.cpu=2"), "hpa", {"target": 1.4}, None),
        (("worker.keda.lag=5",), "", {}, KeyError),
    ],
)
def test_scaling_is_read_from_the_values_of_the_chart(
    changes: tuple[str, ...], kind: str, expected: dict[str, float], error: type[Exception] | None
) -> None:
    if error:
        with pytest.raises(error):
            read_values(changes)
        return
    scaling = scaling_of(read_values(changes))
    assert scaling.kind == kind
    assert {name: getattr(scaling, name) for name in expected} == pytest.approx(expected)


def test_arrivals_of_a_day_have_its_rate_and_peak() -> None:
    arrivals = Day(mean_rate=2, bursts=0).arrivals([0.1], SEED)
    by_hour = np.histogram(arrivals.times_s / 3600, bins=np.arange(25))[0] / 3600
    assert by_hour.mean() == pytest.approx(2, rel=0.02)
    assert by_hour[14:16].mean() == pytest.approx(3.6, rel=0.05)
    assert by_hour[2:4].mean() == pytest.approx(0.4, rel=0.15)


def test_a_day_is_repeatable() -> None:
    first, second = (simulate_day(Day(mean_rate=1), (), hours=0.5, service_s=0.05) for _ in range(2))
    assert first[2] == second[2]
    assert np.array_equal(first[1].waits_s, second[1].waits_s)
