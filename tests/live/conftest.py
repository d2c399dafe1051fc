"""The service, started as a user starts it: separate processes, addresses from its log, stopped by SIGTERM."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
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
R = TypeVar("R", bound="Running")

REPOSITORY = Path(__file__).parents[2]
# Variables that programs need. Settings in the developer's environment must not affect the tests.
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
START_LIMIT_S = 60.0
STOP_LIMIT_S = 40.0
POLL_S = 0.02
NATS_SERVER = Path(sys.executable).parent / "nats-server"
TASK_TITLE = re.compile(r"facial-service: task-\d+")


def wait_until(condition: Callable[[], T], *, limit_s: float, what: str) -> T:
    """Call a condition until its result is true, and return the result; a missing process counts as false.

    Raises:
        TimeoutError: it is not true within the limit.
    """
    deadline = time.monotonic() + limit_s
    while True:
        with suppress(psutil.NoSuchProcess):
            if found := condition():
                return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(POLL_S)


class Running:
    """An instance of the service in separate processes.

    Attributes:
        metrics: base URL of the metrics port.
        pid: process id of the master.
    """

    announced = ("metrics",)  # fields of the log line with the addresses

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.pid = process.pid
        self.metrics = ""
        self._process = process
        self._log = log

    def log_text(self) -> str:
        """Return the output of the service so far."""
        return self._log.read_text(encoding="utf-8")

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the complete log lines so far; a line that is not a JSON object becomes ``{"raw": line}``."""
        return [_parse_line(line) for line in self.log_text().splitlines(keepends=True) if line.endswith("\n")]

    def wait_for_lines(self, is_wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Wait for lines of a kind, because an access line is written after its response."""
        return wait_until(lambda: list(filter(is_wanted, self.log_lines())), limit_s=10, what="the wanted lines")

    def scrape(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Read the metrics port: sample name and labels to value."""
        text = httpx.get(f"{self.metrics}/metrics", timeout=30).raise_for_status().text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def health(self) -> dict[str, Any]:
        """Read the body of ``/health``."""
        report: dict[str, Any] = httpx.get(f"{self.metrics}/health", timeout=30).json()
        return report

    def task_workers(self) -> list[psutil.Process]:
        """Return the task processes.

        Raises:
            psutil.NoSuchProcess: their master is not running.
        """
        children = self.worker_master().children()
        return [child for child in children if TASK_TITLE.fullmatch(_title(child))]

    def worker_master(self) -> psutil.Process:
        """Return the master of the task processes.

        Raises:
            psutil.NoSuchProcess: it is not running.
        """
        return psutil.Process(self.pid)

    def wait_ready(self) -> None:
        """Wait for the addresses in the log, then for readiness.

        Raises:
            RuntimeError: the service ended.
        """
        line = wait_until(self._find_start_line, limit_s=START_LIMIT_S, what="the line with the addresses")
        for name in self.announced:
            setattr(self, name, line[name])
        wait_until(self._is_ready, limit_s=START_LIMIT_S, what="/health/ready")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status; does nothing if it has ended."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def _find_start_line(self) -> dict[str, Any] | None:
        self._require_alive()
        return next((line for line in self.log_lines() if all(name in line for name in self.announced)), None)

    def _is_ready(self) -> bool:
        self._require_alive()
        return httpx.get(f"{self.metrics}/health/ready", timeout=10).status_code == 200

    def _require_alive(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"the service ended with {self._process.returncode}:\n{self.log_text()}")


class RunningService(Running):
    """An instance of the API.

    Attributes:
        api: base URL of the API.
    """

    announced = ("api", "metrics")
    api: str

    def workers(self) -> list[psutil.Process]:
        """Return the workers: the processes with the API's port, except the master."""
        port = httpx.URL(self.api).port
        children = psutil.Process(self.pid).children()
        return [child for child in children if any(peer.laddr.port == port for peer in child.net_connections("tcp"))]

    def worker_master(self) -> psutil.Process:
        return self._child(lambda child: "task-master" in _title(child))

    def exporter(self) -> psutil.Process:
        """Return the process that serves metrics and probes.

        Raises:
            psutil.NoSuchProcess: it is not running.
        """
        return self._child(lambda child: _title(child) == "facial-service: exporter")

    def nats_server(self) -> psutil.Process:
        """Return the NATS server.

        Raises:
            psutil.NoSuchProcess: it is not running.
        """
        return self._child(lambda child: child.name() == "nats-server")

    def wait_tasks(self) -> None:
        """Wait until the task workers are ready, on which the API's readiness does not depend."""
        wait_until(self._are_tasks_worked_on, limit_s=START_LIMIT_S, what="task workers that are ready")

    def _are_tasks_worked_on(self) -> bool:
        workers = self.health()["task_workers"]
        return bool(workers) and {worker["state"] for worker in workers} == {"ready"}

    def _child(self, is_wanted: Callable[[psutil.Process], bool]) -> psutil.Process:
        for child in psutil.Process(self.pid).children():
            with suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE and is_wanted(child):
                    return child
        raise psutil.NoSuchProcess(0)


class RunningWorker(Running):
    """An instance of ``facial-service worker``.

    Attributes:
        tasks: number of its task processes.
    """

    announced = ("metrics", "tasks")
    tasks: int


class RunningNats:
    """NATS servers on loopback, each with its own store.

    Attributes:
        url: value for NATS_URL.
        monitor_url: monitoring URL of the first server.
    """

    def __init__(self, folder: Path, cluster: int, config: dict[str, Any]) -> None:
        self._folder = folder
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        ports = _free_ports(3 * cluster)
        self._clients, self._monitors, self._routes = (ports[at::3] for at in range(3))
        scheme = "tls" if "tls" in config else "nats"
        self.url = ",".join(f"{scheme}://127.0.0.1:{port}" for port in self._clients)
        self.monitor_url = f"http://127.0.0.1:{self._monitors[0]}"
        for number in range(cluster):
            self._configure(number, config)

    def _configure(self, number: int, config: dict[str, Any]) -> None:
        values = {
            "server_name": f"nats-{number}",
            "listen": f"127.0.0.1:{self._clients[number]}",
            "http": f"127.0.0.1:{self._monitors[number]}",
            "max_payload": 32 << 20,
            "max_pending": 256 << 20,
            "jetstream": {"store_dir": str(self._folder / f"store-{number}"), "max_file": 8 << 30},
            **config,
        }
        if len(self._routes) > 1:
            values["cluster"] = {
                "name": "nats",
                "listen": f"127.0.0.1:{self._routes[number]}",
                "routes": [f"nats://127.0.0.1:{port}" for port in self._routes],
            }
        (self._folder / f"{number}.conf").write_bytes(orjson.dumps(values))

    def pids(self) -> list[int]:
        """Return the process ids of the running servers."""
        return [process.pid for process in self._processes.values()]

    def start(self) -> None:
        """Start the servers that are not running."""
        for number in range(len(self._clients)):
            if number not in self._processes:
                with (self._folder / f"{number}.log").open("ab") as log:
                    command = [str(NATS_SERVER), "-c", str(self._folder / f"{number}.conf")]
                    self._processes[number] = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self, number: int = 0) -> None:
        """Kill one server, like a failed node."""
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def is_up(self) -> bool:
        """Return whether all servers run, form a cluster, and accept streams."""
        with suppress(httpx.TransportError):
            return all(
                httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code == 200 for port in self._monitors
            )
        return False


