"""`facial-service monitor` shows what callers saw, in a real terminal and to programs, over kills and restarts."""

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
LIMIT_S = 60.0


class Caller:
    """Sends requests at a steady pace, and counts the answers.

    Attributes:
        answered: when each answer came, and its status.
    """

    def __init__(self, service: Any, sample: Any) -> None:
        self._service = service
        self._bodies = {"good": sample.json(), "bad": sample.json(landmarks=[])}
        self.answered: list[tuple[float, int]] = []

    def send(self, kind: str = "good", path: str = CROP) -> int:
        answer = httpx.post(self._service.api + path, content=self._bodies[kind], headers=JSON, timeout=30)
        self.answered.append((time.monotonic(), answer.status_code))
        return answer.status_code

    def submit(self) -> str:
        answer = httpx.post(f"{self._service.api}{CROP}/submit", content=self._bodies["good"], headers=JSON, timeout=30)
        self.answered.append((time.monotonic(), answer.status_code))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def count(self, status: int) -> int:
        return sum(answered == status for _, answered in self.answered)

    def rate(self, seconds: float) -> float:
        """Return the answers a second of late."""
        since = time.monotonic() - seconds
        return sum(at > since for at, _ in list(self.answered)) / seconds

    @contextmanager
    def steadily(self) -> Iterator[None]:
        """Send all the time, every sixth request a bad one."""
        stop = threading.Event()

        def run() -> None:
            number, due = 0, time.monotonic()
            while not stop.wait(max(0.0, due - time.monotonic())):
                self.send("bad" if number % 6 == 5 else "good")
                number, due = number + 1, max(due + PACE_S, time.monotonic())

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


class Objects:
    """The lines of ``facial-service monitor --json``, as they come."""

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
        """Wait for an object of a kind among those that are still to come."""
        deadline, at = time.monotonic() + LIMIT_S, len(self.all)
        while True:
            for found in self.all[at:]:
                if condition(found):
                    return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {LIMIT_S:g} s; the last: {self.all[-1:]}")
            time.sleep(0.02)

    def close(self) -> None:
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(LIMIT_S) == 0
        self._reader.join(LIMIT_S)


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
    """Find a port below those of outgoing connections, so that it is free again after a stop."""
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port is free")


def is_sound(flow: dict[str, Any], most: float) -> bool:
    """Tell whether a flow has neither a negative rate nor one that nobody can have caused."""
    return flow["per_s"] is None or 0 <= flow["per_s"] <= most


@pytest.fixture(scope="module")
def own(run_service: Any) -> Iterator[Any]:
    """Give an instance with tasks that these tests may harm."""
    with run_service(WORKERS=2, TASK_WORKERS=1, ENABLE_TASKS="true") as service:
        service.wait_tasks()
        yield service


def work_buckets(service: Any) -> dict[float, float]:
    """Return the service's own histogram of requests for work: upper bound to observations up to it."""
    found: dict[float, float] = {}
    for (name, labels), value in service.scrape().items():
        given = dict(labels)
        if name == "api_request_duration_seconds_bucket" and given["method"] == "POST" and "/api/" in given["endpoint"]:
            found[float(given["le"])] = found.get(float(given["le"]), 0.0) + value
    return dict(sorted(found.items()))


def test_figures_are_what_callers_counted(own: Any, sample: Any) -> None:
    caller = Caller(own, sample)
    before = work_buckets(own)
    with watching(own.metrics, "--window", "3600") as objects:
        with caller.steadily():
            tasks = [caller.submit() for _ in range(12)]
            objects.wait_for(lambda _: len(caller.answered) >= 120, "120 answers")
        total = len(caller.answered)
        last = objects.wait_for(
            lambda found: (
                found["requests"]["flow"]["seen"] >= total and found["tasks"]["succeeded"]["seen"] >= len(tasks)
            ),
            "the count of all requests and tasks",
        )
    requests, done = last["requests"], last["tasks"]
    assert requests["flow"]["seen"] == total
    assert {status: flow["seen"] for status, flow in requests["by_status"].items()} == {
        str(status): caller.count(status) for status in (200, 202, 422)
    }
    (error,) = (error for error in last["errors"] if error["type"] == "landmarks_count")
    assert (error["component"], error["flow"]["seen"]) == ("images", caller.count(422))
    assert (done["submitted"]["seen"], done["succeeded"]["seen"], done["failed"]["seen"]) == (12, 12, 0)
    assert (done["waiting"], done["active"], done["queue_up"]) == (0, 0, True)
    # The window reaches back to the first scrape, so the rate is of all that time.
    passed_s = last["view_s"] - last["instances"][0]["scraped_s"]
    assert requests["flow"]["per_s"] == pytest.approx(total / passed_s, rel=0.1)
    assert all(is_sound(found["requests"]["flow"], total / 0.4) for found in objects.all)
    assert_median(requests["latency"], before, work_buckets(own))


