"""Measure how long tasks wait in a real queue at 70 % of its capacity, and compare that with the simulation.

The service runs with an embedded NATS server and one task process. First, single tasks give the delay of a submission
to an idle queue, and a backlog gives the capacity. Then tasks are submitted at random times (a Poisson process) at a
share of that capacity. The records of the tasks contain when each was submitted, started and completed. The simulation
gets the same submission times and the same durations, so that other load on the machine affects both.

Example: python -m benchmarks.queue_wait --seconds 90 --output benchmarks/scaling.json
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import inputs
from benchmarks.autoscaling import Scaling
from benchmarks.scaling_figures import FIGURES, store
from benchmarks.simulation import QUANTILES, Arrivals, Pods, simulate
from benchmarks.tasks import call, cpu_times, finish, nats_pid, submit, task_pids, tasks_service

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.processes import Server

UTILIZATION = 0.7
SECONDS = 90.0
SINGLE = 30  # tasks for the delay of an idle queue, after as many that warm up the processes
BACKLOG = 60
MIN_TASKS = 200  # on a slow machine, the run takes longer
SUBMITTERS = 8
PREDICTED_TASKS = 200_000
SEED = 19


@dataclass(frozen=True, slots=True)
class Times:
    """When tasks were submitted, started and completed, in the order of submission, and the size of their status."""

    submitted_s: NDArray[np.float64]
    started_s: NDArray[np.float64]
    completed_s: NDArray[np.float64]
    result_bytes: NDArray[np.float64]

    @property
    def waits_s(self) -> NDArray[np.float64]:
        """Time from submission to start."""
        return self.started_s - self.submitted_s

    @property
    def service_s(self) -> NDArray[np.float64]:
        """Time from start to completion, in which the process does no other task."""
        return self.completed_s - self.started_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured run.

    Attributes:
        delay_s: median time from submission to start in an idle queue.
        pause_s: mean time between the completion of a task of the backlog and the start of the next.
        capacity: tasks per second of a backlog.
        rate: tasks per second that were submitted.
        times: of the tasks that were submitted at random times.
        cpu_ms: CPU time per task of each process.
        task_bytes: mean size of a request.
        result_bytes: mean size of a finished task's status.
    """

    delay_s: float
    pause_s: float
    capacity: float
    rate: float
    times: Times
    cpu_ms: dict[str, float]
    task_bytes: float
    result_bytes: float

    @property
    def utilization(self) -> float:
        """Share of the time in which the process worked."""
        busy_s = self.times.service_s.sum() + len(self.times.service_s) * self.pause_s
        return float(busy_s / (self.times.completed_s[-1] - self.times.submitted_s[0]))


def measure(seconds: float, seed: int = SEED) -> Run:
    """Run the service and submit tasks at random times for a number of seconds."""
    random = np.random.default_rng(seed)
    bodies = [inputs.photo_request(scale) for scale in (1, 2)]
    with tasks_service(TASK_WORKERS="1", TASK_QUEUE_MAX_MESSAGES="100000") as server:
        pids = {"api": server.pid, "worker": task_pids(server)[0], "queue_server": nats_pid(server)}
        run_singly(server, bodies)
        delay_s = float(np.median(run_singly(server, bodies).waits_s))
        backlog = submit_at(server, bodies, np.zeros(BACKLOG))
        capacity = (BACKLOG - 1) / float(np.ptp(np.sort(backlog.completed_s)))
        order = np.argsort(backlog.started_s)
        pause_s = float(np.ptp(backlog.started_s) - backlog.service_s[order][:-1].sum()) / (BACKLOG - 1)
        count = max(MIN_TASKS, round(UTILIZATION * capacity * seconds))
        moments = np.cumsum(random.exponential(1 / (UTILIZATION * capacity), count))
        before = cpu_times(pids)
        times = submit_at(server, bodies, moments)
        spent = {name: 1000 * (now - before[name]) / count for name, now in cpu_times(pids).items()}
    rate = (count - 1) / float(np.ptp(times.submitted_s))
    return Run(
        delay_s=delay_s,
        pause_s=pause_s,
        capacity=capacity,
        rate=rate,
        times=times,
        cpu_ms=spent,
        task_bytes=sum(len(body) for body, _ in bodies) / len(bodies),
        result_bytes=float(times.result_bytes.mean()),
    )