def _title(process: psutil.Process) -> str:
    return " ".join(process.cmdline()).strip()


def _free_ports(count: int) -> list[int]:
    """Return free ports below the ephemeral range: otherwise, reconnecting clients could connect to themselves."""
    ports: list[int] = []
    for port in random.sample(range(10_000, 20_000), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError("no port is free")


def _parse_line(line: str) -> dict[str, Any]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {"raw": line}
    return found if isinstance(found, dict) else {"raw": line}


@pytest.fixture(scope="session", name="wait_until")
def give_wait_until() -> Callable[..., Any]:
    """Return `wait_until`."""
    return wait_until


@contextmanager
def _running(kind: type[R], verb: str, log: Path, env: dict[str, object]) -> Iterator[R]:
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    settings = {"LOG_FORMAT": "json", "PORT": "0", "METRICS_PORT": "0", **{key: str(env[key]) for key in env}}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", verb],
            cwd=REPOSITORY,
            env={**inherited, **settings},
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        )
    running = kind(process, log)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def run_service(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[RunningService]]:
    """Return ``run_service(**env)``, a context in which the service runs with these settings.

    By default, ports are free ones, logs are JSON, and tasks are disabled unless ENABLE_TASKS, DATA_DIR or NATS_URL is
    set; DATA_DIR is a new folder. The service is always stopped at the end.
    """

    def run(**env: object) -> AbstractContextManager[RunningService]:
        folder = tmp_path_factory.mktemp("service")
        named = env.keys() & {"ENABLE_TASKS", "DATA_DIR", "NATS_URL"}
        given = {"DATA_DIR": folder / "data", **env} if named else {"ENABLE_TASKS": "false", **env}
        return _running(RunningService, "serve", folder / "stderr.log", given)

    return run


