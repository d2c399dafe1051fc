"""Tasks over HTTP, with the embedded queue and workers, and with external ones."""

from __future__ import annotations

import base64
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import msgspec
import pytest

from app.web.schemas import ProblemDocument, TaskResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Sample
    from tests.live.conftest import RunningService

T = TypeVar("T")

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
NO_TASK = "0" * 32
KEYS = ("first-key", "second-key")


class Caller:
    """Sends requests with a key, each on a new connection, so that any worker may accept it."""

    def __init__(self, service: RunningService, key: str = KEYS[0]) -> None:
        self._api = service.api
        self._key = {"x-api-key": key}

    def send(self, method: str, path: str, headers: dict[str, str] | None = None, **request: Any) -> httpx.Response:
        named = {**self._key, **(headers or {})}
        return httpx.request(method, self._api + path, headers=named, timeout=90, **request)

    def crop(self, content: bytes, **headers: str) -> httpx.Response:
        return self._post(CROP, content, headers)

    def submit(self, content: bytes, **headers: str) -> httpx.Response:
        return self._post(f"{CROP}/submit", content, headers)

    def status(self, task_id: str, wait_s: float = 0, **headers: str) -> httpx.Response:
        return self.send("GET", f"{CROP}/status/{task_id}?wait={wait_s}", headers)

    def cancel(self, task_id: str) -> httpx.Response:
        return self.send("DELETE", f"{CROP}/status/{task_id}")

    def run(self, content: bytes) -> TaskResponse:
        """Submit a task, and wait for it to end."""
        return decode(self.status(decode(self.submit(content), TaskResponse).task_id, 60), TaskResponse)

    def _post(self, path: str, content: bytes, headers: dict[str, str]) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send("POST", path, {"content-type": "application/json", **named}, content=content)


def decode(answer: httpx.Response, structure: type[T]) -> T:
    """Decode a response strictly: nothing missing, nothing undocumented."""
    decoded = msgspec.json.decode(answer.content, type=structure)
    assert msgspec.to_builtins(decoded) == answer.json()
    return decoded


def code(answer: httpx.Response) -> tuple[int, str]:
    problem = decode(answer, ProblemDocument)
    assert problem.status == answer.status_code
    return problem.status, problem.code


def result_of(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "processing_time_ms": 0}


@pytest.fixture(scope="module", params=["embedded", "apart"])
def tasks(
    request: pytest.FixtureRequest,
    run_service: Callable[..., Any],
    run_nats: Callable[..., Any],
    run_worker: Callable[..., Any],
    wait_until: Callable[..., Any],
) -> Iterator[RunningService]:
    """A service with tasks, API keys and the result cache."""
    environment = {"API_KEYS": ",".join(KEYS), "RESULT_CACHE": "true", "ENABLE_TASKS": "true"}
    with ExitStack() as stack:
        if request.param == "apart":
            environment["NATS_URL"] = stack.enter_context(run_nats()).url
            stack.enter_context(run_worker(TASK_WORKERS=1, **environment))
        running = stack.enter_context(run_service(WORKERS=2, TASK_WORKERS=1, **environment))
        wait_until(lambda: Caller(running).status(NO_TASK).status_code == 404, limit_s=30, what="the queue")
        yield running


@pytest.fixture
def caller(tasks: RunningService) -> Caller:
    return Caller(tasks)


def test_a_task_has_the_result_of_the_synchronous_route(caller: Caller, sample: Sample) -> None:
    requests = [
        sample.json(image=sample.photo),
        sample.json(segmentation_map=sample.labels, show_labels=True),
        sample.json(segmentation_map={"mouth": [61, 0, 291, 17], "nose": [168, 98, 2, 327]}, simplify=0),
        sample.json(verify="pixels", landmarks=sample.points),
    ]
    for content in requests:
        expected = caller.crop(content)
        assert expected.headers["x-cache"] == "miss"
        task = caller.run(content)
        assert (task.status, task.progress, task.attempts, task.error) == ("SUCCESS", 1.0, 1, None)
        assert result_of(msgspec.to_builtins(task.result)) == result_of(expected.json())


