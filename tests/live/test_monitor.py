"""`facial-service monitor` shows what clients measured, on a terminal and as JSON, over kills and restarts."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"Content-Type": "application/json"}
PACE_S = 0.05
TIMEOUT_S = 60.0


class Client:
    """Sends requests at a constant rate and records the responses.

    Attributes:
        responses: time and status of each response.
    """

    def __init__(self, service: Any, sample: Any) -> None:
        self._service = service
        self._bodies = {"valid": sample.json(), "invalid": sample.json(landmarks=[])}
        self.responses: list[tuple[float, int]] = []

    def send(self, kind: str = "valid", path: str = CROP) -> int:
        response = httpx.post(self._service.api + path, content=self._bodies[kind], headers=JSON, timeout=30)
        self.responses.append((time.monotonic(), response.status_code))
        return response.status_code

    def submit(self) -> str:
        response = httpx.post(
            f"{self._service.api}{CROP}/submit", content=self._bodies["valid"], headers=JSON, timeout=30
        )
        self.responses.append((time.monotonic(), response.status_code))
        assert response.status_code == 202, response.text
        return str(response.json()["task_id"])

    def count(self, status: int) -> int:
        return sum(received == status for _, received in self.responses)

    def rate(self, seconds: float) -> float:
        """Return the responses per second over the last seconds."""
        since = time.monotonic() - seconds
        return sum(at > since for at, _ in list(self.responses)) / seconds

    @contextmanager
    def steadily(self) -> Iterator[None]:
        """Send requests all the time, every sixth one invalid."""
        stop = threading.Event()

        def run() -> None:
            number, due = 0, time.monotonic()
            while not stop.wait(max(0.0, due - time.monotonic())):
                self.send("invalid" if number % 6 == 5 else "valid")
                number, due = number + 1, max(due + PACE_S, time.monotonic())

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


class Objects:
    """Output of ``facial-service monitor --json``, read in the background."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.all: list[dict[str, Any]] = []
        self._process = process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.all.append(json.loads(line))

    def wait_for(self, condition: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        """Wait until one of the next objects meets a condition."""
        deadline, at = time.monotonic() + TIMEOUT_S, len(self.all)
        while True:
            for found in self.all[at:]:
                if condition(found):
                    return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: expected within {TIMEOUT_S:g} s; last object: {self.all[-1:]}")
            time.sleep(0.02)

    def close(self) -> None:
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(TIMEOUT_S) == 0
        self._reader.join(TIMEOUT_S)


@contextmanager
def watching(*arguments: str) -> Iterator[Objects]:
    command = [sys.executable, "-m", "app", "monitor", "--json", "--interval", "0.5", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        objects = Objects(process)
        try:
            objects.wait_for(lambda _: True, "the first object")
            yield objects
            objects.close()
        finally:
            if process.poll() is None:
                process.kill()


def free_port() -> int:
    """Return a free port below the ephemeral range, so that it is free again after a restart."""
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("expected a free port, found none")


def is_plausible(flow: dict[str, Any], max_per_s: float) -> bool:
    """Return whether the rate is neither negative nor higher than the clients can have caused."""
    return flow["per_s"] is None or 0 <= flow["per_s"] <= max_per_s


@pytest.fixture(scope="module")
def own(run_service: Any) -> Iterator[Any]:
    """Run an instance with tasks that these tests may damage."""
    with run_service(WORKERS=2, TASK_WORKERS=1, ENABLE_TASKS="true") as service:
        service.wait_tasks()
        yield service


def work_buckets(service: Any) -> dict[float, float]:
    """Return the cumulative latency buckets of POST requests: upper bound to number of observations."""
    found: dict[float, float] = {}
    for (name, labels), value in service.scrape().items():
        given = dict(labels)
        if name == "api_request_duration_seconds_bucket" and given["method"] == "POST" and "/api/" in given["endpoint"]:
            found[float(given["le"])] = found.get(float(given["le"]), 0.0) + value
    return dict(sorted(found.items()))


def test_counts_equal_those_of_the_client(own: Any, sample: Any) -> None:
    client = Client(own, sample)
    before = work_buckets(own)
    with watching(own.metrics, "--window", "3600") as objects:
        with client.steadily():
            tasks = [client.submit() for _ in range(12)]
            objects.wait_for(lambda _: len(client.responses) >= 120, "120 responses")
        total = len(client.responses)
        last = objects.wait_for(
            lambda found: (
                found["requests"]["flow"]["seen"] >= total and found["tasks"]["succeeded"]["seen"] >= len(tasks)
            ),
            "the count of all requests and tasks",
        )
    requests, done = last["requests"], last["tasks"]
    assert requests["flow"]["seen"] == total
    assert {status: flow["seen"] for status, flow in requests["by_status"].items()} == {
        str(status): client.count(status) for status in (200, 202, 422)
    }
    (error,) = (error for error in last["errors"] if error["type"] == "landmarks_count")
    assert (error["component"], error["flow"]["seen"]) == ("images", client.count(422))
    assert (done["submitted"]["seen"], done["succeeded"]["seen"], done["failed"]["seen"]) == (12, 12, 0)
    assert (done["waiting"], done["active"], done["queue_up"]) == (0, 0, True)
    # The window includes the first scrape, so the rate covers the whole time.
    passed_s = last["view_s"] - last["instances"][0]["scraped_s"]
    assert requests["flow"]["per_s"] == pytest.approx(total / passed_s, rel=0.1)
    assert all(is_plausible(found["requests"]["flow"], total / 0.4) for found in objects.all)
    assert_median(requests["latency"], before, work_buckets(own))


def assert_median(latency: dict[str, Any], before: dict[float, float], after: dict[float, float]) -> None:
    """Check that all observations are counted, and that the median is in the right bucket."""
    grown = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    assert latency["count"] == grown[math.inf]
    bounds = list(grown)
    at = next(number for number, bound in enumerate(bounds) if grown[bound] >= grown[math.inf] / 2)
    assert (bounds[at - 1] if at else 0) <= latency["p50_s"] <= bounds[at]
    assert latency["p50_s"] <= latency["p95_s"] <= latency["p99_s"]


def test_terminal_shows_the_current_rate_and_a_killed_worker(own: Any, sample: Any) -> None:
    client = Client(own, sample)
    window_s = 6.0
    with Terminal("monitor", own.metrics, "--interval", "0.5", "--window", f"{window_s:g}") as terminal:
        terminal.wait_for(r"READY")
        with client.steadily():

            def agrees() -> bool:
                shown = re.search(r"rate +([\d.]+)/s +in progress", terminal.text())
                return bool(shown) and float(shown[1]) == pytest.approx(client.rate(window_s), rel=0.1)

            terminal._wait(lambda: len(client.responses) > 100 and agrees(), "the rate that the client measures")
            terminal.wait_for(r"422 +[\d.]+/s")
        victim = own.workers()[0]
        os.kill(victim.pid, signal.SIGKILL)
        terminal.wait_for(r"a worker process was killed \d+ s ago")
        terminal.wait_for(r"worker killed +[\d.]+/s +1 +\d")
        terminal.wait_for(r"worker-[01] +new \d+ s")
        terminal.wait_for(r"API +2/2 ready")
        assert "nan" not in terminal.text().lower()
        terminal.press(b"q")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.raw()


def test_monitor_follows_a_restart(run_service: Any, sample: Any) -> None:
    ports = {"PORT": free_port(), "METRICS_PORT": free_port()}
    metrics = f"http://127.0.0.1:{ports['METRICS_PORT']}"
    with watching(metrics) as objects, Terminal("monitor", metrics, "--interval", "0.5") as terminal:
        terminal.wait_for(r"UNREACHABLE(.|\n)*: unreachable since .*: connection refused")
        with run_service(WORKERS=1, **ports) as service:
            terminal.wait_for("READY")
            objects.wait_for(lambda found: found["requests"]["flow"]["per_s"] is not None, "two scrapes")
            first = Client(service, sample)
            for _ in range(60):
                assert first.send() == 200
            objects.wait_for(lambda found: found["requests"]["flow"]["seen"] == 60, "all requests of the first client")
            terminal.wait_for("worker-0 +ready")
        terminal.wait_for(r"UNREACHABLE(.|\n)*: unreachable since \d\d:\d\d:\d\d \(\d+ s\): ")
        assert re.search(r"worker-0 +unknown", terminal.text()), "the last values stay on the screen"
        outage = objects.wait_for(lambda found: found["state"] == "away", "an outage")
        assert outage["requests"]["flow"]["per_s"] is None
        with run_service(WORKERS=1, **ports) as service:
            terminal.wait_for("READY")
            objects.wait_for(lambda found: found["requests"]["flow"]["per_s"] is not None, "two scrapes")
            second = Client(service, sample)
            for _ in range(9):
                assert second.send() == 200
            last = objects.wait_for(
                lambda found: found["requests"]["flow"]["seen"] >= 69, "all requests of the second client"
            )
        assert (last["requests"]["flow"]["seen"], last["requests"]["flow"]["total"]) == (69, 9)
        assert all(is_plausible(found["requests"]["flow"], 60 / 0.4) for found in objects.all)


def test_api_and_worker_are_combined(run_nats: Any, run_service: Any, run_worker: Any, sample: Any) -> None:
    with (
        run_nats() as nats,
        run_service(WORKERS=1, NATS_URL=nats.url) as service,
        run_worker(NATS_URL=nats.url, TASK_WORKERS=1) as worker,
    ):
        client = Client(service, sample)
        with watching(service.metrics, worker.metrics) as objects:
            objects.wait_for(
                lambda found: [one["queue_up"] for one in found["instances"]] == [True, True],
                "two connections to the queue",
            )
            (stopped,) = worker.task_workers()
            stopped.send_signal(signal.SIGSTOP)
            try:
                for _ in range(8):
                    client.submit()
                held = objects.wait_for(lambda found: found["tasks"]["submitted"]["seen"] == 8, "eight submissions")
                tasks = objects.wait_for(lambda _: True, "a scrape after them")["tasks"]
                assert tasks["waiting"] + tasks["active"] == 8, "both instances report the same queue"
                assert held["tasks"]["succeeded"]["seen"] == 0
            finally:
                stopped.send_signal(signal.SIGCONT)
            last = objects.wait_for(lambda found: found["tasks"]["succeeded"]["seen"] >= 8, "eight results")
        assert last["tasks"]["succeeded"]["seen"] == last["requests"]["flow"]["seen"] == 8
        kinds = [{process["kind"] for process in one["processes"]} for one in last["instances"]]
        assert kinds == [{"api", "other"}, {"tasks", "other"}]
        done = once(service.metrics, worker.metrics, "--interval", "0.5")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(r"API +1/1 ready +tasks +1/1 ready", done.stdout)
        nats.kill()
        broken = once(service.metrics, worker.metrics, "--interval", "0.5")
        assert (broken.returncode, "DEGRADED" in broken.stdout) == (0, True)
        assert broken.stdout.count("the queue is unreachable") == 2


def once(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", "monitor", "--once", *arguments]
    env = {"PATH": os.environ["PATH"], "PYTHONUTF8": "1", "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)


def test_metrics_on_the_api_port(own: Any) -> None:
    done = once(f"{own.api}/metrics", "--interval", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "READY" in done.stdout
    assert "\x1b" not in done.stdout
