"""Four releases of the service that one Prometheus watches, each with its traffic.

``calm`` has no faults. Of the other three, ``apart`` has an API, workers and a NATS server, ``alone`` is one instance
with an embedded queue and without the labels of Kubernetes, and ``busy`` is an API without tasks.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from tests.alerting import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Sample
    from tests.live.conftest import RunningNats, RunningService, RunningWorker

CROP = "/api/v1/frontal/crop"
JSON = {"Content-Type": "application/json"}
API_USER, WORKER_USER = "api", "worker"
LOST = 0  # instead of a status, if there was no response

# A few large or some hundred small images fill the queue. Its server may store little more than twice that, which is
# the minimum for the streams. Results are limited only by their age, so that large ones can fill the store.
QUEUE_BYTES, DEAD_BYTES, STORE_BYTES = 6 << 20, 1 << 20, 14 << 20
RESULT_TTL_S = 40
# The only process of ``busy``: requests that it processes concurrently, and requests that it accepts.
THREADS, PLACES = 8, 24


class Instance:
    """A process of the service that can be stopped and restarted at the same address.

    Attributes:
        running: current or last process.
    """

    def __init__(self, stack: ExitStack, run: Callable[..., AbstractContextManager[Any]], **settings: object) -> None:
        self._stack = stack
        self._run = run
        self._settings = settings
        self._start()

    def _start(self) -> None:
        self.running: Any = self._stack.enter_context(self._run(**self._settings))

    @property
    def address(self) -> str:
        """Address of its metrics, for Prometheus."""
        return str(self.running.metrics.removeprefix("http://"))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop it during the block."""
        self.running.stop()
        try:
            yield
        finally:
            self._start()


@dataclass
class Release:
    """An API and its normal traffic.

    Attributes:
        place: its namespace in Prometheus; empty if there is none.
        api: instance of the API.
        sample: request of the callers.
        workers: instance of separate workers; if set, normal traffic submits tasks.
        statuses: responses to normal traffic.
    """

    place: str
    api: Instance
    sample: Sample
    workers: Instance | None = None
    statuses: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        # A new connection for each request, so that any process may accept it.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.client = httpx.Client(base_url=self.service.api, timeout=60, limits=limits)

    @property
    def service(self) -> RunningService:
        """Current or last API process."""
        service: RunningService = self.api.running
        return service

    @property
    def address(self) -> str:
        """Address of its metrics, for Prometheus."""
        return self.api.address

    def post(self, path: str, content: bytes, content_type: str = JSON["Content-Type"]) -> int:
        """Send a request and return the status of the response, or `LOST`."""
        try:
            return self.client.post(path, content=content, headers={"Content-Type": content_type}).status_code
        except httpx.TransportError:
            return LOST

    def submit(self, content: bytes, content_type: str = JSON["Content-Type"]) -> str | None:
        """Submit a task and return its id; None if it is rejected."""
        try:
            answer = self.client.post(f"{CROP}/submit", content=content, headers={"Content-Type": content_type})
        except httpx.TransportError:
            return None
        return str(answer.json()["task_id"]) if answer.status_code == 202 else None

    def end_of(self, task_id: str) -> str:
        """Wait for a task to end, with a time limit, and return its status; ``EXPIRED`` if its record has expired."""
        answer = self.client.get(f"{CROP}/status/{task_id}?wait=20")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return "EXPIRED"
        return str(answer.raise_for_status().json()["status"])

    def is_working(self) -> bool:
        """Return whether a task is accepted and ends."""
        taken = [self.submit(self.sample.json()) for _ in range(5)]
        return all(task_id is not None and self.end_of(task_id) == "SUCCESS" for task_id in taken)

    @contextmanager
    def traffic(self) -> Iterator[None]:
        """Send normal traffic during the block, with an occasional invalid request."""
        usual = [
            self.sample.json(),
            self.sample.json(image=self.sample.png, verify="pixels"),
            self.sample.json(segmentation_map=self.sample.labels),
            self.sample.json(show_labels=True),
        ]
        bodies = itertools.cycle([*(usual * 6), self.sample.json(landmarks=[])])

        def ask() -> None:
            self.statuses[self.post(CROP, next(bodies))] += 1
            self.statuses[self.post(CROP, next(bodies))] += 1
            if self.workers is not None:
                self.statuses[self.post(f"{CROP}/submit", usual[0])] += 1

        with repeating(ask, every_s=0.3):
            yield


