"""Run mixed task traffic with cancels and kills, and print disk, memory and file descriptors over time.

Producers submit small and large tasks at a steady rate, cancel some of them, and wait for the others. A task worker,
an API worker and nats-server are killed in turn. The last line shows whether the medians of the second half exceed
those of the first, which they must not once results expire.

Example: python -m benchmarks.soak --minutes 20 --rate 10 --result-ttl 60
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import inputs
from benchmarks.processes import Server, read
from benchmarks.tasks import CROP, call, descendants, nats_pid, task_pids, tasks_service

if TYPE_CHECKING:
    from collections.abc import Callable

MB: Final = 1e6
PRODUCERS: Final = 4
WAIT_S: Final = 20
COLUMNS: Final = ("disk MB", "stored MB", "nats MB", "api MB", "task MB", "nats fds", "all fds")


@dataclass
class Sample:
    """Measurements at one time.

    Attributes:
        at_s: seconds since the start.
        values: one value per column of `COLUMNS`; None while a process restarts.
        done: number of finished tasks so far, by status.
    """

    at_s: float
    values: list[float | None]
    done: dict[str, int]


@dataclass
class Load:
    """Producers of tasks.

    Args:
        port: port of the API.
        rate: submissions per second of all producers.
        cancelled: fraction of tasks that are cancelled.
        seed: seed of the random choices.
    """

    port: int
    rate: float
    cancelled: float
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    is_over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> list[threading.Thread]:
        """Start the producers."""
        threads = [threading.Thread(target=self._produce, args=(number,), daemon=True) for number in range(PRODUCERS)]
        for thread in threads:
            thread.start()
        return threads

    def _produce(self, number: int) -> None:
        chance = random.Random(self.seed + number)  # noqa: S311 - reproducible
        requests = [inputs.small_request(), inputs.multipart_request()]
        waiting: list[str] = []
        due = time.monotonic()
        while not self.is_over.is_set():
            due += PRODUCERS / self.rate
            try:
                status, text = call(self.port, "POST", f"{CROP}/submit", *chance.choice(requests))
                if status == http.client.ACCEPTED:
                    waiting.append(str(json.loads(text)["task_id"]))
                    if chance.random() < self.cancelled:
                        call(self.port, "DELETE", f"{CROP}/status/{waiting.pop(chance.randrange(len(waiting)))}")
                        self.done["DELETE"] += 1
                else:
                    self.done[str(status)] += 1
                if len(waiting) > PRODUCERS:
                    self._await(waiting.pop(0))
            except (OSError, http.client.HTTPException):
                self.done["no response"] += 1
            self.is_over.wait(max(0.0, due - time.monotonic()))

    def _await(self, task_id: str) -> None:
        status, text = call(self.port, "GET", f"{CROP}/status/{task_id}?wait={WAIT_S}")
        self.done[json.loads(text)["status"] if status == http.client.OK else f"status {status}"] += 1


def main() -> int:
    """Run the load, print a table, and return 1 if a value grew in the second half."""
    options = _parse()
    console = Console()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = {"RESULT_TTL": str(options.result_ttl), "DATA_DIR": folder, "TASK_WORKERS": "2"}
        with tasks_service(**settings) as server:
            load = Load(server.port, options.rate, options.cancelled, options.seed)
            threads = load.start()
            samples = _observe(server, Path(folder), load, options, console)
            load.is_over.set()
            for thread in threads:
                thread.join(2 * WAIT_S)
    console.print(_table(samples))
    return _judge(samples, console)


def _observe(server: Server, folder: Path, load: Load, options: argparse.Namespace, console: Console) -> list[Sample]:
    start = time.monotonic()
    victims = _victims(server)
    next_kill, samples, kills = options.kill_every, list[Sample](), 0
    console.print("  s  " + "  ".join(COLUMNS))
    while (at_s := time.monotonic() - start) < 60 * options.minutes:
        if options.kill_every and at_s >= next_kill:
            next_kill += options.kill_every
            with contextlib.suppress(StopIteration, IndexError, psutil.Error, ProcessLookupError):
                os.kill(victims[kills % len(victims)](), signal.SIGKILL)
            kills += 1
        if at_s >= len(samples) * options.every:
            samples.append(Sample(at_s, _measure(server, folder), dict(load.done)))
            texts = ("-" if value is None else f"{value:.1f}" for value in samples[-1].values)
            console.print(f"{at_s:4.0f}  " + "  ".join(texts), samples[-1].done)
        time.sleep(0.1)
    return samples


def _victims(server: Server) -> list[Callable[[], int]]:
    return [
        lambda: task_pids(server)[0],
        lambda: server.workers()[0][1],
        lambda: nats_pid(server),
    ]


def _measure(server: Server, folder: Path) -> list[float | None]:
    return [
        _quietly(lambda: _disk_bytes(folder) / MB),
        _quietly(lambda: _metric(server, "queue_storage_bytes") / MB),
        _quietly(lambda: _rss(nats_pid(server))),
        _quietly(lambda: _rss(server.workers()[0][1])),
        _quietly(lambda: sum(map(_rss, task_pids(server)))),
        _quietly(lambda: psutil.Process(nats_pid(server)).num_fds()),
        _quietly(lambda: sum(process.num_fds() for process in [psutil.Process(server.master), *descendants(server)])),
    ]


def _quietly(measure: Callable[[], float]) -> float | None:
    with contextlib.suppress(StopIteration, IndexError, OSError, psutil.Error, ValueError, http.client.HTTPException):
        return measure()
    return None


def _disk_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_blocks * 512
    return total


def _rss(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / MB


def _metric(server: Server, name: str) -> float:
    text = read(server.metrics_port, "/metrics")
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def _table(samples: list[Sample]) -> Table:
    table = Table("", *COLUMNS, title="Each half of the run")
    for half, name in zip(_halves(samples), ("first", "second"), strict=True):
        for label, aggregate in (("median", statistics.median), ("maximum", max)):
            table.add_row(f"{name} half, {label}", *(f"{aggregate(values):.0f}" for values in half))
    return table


def _halves(samples: list[Sample]) -> list[list[list[float]]]:
    """Return the values of each column for the first and the second half."""
    middle = len(samples) // 2
    return [
        [[sample.values[at] or 0.0 for sample in half] or [0.0] for at in range(len(COLUMNS))]
        for half in (samples[:middle], samples[middle:])
    ]


def _judge(samples: list[Sample], console: Console) -> int:
    # Medians, because just after a kill the store temporarily contains data that it has not compacted yet.
    first, second = ([statistics.median(values) for values in half] for half in _halves(samples))
    grown = [name for name, one, two in zip(COLUMNS, first, second, strict=True) if two > 1.5 * one + 10]
    console.print(
        f"grew by more than half: {', '.join(grown)}" if grown else "bounded: no value grew by more than half"
    )
    return 1 if grown else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="duration (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=10.0, help="submissions per second (default: %(default)s)")
    parser.add_argument(
        "--cancelled", type=float, default=0.15, help="fraction of cancelled tasks (default: %(default)s)"
    )
    parser.add_argument("--result-ttl", type=int, default=60, help="RESULT_TTL, in seconds (default: %(default)s)")
    parser.add_argument(
        "--kill-every", type=float, default=30.0, help="seconds between kills; 0 for none (default: %(default)s)"
    )
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random choices (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
