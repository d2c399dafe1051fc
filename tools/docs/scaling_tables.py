"""Tables of docs/scaling.md: the capacity model, calculated from measured figures and the values of the chart."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable

Table = tuple[tuple[str, ...], "Iterable[tuple[str, ...]]"]

ROOT = Path(__file__).parents[2]
LATEST = ROOT / "benchmarks" / "latest.json"
MEASURED = ROOT / "benchmarks" / "scaling.json"
VALUES = ROOT / "charts" / "facial-service" / "values.yaml"

RATES = (10, 100, 1_000, 10_000)  # images per second
UTILIZATION = 0.7  # of the cores at the peak
NETWORK_BYTES_PER_S = 1.25e9  # of a node with 10 Gbit/s
# The leader of a stream sends each message to two followers and to a worker.
COPIES_SENT = 3
RESULT_TTL_S = 300
BACKLOG_S = 60  # of tasks that the queue can hold
PRICE = 0.05  # per core-hour, an arbitrary example
REPLICAS = 3
MB, GB = 1e6, 1e9


@dataclass(frozen=True, slots=True)
class Job:
    """CPU time per image, in milliseconds, of the processes that take part."""

    title: str
    api_ms: float = 0.0
    worker_ms: float = 0.0
    queue_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """CPU time of all processes."""
        return self.api_ms + self.worker_ms + self.queue_ms


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _measured(section: str) -> Any:
    return _read(MEASURED)[section]["figures"]


def task_job() -> Job:
    """Return the job of the sizing: a task with a photo alone."""
    spent = _measured("queue_wait")["cpu_ms"]
    return Job("task, photo alone", spent["api"], spent["worker"], spent["queue_server"])


def jobs() -> list[Job]:
    """Return all measured jobs."""
    latest = _read(LATEST)["results"]
    task = latest["task_overhead"]
    return [
        Job("`/crop`, form with landmarks and a PNG of 0.8 MB", latest["request_multipart"]["cpu_ms"]),
        Job("`/crop`, PNG of 0.8 MB alone", latest["photo_only"]["cpu_ms"]),
        Job(
            "task, form with landmarks and a PNG of 0.8 MB",
            task["api_cpu_ms"],
            task["worker_cpu_ms"],
            task["queue_server_cpu_ms"],
        ),
        task_job(),
        Job("`facial-service process`, with landmarks", worker_ms=latest["process_rate"]["cpu_ms"]),
        Job("`facial-service process`, photos alone", worker_ms=latest["process_rate_found"]["cpu_ms"]),
    ]


def jobs_table() -> Table:
    """Return the CPU time and the rate per core of each job."""
    rows = (
        (job.title, _ms(job.api_ms), _ms(job.worker_ms), _ms(job.queue_ms), f"{1000 / job.total_ms:,.0f}")
        for job in jobs()
    )
    return ("job", "API", "worker", "NATS", "images per second and core"), rows


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value else ""


def queue_table() -> Table:
    """Return the measured figures of NATS servers."""
    rows = (
        (
            str(case["servers"]),
            _size(case["bytes"]),
            f"{case['messages_per_second']:,.0f}",
            f"{case['megabytes_per_second']:,.0f} MB",
            f"{case['cpu_ms_per_message']:.2f} ms",
            f"{case['busiest_cpu_ms_per_message']:.2f} ms",
            f"{case['rss_mb']:.0f} MB",
        )
        for case in _measured("queue_servers")
    )
    head = (
        "servers",
        "message",
        "messages/s",
        "bytes/s",
        "CPU per message, all",
        "busiest server",
        "memory of a server",
    )
    return head, rows


def _size(value: float) -> str:
    return f"{value / MB:g} MB" if value >= MB else f"{value / 1000:g} kB"


def queue_rate(message_bytes: int) -> float:
    """Return the messages per second that one queue of three servers should get at most.

    The busiest server may use `UTILIZATION` of its network and of one core, because the messages of a stream are stored
    one after the other.
    """
    case = next(
        case for case in _measured("queue_servers") if (case["servers"], case["bytes"]) == (REPLICAS, message_bytes)
    )
    by_cpu: float = 1000 / case["busiest_cpu_ms_per_message"]
    by_network = NETWORK_BYTES_PER_S / (COPIES_SENT * message_bytes)
    return UTILIZATION * min(by_cpu, by_network)


def queue_rates_table() -> Table:
    """Return the rate of one queue by message size, and the number of queues."""
    sizes = sorted({case["bytes"] for case in _measured("queue_servers")})
    rows = (
        (
            _size(size),
            f"{queue_rate(size):,.0f}",
            f"{queue_rate(size) * size / MB:,.0f} MB",
            *(f"{math.ceil(rate / queue_rate(size)):,}" for rate in RATES),
        )
        for size in sizes
    )
    return ("image", "images/s per queue", "bytes/s", *(f"queues at {rate:,}/s" for rate in RATES)), rows


def sizes_table() -> Table:
    """Return pods, cores and memory by rate."""
    values = yaml.safe_load(VALUES.read_text(encoding="utf-8"))
    api, worker, job = values["api"]["workers"], values["worker"]["processes"], task_job()
    memory_mb = _read(LATEST)["results"]["rss_mb_per_worker"]["with_models_megabytes"]
    rows = []
    for rate in RATES:
        api_pods, worker_pods = (
            max(least, math.ceil(rate * spent_ms / 1000 / UTILIZATION / processes))
            for least, spent_ms, processes in ((2, job.api_ms, api), (1, job.worker_ms, worker))
        )
        cores = rate * job.total_ms / 1000 / UTILIZATION
        memory_gb = (api_pods * api + worker_pods * worker) * memory_mb / 1000
        rows.append((f"{rate:,}", f"{api_pods:,}", f"{worker_pods:,}", f"{cores:,.1f}", f"{memory_gb:,.1f} GB"))
    return ("images per second", "API pods", "worker pods", "cores", "memory of the processes"), rows


def storage_table() -> Table:
    """Return the storage that results and waiting tasks need by rate, for the release as a whole."""
    measured = _measured("queue_wait")
    rows = (
        (
            f"{rate:,}",
            f"{rate * 3600 * measured['result_bytes'] / GB:,.1f} GB",
            f"{rate * RESULT_TTL_S * measured['result_bytes'] / GB:,.2f} GB",
            f"{rate * BACKLOG_S:,}",
            f"{rate * BACKLOG_S * measured['task_bytes'] / GB:,.2f} GB",
        )
        for rate in RATES
    )
    head = (
        "images per second",
        "results, `RESULT_TTL=3600`",
        f"results, `RESULT_TTL={RESULT_TTL_S}`",
        f"tasks of {BACKLOG_S} s",
        "their size",
    )
    return head, rows


def cost_table() -> Table:
    """Return core-hours and cost per million images."""
    rows = ((job.title, f"{core_hours(job):.1f}", f"{core_hours(job) * PRICE:.2f}") for job in jobs())
    return ("job", "core-hours per million images", f"cost at {PRICE:g} per core-hour"), rows


def core_hours(job: Job) -> float:
    """Return the core-hours to reserve for a million images."""
    return 1e6 * job.total_ms / 1000 / 3600 / UTILIZATION


def wait_table() -> Table:
    """Return the measured and the simulated queue wait."""
    waits = _measured("queue_wait")["waits_ms"]
    names = {
        "measured": "measured",
        "simulated": "simulated, same submissions and durations",
        "predicted": "simulated, other random submissions",
    }
    rows = ((title, *(f"{value:,.0f} ms" for value in waits[name].values())) for name, title in names.items())
    return ("queue wait", *waits["measured"]), rows


def days_table() -> Table:
    """Return the figures of the simulated days."""
    rows = (
        (
            name,
            *(f"{day[column]:,.2f} s" for column in ("p50_s", "p95_s", "p99_s", "burst_p99_s", "oldest_s")),
            f"{day['max_pods']}",
            f"{day['pod_hours']:.1f}",
            f"{100 * day['busy']:.0f} %",
        )
        for name, day in _measured("days").items()
    )
    head = (
        "`worker`",
        "p50",
        "p95",
        "p99",
        "p99 of the bursts",
        "oldest task, each minute",
        "most pods",
        "pod-hours",
        "busy",
    )
    return head, rows


TABLES = {
    "scaling_jobs": jobs_table,
    "scaling_queue": queue_table,
    "scaling_queues": queue_rates_table,
    "scaling_sizes": sizes_table,
    "scaling_storage": storage_table,
    "scaling_cost": cost_table,
    "scaling_wait": wait_table,
    "scaling_days": days_table,
}
