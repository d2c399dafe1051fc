"""Measure the cost of the service relative to reference programs, and write the results to benchmarks/latest.json.

The results are CPU times of the process that handles the requests, because other load on the machine affects these
least. Both programs run alternately, a few requests at a time, so that changes in the speed of the machine affect both.
A ratio is the ratio of the two medians.

Example: python -m benchmarks.run --only request_json --only label_map
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import batch, detection, inputs, phone, slow_bodies, tasks, worst_request
from benchmarks.processes import Server, collector, drive, read, reference, send, service, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

LATEST = Path(__file__).parent / "latest.json"
ROUNDS = 200
DETECTION_ROUNDS = 40
REQUESTS = 5
WARM_UP = 40
DEATHS = 500
DEATH_WORKERS = 8
SCRAPES = 3
CROP = "/api/v1/frontal/crop"

BUDGETS = {
    "request_json": ("ratio", 1.3),
    "request_multipart": ("ratio", 1.3),
    "label_map": ("ratio", 1.3),
    "photo_only": ("ratio", 1.15),
    "detect_ms": ("ratio", 1.15),
    "phone_12mp": ("ratio", 1.15),
    "phone_12mp_mediapipe": ("ratio", 0.5),
    "accuracy": ("worst", detection.MAX_ERROR),
    "observability": ("ratio", 1.05),
    "tracing": ("ratio", 1.03),
    "svg_500_points_ms": ("cpu_ms", 0.1),
    "scrape_after_500_deaths": ("ratio", 1.5),
    "ready_s": ("seconds", 2.0),
    "rss_mb_per_worker": ("megabytes", 90.0),
    "task_overhead": ("ratio", 1.3),
    "tasks_per_second": ("ratio", 0.8),
    "light_tasks_per_second": ("ratio", 0.5),
    "process_rate": ("ratio", 0.9),
    "process_rate_found": ("ratio", 0.9),
    "worst_request": ("added_s", 1.0),
    "worst_request_others": ("p99_s", 2.0),
    "slow_bodies": ("failed", 0),
}
# Reported without a budget.
FIGURES = {
    "phone_48mp": "cpu_ms",
    "submit_p99_ms": "milliseconds",
    "sync_always": "milliseconds",
    "memory_slope": "bytes_per_task",
}
AT_LEAST = {"tasks_per_second", "light_tasks_per_second", "process_rate", "process_rate_found"}


def compare(
    one: Server, other: Server, body: bytes, content_type: str, title: str, *, rounds: int = ROUNDS
) -> dict[str, float]:
    """Send the same request alternately to two servers.

    Returns:
        median CPU time per request of both in milliseconds, and their ratio.
    """
    for server in (one, other):
        drive(server, CROP, body, content_type, WARM_UP)
    pairs = [
        [drive(server, CROP, body, content_type, REQUESTS) for server in (one, other)]
        for _ in track(range(rounds), title)
    ]
    return summary(pairs)


def summary(rounds: list[list[float]]) -> dict[str, float]:
    """Return the medians of pairs of CPU times, and their ratio."""
    ones, others = zip(*rounds, strict=True)
    return {
        "cpu_ms": round(statistics.median(ones), 4),
        "reference_cpu_ms": round(statistics.median(others), 4),
        "ratio": round(statistics.median(ones) / statistics.median(others), 4),
        "rounds": len(rounds),
    }


def request_json() -> dict[str, float]:
    """CPU time of a JSON request with default settings, compared with the reference program."""
    with service() as server, reference() as baseline:
        return compare(server, baseline, *inputs.json_request(), "request_json")


def request_multipart() -> dict[str, float]:
    """CPU time of a multipart request, compared with the reference program."""
    with service() as server, reference() as baseline:
        return compare(server, baseline, *inputs.multipart_request(), "request_multipart")


def photo_only() -> dict[str, float]:
    """CPU time of a request without landmarks, compared with the reference program."""
    with service() as server, reference() as baseline:
        return compare(server, baseline, *inputs.image_request(), "photo_only", rounds=DETECTION_ROUNDS)


def observability() -> dict[str, float]:
    """CPU time of a request with metrics and access log, compared with the service without both."""
    with service() as default, service(ENABLE_METRICS="false", LOG_ACCESS="false") as silent:
        return compare(default, silent, *inputs.json_request(), "observability")


def tracing() -> dict[str, float]:
    """CPU time of a request of which one in ten is traced, including the export, compared with no traces."""
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}
    with collector() as url, service(OTEL_EXPORTER_OTLP_ENDPOINT=url, **sampler) as traced, service() as default:
        return compare(traced, default, *inputs.json_request(), "tracing")


def label_map() -> dict[str, float]:
    """CPU time of tracing a label map of 1024² with 10 labels, compared with `imdecode` and `findContours`."""
    pair = inputs.label_map_pair()
    return summary([[inputs.cpu_ms(function) for function in pair] for _ in track(range(ROUNDS // 2), "label_map")])


def svg_500_points_ms() -> dict[str, float]:
    """CPU time of rendering the overlay of one region with 500 points."""
    render = inputs.svg_500_points()
    return {"cpu_ms": round(statistics.median(inputs.cpu_ms(render, 50) for _ in range(11)), 4)}


def scrape_after_500_deaths() -> dict[str, float]:
    """CPU time of a scrape after 500 worker deaths, compared with one after none."""
    with service(WORKERS=str(DEATH_WORKERS)) as worn, service(WORKERS=str(DEATH_WORKERS)) as fresh:
        for _ in track(range(-(-DEATHS // DEATH_WORKERS)), "scrape_after_500_deaths"):
            kill_workers(worn)
        for server in (worn, fresh):
            for _ in range(DEATH_WORKERS * 12):  # on new connections, so that every worker gets some
                send(server, CROP, *inputs.json_request(), 1)
        pair = (worn.exporter(), fresh.exporter())
        figures = summary([[scrape_ms(server) for server in pair] for _ in range(ROUNDS // 2)])
        lines = read(worn.metrics_port, "/metrics").splitlines()
    deaths = sum(
        float(line.split()[-1]) for line in lines if line.startswith('app_worker_exits_total{reason="killed"}')
    )
    return {**figures, "deaths": deaths}


def scrape_ms(server: Server) -> float:
    """Return the CPU time of a scrape in milliseconds, averaged over a few."""
    before = server.cpu_s()
    for _ in range(SCRAPES):
        read(server.metrics_port, "/metrics")
    return 1000 * (server.cpu_s() - before) / SCRAPES


def kill_workers(server: Server) -> None:
    """Kill every worker, and wait until all replacements are ready."""
    before = {pid for _, pid in server.workers()}
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        now = {pid for _, pid in server.workers()}
        report = json.loads(read(server.metrics_port, "/health"))
        is_serving = sum(worker["state"] == "ready" for worker in report["workers"]) == DEATH_WORKERS
        return len(now) == DEATH_WORKERS and not now & before and is_serving

    wait_until(replaced)


def ready_s() -> dict[str, float]:
    """Time from start to ready, with one worker per core."""
    times = []
    for _ in track(range(3), "ready_s"):
        with service(WORKERS=str(os.cpu_count())) as server:
            times.append(server.ready_s)
    return {"seconds": round(statistics.median(times), 3)}


def rss_mb_per_worker() -> dict[str, float]:
    """Resident memory of a worker after 200 requests, including shared pages, and after it has detected faces."""
    with service() as server:
        worker = psutil.Process(server.pid)
        drive(server, CROP, *inputs.json_request(), 200)
        rss = worker.memory_info().rss
        drive(server, CROP, *inputs.image_request(), 20)
        after = worker.memory_full_info()
    figures = {"megabytes": rss, "with_models_megabytes": after.rss, "with_models_pss_megabytes": after.pss}
    return {name: round(size / 1e6, 1) for name, size in figures.items()}


CASES: dict[str, Callable[[], dict[str, float]]] = {
    function.__name__: function
    for function in (
        request_json,
        request_multipart,
        label_map,
        photo_only,
        detection.detect_ms,
        detection.accuracy,
        phone.phone_12mp,
        phone.phone_12mp_mediapipe,
        phone.phone_48mp,
        observability,
        tracing,
        svg_500_points_ms,
        scrape_after_500_deaths,
        ready_s,
        rss_mb_per_worker,
        tasks.task_overhead,
        tasks.tasks_per_second,
        tasks.light_tasks_per_second,
        tasks.submit_p99_ms,
        tasks.sync_always,
        tasks.memory_slope,
        batch.process_rate,
        batch.process_rate_found,
        worst_request.worst_request,
        worst_request.worst_request_others,
        slow_bodies.slow_bodies,
    )
}


def is_kept(name: str, figures: dict[str, float]) -> bool:
    """Return whether a benchmark is within its budget, if it has one, and no request failed."""
    if figures.get("failed"):
        return False
    if name not in BUDGETS:
        return True
    key, budget = BUDGETS[name]
    return figures[key] >= budget if name in AT_LEAST else figures[key] <= budget


def report(results: dict[str, dict[str, float]]) -> Table:
    """Return a table of the results and their budgets."""
    table = Table("benchmark", "result", "budget", "", "CPU ms", "reference CPU ms")
    for name, figures in results.items():
        costs = (str(figures.get("cpu_ms", "")), str(figures.get("reference_cpu_ms", "")))
        if name in FIGURES:
            table.add_row(name, f"{figures[FIGURES[name]]:g}", "", "", *costs)
            continue
        key, budget = BUDGETS[name]
        mark = "[green]met[/]" if is_kept(name, figures) else "[red]missed[/]"
        table.add_row(name, f"{figures[key]:g}", f"{'≥' if name in AT_LEAST else '≤'} {budget:g}", mark, *costs)
    return table


def main() -> None:
    """Run the benchmarks and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=CASES, help="run only this benchmark; repeatable")
    parser.add_argument("--output", type=Path, default=LATEST, help="output file (default: %(default)s)")
    arguments = parser.parse_args()
    names = arguments.only or list(CASES)
    results = {name: CASES[name]() for name in names}
    before: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    document = {
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "budgets": {name: {key: limit} for name, (key, limit) in BUDGETS.items()},
        "results": {**(before.get("results", {}) if arguments.only else {}), **results},
    }
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    Console().print(report(results))
    missed = [name for name, figures in results.items() if not is_kept(name, figures)]
    if missed:
        sys.exit(f"over budget: {', '.join(missed)}")


if __name__ == "__main__":
    main()
