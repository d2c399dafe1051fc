"""No task is lost, wrong or resurrected if processes are killed, stopped, suspended or restarted.

A campaign is random and repeatable: ``CAMPAIGN_SEED`` picks another one, ``CAMPAIGN_TASKS`` its size. If it fails, the
stores and the logs of all processes are kept with a report of all events, in the folder that the test prints.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import orjson
import psutil
import pytest

from app.observability.multiprocess import ValueCollector
from app.settings import Settings
from app.tasks.embedded_server import find_running_server
from tests.live.queue_state import describe_rest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.live, pytest.mark.timeout(1800)]

CROP = "/api/v1/frontal/crop"
SEED = int(os.environ.get("CAMPAIGN_SEED", "1"))
TASKS = int(os.environ.get("CAMPAIGN_TASKS", "3000"))
PRODUCERS = 4
WATCHERS = 8
TASK_WORKERS = 3
ACK_WAIT_S = 2
RESULT_TTL_S = 30
SUSPENDED_S = ACK_WAIT_S + 1.5
CANCELLED, REPEATED, AWAITED = 0.15, 0.1, 0.1  # shares of the tasks
EVENTS = {
    "kill task": 8,
    "kill api": 3,
    "suspend task": 2,
    "suspend api": 1,
    "kill task-master": 1,
    "kill exporter": 1,
    "kill nats": 4,
    "suspend nats": 1,
    "stop": 1,
    "kill master": 1,
}
HELD_BACK = 0.96  # share of the tasks after which the rest waits for the last event, so that every event meets tasks
REUSED_KEYS = 10  # of expired tasks, for new ones at the end
LIMIT_S = 1200  # several times what a run takes on an idle machine
RESPONSE_LIMIT_S = 30  # far above what any event delays
EXPIRY_SLACK_S = 2.0  # between the clocks' readings, and for a response to arrive
STORE_SLACK_S = 15.0  # a result that is ready while the queue is down expires as long after it is stored
RETRY = threading.Event()  # never set: a pause between attempts
FINAL = {"SUCCESS", "FAILURE", "CANCELLED"}


@dataclass(frozen=True)
class Kind:
    """A request and its expected final state."""

    body: bytes
    status: str
    regions: list[Any] | None = None
    code: str | None = None


@dataclass
class Task:
    """An accepted task and all responses about it.

    Attributes:
        key: its idempotency key.
        kind: name of the request.
        seen: time and status of each response that differs from the previous one.
        end: document of its final state.
        expires_at: when its record expires, by the service's clock.
        is_missed: whether its record may have expired before a caller read it.
        is_cancelled: whether a DELETE returned 200.
        may_be_cancelled: whether a DELETE was sent.
    """

    task_id: str
    key: str
    kind: str
    accepted_at: float
    seen: list[tuple[float, str]] = field(default_factory=list)
    end: dict[str, Any] | None = None
    ended_at: float = 0.0
    expires_at: float = 0.0
    is_missed: bool = False
    is_cancelled: bool = False
    may_be_cancelled: bool = False

    def note(self, status: str) -> None:
        """Add a response."""
        if not self.seen or self.seen[-1][1] != status:
            self.seen.append((round(time.monotonic() - self.accepted_at, 2), status))


@dataclass
class Books:
    """Results of the callers."""

    tasks: dict[str, Task] = field(default_factory=dict)  # by task id
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    last_event: threading.Event = field(default_factory=threading.Event)  # set when the last event begins

    @property
    def ended(self) -> int:
        """Tasks whose end was observed or missed."""
        return sum(task.end is not None or task.is_missed for task in list(self.tasks.values()))

    def fault(self, task: Task, text: str) -> None:
        """Record a violation."""
        self.faults.append(f"{task.task_id} ({task.kind}, cancelled {task.is_cancelled}): {text}; seen {task.seen}")
        self.event(f"fault: {self.faults[-1]}")

    def event(self, text: str) -> None:
        """Add a line to the report."""
        self.events.append(f"{time.time():.3f} {text}")

    @contextlib.contextmanager
    def keep_if_failed(self, folder: Path) -> Iterator[None]:
        """If the block fails, copy the folder and its new siblings, the stores and logs, next to the report."""
        older = set(folder.parent.iterdir()) - {folder}  # of other tests
        try:
            yield
        except BaseException:
            kept = Path(tempfile.mkdtemp(prefix=f"campaign-{SEED}-"))
            for child in set(folder.parent.iterdir()) - older:
                if not child.is_symlink():
                    shutil.copytree(child, kept / child.name)
            tasks = [f"{task.accepted_at:.3f} {task}" for task in self.tasks.values()]
            clocks = f"time.time() - time.monotonic() = {time.time() - time.monotonic():.3f}"
            (kept / "report.txt").write_text("\n".join([clocks, *self.events, *tasks]), encoding="utf-8")
            print(f"stores, logs and report of the failed campaign: {kept}")  # noqa: T201 - to examine it
            raise


class Deployment:
    """The service with an embedded queue, restarted with the same folder."""

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
            "RESULT_TTL": RESULT_TTL_S,
            "LOG_ACCESS": "false",
        }

    def start(self) -> None:
        """Start or restart."""
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

    def kill_master(self) -> None:
        """Kill the started process, and restart immediately."""
        os.kill(self.service.pid, signal.SIGKILL)
        self.service.stop()
        self.start()

    def queue_settings(self) -> Settings:
        """Settings to reach the queue by."""
        return find_running_server(Settings(data_dir=self._folder / "data"))

    def nats_process(self) -> psutil.Process:
        """Return a process of the NATS server."""
        return self.service.nats_server()

    def task_workers(self) -> list[psutil.Process]:
        """Return the task processes."""
        return list(self.service.task_workers())

    def worker_master(self) -> psutil.Process:
        """Return the master of the task processes."""
        return self.service.worker_master()

    def kill_queue(self, wait_until: Callable[..., Any]) -> None:
        """Kill the NATS server, which is restarted automatically."""
        server = self.service.nats_server()
        server.kill()
        wait_until(lambda: is_another(self.service.nats_server, server), limit_s=60, what="another nats-server")

    def counted(self, name: str, label: str = "status") -> Counter[str]:
        """Return the sum of a counter over all runs, by a label, from the metric files."""
        total = Counter[str]()
        for folder in self.value_folders:
            for family in ValueCollector(folder).collect():
                for sample in family.samples:
                    if sample.name == name:
                        total[sample.labels.get(label, "")] += int(sample.value)
        return total

    def _values(self, name: str) -> Path:
        folder = self._folder / f"values-{name}-{self._starts}"
        self.value_folders.append(folder)
        return folder


class Separated(Deployment):
    """API and workers as separate instances, with an external NATS server."""

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
        self._start_worker()

    def _start_worker(self) -> None:
        values = self._values("task")
        settings = {**self.settings(), "NATS_URL": self.nats.url}
        self.worker = self._stack.enter_context(self._run_worker(PROMETHEUS_MULTIPROC_DIR=values, **settings))

    def stop(self) -> None:
        assert self.service.stop() == 0
        assert self.worker.stop() == 0

    def restart_worker(self) -> None:
        """Kill the master of the task processes, and start another."""
        os.kill(self.worker.pid, signal.SIGKILL)
        self.worker.stop()
        self._starts += 1
        self._start_worker()

    def kill_master(self) -> None:
        for running in (self.service, self.worker):
            os.kill(running.pid, signal.SIGKILL)
            running.stop()
        self.start()

    def queue_settings(self) -> Settings:
        return Settings(nats_url=self.nats.url)

    def nats_process(self) -> psutil.Process:
        return psutil.Process(self.nats.pids()[0])

    def worker_master(self) -> psutil.Process:
        return psutil.Process(self.worker.pid)

    def task_workers(self) -> list[psutil.Process]:
        return list(self.worker.task_workers())

    def kill_queue(self, wait_until: Callable[..., Any]) -> None:
        self.nats.kill()
        self.nats.start()
        wait_until(self.nats.is_up, limit_s=60, what="the server")


class Clustered(Separated):
    """The same with a cluster of three, of which one server is killed and restarted."""

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "NATS_REPLICAS": 3}


def is_another(find: Callable[[], psutil.Process | None], old: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error, StopIteration):
        found = find()
        return found is not None and found.pid != old.pid
    return False


@pytest.fixture
def kinds(run_service: Any, sample: Any) -> dict[str, Kind]:
    """Kinds of requests; the synchronous route gives the expected results."""
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
    """Sends each request to the current address of the service."""

    def __init__(self, deployment: Deployment, books: Books) -> None:
        self._deployment = deployment
        self._books = books
        self._client = httpx.Client(timeout=RESPONSE_LIMIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response | None:
        """Send one request; return None if it must be repeated."""
        try:
            answer = self._client.request(method, f"{self._deployment.service.api}{path}", **request)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            self._books.refused[type(error).__name__] += 1
            # The connections of a killed process are closed, and others are suspended for less time.
            if isinstance(error, httpx.TimeoutException):
                self._books.faults.append(f"{method} {path}: no response within {RESPONSE_LIMIT_S} s")
                self._books.event(f"fault: {self._books.faults[-1]}")
            return None
        if answer.status_code == 503:
            assert answer.headers["retry-after"]
            self._books.refused[answer.json()["code"]] += 1
            return None
        return answer

    def require(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send a request until there is a response."""
        while (answer := self.ask(method, path, **request)) is None:
            RETRY.wait(0.1)
        return answer


