"""Cost, throughput, latency and memory of tasks, compared with reference programs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil
from rich.progress import track

from benchmarks import inputs
from benchmarks.processes import Server, cpu_time_s, free_port, read, reference, run, service, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CROP = "/api/v1/frontal/crop"
ROUNDS = 60
TASKS = 5
WARM_UP = 60
BACKLOG = 400
CALLERS = 2
MANY = 20_000
SAMPLES = 20
BATCH = 50


def task_overhead() -> dict[str, float]:
    """CPU time of API and task worker for a task from submission to result, compared with the reference program."""
    body, content_type = inputs.multipart_request()
    costs: dict[str, list[float]] = {}
    with tasks_service() as server, reference_tasks() as (reference_api, reference_pids):
        pids = {"api": server.pid, "worker": task_pids(server)[0], "queue_server": nats_pid(server)}
        sides = (("", server, f"{CROP}/submit", pids), ("reference_", reference_api, "/submit", reference_pids))
        for _, api, path, _ in sides:
            do_tasks(api.port, body, content_type, WARM_UP, path)
        for _ in track(range(ROUNDS), "task_overhead"):
            for prefix, api, path, processes in sides:
                before = cpu_times(processes)
                do_batch(api.port, body, content_type, TASKS, path)
                for name, spent in cpu_times(processes).items():
                    costs.setdefault(f"{prefix}{name}_cpu_ms", []).append(1000 * (spent - before[name]) / TASKS)
        server_rss = psutil.Process(pids["queue_server"]).memory_info().rss / 1e6
    medians = {name: round(statistics.median(times), 4) for name, times in costs.items()}
    ours = medians["api_cpu_ms"] + medians["worker_cpu_ms"]
    theirs = medians["reference_api_cpu_ms"] + medians["reference_worker_cpu_ms"]
    return {
        "ratio": round(ours / theirs, 4),
        "cpu_ms": round(ours, 4),
        "reference_cpu_ms": round(theirs, 4),
        **medians,
        "queue_server_rss_mb": round(server_rss, 1),
        "rounds": ROUNDS,
    }


def tasks_per_second() -> dict[str, float]:
    """Throughput of one task worker per core, compared with the bare pipeline; both decode pixels."""
    cores = os.cpu_count() or 1
    return _best([(drain_backlog("verify=pixels", cores), pipeline_rate(cores)) for _ in range(2)])


def light_tasks_per_second() -> dict[str, float]:
    """Throughput for tasks that decode no pixels (2 ms each), compared with the reference program."""
    cores = os.cpu_count() or 1
    rates = [(drain_backlog("verify=structure", cores), drain_reference_backlog(cores)) for _ in range(3)]
    return _best(rates)


def _best(rates: list[tuple[float, float]]) -> dict[str, float]:
    ours, reference_rate = (max(column) for column in zip(*rates, strict=True))
    return {
        "ratio": round(ours / reference_rate, 4),
        "per_second": round(ours, 1),
        "bare_per_second": round(reference_rate, 1),
    }


def drain_backlog(query: str, cores: int) -> float:
    """Queue tasks, then start the workers; return the tasks per second of the last nine tenths."""
    body, content_type = inputs.multipart_request()
    with nats_server() as (url, monitor, _):
        with service(NATS_URL=url, ENABLE_TASKS="true") as api:
            wait_for_queue(api)
            for _ in track(range(BACKLOG), f"backlog, {query}"):
                require_accepted(call(api.port, "POST", f"{CROP}/submit?{query}", body, content_type))
        with worker(url, cores):
            return drain_rate(monitor)


def drain_reference_backlog(cores: int) -> float:
    """Return the same for the reference program."""
    body, content_type = inputs.multipart_request()
    with nats_server() as (url, monitor, _):
        with reference("reference_tasks", NATS_URL=url) as api:
            for _ in track(range(BACKLOG), "backlog, reference"):
                require_accepted(call(api.port, "POST", "/submit", body, content_type))
        with contextlib.ExitStack() as stack:
            for _ in range(cores):
                stack.enter_context(run([sys.executable, "-m", "benchmarks.reference_tasks"], {"NATS_URL": url}))
            return drain_rate(monitor)


def drain_rate(monitor: int) -> float:
    """Wait until a backlog is empty; return the tasks per second after the first tenth."""
    tenth = BACKLOG - BACKLOG // 10
    wait_until(lambda: messages_left(monitor) <= tenth)
    left, start = messages_left(monitor), time.perf_counter()
    wait_until(lambda: messages_left(monitor) == 0)
    return left / (time.perf_counter() - start)


def pipeline_rate(cores: int) -> float:
    """Return how many times per second this many processes run the bare pipeline."""
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(run_pipeline, [10] * cores))
        start = time.perf_counter()
        list(pool.map(run_pipeline, [BACKLOG // cores] * cores))
        return cores * (BACKLOG // cores) / (time.perf_counter() - start)


def run_pipeline(count: int) -> None:
    """Run the steps of a task: verify, decode, trace contours, render the SVG, serialize."""
    import cv2  # noqa: PLC0415 - in the child process

    from benchmarks.reference import _POINTS, process  # noqa: PLC0415

    cv2.setNumThreads(0)
    image, points = inputs.image_and_landmarks()
    parsed = _POINTS.decode(points)
    for _ in range(count):
        cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
        process(image, parsed)


def submit_p99_ms() -> dict[str, float]:
    """Latency of a submission while all workers are busy, and without workers."""
    body, content_type = inputs.multipart_request()

    def times(port: int, query: str) -> list[float]:
        def submit_one(_: int) -> float:
            start = time.perf_counter()
            require_accepted(call(port, "POST", f"{CROP}/submit?{query}", body, content_type))
            return 1000 * (time.perf_counter() - start)

        with ThreadPoolExecutor(CALLERS) as callers:
            return list(callers.map(submit_one, range(BACKLOG)))

    with tasks_service(TASK_WORKERS=str(os.cpu_count())) as server:
        do_tasks(server.port, body, content_type, WARM_UP)
        busy = times(server.port, "verify=pixels")
    with nats_server() as (url, _, _), service(NATS_URL=url, ENABLE_TASKS="true") as server:
        wait_for_queue(server)
        idle = times(server.port, "verify=pixels")
    return {
        "milliseconds": round(percentile(busy, 99), 2),
        "median_ms": round(statistics.median(busy), 2),
        "idle_milliseconds": round(percentile(idle, 99), 2),
        "ratio": round(percentile(busy, 99) / percentile(idle, 99), 3),
    }


def sync_always() -> dict[str, float]:
    """Latency of a submission if the queue flushes to disk before it confirms, and by default."""
    body, content_type = inputs.multipart_request()
    taken: dict[str, list[float]] = {"always": [], "10s": []}
    for interval, times in taken.items():
        with tasks_service(NATS_SYNC_INTERVAL=interval) as server:
            do_tasks(server.port, body, content_type, WARM_UP)
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            for _ in track(range(BACKLOG // 2), f"sync_always, {interval}"):
                start = time.perf_counter()
                location = submit(connection, body, content_type)
                times.append(1000 * (time.perf_counter() - start))
                finish(connection, location)
            connection.close()
    always, default = (statistics.median(times) for times in taken.values())
    return {
        "milliseconds": round(always, 2),
        "default_milliseconds": round(default, 2),
        "ratio": round(always / default, 2),
    }


def memory_slope() -> dict[str, float]:
    """Memory growth per task in bytes, over 20,000 small tasks without the first quarter."""
    body, content_type = inputs.small_request()
    taken: dict[str, list[int]] = {}
    with tasks_service(RESULT_TTL="5", TASK_QUEUE_MAX_MESSAGES="1000") as server:
        names = {"api": server.pid, "task": task_pids(server)[0], "nats-server": nats_pid(server)}
        for _ in track(range(SAMPLES), "memory_slope"):
            for _ in range(MANY // SAMPLES // BATCH):
                do_batch(server.port, body, content_type, BATCH)
            for name, pid in names.items():
                taken.setdefault(name, []).append(psutil.Process(pid).memory_info().rss)
    skip = SAMPLES // 4
    done = np.arange(skip, SAMPLES) * (MANY / SAMPLES)
    slopes = {name: float(np.polyfit(done, sizes[skip:], 1)[0]) for name, sizes in taken.items()}
    return {
        "bytes_per_task": round(max(slopes["api"], slopes["task"]), 1),
        **{f"{name}_bytes_per_task": round(slope, 1) for name, slope in slopes.items()},
        **{f"{name}_rss_mb": round(sizes[-1] / 1e6, 1) for name, sizes in taken.items()},
        "tasks": MANY,
    }


def require_accepted(response: tuple[int, bytes]) -> None:
    """Raise `RuntimeError` if a submission was not accepted."""
    status, text = response
    if status != http.client.ACCEPTED:
        raise RuntimeError(f"expected 202, got {status}: {text[:200]!r}")


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile of values."""
    return float(np.percentile(values, percent))