def run_singly(server: Server, bodies: list[tuple[bytes, str]]) -> Times:
    """Submit tasks, each after the result of the one before."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    locations = []
    for number in range(SINGLE):
        locations.append(submit(connection, *bodies[number % len(bodies)]))
        finish(connection, locations[-1])
    connection.close()
    return read_times(server, locations)


def submit_at(server: Server, bodies: list[tuple[bytes, str]], moments: NDArray[np.float64]) -> Times:
    """Submit a task at each moment, in seconds from now, and wait until all have succeeded."""
    free: SimpleQueue[http.client.HTTPConnection] = SimpleQueue()
    start = time.perf_counter()

    def submit_one(number: int) -> str:
        time.sleep(max(0.0, start + moments[number] - time.perf_counter()))
        connection = free.get()
        try:
            return submit(connection, *bodies[number % len(bodies)])
        finally:
            free.put(connection)

    with ExitStack() as stack:
        for _ in range(SUBMITTERS):
            free.put(stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60))))
        pool = stack.enter_context(ThreadPoolExecutor(SUBMITTERS))
        locations = list(pool.map(submit_one, range(len(moments))))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    for location in locations:
        finish(connection, location)
    connection.close()
    return read_times(server, locations)


def read_times(server: Server, locations: list[str]) -> Times:
    """Return the times in the records of tasks."""
    rows = []
    for location in locations:
        text = call(server.port, "GET", location)[1]
        document: dict[str, Any] = json.loads(text)
        moments = [_seconds(document[name]) for name in ("submitted_at", "started_at", "completed_at")]
        rows.append([*moments, float(len(text))])
    columns = np.array(sorted(rows)).T
    return Times(*columns)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def simulated_waits(run: Run, *, slowdown: float = 1.0) -> NDArray[np.float64]:
    """Return the waits of the simulation for the submission times and durations of a run.

    With `slowdown`, tasks take so many times as long, as for a comparison with another load.
    """
    arrivals = Arrivals(
        times_s=run.times.submitted_s - run.times.submitted_s[0],
        lanes=np.zeros(len(run.times.submitted_s), np.int64),
        service_s=slowdown * (run.times.service_s + run.pause_s),
    )
    return run.delay_s + simulate(arrivals, Pods(processes=1), Scaling(kind="fixed", min_pods=1, max_pods=1)).waits_s


def predicted_waits(run: Run) -> NDArray[np.float64]:
    """Return the waits of the simulation for other random times at the same rate, and random durations of a run."""
    random = np.random.default_rng(SEED)
    arrivals = Arrivals(
        times_s=np.cumsum(random.exponential(1 / run.rate, PREDICTED_TASKS)),
        lanes=np.zeros(PREDICTED_TASKS, np.int64),
        service_s=random.choice(run.times.service_s, PREDICTED_TASKS) + run.pause_s,
    )
    return run.delay_s + simulate(arrivals, Pods(processes=1), Scaling(kind="fixed", min_pods=1, max_pods=1)).waits_s


def quantiles_ms(waits_s: NDArray[np.float64]) -> dict[str, float]:
    """Return the mean and the quantiles of waits in milliseconds."""
    quantiles = {name: float(np.quantile(waits_s, share)) for name, share in QUANTILES.items()}
    return {name: round(1000 * value, 1) for name, value in {"mean": float(waits_s.mean()), **quantiles}.items()}


def main() -> None:
    """Measure, compare, and store the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.queue_wait",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="duration, unless slow (default: %(default)g)")
    parser.add_argument("--output", type=Path, help=f"file to update, such as {FIGURES.name}; by default, none")
    arguments = parser.parse_args()
    run = measure(arguments.seconds)
    waits = {
        "measured": quantiles_ms(run.times.waits_s),
        "simulated": quantiles_ms(simulated_waits(run)),
        "predicted": quantiles_ms(predicted_waits(run)),
    }
    table = Table("queue wait, ms", *waits["measured"])
    for name, row in waits.items():
        table.add_row(name, *map(str, row.values()))
    Console().print(table)
    service_ms = 1000 * np.quantile(run.times.service_s, np.linspace(0, 1, 101))
    figures = {
        "tasks": len(run.times.waits_s),
        "delay_ms": round(1000 * run.delay_s, 1),
        "pause_ms": round(1000 * run.pause_s, 1),
        "capacity_per_second": round(run.capacity, 2),
        "rate_per_second": round(run.rate, 2),
        "utilization": round(run.utilization, 3),
        "cpu_ms": {name: round(value, 2) for name, value in run.cpu_ms.items()},
        "task_bytes": round(run.task_bytes),
        "result_bytes": round(run.result_bytes),
        "waits_ms": waits,
        "service_ms": [round(value, 1) for value in service_ms.tolist()],  # 101 quantiles, from 0 to 1
    }
    Console().print({name: value for name, value in figures.items() if name not in ("service_ms", "waits_ms")})
    if arguments.output:
        store(arguments.output, "queue_wait", figures)


if __name__ == "__main__":
    main()