def assert_median(latency: dict[str, Any], before: dict[float, float], after: dict[float, float]) -> None:
    """The median lies in the bucket where half of the observations are reached, and all were counted."""
    grown = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    assert latency["count"] == grown[math.inf]
    bounds = list(grown)
    at = next(number for number, bound in enumerate(bounds) if grown[bound] >= grown[math.inf] / 2)
    assert (bounds[at - 1] if at else 0) <= latency["p50_s"] <= bounds[at]
    assert latency["p50_s"] <= latency["p95_s"] <= latency["p99_s"]


def test_the_terminal_shows_the_rate_of_late_and_a_killed_worker(own: Any, sample: Any) -> None:
    caller = Caller(own, sample)
    window_s = 6.0
    with Terminal("monitor", own.metrics, "--interval", "0.5", "--window", f"{window_s:g}") as terminal:
        terminal.wait_for(r"READY")
        with caller.steadily():

            def agrees() -> bool:
                shown = re.search(r"rate +([\d.]+)/s +in progress", terminal.text())
                return bool(shown) and float(shown[1]) == pytest.approx(caller.rate(window_s), rel=0.1)

            terminal._wait(lambda: len(caller.answered) > 100 and agrees(), "a rate as the caller counts it")
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


def test_it_follows_a_restart(run_service: Any, sample: Any) -> None:
    ports = {"PORT": free_port(), "METRICS_PORT": free_port()}
    metrics = f"http://127.0.0.1:{ports['METRICS_PORT']}"
    with watching(metrics) as objects, Terminal("monitor", metrics, "--interval", "0.5") as terminal:
        terminal.wait_for(r"AWAY(.|\n)*is away since .* connection refused")
        with run_service(WORKERS=1, **ports) as service:
            terminal.wait_for("READY")
            objects.wait_for(lambda found: found["requests"]["flow"]["per_s"] is not None, "two scrapes")
            first = Caller(service, sample)
            for _ in range(60):
                assert first.send() == 200
            objects.wait_for(lambda found: found["requests"]["flow"]["seen"] == 60, "all of the first's")
            terminal.wait_for("worker-0 +ready")
        terminal.wait_for(r"AWAY(.|\n)*is away since \d\d:\d\d:\d\d \(\d+ s\): ")
        assert re.search(r"worker-0 +unknown", terminal.text()), "the last figures stay"
        away = objects.wait_for(lambda found: found["state"] == "away", "an absence")
        assert away["requests"]["flow"]["per_s"] is None
        with run_service(WORKERS=1, **ports) as service:
            terminal.wait_for("READY")
            objects.wait_for(lambda found: found["requests"]["flow"]["per_s"] is not None, "two scrapes")
            second = Caller(service, sample)
            for _ in range(9):
                assert second.send() == 200
            last = objects.wait_for(lambda found: found["requests"]["flow"]["seen"] >= 69, "all of the second's")
        assert last["requests"]["flow"] == {"per_s": last["requests"]["flow"]["per_s"], "seen": 69, "total": 9}
        assert all(is_sound(found["requests"]["flow"], 60 / 0.4) for found in objects.all)


def test_an_api_and_its_worker_are_one(run_nats: Any, run_service: Any, run_worker: Any, sample: Any) -> None:
    with (
        run_nats() as nats,
        run_service(WORKERS=1, NATS_URL=nats.url) as service,
        run_worker(NATS_URL=nats.url, TASK_WORKERS=1) as worker,
    ):
        caller = Caller(service, sample)
        with watching(service.metrics, worker.metrics) as objects:
            objects.wait_for(
                lambda found: [one["queue_up"] for one in found["instances"]] == [True, True], "a queue for both"
            )
            (stopped,) = worker.task_workers()
            stopped.send_signal(signal.SIGSTOP)
            try:
                for _ in range(8):
                    caller.submit()
                held = objects.wait_for(lambda found: found["tasks"]["submitted"]["seen"] == 8, "eight submissions")
                tasks = objects.wait_for(lambda _: True, "a scrape after them")["tasks"]
                assert tasks["waiting"] + tasks["active"] == 8, "both tell of one queue"
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
        assert broken.stdout.count("the queue does not answer") == 2


def once(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", "monitor", "--once", *arguments]
    env = {"PATH": os.environ["PATH"], "PYTHONUTF8": "1", "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)


def test_the_api_s_own_port_will_do(own: Any) -> None:
    done = once(f"{own.api}/metrics", "--interval", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "READY" in done.stdout
    assert "\x1b" not in done.stdout
