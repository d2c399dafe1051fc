"""Simulate the task queue of a release for a day: callers, lanes, worker pods, and the autoscaler of the chart.

The arrival rate has a peak in the afternoon, a low at night, and bursts of one caller. Each task takes the time of a
random measured task. Workers take tasks of the lanes in turn. The autoscaler has the values of the chart
(`worker.keda` or `worker.autoscaling`), evaluated as by the HorizontalPodAutoscaler controller: every 15 s, with
a tolerance of 10 %, the policies and the stabilization windows. Each worker process has a core of its own, so
the simulation does not show nodes without free CPU.

Example: python -m benchmarks.simulation --rate 10 --set worker.keda.enabled=true --picture day.svg
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.tasks.stream import LANES
from app.tasks.worker import PREFETCH
from benchmarks.autoscaling import METRICS_WINDOW_S, SYNC_S, TOLERANCE, Scaling, read_values, scaling_of
from benchmarks.day_chart import Panel, draw
from benchmarks.scaling_figures import FIGURES, load, store

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray

    Events = Generator[simpy.Event, Any, None]

DAY_S = 86_400.0
PEAK_HOUR = 15.0
# From the decision to start a pod to its first task: scheduling, the start of the container, and of the service (1 s).
POD_START_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Tasks in the order of their submission.

    Attributes:
        times_s: (N,) times of submission, ascending.
        lanes: (N,) lane of each task's caller.
        service_s: (N,) time for which each task occupies a worker process.
    """

    times_s: NDArray[np.float64]
    lanes: NDArray[np.int64]
    service_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """Traffic of a day.

    Attributes:
        mean_rate: tasks per second, averaged over the day, without bursts.
        swing: difference of the peak from the mean, as a ratio of the mean.
        bursts: number of bursts; each is sent by one caller, in lane 0.
        burst_tasks: number of tasks in a burst.
        burst_s: duration of a burst, in seconds.
    """

    mean_rate: float
    swing: float = 0.8
    bursts: int = 6
    burst_tasks: int = 5000
    burst_s: float = 60.0

    def rate_at(self, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the arrival rate without bursts."""
        phase = 2 * math.pi * (time_s / 3600 - PEAK_HOUR) / 24
        return self.mean_rate * (1 + self.swing * np.cos(phase))

    def arrivals(
        self, service_s: Sequence[float] | NDArray[np.float64], seed: int, *, duration_s: float = DAY_S
    ) -> Arrivals:
        """Return random arrivals; each task takes as long as a random one of `service_s`."""
        random = np.random.default_rng(seed)
        highest = self.mean_rate * (1 + self.swing)
        candidates = np.sort(random.uniform(0, duration_s, random.poisson(highest * duration_s)))
        times = candidates[random.uniform(0, highest, len(candidates)) < self.rate_at(candidates)]
        lanes = random.integers(1, LANES, len(times))
        starts = random.uniform(0, max(0.0, duration_s - self.burst_s), self.bursts)
        burst = (starts[:, None] + random.uniform(0, self.burst_s, (self.bursts, self.burst_tasks))).ravel()
        times, lanes = np.concatenate([times, burst]), np.concatenate([lanes, np.zeros(len(burst), np.int64)])
        order = np.argsort(times, kind="stable")
        return Arrivals(
            times_s=times[order], lanes=lanes[order], service_s=random.choice(np.asarray(service_s), len(times))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """Worker pods: processes per pod, seconds from the decision to the first task, and messages fetched in advance."""

    processes: int
    start_s: float = POD_START_S
    prefetch: int = PREFETCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a simulation has recorded.

    Attributes:
        waits_s: (N,) time from submission to start; NaN for a task that has not started.
        ends_s: (N,) time of the end; NaN for a task that has not ended.
        sampled_s: times of the samples below.
        pods: pods that run or start.
        oldest_s: age of the oldest waiting task.
        pod_seconds: sum of the time that each pod existed.
    """

    waits_s: NDArray[np.float64]
    ends_s: NDArray[np.float64]
    sampled_s: NDArray[np.float64]
    pods: NDArray[np.int64]
    oldest_s: NDArray[np.float64]
    pod_seconds: float

    @property
    def done(self) -> int:
        """Number of tasks that have ended."""
        return int(np.isfinite(self.ends_s).sum())

    @property
    def running(self) -> int:
        """Number of tasks that have started and not ended."""
        return len(self.waits_s) - self.done - self.waiting

    @property
    def waiting(self) -> int:
        """Number of tasks that have not started, or not arrived."""
        return int(np.isnan(self.waits_s).sum())

    def quantiles(self, mask: NDArray[np.bool_]) -> dict[str, float]:
        """Return the quantiles of the waits of the selected tasks that have started; NaN if none has."""
        waits = self.waits_s[mask & np.isfinite(self.waits_s)]
        return {name: float(np.quantile(waits, q)) if len(waits) else math.nan for name, q in QUANTILES.items()}


QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "maximum": 1.0}


