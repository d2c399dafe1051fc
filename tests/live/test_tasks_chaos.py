"""No task is lost: three thousand of them while workers, API and queue are killed, and the service is restarted."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import httpx
import orjson
import psutil
import pytest

from app.observability.multiprocess import ValueCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(900)]

CROP = "/api/v1/frontal/crop"
TASKS = 3000
PRODUCERS = 2
WATCHERS = 4
TASK_WORKERS = 3
ACK_WAIT_S = 2
KILLS = {"task": 10, "api": 3, "queue": 2, "restart": 1}
LIMIT_S = 600
RETRY = threading.Event()  # never set: a pause between tries, as callers make it


@dataclass(frozen=True)
class Kind:
    """A request, and how it is to end."""

    body: bytes
    status: str
    regions: list[Any] | None = None
    code: str | None = None


@dataclass
class Books:
    """What callers know."""

    accepted: dict[str, tuple[str, str]] = field(default_factory=dict)  # key to task id and kind
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)  # task id to what was seen of its end
    refused: Counter[str] = field(default_factory=Counter)


class Deployment:
    """The service with a queue of its own, restarted on the same folder."""

    kills = KILLS

    def __init__(self, stack: ExitStack, run_service: Any, folder: Path) -> None:
        self._stack = stack
        self._run_service = run_service
        self._folder = folder
        self._starts = 0
        self.value_folders: list[Path] = []
        self.start()

    def settings(self) -> dict[str, Any]:
        """Settings of all processes."""
        return {
            "TASK_ACK_WAIT_S": ACK_WAIT_S,
            "NATS_TIMEOUT_S": 2,
            "FAULT_WORK_S": 0.02,
            "TASK_WORKERS": TASK_WORKERS,
            "TASK_QUEUE_MAX_MESSAGES": 500,
        }

    def start(self) -> None:
        """Start, or start again."""
        self._starts += 1
        self.service = self._stack.enter_context(
            self._run_service(
                ENABLE_TASKS="true",
                DATA_DIR=self._folder / "data",
                WORKERS=2,
                PROMETHEUS_MULTIPROC_DIR=self._values("api"),
                **self.settings(),
            )
        )

    def stop(self) -> None:
        """Stop as an operator does."""
        assert self.service.stop() == 0

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def task_workers(self) -> list[psutil.Process]:
        """Processes that work on tasks."""
        return list(self.service.task_workers())

    def kill_queue(self, wait_until: Callable[..., Any]) -> None:
        """Kill the queue's server; it comes back by itself."""
        server = self.service.nats_server()
        server.kill()
        wait_until(lambda: is_another(self.service.nats_server, server), limit_s=60, what="another nats-server")

    def counted(self, name: str) -> Counter[str]:
        """Sum a counter over all runs, by its last label, from the files that the processes left."""
        total = Counter[str]()
        for folder in self.value_folders:
            for family in ValueCollector(folder).collect():
                for sample in family.samples:
                    if sample.name == name:
                        total[sample.labels.get("status", "")] += int(sample.value)
        return total

    def _values(self, name: str) -> Path:
        folder = self._folder / f"values-{name}-{self._starts}"
        self.value_folders.append(folder)
        return folder


class Separated(Deployment):
    """API and workers for themselves, with a NATS server of somebody else's."""

    def __init__(self, stack: ExitStack, run_service: Any, folder: Path, run_worker: Any, nats: Any) -> None:
        self._run_worker = run_worker
        self.nats = nats
        super().__init__(stack, run_service, folder)

    def start(self) -> None:
        self._starts += 1
        settings = {**self.settings(), "NATS_URL": self.nats.url}
        values = self._values("api")
        self.service = self._stack.enter_context(
            self._run_service(WORKERS=2, PROMETHEUS_MULTIPROC_DIR=values, **settings)
        )
        values = self._values("task")
        self.worker = self._stack.enter_context(self._run_worker(PROMETHEUS_MULTIPROC_DIR=values, **settings))

    def stop(self) -> None:
        assert self.service.stop() == 0
        assert self.worker.stop() == 0

    def task_workers(self) -> list[psutil.Process]:
        return list(self.worker.task_workers())

    def kill_queue(self, wait_until: Callable[..., Any]) -> None:
        self.nats.kill()
        self.nats.start()
        wait_until(self.nats.is_up, limit_s=60, what="the server")