def test_a_form_becomes_a_task_as_well(caller: Caller, sample: Sample) -> None:
    headers = {"content-type": sample.multipart}
    taken = caller.send("POST", f"{CROP}/submit?show_landmarks=true", headers, content=sample.form())
    expected = caller.crop(sample.json(show_landmarks=True, landmarks=sample.points))
    overlay = caller.send("GET", f"{taken.headers['location']}?wait=60", {"accept": "image/svg+xml"})
    assert (taken.status_code, overlay.headers["content-type"]) == (202, "image/svg+xml")
    assert overlay.content == base64.b64decode(expected.json()["svg"])
    image = caller.send("GET", taken.headers["location"], {"accept": "image/png"})
    assert image.headers["content-type"] == "image/png"
    assert (
        image.content
        == caller.crop(sample.json(show_landmarks=True, landmarks=sample.points), accept="image/png").content
    )


def test_pixels_that_do_not_decode_make_a_task_fail(caller: Caller, sample: Sample) -> None:
    content = sample.json(image=sample.png_file(512, 512, b"no zlib stream"), verify="pixels")
    refusal = decode(caller.crop(content), ProblemDocument)
    task = caller.run(content)
    assert (task.status, task.result) == ("FAILURE", None)
    assert task.error is not None
    assert task.error.code == "image_corrupt"
    assert (task.error.code, task.error.title, task.error.detail) == (refusal.code, refusal.title, refusal.detail)


def test_a_result_that_is_there_answers(caller: Caller, sample: Sample, wait_until: Callable[..., Any]) -> None:
    content = sample.json(region_opacity=0.123)
    missed = caller.crop(content)
    task = caller.run(content)
    hit = wait_until(
        lambda: answer if (answer := caller.crop(content)).headers["x-cache"] == "hit" else None,
        limit_s=30,
        what="a hit",
    )
    overlay = caller.crop(content, accept="image/svg+xml")
    assert missed.headers["x-cache"] == "miss"
    assert hit.json() == msgspec.to_builtins(task.result)
    assert result_of(hit.json()) == result_of(missed.json())
    assert (overlay.headers["x-cache"], overlay.content) == ("hit", base64.b64decode(hit.json()["svg"]))
    assert caller.crop(content[:-1] + b',"simplify":1}').headers["x-cache"] == "miss"


def test_a_key_gives_the_same_task(caller: Caller, tasks: RunningService, sample: Sample) -> None:
    content = sample.json(region_opacity=0.2)
    first = decode(caller.submit(content, idempotency_key="order-17"), TaskResponse)
    done = decode(caller.status(first.task_id, 60), TaskResponse)
    again = caller.submit(content, idempotency_key='"order-17"')
    assert (again.status_code, decode(again, TaskResponse)) == (202, done)
    assert code(caller.submit(sample.json(region_opacity=0.3), idempotency_key="order-17")) == (
        409,
        "idempotency_conflict",
    )
    other = Caller(tasks, KEYS[1]).submit(sample.json(region_opacity=0.3), idempotency_key="order-17")
    assert decode(other, TaskResponse).task_id != first.task_id


def test_many_with_one_key_at_once_give_one_task(tasks: RunningService, sample: Sample) -> None:
    content = sample.json(region_opacity=0.4)
    start = threading.Barrier(8)

    def submit(_: int) -> httpx.Response:
        caller = Caller(tasks)
        start.wait()
        return caller.submit(content, idempotency_key="order-18")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(8)))
    assert {answer.status_code for answer in answers} == {202}, [answer.text[:200] for answer in answers]
    assert len({answer.headers["location"] for answer in answers}) == 1


def test_nobody_without_a_key_gets_at_a_task(caller: Caller, tasks: RunningService, sample: Sample) -> None:
    task_id = decode(caller.submit(sample.json()), TaskResponse).task_id
    for method, path in (("POST", "submit"), ("GET", f"status/{task_id}"), ("DELETE", f"status/{task_id}")):
        answer = httpx.request(method, f"{tasks.api}{CROP}/{path}", headers={"x-api-key": "third-key"})
        assert code(answer) == (401, "unauthorized")
    assert httpx.delete(f"{tasks.api}{CROP}/{task_id}").status_code == 401


def test_what_is_no_task_is_unknown(caller: Caller) -> None:
    for task_id in (NO_TASK, "A" * 32, "none"):
        assert code(caller.status(task_id)) == (404, "task_unknown")
        assert code(caller.status(task_id, 60)) == (404, "task_unknown")
        assert code(caller.cancel(task_id)) == (404, "task_unknown")