def produce(deployment: Deployment, books: Books, kinds: dict[str, Kind], name: str, ids: queue.Queue[Any]) -> None:
    """Submit a share of the tasks, each until it is accepted; submit some twice, and cancel some soon after."""
    chooser = random.Random(f"{SEED} {name}")
    deadline = time.monotonic() + LIMIT_S
    cancels: list[tuple[float, Task]] = []
    with Caller(deployment, books) as caller:
        for number in range(TASKS // PRODUCERS):
            if number == int(TASKS // PRODUCERS * HELD_BACK):
                books.last_event.wait(LIMIT_S)
            key, kind = f"{name}-{number}", chooser.choice(sorted(kinds))
            accepted_at = time.monotonic()
            task = Task(submit(caller, key, kinds[kind].body, deadline), key, kind, accepted_at)
            books.tasks[task.task_id] = task
            ids.put(task)
            if chooser.random() < REPEATED:
                repeat(caller, books, task, kinds[kind].body)
            if chooser.random() < CANCELLED:
                cancels.append((time.monotonic() + chooser.choice((0, 0.02, 0.2, 1)), task))
            due = [task for at, task in cancels if at <= time.monotonic()]
            cancels = [(at, task) for at, task in cancels if task not in due]
            for task in due:
                cancel(caller, books, task)
        for _, task in cancels:
            cancel(caller, books, task)


def submit(caller: Caller, key: str, body: bytes, deadline: float) -> str:
    """Submit a task until it is accepted."""
    while not (task_id := try_to_submit(caller, key, body)):
        assert time.monotonic() < deadline
        RETRY.wait(0.1)
    return task_id


def repeat(caller: Caller, books: Books, task: Task, body: bytes) -> None:
    """Submit a task again under its key, but not when the result may expire: the key would then start a new task."""
    last = time.monotonic() + RESULT_TTL_S / 2
    while not (again := try_to_submit(caller, task.key, body)) and time.monotonic() < last:
        RETRY.wait(0.1)
    if again not in {"", task.task_id}:
        books.fault(task, f"its key gave {again} as well")


def try_to_submit(caller: Caller, key: str, body: bytes) -> str:
    """Submit a task once; return its id, or an empty text if it must be submitted again."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    answer = caller.ask("POST", f"{CROP}/submit", content=body, headers=headers)
    if answer is None:
        return ""
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def cancel(caller: Caller, books: Books, task: Task) -> None:
    """Cancel a task, unless it has ended."""
    task.may_be_cancelled = True
    for _ in range(100):
        answer = caller.ask("DELETE", f"{CROP}/status/{task.task_id}")
        if answer is None:
            RETRY.wait(0.1)
            continue
        task.note(f"DELETE {answer.status_code}")
        task.is_cancelled = answer.status_code == 200
        may_have_expired = task.end is not None or is_past_retention(task)
        if answer.status_code not in {200, 409} and not (answer.status_code == 404 and may_have_expired):
            books.fault(task, f"DELETE was answered with {answer.status_code}")
        return


def watch(deployment: Deployment, books: Books, ids: queue.Queue[Any]) -> None:
    """Poll the open tasks repeatedly, and each ended task once more a little later."""
    chooser = random.Random(f"{SEED} watch")
    deadline = time.monotonic() + LIMIT_S
    with Caller(deployment, books) as caller:
        while (task := ids.get()) is not None:
            assert time.monotonic() < deadline, f"{books.ended} ended, {books.refused}, {books.faults}"
            query = "?wait=2" if chooser.random() < AWAITED else ""
            answer = caller.ask("GET", f"{CROP}/status/{task.task_id}{query}")
            if answer is None:
                RETRY.wait(0.05)
                ids.put(task)
            elif not look(books, task, answer):
                ids.put(task)


def is_past_retention(task: Task) -> bool:
    """Return whether a task may have ended and its record have expired before a caller read it."""
    return time.monotonic() >= task.accepted_at + RESULT_TTL_S - EXPIRY_SLACK_S


def look(books: Books, task: Task, answer: httpx.Response) -> bool:
    """Compare a response with the previous ones; return whether the task needs no further polls."""
    if answer.status_code == 404:
        task.note("404")
        if task.end is not None:
            if time.time() < task.expires_at - EXPIRY_SLACK_S:
                books.fault(task, "it is unknown before its result expires")
        elif not is_past_retention(task):
            books.fault(task, "it is unknown, and its end was not seen")
        else:
            task.is_missed, task.expires_at = True, time.time()
        return True
    assert answer.status_code == 200, f"{task.task_id}: {answer.text}"
    document: dict[str, Any] = orjson.loads(answer.content)
    task.note(document["status"])
    if task.end is not None:
        if document != task.end:
            books.fault(task, f"its end changed from {task.end} to {document}")
        return True
    if document["status"] in FINAL:
        task.end, task.ended_at = document, time.monotonic()
        task.expires_at = datetime.fromisoformat(document["completed_at"]).timestamp() + RESULT_TTL_S
    return False


def disturb(
    deployment: Deployment, books: Books, wait_until: Callable[..., Any], done: threading.Event
) -> Counter[str]:
    """Cause every event, spread over the run in random order."""
    events = [name for name, count in EVENTS.items() for _ in range(count)]
    chooser = random.Random(f"{SEED} events")
    chooser.shuffle(events)
    happened = Counter[str]()
    try:
        for number, event in enumerate(events, start=1):
            goal = TASKS * number // (len(events) + 2)
            wait_until(lambda goal=goal: books.ended >= goal or done.is_set(), limit_s=LIMIT_S, what=f"{goal} tasks")
            if done.is_set():
                break
            if number == len(events):
                books.last_event.set()
            books.event(f"{event} begins")
            let_happen(event, deployment, wait_until, chooser)
            books.event(f"{event} is over")
            happened[event] += 1
    finally:
        books.last_event.set()
    return happened


def let_happen(event: str, deployment: Deployment, wait_until: Callable[..., Any], chooser: random.Random) -> None:
    action, _, target = event.partition(" ")
    match event:
        case "stop":
            deployment.restart()
            return
        case "kill master":
            deployment.kill_master()
            return
        case "kill nats":
            deployment.kill_queue(wait_until)
            return
    find: dict[str, Callable[[], list[psutil.Process]]] = {
        "task": lambda: full(deployment.task_workers, TASK_WORKERS),
        "api": lambda: full(deployment.service.workers, 2),
        "task-master": lambda: [deployment.worker_master()],
        "exporter": lambda: [deployment.service.exporter()],
        "nats": lambda: [deployment.nats_process()],
    }
    victim: psutil.Process = chooser.choice(wait_until(find[target], limit_s=60, what=f"a {target}"))
    if action == "suspend":
        victim.suspend()
        RETRY.wait(SUSPENDED_S)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.resume()
    elif target == "task-master" and isinstance(deployment, Separated):
        deployment.restart_worker()
    else:
        victim.kill()


def full(find: Callable[[], list[psutil.Process]], count: int) -> list[psutil.Process]:
    """Return the processes when all have started."""
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
def test_every_accepted_task_ends_once_and_stays_so(
    kind: str, request: pytest.FixtureRequest, kinds: dict[str, Kind], wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    books = Books()
    with books.keep_if_failed(tmp_path):
        run_campaign(kind, books, request, kinds, wait_until, tmp_path)


def run_campaign(
    kind: str,
    books: Books,
    request: pytest.FixtureRequest,
    kinds: dict[str, Kind],
    wait_until: Callable[..., Any],
    folder: Path,
) -> None:
    """Run a campaign, and check what the callers have seen and what is left."""
    ids, done = queue.Queue[Any](), threading.Event()
    with ExitStack() as stack, deploy(kind, stack, request, folder) as deployment:
        start = time.monotonic()
        with ThreadPoolExecutor(PRODUCERS + WATCHERS + 1) as pool:
            producers = [pool.submit(produce, deployment, books, kinds, f"p{n}", ids) for n in range(PRODUCERS)]
            watchers = [pool.submit(watch, deployment, books, ids) for _ in range(WATCHERS)]
            disturbance = pool.submit(disturb, deployment, books, wait_until, done)
            try:
                for producer in producers:
                    producer.result()
                wait_until(
                    lambda: books.ended == len(books.tasks) or books.faults or any(map(_has_failed, watchers)),
                    limit_s=LIMIT_S,
                    what="the end of all tasks",
                )
            finally:
                done.set()
                for _ in watchers:
                    ids.put(None)
            for watcher in watchers:
                watcher.result()
            happened = disturbance.result()
        seconds = time.monotonic() - start
        is_clean = _wait_for_empty_queue(deployment, wait_until)
        reappeared = _watch_expiry(deployment, books)
        _require_keys_free(deployment, books, kinds)
        deployment.stop()
        completed = deployment.counted("task_completions_total")
        redelivered = deployment.counted("task_redeliveries_total")
        repairs = deployment.counted("task_repairs_total", "reason")

    ends = Counter(task.end["status"] for task in books.tasks.values() if task.end)
    slowest = max(task.ended_at - task.accepted_at for task in books.tasks.values())
    print(  # noqa: T201 - shown with -s
        f"\n{kind}, seed {SEED}: {len(books.tasks)} tasks in {seconds:.1f} s, {dict(ends)}; {dict(happened)}; "
        f"refused {dict(books.refused)}; redelivered {redelivered.total()}; repairs {dict(repairs)}; "
        f"slowest {slowest:.1f} s"
    )
    assert not books.faults, "\n".join(books.faults[:20])
    assert happened == EVENTS
    assert is_clean == ""
    assert not reappeared, "\n".join(reappeared[:20])
    assert len(books.tasks) == TASKS
    seen = [task for task in books.tasks.values() if task.end is not None]
    # A result may expire unread while the API restarts, which takes long on a busy machine.
    assert len(seen) > 0.7 * TASKS
    for task in seen:
        require_right(task, kinds[task.kind])
    # A process may be killed between storing a final state and counting it.
    kills = sum(EVENTS.values()) * TASK_WORKERS
    for status, count in ends.items():
        assert (
            count - kills
            <= completed[status]
            <= count + REUSED_KEYS + TASKS - len(seen) + kills * (status == "CANCELLED")
        ), status


def _has_failed(watcher: Any) -> bool:
    return watcher.done() and watcher.exception() is not None


def _wait_for_empty_queue(deployment: Deployment, wait_until: Callable[..., Any]) -> str:
    """Wait until stream and consumers are empty and the gauges are 0; otherwise, return the leftovers."""

    def find_rest() -> str:
        return describe_rest(deployment.queue_settings(), deployment.service)

    try:
        wait_until(lambda: not find_rest(), limit_s=60, what="an empty queue")
    except TimeoutError:
        return find_rest()
    return ""


def _watch_expiry(deployment: Deployment, books: Books) -> list[str]:
    """Poll all tasks for three times their retention; return those that reappeared or did not expire."""
    faults: list[str] = []
    gone: set[str] = set()
    end = max(task.expires_at for task in books.tasks.values()) + 2 * RESULT_TTL_S
    with Caller(deployment, books) as caller:
        while time.time() < end:
            for task in books.tasks.values():
                answer = caller.ask("GET", f"{CROP}/status/{task.task_id}")
                if answer is None:
                    continue
                if answer.status_code == 404:
                    gone.add(task.task_id)
                    continue
                status = orjson.loads(answer.content).get("status")
                is_late = time.time() > task.expires_at + STORE_SLACK_S
                if task.task_id in gone or is_late or (task.end and status != task.end["status"]):
                    faults.append(f"{task.task_id}: {status} after its result expired; seen {task.seen}")
            RETRY.wait(1)
    return faults


def _require_keys_free(deployment: Deployment, books: Books, kinds: dict[str, Kind]) -> None:
    """Check that keys of expired tasks create new tasks, which end."""
    with Caller(deployment, books) as caller:
        for old in list(books.tasks.values())[:REUSED_KEYS]:
            task_id = submit(caller, old.key, kinds[old.kind].body, time.monotonic() + 60)
            document = orjson.loads(caller.require("GET", f"{CROP}/status/{task_id}?wait=30").content)
            assert document["status"] == kinds[old.kind].status, document


def require_right(task: Task, kind: Kind) -> None:
    document = task.end or {}
    if task.is_cancelled or (task.may_be_cancelled and document["status"] == "CANCELLED"):
        assert document["status"] == "CANCELLED", task
        return
    assert document["status"] == kind.status, (task.seen, document["error"])
    if kind.regions is not None:
        assert document["result"]["regions"] == kind.regions
        assert document["progress"] == 1
    else:
        assert document["result"] is None
        assert document["error"]["code"] == kind.code