class _Process:
    """A task process: the task that it works on, and those that it has fetched in advance."""

    def __init__(self) -> None:
        self.held: deque[int] = deque()
        self.wake: simpy.Event | None = None
        self.is_stopping = False


class _Pod:
    def __init__(self, processes: list[_Process], created_s: float) -> None:
        self.processes = processes
        self.created_s = created_s


class Simulation:
    """The queue, its workers and their autoscaler."""

    def __init__(self, arrivals: Arrivals, pods: Pods, scaling: Scaling, *, sample_s: float = 60.0) -> None:
        self._layout = pods
        self._scaling = scaling
        self._sample_s = sample_s
        self._env = simpy.Environment()
        self._lanes: list[deque[int]] = [deque() for _ in range(LANES)]
        self._turn = 0
        self._queued = 0
        self._unfinished = 0
        self._busy_s = 0.0  # CPU time of ended tasks
        self._idle: deque[_Process] = deque()
        self._pods: list[_Pod] = []
        # Lists, because reading single elements of arrays is slow.
        self._times_s: list[float] = arrivals.times_s.tolist()
        self._service_s: list[float] = arrivals.service_s.tolist()
        self._lane_of: list[int] = arrivals.lanes.tolist()
        self._waits_s = [math.nan] * len(self._times_s)
        self._ends_s = [math.nan] * len(self._times_s)
        self._samples: list[tuple[float, int, float]] = []
        self._pod_seconds = 0.0

    def run(self, until_s: float | None = None) -> Result:
        """Return the records of a run until a time; by default, until all tasks have ended."""
        self._add_pods(max(self._scaling.min_pods, 1 if self._scaling.kind == "hpa" else 0), start_s=0.0)
        arrivals = self._env.process(self._arrive())
        self._env.process(self._sample())
        if self._scaling.kind != "fixed":
            self._env.process(_Autoscaler(self, self._env, self._scaling).run())
        if until_s is None:
            self._env.run(arrivals)
            while self._unfinished and self._env.peek() < math.inf:
                self._env.step()
        else:
            self._env.run(until_s)
        self._pod_seconds += sum(self._env.now - pod.created_s for pod in self._pods)
        sampled_s, pods, oldest_s = (np.array(column) for column in zip(*self._samples, strict=True))
        return Result(
            waits_s=np.array(self._waits_s),
            ends_s=np.array(self._ends_s),
            sampled_s=sampled_s,
            pods=pods,
            oldest_s=oldest_s,
            pod_seconds=self._pod_seconds,
        )

    @property
    def unfinished(self) -> int:
        """Tasks that wait or run: the lag of KEDA."""
        return self._unfinished

    @property
    def busy_s(self) -> float:
        """CPU time that the workers have used."""
        return self._busy_s

    @property
    def pod_count(self) -> int:
        """Pods that run or start."""
        return len(self._pods)

    def set_pods(self, count: int) -> None:
        """Start or stop pods; a stopped pod finishes its task and requeues those that it has fetched in advance."""
        self._add_pods(count - len(self._pods), self._layout.start_s)
        while len(self._pods) > count:
            pod = self._pods.pop()
            self._pod_seconds += self._env.now - pod.created_s
            for process in pod.processes:
                process.is_stopping = True
                if process.wake is not None:
                    self._idle.remove(process)
                    process.wake.succeed()
                    process.wake = None
            for process in pod.processes:
                while process.held:
                    self._requeue(process.held.pop())

    def _add_pods(self, count: int, start_s: float) -> None:
        for _ in range(count):
            processes = [_Process() for _ in range(self._layout.processes)]
            self._pods.append(_Pod(processes, self._env.now))
            for process in processes:
                self._env.process(self._work(process, start_s))

    def _arrive(self) -> Events:
        for number, time_s in enumerate(self._times_s):
            if time_s > self._env.now:
                yield self._env.timeout(time_s - self._env.now)
            self._lanes[self._lane_of[number]].append(number)
            self._queued += 1
            self._unfinished += 1
            self._wake_one()

    def _work(self, process: _Process, start_s: float) -> Events:
        yield self._env.timeout(start_s)
        while not process.is_stopping:
            self._fetch(process)
            if not process.held:
                process.wake = self._env.event()
                self._idle.append(process)
                yield process.wake
                continue
            number = process.held.popleft()
            self._waits_s[number] = self._env.now - self._times_s[number]
            yield self._env.timeout(self._service_s[number])
            self._ends_s[number] = self._env.now
            self._busy_s += self._service_s[number]
            self._unfinished -= 1

    def _fetch(self, process: _Process) -> None:
        """Fill the slots of a process: the task that it starts, and those in advance."""
        while self._queued and len(process.held) <= self._layout.prefetch:
            while not self._lanes[self._turn]:
                self._turn = (self._turn + 1) % LANES
            process.held.append(self._lanes[self._turn].popleft())
            self._turn = (self._turn + 1) % LANES
            self._queued -= 1

    def _requeue(self, number: int) -> None:
        self._lanes[self._lane_of[number]].appendleft(number)
        self._queued += 1
        self._wake_one()

    def _wake_one(self) -> None:
        if self._idle:
            process = self._idle.popleft()
            if process.wake is not None:
                process.wake.succeed()
                process.wake = None

    def _sample(self) -> Events:
        while True:
            waited_s = (self._env.now - self._times_s[lane[0]] for lane in self._lanes if lane)
            self._samples.append((self._env.now, len(self._pods), max(waited_s, default=0.0)))
            yield self._env.timeout(self._sample_s)