@pytest.mark.parametrize("key", [b"a\nX: b", b"a\r\n b", b"a\rb", b"a\0b"])
def test_a_key_with_a_line_break_is_no_http(tasks: RunningService, key: bytes) -> None:
    url = httpx.URL(tasks.api)
    head = b"POST /api/v1/frontal/crop/submit HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        connection.sendall(head + b"Idempotency-Key: %b\r\n\r\n{}" % key)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"}")


def test_what_has_ended_cannot_be_cancelled(caller: Caller, sample: Sample) -> None:
    task = caller.run(sample.json(region_opacity=0.5))
    assert code(caller.cancel(task.task_id)) == (409, "task_ended")
    assert decode(caller.status(task.task_id), TaskResponse) == task


def test_tasks_wait_are_cancelled_and_end(
    run_service: Callable[..., Any], sample: Sample, wait_until: Callable[..., Any]
) -> None:
    with run_service(WORKERS=1, TASK_WORKERS=1, FAULT_WORK_S=2, ENABLE_TASKS="true") as service:
        caller = Caller(service)
        wait_until(lambda: caller.status(NO_TASK).status_code == 404, limit_s=30, what="the queue")
        # One task runs, and one more is prefetched.
        working, _, behind, last = (decode(caller.submit(sample.json()), TaskResponse).task_id for _ in range(4))
        cancelled = decode(caller.cancel(behind), TaskResponse)
        assert (cancelled.status, cancelled.attempts, cancelled.result) == ("CANCELLED", 0, None)
        assert decode(caller.cancel(behind), TaskResponse) == cancelled
        with ThreadPoolExecutor(2) as pool:
            patient = pool.submit(Caller(service).status, working, 60)
            hasty = pool.submit(Caller(service).status, last, 0.1)
            assert decode(hasty.result(), TaskResponse).status == "PENDING"
            assert not patient.done(), "a wait that is over before the task is"
            assert decode(patient.result(), TaskResponse).status == "SUCCESS"
            # The last task has not ended, so the long poll returned as soon as its own task ended.
            assert decode(caller.status(last), TaskResponse).status in {"PENDING", "STARTED"}
        assert decode(caller.cancel(last), TaskResponse).status == "CANCELLED"
        scraped = service.scrape()
        assert decode(caller.status(behind), TaskResponse) == cancelled
    submitted = scraped["task_submissions_total", frozenset({("type", "facial_processing")})]
    ended = {
        dict(labels)["status"]: value
        for (name, labels), value in scraped.items()
        if name == "task_completions_total" and value
    }
    assert (submitted, ended["CANCELLED"]) == (4, 2)
    assert ended.keys() == {"SUCCESS", "CANCELLED"}


def test_a_wait_does_not_hold_up_the_end_of_the_service(
    run_service: Callable[..., Any], sample: Sample, wait_until: Callable[..., Any]
) -> None:
    environment = {"ENABLE_TASKS": "true", "GRACEFUL_TIMEOUT_S": 20, "FAULT_WORK_S": 2}
    with run_service(WORKERS=1, TASK_WORKERS=1, **environment) as service, ThreadPoolExecutor(1) as pool:
        caller = Caller(service)
        wait_until(lambda: caller.status(NO_TASK).status_code == 404, limit_s=30, what="the queue")
        *_, last = (decode(caller.submit(sample.json()), TaskResponse) for _ in range(4))
        waiting = pool.submit(Caller(service).status, last.task_id, 60)
        caller.status(last.task_id, 0.1)  # by then, the other poll waits, too
        assert not waiting.done()
        assert service.stop() == 0
        assert decode(waiting.result(), TaskResponse) == last


def test_the_document_has_no_paths_of_tasks_where_none_are_taken(run_service: Callable[..., Any]) -> None:
    with run_service(WORKERS=1, ENABLE_TASKS="false") as service:
        paths = httpx.get(f"{service.api}/openapi.json").json()["paths"]
        assert [path for path in paths if path.startswith("/api/")] == [CROP, "/api/v1/frontal/landmarks"]
        assert code(httpx.post(f"{service.api}{CROP}/submit")) == (404, "not_found")
        assert code(httpx.delete(f"{service.api}{CROP}/{NO_TASK}")) == (404, "not_found")
