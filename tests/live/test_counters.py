"""Counters match the responses that callers received, even if worker processes are killed."""

from __future__ import annotations

import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from app.observability.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.live

WORKERS = 4
CALLERS = 6
KILLS = 10
REQUESTS = {"good": 1200, "bad": 600, "too_large": 200}
STATUS = {"good": 200, "bad": 422, "too_large": 413}
MAX_BODY_BYTES = 2_000_000
CROP = "/api/v1/frontal/crop"
STEPS = ("parse", "sniff", "contours", "svg", "document")


@dataclass
class Tally:
    """Responses that callers received."""

    answered: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: int | None) -> None:
        with self.lock:
            if status is None:
                self.lost += 1
            else:
                self.answered[status] += 1

    @property
    def total(self) -> int:
        return self.answered.total() + self.lost


def send(api: httpx.URL, body: bytes) -> int | None:
    """Send one request on a new connection; return None if the connection breaks before the response is complete."""
    connection = http.client.HTTPConnection(api.host, api.port, timeout=30)
    try:
        connection.request("POST", CROP, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return None
    else:
        return response.status
    finally:
        connection.close()


def bodies(sample: Any) -> Iterator[bytes]:
    """Yield the requests in a random but repeatable order."""
    kinds = {
        "good": sample.json(),
        "bad": sample.json(landmarks=sample.pairs[:100]),
        "too_large": b'{"image":"' + b"A" * MAX_BODY_BYTES + b'"}',
    }
    order = [kind for kind, count in REQUESTS.items() for _ in range(count)]
    random.Random(7).shuffle(order)
    return (kinds[kind] for kind in order)


def test_counters_agree_with_callers_over_kills_and_reload(
    run_service: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    with run_service(WORKERS=WORKERS, MAX_BODY_BYTES=MAX_BODY_BYTES, MAX_CONCURRENCY=64) as service:
        api = httpx.URL(service.api)
        for _ in range(8 * WORKERS):  # a new connection each, so that every worker has written all its values
            assert send(api, sample.json()) == 200
        first_scrape_s = scrape_cpu_s(service)
        tally = Tally()
        tally.answered[200] = 8 * WORKERS
        disturbances = threading.Thread(target=disturb, args=(service, tally, wait_until))
        disturbances.start()
        with ThreadPoolExecutor(CALLERS) as callers:
            for _ in callers.map(lambda body: tally.add(send(api, body)), bodies(sample)):
                pass
        disturbances.join()
        last_scrape_s = scrape_cpu_s(service)
        scraped = service.scrape()
        files = int(scraped["multiprocess_files", frozenset()])
        killed = scraped["app_worker_exits_total", frozenset({("reason", "killed")})]

    assert tally.total == sum(REQUESTS.values()) + 8 * WORKERS
    assert last_scrape_s <= 1.5 * first_scrape_s
    assert set(tally.answered) == set(STATUS.values())
    assert tally.lost <= KILLS * CALLERS, "only requests in flight may be lost"
    assert killed == KILLS
    counted = {
        int(dict(labels)["status"]): value
        for (name, labels), value in scraped.items()
        if name == "api_requests_total" and ("endpoint", CROP) in labels
    }
    assert counted.keys() == tally.answered.keys()
    for status, answered in tally.answered.items():
        # A kill can occur between a response's last byte and its count; only complete responses are ever counted.
        assert answered - KILLS <= counted[status] <= answered, f"status {status}"
    assert_work_agrees(scraped, tally)
    # Each slot, the master and the exporter have a few files; a reload needs no further slots.
    kinds = {(spec.kind, spec.mode) for spec in METRICS if not spec.is_collected}
    assert files <= len(kinds) * (WORKERS + 2)


def scrape_cpu_s(service: Any) -> float:
    """Return the CPU time of the exporter for a scrape: the minimum of several, to reduce noise."""
    workers = {worker["pid"] for worker in httpx.get(f"{service.metrics}/health", timeout=30).json()["workers"]}
    (exporter,) = {child.pid for child in psutil.Process(service.pid).children()} - workers
    clock = (~exporter << 3) | 2  # id of another process's CPU clock on Linux: clock_getcpuclockid(3)
    costs = []
    for _ in range(20):
        before = time.clock_gettime(clock)
        httpx.get(f"{service.metrics}/metrics", timeout=30).raise_for_status()
        costs.append(time.clock_gettime(clock) - before)
    return min(costs)


def assert_work_agrees(scraped: dict[Any, float], tally: Tally) -> None:
    good, parsed = tally.answered[200], tally.answered[200] + tally.answered[422]
    faces = scraped["landmarks_processed_total", frozenset()] / 478
    assert good - KILLS <= faces <= good
    regions = {dict(labels)["type"]: v for (name, labels), v in scraped.items() if name == "regions_generated_total"}
    assert len(regions) >= 12
    assert set(regions.values()) == {faces}
    for step in STEPS:
        count = scraped["image_processing_duration_seconds_count", frozenset({("operation", step)})]
        expected = parsed if step in {"parse", "sniff"} else good
        assert expected - KILLS <= count <= expected, step
    errors = scraped["errors_total", frozenset({("type", "landmarks_count"), ("component", "images")})]
    assert tally.answered[422] - KILLS <= errors <= tally.answered[422]
    rejected = scraped["api_rejections_total", frozenset({("reason", "too_large")})]
    assert tally.answered[413] - KILLS <= rejected <= tally.answered[413]
    in_progress = [v for (name, _), v in scraped.items() if name == "api_requests_in_progress"]
    assert set(in_progress) <= {0.0}, "a killed worker's requests are in progress no more"


def serving(service: Any) -> set[int]:
    """Return the process ids of the ready workers."""
    workers = httpx.get(f"{service.metrics}/health", timeout=30).json()["workers"]
    return {worker["pid"] for worker in workers if worker["state"] == "ready"}


def disturb(service: Any, tally: Tally, wait_until: Callable[..., Any]) -> None:
    """Kill a worker ten times, spread over the run, and reload once in the middle."""
    everything = sum(REQUESTS.values())
    chooser = random.Random(3)
    for number in range(KILLS):
        goal = everything * (number + 1) // (KILLS + 3)
        wait_until(lambda goal=goal: tally.total >= goal, limit_s=120, what=f"{goal} requests")
        before = wait_until(lambda: full(service), limit_s=60, what="all workers")
        if number == KILLS // 2:
            os.kill(service.pid, signal.SIGHUP)
            before = wait_until(lambda old=before: renewed(service, old), limit_s=60, what="all workers again")
        victim = chooser.choice(sorted(before))
        os.kill(victim, signal.SIGKILL)
        # Until the master notices, the dead worker is still listed as ready.
        wait_until(lambda gone=victim: renewed(service, {gone}), limit_s=60, what="all workers back")


def full(service: Any) -> set[int]:
    """Return the workers when all have started."""
    workers = serving(service)
    return workers if len(workers) == WORKERS else set()


def renewed(service: Any, old: set[int]) -> set[int]:
    """Return the workers when none of the old ones is left."""
    workers = full(service)
    return set() if workers & old else workers
