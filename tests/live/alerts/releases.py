"""Four releases of the service that one Prometheus watches, each with its traffic.

``calm`` is as it should be all the time. Faults are in the other three: ``apart`` has an API, workers and a queue,
``alone`` is one instance with all it needs, without the labels of Kubernetes, and ``busy`` is an API without tasks.
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
LOST = 0  # in the place of a status, where there was no answer

# The queue is full of a few photos or some hundred small pictures. Its server may store little more than twice that,
# the least that it takes the streams with. Results are bounded by their age alone here, so that large ones can fill it.
QUEUE_BYTES, DEAD_BYTES, STORE_BYTES = 6 << 20, 1 << 20, 14 << 20
RESULT_TTL_S = 40
# Of the one process of ``busy``: requests that it works on at the same time, and those that it takes.
THREADS, PLACES = 8, 24


class Instance:
    """Something of the service that can be stopped, and started again where it was.

    Attributes:
        running: the one that runs, or ran last.
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
        """Where its metrics are, as Prometheus wants it."""
        return str(self.running.metrics.removeprefix("http://"))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop it for the duration of the block."""
        self.running.stop()
        try:
            yield
        finally:
            self._start()


@dataclass
class Release:
    """An API, and how callers get on with it.

    Attributes:
        place: the namespace that Prometheus knows it by; empty where it knows of none.
        api: the API's instance.
        sample: what callers send.
        workers: their instance, where they are apart from the API; normal traffic submits tasks then.
        statuses: how normal traffic was answered.
    """

    place: str
    api: Instance
    sample: Sample
    workers: Instance | None = None
    statuses: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        # A connection for each request: whichever process takes it.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.client = httpx.Client(base_url=self.service.api, timeout=60, limits=limits)

    @property
    def service(self) -> RunningService:
        """The API that runs, or ran last."""
        service: RunningService = self.api.running
        return service

    @property
    def address(self) -> str:
        """Where its metrics are, as Prometheus wants it."""
        return self.api.address

    def post(self, path: str, content: bytes, content_type: str = JSON["Content-Type"]) -> int:
        """Send a request and return the status of the answer, or `LOST`."""
        try:
            return self.client.post(path, content=content, headers={"Content-Type": content_type}).status_code
        except httpx.TransportError:
            return LOST

    def submit(self, content: bytes, content_type: str = JSON["Content-Type"]) -> str | None:
        """Submit a task and return its id; None where it was not taken."""
        try:
            answer = self.client.post(f"{CROP}/submit", content=content, headers={"Content-Type": content_type})
        except httpx.TransportError:
            return None
        return str(answer.json()["task_id"]) if answer.status_code == 202 else None

    def end_of(self, task_id: str) -> str:
        """Wait for a task's end for a while, and return its status; ``EXPIRED`` if it ended long ago."""
        answer = self.client.get(f"{CROP}/status/{task_id}?wait=20")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return "EXPIRED"
        return str(answer.raise_for_status().json()["status"])

    def is_working(self) -> bool:
        """Tell whether a task is taken by whichever process is asked, and comes to its end."""
        taken = [self.submit(self.sample.json()) for _ in range(5)]
        return all(task_id is not None and self.end_of(task_id) == "SUCCESS" for task_id in taken)

    @contextmanager
    def traffic(self) -> Iterator[None]:
        """Send what callers usually send, for the duration of the block; now and then one of them errs."""
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
    """All of them; the queue is that of ``apart``."""

    calm: Release
    apart: Release
    alone: Release
    busy: Release
    queue: RunningNats

    @property
    def releases(self) -> tuple[Release, ...]:
        """The four."""
        return self.calm, self.apart, self.alone, self.busy


@contextmanager
def repeating(action: Callable[[], object], *, every_s: float, threads: int = 1) -> Iterator[None]:
    """Do something again and again for the duration of the block, in threads."""
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
    """Starts releases with the fixtures of the tests.

    Attributes:
        stack: what is to be stopped at the end.
        folder: for what has to be kept in a place that is known.
    """

    stack: ExitStack
    sample: Sample
    folder: Path
    run_service: Callable[..., AbstractContextManager[RunningService]]
    run_worker: Callable[..., AbstractContextManager[RunningWorker]]
    run_nats: Callable[..., AbstractContextManager[RunningNats]]
    wait_until: Callable[..., Any]

    def alone(self) -> Release:
        """One instance with a queue and one task process of its own; nobody looks whether that is silent."""
        settings = {"ENABLE_TASKS": "true", "WORKERS": 2, "TASK_WORKERS": 1, "TIMEOUT_S": 3600}
        service = self._api(PROMETHEUS_MULTIPROC_DIR=self.folder / "values", **settings)
        self.wait_until(service.running.task_workers, limit_s=60, what="the task process")
        service.running.wait_tasks()
        release = Release("", service, self.sample)
        self.wait_until(release.is_working, limit_s=60, what="tasks that end")
        return release

    def fleet(self, alone: Release) -> Fleet:
        """Start the others."""
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