@dataclass(frozen=True)
class Fleet:
    """All releases; the queue is that of ``apart``."""

    calm: Release
    apart: Release
    alone: Release
    busy: Release
    queue: RunningNats

    @property
    def releases(self) -> tuple[Release, ...]:
        """Return the four releases."""
        return self.calm, self.apart, self.alone, self.busy


@contextmanager
def repeating(action: Callable[[], object], *, every_s: float, threads: int = 1) -> Iterator[None]:
    """Call a function repeatedly during the block, in threads."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            action()
            stop.wait(every_s)

    with ThreadPoolExecutor(threads) as pool:
        runs = [pool.submit(run) for _ in range(threads)]
        try:
            yield
        finally:
            stop.set()
    for done in runs:
        done.result()


@dataclass(frozen=True)
class Starter:
    """Factory of releases, with the fixtures of the tests.

    Attributes:
        stack: contexts to exit at the end.
        folder: folder for data at known paths.
    """

    stack: ExitStack
    sample: Sample
    folder: Path
    run_service: Callable[..., AbstractContextManager[RunningService]]
    run_worker: Callable[..., AbstractContextManager[RunningWorker]]
    run_nats: Callable[..., AbstractContextManager[RunningNats]]
    wait_until: Callable[..., Any]

    def alone(self) -> Release:
        """Start an instance with an embedded queue and one task process, whose heartbeat is not checked."""
        settings = {"ENABLE_TASKS": "true", "WORKERS": 2, "TASK_WORKERS": 1, "TIMEOUT_S": 3600}
        service = self._api(PROMETHEUS_MULTIPROC_DIR=self.folder / "values", **settings)
        self.wait_until(service.running.task_workers, limit_s=60, what="the task process")
        service.running.wait_tasks()
        release = Release("", service, self.sample)
        self.wait_until(release.is_working, limit_s=60, what="tasks that end")
        return release

    def fleet(self, alone: Release) -> Fleet:
        """Start the other releases."""
        busy = self._api(WORKERS=1, WORK_THREADS=THREADS, MAX_CONCURRENCY=PLACES)
        calm = self._separated(self.stack.enter_context(self.run_nats()))
        names = API_USER, WORKER_USER
        users = {"users": [{"user": name, "password": name} for name in names]}
        store = {"store_dir": str(self.folder / "store"), "max_file": STORE_BYTES}
        queue = self.stack.enter_context(self.run_nats(authorization=users, jetstream=store))
        settings = {
            "NATS_TIMEOUT_S": 1,
            "TASK_ACK_WAIT_S": 2,
            "TASK_MAX_DELIVERIES": 3,
            "TASK_QUEUE_MAX_BYTES": QUEUE_BYTES,
            "TASK_DEAD_MAX_BYTES": DEAD_BYTES,
            "RESULT_TTL": RESULT_TTL_S,
            "RESULT_MAX_BYTES": STORE_BYTES,
        }
        apart = self._separated(queue, users=names, **settings)
        fleet = Fleet(
            calm=Release("calm", calm[0], self.sample, calm[1]),
            apart=Release("apart", apart[0], self.sample, apart[1]),
            alone=alone,
            busy=Release("busy", busy, self.sample),
            queue=queue,
        )
        for release in (fleet.calm, fleet.apart):
            self.wait_until(release.is_working, limit_s=60, what="tasks that end")
        return fleet

    def _api(self, **settings: object) -> Instance:
        port, metrics_port = free_ports(2)
        return Instance(self.stack, self.run_service, PORT=port, METRICS_PORT=metrics_port, **settings)

    def _separated(
        self, nats: RunningNats, users: tuple[str, ...] = ("", ""), **settings: object
    ) -> tuple[Instance, Instance]:
        """Start an API and a worker on a queue, each with its own user."""
        shared = {"NATS_URL": nats.url, "NATS_MONITOR_URL": nats.monitor_url, **settings}
        access = [{"NATS_USER": user, "NATS_PASSWORD": user} if user else {} for user in users]
        api = self._api(WORKERS=2, **shared, **access[0])
        worker = {"TASK_WORKERS": 2, "WORK_THREADS": 8, "FAULT_POISON_REGION": "poison"}
        (port,) = free_ports(1)
        return api, Instance(self.stack, self.run_worker, METRICS_PORT=port, **worker, **shared, **access[1])