class _Autoscaler:
    """The HorizontalPodAutoscaler controller, and KEDA's scaling between 0 and 1."""

    def __init__(self, simulation: Simulation, env: simpy.Environment, scaling: Scaling) -> None:
        self._simulation = simulation
        self._env = env
        self._scaling = scaling
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: list[tuple[float, int]] = []  # time, change of the number of pods
        self._usage: deque[tuple[float, float]] = deque([(0.0, 0.0)])  # time, CPU time so far
        self._active_s = 0.0

    def run(self) -> Events:
        """Evaluate every `SYNC_S`; without pods, every polling interval of KEDA."""
        while True:
            current = self._simulation.pod_count
            yield self._env.timeout(SYNC_S if current else self._scaling.polling_s)
            wanted = self._next_count(current)
            if wanted != current:
                self._changes.append((self._env.now, wanted - current))
                self._simulation.set_pods(wanted)

    def _next_count(self, current: int) -> int:
        now, scaling = self._env.now, self._scaling
        if self._simulation.unfinished:
            self._active_s = now
        if current == 0:
            return 1 if self._simulation.unfinished else 0
        if scaling.min_pods == 0 and now - self._active_s >= scaling.cooldown_s and not self._simulation.unfinished:
            return 0
        usage = self._cores_used() if scaling.kind == "hpa" else float(self._simulation.unfinished)
        ratio = usage / (scaling.target * current)
        desired = current if abs(ratio - 1) <= TOLERANCE else math.ceil(usage / scaling.target)
        desired = min(max(desired, scaling.min_pods, 1), scaling.max_pods)
        return self._limit(current, self._stabilize(current, desired))

    def _cores_used(self) -> float:
        now, busy_s = self._env.now, self._simulation.busy_s
        self._usage.append((now, busy_s))
        while len(self._usage) > 2 and now - self._usage[1][0] >= METRICS_WINDOW_S:  # noqa: PLR2004 - both ends
            self._usage.popleft()
        before_s, before_busy_s = self._usage[0]
        return (busy_s - before_busy_s) / (now - before_s)

    def _stabilize(self, current: int, desired: int) -> int:
        """Return the recommendation that is closest to the current number in the stabilization windows."""
        now = self._env.now
        windows = {name: rules["stabilizationWindowSeconds"] for name, rules in self._scaling.behavior.items()}
        self._recommended.append((now, desired))
        while now - self._recommended[0][0] > max(windows.values()):
            self._recommended.popleft()
        lowest = min(count for time, count in self._recommended if now - time <= windows["scaleUp"])
        highest = max(count for time, count in self._recommended if now - time <= windows["scaleDown"])
        return min(max(current, lowest), highest)

    def _limit(self, current: int, desired: int) -> int:
        """Apply the policies."""
        if desired == current:
            return current
        name, sign = ("scaleUp", 1) if desired > current else ("scaleDown", -1)
        rules = self._scaling.behavior[name]
        selection = rules.get("selectPolicy", "Max")
        if selection == "Disabled":
            return current
        bounds = [self._bound(current, policy, sign) for policy in rules["policies"]]
        bound = max(bounds) if (selection == "Max") == (sign > 0) else min(bounds)
        return min(desired, max(current, bound)) if sign > 0 else max(desired, min(current, bound))

    def _bound(self, current: int, policy: dict[str, Any], sign: int) -> int:
        recent = [change for time, change in self._changes if self._env.now - time < policy["periodSeconds"]]
        start = current - sum(change for change in recent if change * sign > 0)
        if policy["type"] == "Pods":
            return start + sign * int(policy["value"])
        factor = 1 + sign * float(policy["value"]) / 100
        return math.ceil(start * factor) if sign > 0 else math.floor(start * factor)