@pytest.fixture(scope="session")
def run_worker(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[RunningWorker]]:
    """Return ``run_worker(NATS_URL=…, **env)``, a context in which ``facial-service worker`` runs."""

    def run(**env: object) -> AbstractContextManager[RunningWorker]:
        return _running(RunningWorker, "worker", tmp_path_factory.mktemp("worker") / "stderr.log", env)

    return run


@pytest.fixture(scope="session")
def run_nats(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[RunningNats]]:
    """Return ``run_nats(cluster=1, **config)``, a context in which NATS servers run.

    ``config`` is added to the servers' configuration: ``authorization={"token": "…"}``, ``tls={"cert_file": "…", …}``.
    """

    @contextmanager
    def run(*, cluster: int = 1, **config: Any) -> Iterator[RunningNats]:
        servers = RunningNats(tmp_path_factory.mktemp("nats"), cluster, config)
        servers.start()
        try:
            wait_until(servers.is_up, limit_s=START_LIMIT_S, what="nats-server")
            yield servers
        finally:
            for number in range(cluster):
                with suppress(KeyError):
                    servers.kill(number)

    return run


@pytest.fixture(scope="session")
def service(run_service: Callable[..., AbstractContextManager[RunningService]]) -> Iterator[RunningService]:
    """An instance with two workers, for tests that need no other settings and do not damage it."""
    with run_service(WORKERS=2, ENABLE_TASKS="true") as running:
        running.wait_tasks()
        yield running


CROP_PATH = "/api/v1/frontal/crop"


class Attacker:
    """Sends hostile requests to a service, and checks their effects.

    Attributes:
        target: the service.
        path: default path of requests.
    """

    path = CROP_PATH

    def __init__(self, target: RunningService, good: bytes) -> None:
        self.target = target
        self._good = good
        self._sent: Counter[int] = Counter()
        self._rss = {worker.pid: worker.memory_info().rss for worker in target.workers()}
        for pid in self._rss:
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # resets the peak memory

    def send(
        self,
        content: bytes | list[bytes] = b"",
        *,
        headers: dict[str, str],
        method: str = "POST",
        path: str = CROP_PATH,
    ) -> httpx.Response:
        """Send a request on a new connection, so that any worker may accept it; a list is sent in chunks."""
        body = iter(content) if isinstance(content, list) else content
        answer = httpx.request(method, f"{self.target.api}{path}", content=body, headers=headers, timeout=30)
        self._sent[answer.status_code] += 1
        return answer

    def require_service(self) -> None:
        """Check that the service still responds to a valid request."""
        assert self.send(self._good, headers={"content-type": "application/json"}).status_code == 200

    @staticmethod
    def require_problem(answer: httpx.Response, status: int, code: str, canary: str) -> None:
        """Check that a response is a problem document of this status and code without content of the body."""
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
        """Check that each request has one access line and that no line contains content of a body."""
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
        """Check that the same workers still run, and that the memory growth of each stayed within a limit."""
        now = {worker.pid: worker for worker in self.target.workers()}
        assert now.keys() == self._rss.keys(), "a worker was replaced"
        status = {pid: Path(f"/proc/{pid}/status").read_text(encoding="ascii") for pid in now}
        peaks = {pid: 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) for pid, text in status.items()}
        grown = {pid: peak - self._rss[pid] for pid, peak in peaks.items()}
        assert max(grown.values()) < limit, f"{grown} bytes over {self._rss}"


@pytest.fixture(scope="module")
def attacker(run_service: Callable[..., AbstractContextManager[RunningService]], sample: Sample) -> Iterator[Attacker]:
    """Return an attacker of a dedicated service with two workers."""
    with run_service(WORKERS=2, LOG_LEVELS="images=WARNING") as target:
        yield Attacker(target, sample.json())
