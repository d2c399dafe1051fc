"""The real service, started as a user starts it: processes of its own, addresses from its log, stopped by SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import orjson
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Sample

T = TypeVar("T")

REPOSITORY = Path(__file__).parents[2]
# What a program needs of its surroundings; settings of the person who runs the tests are none of the tests' business.
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
START_LIMIT_S = 60.0
STOP_LIMIT_S = 40.0
POLL_S = 0.02


def wait_until(condition: Callable[[], T], *, limit_s: float, what: str) -> T:
    """Call a condition until it gives something true, and return that.

    Raises:
        TimeoutError: it never did within the limit.
    """
    deadline = time.monotonic() + limit_s
    while True:
        if found := condition():
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(POLL_S)


class RunningService:
    """One instance of the service in processes of its own.

    Attributes:
        api: base URL of the API.
        metrics: base URL of the metrics port.
        pid: process id of the master.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.pid = process.pid
        self.api = ""
        self.metrics = ""
        self._process = process
        self._log = log

    def log_text(self) -> str:
        """Return everything that the service has written so far."""
        return self._log.read_text(encoding="utf-8")

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the whole lines of the log so far; a line that is no JSON object becomes ``{"raw": line}``."""
        return [_parse_line(line) for line in self.log_text().splitlines(keepends=True) if line.endswith("\n")]

    def wait_for_lines(self, is_wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Wait for lines of a kind: an access line is written after its answer has gone out."""
        return wait_until(lambda: list(filter(is_wanted, self.log_lines())), limit_s=10, what="the wanted lines")

    def scrape(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Read the metrics port: sample name and labels to value."""
        text = httpx.get(f"{self.metrics}/metrics", timeout=30).raise_for_status().text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def workers(self) -> list[psutil.Process]:
        """Return the processes that hold the API's port, but for the master: the workers."""
        port = httpx.URL(self.api).port
        children = psutil.Process(self.pid).children()
        return [child for child in children if any(peer.laddr.port == port for peer in child.net_connections("tcp"))]

    def wait_ready(self) -> None:
        """Wait for the addresses in the log, then for readiness.

        Raises:
            RuntimeError: the service ended instead.
        """
        line = wait_until(self._find_start_line, limit_s=START_LIMIT_S, what="the line with the addresses")
        self.api, self.metrics = line["api"], line["metrics"]
        wait_until(self._is_ready, limit_s=START_LIMIT_S, what="/health/ready")

    def stop(self) -> int:
        """Send SIGTERM, wait for the end, and return the exit status; harmless where it has ended."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def _find_start_line(self) -> dict[str, Any] | None:
        self._require_alive()
        return next((line for line in self.log_lines() if "api" in line and "metrics" in line), None)

    def _is_ready(self) -> bool:
        self._require_alive()
        return httpx.get(f"{self.metrics}/health/ready", timeout=10).status_code == 200

    def _require_alive(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"the service ended with {self._process.returncode}:\n{self.log_text()}")


def _parse_line(line: str) -> dict[str, Any]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {"raw": line}
    return found if isinstance(found, dict) else {"raw": line}


@pytest.fixture(scope="session", name="wait_until")
def give_wait_until() -> Callable[..., Any]:
    """Give `wait_until`."""
    return wait_until


@pytest.fixture(scope="session")
def run_service(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[RunningService]]:
    """Give ``run_service(**env)``: a context in which the service runs with these settings.

    Free ports and JSON logs unless said otherwise. The service is stopped at the end, however the block is left.
    """

    @contextmanager
    def run(**env: object) -> Iterator[RunningService]:
        log = tmp_path_factory.mktemp("service") / "stderr.log"
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        settings = {"LOG_FORMAT": "json", "PORT": "0", "METRICS_PORT": "0", **{key: str(env[key]) for key in env}}
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                cwd=REPOSITORY,
                env={**inherited, **settings},
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        service = RunningService(process, log)
        try:
            service.wait_ready()
            yield service
        finally:
            service.stop()

    return run


@pytest.fixture(scope="session")
def service(run_service: Callable[..., AbstractContextManager[RunningService]]) -> Iterator[RunningService]:
    """One instance with two workers, for all tests that need no other settings and do it no harm."""
    with run_service(WORKERS=2) as running:
        yield running


CROP_PATH = "/api/v1/frontal/crop"


class Attacker:
    """Sends hostile requests to a service of its own and looks at what they leave behind.

    Attributes:
        target: the service.
        path: where requests go unless said otherwise.
    """

    path = CROP_PATH

    def __init__(self, target: RunningService, good: bytes) -> None:
        self.target = target
        self._good = good
        self._sent: Counter[int] = Counter()
        self._rss = {worker.pid: worker.memory_info().rss for worker in target.workers()}
        for pid in self._rss:
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here

    def send(
        self,
        content: bytes | list[bytes] = b"",
        *,
        headers: dict[str, str],
        method: str = "POST",
        path: str = CROP_PATH,
    ) -> httpx.Response:
        """Send a request on a connection of its own, whichever worker takes it; a list goes out chunk by chunk."""
        body = iter(content) if isinstance(content, list) else content
        answer = httpx.request(method, f"{self.target.api}{path}", content=body, headers=headers, timeout=30)
        self._sent[answer.status_code] += 1
        return answer

    def require_service(self) -> None:
        """Show that a good request is still answered."""
        assert self.send(self._good, headers={"content-type": "application/json"}).status_code == 200

    @staticmethod
    def require_problem(answer: httpx.Response, status: int, code: str, canary: str) -> None:
        """Show that an answer is a problem document of this status and code, and that it holds nothing of the body."""
        assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text[:500]
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["type"] == f"urn:facial-service:problem:{code}"
        assert problem["status"] == status
        assert problem["request_id"] == answer.headers["x-request-id"]
        assert all(problem[name] and isinstance(problem[name], str) for name in ("title", "detail"))
        assert canary not in answer.text
        assert canary not in str(answer.headers)

    def require_quiet_log(self, canary: str) -> None:
        """Show that each request left one access line and that no line holds what a body did."""
        expected = self._sent
        counts = Counter[int]()

        def is_complete() -> bool:
            counts.clear()
            counts.update(line["status"] for line in self.target.log_lines() if "duration_ms" in line)
            return counts.total() >= expected.total()

        wait_until(is_complete, limit_s=10, what=f"{expected.total()} access lines")
        assert counts == expected
        log = self.target.log_text()
        assert canary not in log
        assert "Traceback" not in log

    def require_bounded_memory(self, limit: int) -> None:
        """Show that the same workers live, and that none ever held more than so many bytes over what it began with."""
        now = {worker.pid: worker for worker in self.target.workers()}
        assert now.keys() == self._rss.keys(), "a worker was replaced"
        status = {pid: Path(f"/proc/{pid}/status").read_text(encoding="ascii") for pid in now}
        peaks = {pid: 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) for pid, text in status.items()}
        grown = {pid: peak - self._rss[pid] for pid, peak in peaks.items()}
        assert max(grown.values()) < limit, f"{grown} bytes over {self._rss}"


@pytest.fixture(scope="module")
def attacker(run_service: Callable[..., AbstractContextManager[RunningService]], sample: Sample) -> Iterator[Attacker]:
    """Give an attacker of a service with two workers that nobody else uses."""
    with run_service(WORKERS=2, LOG_LEVELS="images=WARNING") as target:
        yield Attacker(target, sample.json())