class Clustered(Separated):
    """The same with a cluster of three, of which one is killed and comes back."""

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "NATS_REPLICAS": 3}


def is_another(find: Callable[[], psutil.Process | None], old: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error, StopIteration):
        found = find()
        return found is not None and found.pid != old.pid
    return False


@pytest.fixture
def kinds(run_service: Any, sample: Any) -> dict[str, Kind]:
    """Four kinds of requests; what is right is told by the synchronous route."""
    broken = sample.png_file(512, 512, b"not what zlib writes")
    bodies = {
        "catalogue": sample.json(),
        "photo": sample.json(image=sample.photo),
        "label_map": sample.json(segmentation_map=sample.labels),
        "regions": sample.json(segmentation_map={"nose": [1, 2, 98, 327], "chin": [152, 148, 176, 400, 377]}),
    }
    found = {"broken": Kind(sample.json(image=broken, verify="pixels"), "FAILURE", code="image_corrupt")}
    with run_service(WORKERS=1) as service:
        for name, body in bodies.items():
            answer = httpx.post(f"{service.api}{CROP}", content=body, headers={"Content-Type": "application/json"})
            found[name] = Kind(body, "SUCCESS", regions=answer.raise_for_status().json()["regions"])
        answer = httpx.post(
            f"{service.api}{CROP}", content=found["broken"].body, headers={"Content-Type": "application/json"}
        )
        assert answer.json()["code"] == "image_corrupt"
    return found