def simulate(arrivals: Arrivals, pods: Pods, scaling: Scaling, until_s: float | None = None) -> Result:
    """Return the records of a simulation until a time; by default, until all tasks have ended."""
    return Simulation(arrivals, pods, scaling).run(until_s)


# The days of docs/scaling.md: what is changed in the values of the chart.
DAYS: dict[str, tuple[str, ...]] = {
    "one pod": (),
    "KEDA, default values": ("worker.keda.enabled=true",),
    "KEDA, `minReplicas: 1`": ("worker.keda.enabled=true", "worker.keda.minReplicas=1"),
    "HPA, default values": ("worker.autoscaling.enabled=true",),
    "HPA, `requests.cpu: 2`": ("worker.autoscaling.enabled=true", "worker.resources.requests.cpu=2"),
}
DRAWN = "KEDA, `minReplicas: 1`"
PICTURE = Path(__file__).parents[1] / "docs" / "scaling-day.svg"
TITLE = "A day with 2 tasks per second, six bursts of 5,000 tasks, KEDA (minReplicas 1)"
DOCUMENTED_RATE = 2.0
SEED = 19
BIN_S = 600.0


def measured_service_s(mean_s: float | None = None) -> NDArray[np.float64]:
    """Return the durations of measured tasks as 101 quantiles, scaled to a mean.

    The default mean is the CPU time of a worker for a task, because a process of the simulation has a core of its own.
    """
    measured = load()["queue_wait"]["figures"]
    service_ms = np.array(measured["service_ms"])
    mean_ms = measured["cpu_ms"]["worker"] if mean_s is None else 1000 * mean_s
    scaled: NDArray[np.float64] = service_ms * (mean_ms / service_ms.mean()) / 1000
    return scaled


def summarize(arrivals: Arrivals, result: Result, processes: int) -> dict[str, float]:
    """Return the figures of a day: waits of the callers without and with bursts, pods and their cost."""
    is_burst = arrivals.lanes == 0
    others, bursts = result.quantiles(~is_burst), result.quantiles(is_burst)
    figures = {
        "tasks": len(arrivals.times_s),
        **{f"{name}_s": others[name] for name in ("p50", "p95", "p99", "maximum")},
        "burst_p99_s": bursts["p99"],
        "oldest_s": float(result.oldest_s.max()),
        "max_pods": int(result.pods.max()),
        "pod_hours": result.pod_seconds / 3600,
        "busy": float(arrivals.service_s.sum() / (result.pod_seconds * processes)),
    }
    return {name: round(value, 3) for name, value in figures.items()}