def call(port: int, method: str, path: str, body: bytes = b"", content_type: str = "") -> tuple[int, bytes]:
    """Send one request on a new connection; return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": content_type} if content_type else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def do_tasks(port: int, body: bytes, content_type: str, count: int, path: str = f"{CROP}/submit") -> None:
    """Submit tasks sequentially on one connection, and wait for each result."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(count):
        finish(connection, submit(connection, body, content_type, path))
    connection.close()


def do_batch(port: int, body: bytes, content_type: str, count: int, path: str = f"{CROP}/submit") -> None:
    """Submit tasks, then wait for the results."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for location in [submit(connection, body, content_type, path) for _ in range(count)]:
        finish(connection, location)
    connection.close()


def submit(connection: http.client.HTTPConnection, body: bytes, content_type: str, path: str = f"{CROP}/submit") -> str:
    """Submit a task, and return the path of its status."""
    connection.request("POST", path, body, {"Content-Type": content_type})
    response = connection.getresponse()
    require_accepted((response.status, response.read()))
    return response.headers["Location"]


def finish(connection: http.client.HTTPConnection, location: str) -> None:
    """Wait until a task has succeeded."""
    connection.request("GET", f"{location}?wait=60")
    document = json.loads(connection.getresponse().read())
    if document["status"] != "SUCCESS":
        raise RuntimeError(f"expected SUCCESS, got {document['status']}: {document['error']}")


def cpu_times(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the CPU time of processes so far, in seconds."""
    return {name: cpu_time_s(pid) for name, pid in pids.items()}