class Caller:
    """Sends requests, each to wherever the service is now."""

    def __init__(self, deployment: Deployment, books: Books) -> None:
        self._deployment = deployment
        self._books = books
        self._client = httpx.Client(timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response | None:
        """Send one request; None where it is to be sent again."""
        try:
            answer = self._client.request(method, f"{self._deployment.service.api}{path}", **request)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            self._books.refused[type(error).__name__] += 1
            return None
        if answer.status_code == 503:
            assert answer.headers["retry-after"]
            self._books.refused[answer.json()["code"]] += 1
            return None
        return answer


def produce(deployment: Deployment, books: Books, kinds: dict[str, Kind], name: str, ids: queue.Queue[Any]) -> None:
    """Submit a share of the tasks, each until it is taken."""
    chooser = random.Random(name)
    deadline = time.monotonic() + LIMIT_S
    with Caller(deployment, books) as caller:
        for number in range(TASKS // PRODUCERS):
            key, kind = f"{name}-{number}", chooser.choice(sorted(kinds))
            task_id = submit(caller, key, kinds[kind].body, deadline)
            books.accepted[key] = (task_id, kind)
            ids.put(task_id)


def submit(caller: Caller, key: str, body: bytes, deadline: float) -> str:
    """Submit a task until it is taken."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    while (answer := caller.ask("POST", f"{CROP}/submit", content=body, headers=headers)) is None:
        assert time.monotonic() < deadline
        RETRY.wait(0.1)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def watch(deployment: Deployment, books: Books, ids: queue.Queue[Any]) -> None:
    """Wait for the end of one task after the other."""
    deadline = time.monotonic() + LIMIT_S
    with Caller(deployment, books) as caller:
        while (task_id := ids.get()) is not None:
            while (document := look(caller, task_id))["status"] in {"PENDING", "STARTED"}:
                assert time.monotonic() < deadline, f"{len(books.ended)} ended, {books.refused}"
            books.ended[task_id] = document


def look(caller: Caller, task_id: str) -> dict[str, Any]:
    """Wait a little for a task's end."""
    answer = caller.ask("GET", f"{CROP}/status/{task_id}?wait=5")
    if answer is None:
        RETRY.wait(0.1)
        return {"status": "PENDING"}
    assert answer.status_code == 200, f"{task_id}: {answer.text}"
    document: dict[str, Any] = orjson.loads(answer.content)
    return document


def disturb(
    deployment: Deployment, books: Books, wait_until: Callable[..., Any], done: threading.Event
) -> dict[str, int]:
    """Do everything that was announced, spread over the run."""
    events = [name for name, count in deployment.kills.items() for _ in range(count)]
    chooser = random.Random(11)
    chooser.shuffle(events)
    happened = Counter[str]()
    for number, event in enumerate(events):
        goal = TASKS * (number + 1) // (len(events) + 2)
        wait_until(lambda goal=goal: len(books.ended) >= goal or done.is_set(), limit_s=LIMIT_S, what=f"{goal} tasks")
        if done.is_set():
            break
        if event == "restart":
            deployment.restart()
        elif event == "queue":
            deployment.kill_queue(wait_until)
        else:
            find = deployment.task_workers if event == "task" else deployment.service.workers
            whole = TASK_WORKERS if event == "task" else 2
            victims = wait_until(lambda find=find, whole=whole: full(find, whole), limit_s=60, what="all workers")
            chooser.choice(victims).kill()
        happened[event] += 1
    return dict(happened)


def full(find: Callable[[], list[psutil.Process]], count: int) -> list[psutil.Process]:
    """Return the processes once there are as many as there should be."""
    try:
        found = [process for process in find() if process.status() != psutil.STATUS_ZOMBIE]
    except (psutil.Error, OSError):
        return []
    return found if len(found) == count else []


@contextlib.contextmanager
def deploy(kind: str, stack: ExitStack, request: pytest.FixtureRequest, folder: Path) -> Iterator[Deployment]:
    run_service = request.getfixturevalue("run_service")
    if kind == "embedded":
        yield Deployment(stack, run_service, folder)
        return
    nats = stack.enter_context(request.getfixturevalue("run_nats")(cluster=3 if kind == "cluster" else 1))
    made = Clustered if kind == "cluster" else Separated
    yield made(stack, run_service, folder, request.getfixturevalue("run_worker"), nats)


@pytest.mark.parametrize("kind", ["embedded", "separate", "cluster"])
def test_no_task_is_lost(
    kind: str, request: pytest.FixtureRequest, kinds: dict[str, Kind], wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    books, ids, done = Books(), queue.Queue[Any](), threading.Event()
    with ExitStack() as stack, deploy(kind, stack, request, tmp_path) as deployment:
        start = time.monotonic()
        with ThreadPoolExecutor(PRODUCERS + WATCHERS + 1) as pool:
            producers = [pool.submit(produce, deployment, books, kinds, f"p{n}", ids) for n in range(PRODUCERS)]
            watchers = [pool.submit(watch, deployment, books, ids) for _ in range(WATCHERS)]
            disturbance = pool.submit(disturb, deployment, books, wait_until, done)
            try:
                for producer in producers:
                    producer.result()
            finally:
                for _ in watchers:
                    ids.put(None)
            for watcher in watchers:
                watcher.result()
            done.set()
            happened = disturbance.result()
        seconds = time.monotonic() - start
        with Caller(deployment, books) as caller:
            again = {task_id: look(caller, task_id) for task_id in books.ended}
        deployment.stop()
        submitted = deployment.counted("task_submissions_total")
        completed = deployment.counted("task_completions_total")
        redelivered = deployment.counted("task_redeliveries_total")

    attempts = Counter(document["attempts"] for document in books.ended.values())
    print(  # noqa: T201 - for whoever runs it with -s
        f"\n{kind}: {len(books.ended)} tasks in {seconds:.1f} s; {happened}; refused {dict(books.refused)}; "
        f"attempts {dict(attempts)}; submitted {submitted.total()}, completed {dict(completed)}, "
        f"redelivered {redelivered.total()}"
    )
    assert happened == deployment.kills
    assert len(books.accepted) == len(books.ended) == TASKS
    assert len({task_id for task_id, _ in books.accepted.values()}) == TASKS
    assert again == books.ended, "an end, once seen, stays"
    for task_id, name in books.accepted.values():
        require_right(books.ended[task_id], kinds[name])
    ended = Counter(document["status"] for document in books.ended.values())
    kills = sum(deployment.kills.values())
    assert redelivered.total() >= deployment.kills["task"], "each of the killed held a task"
    # A task is counted by whoever wrote its end, and a kill can fall between the two; nothing is counted twice.
    for status, count in ended.items():
        assert count - kills <= completed[status] <= count, status
    lost_counts = (deployment.kills["api"] + deployment.kills["queue"] + 1) * PRODUCERS
    assert TASKS - lost_counts <= submitted.total() <= TASKS


def require_right(document: dict[str, Any], kind: Kind) -> None:
    assert document["status"] == kind.status, document["error"]
    if kind.regions is not None:
        assert document["result"]["regions"] == kind.regions
        assert document["progress"] == 1
    else:
        assert document["result"] is None
        assert document["error"]["code"] == kind.code