def draw_day(title: str, arrivals: Arrivals, result: Result) -> str:
    """Return the chart of a day."""
    edges = np.arange(0.0, arrivals.times_s[-1] + BIN_S, BIN_S)
    bins = np.digitize(arrivals.times_s, edges) - 1
    sample_bins = np.digitize(result.sampled_s, edges) - 1
    is_burst = arrivals.lanes == 0
    numbers = range(len(edges) - 1)
    waits = [result.quantiles((bins == number) & ~is_burst) for number in numbers]
    panels = [
        Panel("Submitted tasks per second", {"": [float((bins == number).sum() / BIN_S) for number in numbers]}),
        Panel("Pods", {"": [_highest(result.pods, sample_bins == number) for number in numbers]}),
        Panel(
            "Queue wait of callers without bursts, in seconds",
            {name: [one[name] for one in waits] for name in ("p50", "p95", "p99")},
            floor=0.001,
        ),
        Panel(
            "Age of the oldest waiting task, in seconds",
            {"": [_highest(result.oldest_s, sample_bins == number) for number in numbers]},
            floor=0.01,
        ),
    ]
    return draw(title, [(edge + BIN_S / 2) / 3600 for edge in edges[:-1]], panels)


def _highest(values: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    return float(values[mask].max()) if mask.any() else math.nan


def simulate_day(
    day: Day,
    changes: Sequence[str],
    *,
    hours: float = 24.0,
    service_s: float | None = None,
    seed: int = SEED,
    pod_start_s: float = POD_START_S,
) -> tuple[Arrivals, Result, dict[str, float]]:
    """Return the arrivals, the records and the figures of a day with changed values of the chart."""
    values = read_values(changes)
    arrivals = day.arrivals(measured_service_s(service_s), seed, duration_s=hours * 3600)
    pods = Pods(processes=values["worker"]["processes"], start_s=pod_start_s)
    result = simulate(arrivals, pods, scaling_of(values))
    return arrivals, result, summarize(arrivals, result, pods.processes)


def document_day(name: str) -> tuple[dict[str, float], str]:
    """Simulate a day of docs/scaling.md; return its figures and its chart."""
    arrivals, result, figures = simulate_day(Day(mean_rate=DOCUMENTED_RATE), DAYS[name])
    return figures, draw_day(TITLE, arrivals, result)


def document_days() -> None:
    """Simulate the days of docs/scaling.md in parallel, and store their figures and the chart."""
    with ProcessPoolExecutor() as pool:
        days = dict(zip(DAYS, track(pool.map(document_day, DAYS), "days", total=len(DAYS)), strict=True))
    PICTURE.write_text(days[DRAWN][1], encoding="utf-8")
    store(FIGURES, "days", {name: figures for name, (figures, _) in days.items()})


def main() -> None:
    """Simulate a day, and print its figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rate", type=float, default=10.0, help="mean tasks per second (default: %(default)g)")
    parser.add_argument("--hours", type=float, default=24.0, help="duration (default: %(default)g)")
    parser.add_argument("--bursts", type=int, default=6, help="bursts of one caller (default: %(default)s)")
    parser.add_argument("--burst-tasks", type=int, default=5000, help="tasks in a burst (default: %(default)s)")
    parser.add_argument("--service-ms", type=float, help="mean duration of a task; by default, as measured")
    parser.add_argument("--pod-start", type=float, default=POD_START_S, help="seconds (default: %(default)g)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="value of the chart; repeatable"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the random numbers (default: %(default)s)")
    parser.add_argument("--picture", type=Path, help="SVG file to write")
    parser.add_argument("--document", action="store_true", help="update the figures and the chart of docs/scaling.md")
    arguments = parser.parse_args()
    if arguments.document:
        document_days()
        return
    arrivals, result, figures = simulate_day(
        Day(mean_rate=arguments.rate, bursts=arguments.bursts, burst_tasks=arguments.burst_tasks),
        arguments.set,
        hours=arguments.hours,
        service_s=arguments.service_ms and arguments.service_ms / 1000,
        seed=arguments.seed,
        pod_start_s=arguments.pod_start,
    )
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.6g}")
    Console().print(table)
    if arguments.picture:
        title = f"Simulated tasks, {arguments.rate:g} per second on average"
        arguments.picture.write_text(draw_day(title, arrivals, result), encoding="utf-8")


if __name__ == "__main__":
    main()