@contextlib.contextmanager
def reference_tasks() -> Iterator[tuple[Server, dict[str, int]]]:
    """Run the reference program: an API, one worker and a NATS server; yield the API and all process ids."""
    command = [sys.executable, "-m", "benchmarks.reference_tasks"]
    with (
        nats_server() as nats,
        reference("reference_tasks", NATS_URL=nats.url) as api,
        run(command, {"NATS_URL": nats.url}) as (worker_pid, _),
    ):
        yield api, {"api": api.pid, "worker": worker_pid, "queue_server": nats.pid}


@contextlib.contextmanager
def tasks_service(**environment: str) -> Iterator[Server]:
    """Run the service with an embedded queue and one task worker."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = {"ENABLE_TASKS": "true", "DATA_DIR": folder, "TASK_WORKERS": "1", **environment}
        with service(**settings) as server:
            count = int(settings["TASK_WORKERS"])
            wait_until(lambda: len(task_pids(server)) == count)
            wait_for_queue(server)
            yield server


def wait_for_queue(server: Server) -> None:
    """Wait until a task is accepted, because the service is ready before its queue."""
    body, content_type = inputs.small_request()
    wait_until(lambda: call(server.port, "POST", f"{CROP}/submit", body, content_type)[0] == http.client.ACCEPTED)


def task_pids(server: Server) -> list[int]:
    """Return the process ids of the task workers."""
    return [child.pid for child in descendants(server) if ": task-" in title(child) and "master" not in title(child)]


def nats_pid(server: Server) -> int:
    """Return the process id of nats-server."""
    return next(child.pid for child in descendants(server) if "nats-server" in title(child))


def descendants(server: Server) -> list[psutil.Process]:
    """Return all descendants of the main process."""
    return psutil.Process(server.master).children(recursive=True)


def title(process: psutil.Process) -> str:
    """Return the title of a process, or an empty string if it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


class NatsServer(NamedTuple):
    """A running NATS server: URL, monitoring port and process id."""

    url: str
    monitor: int
    pid: int


@contextlib.contextmanager
def nats_server() -> Iterator[NatsServer]:
    """Run a NATS server."""
    port, monitor = free_port(), free_port()
    program = str(Path(sys.executable).parent / "nats-server")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        config = Path(folder) / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{port}"\nhttp: "127.0.0.1:{monitor}"\nmax_payload: 32MB\n'
            f'jetstream {{ store_dir: "{folder}", max_file_store: 4GB }}\n'
        )
        process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: _is_healthy(monitor))
            yield NatsServer(f"nats://127.0.0.1:{port}", monitor, process.pid)
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def worker(url: str, processes: int) -> Iterator[None]:
    """Run task workers."""
    settings = {"NATS_URL": url, "TASK_WORKERS": str(processes), "METRICS_PORT": str(free_port()), "LOG_FORMAT": "json"}
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "worker"], env={**os.environ, **settings}, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def messages_left(monitor: int) -> int:
    """Return the number of tasks in the stream."""
    document = json.loads(read(monitor, "/jsz?streams=true"))
    streams = [stream for account in document["account_details"] for stream in account["stream_detail"]]
    return next(int(stream["state"]["messages"]) for stream in streams if stream["name"] == "TASKS")


def _is_healthy(port: int) -> bool:
    try:
        return "ok" in read(port, "/healthz")
    except OSError:
        return False
