"""The task routes with a real NATS server, and in some tests a worker in this process."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import TYPE_CHECKING, Any

import pytest

from app.observability.health import WorkerState
from app.service.crop import CropService, ImageLimits
from app.web.error_handlers import CLIENT_CLOSED_REQUEST

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from app.service.crop import CropInput
    from tests.conftest import Sample
    from tests.web.conftest import Tasks

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]
    Run = Callable[..., Any]
    Scrape = Callable[[], dict[tuple[str, ...], float]]

CROP = "/api/v1/frontal/crop"
NO_TASK = "0" * 32
JSON = {"content-type": "application/json"}
OPEN = {"status": "PENDING", "progress": 0.0, "attempts": 0, "result": None, "error": None}
MEMBERS = [
    *("task_id", "status", "progress", "attempts", "result", "error"),
    *("submitted_at", "started_at", "completed_at", "processing_time_ms"),
]
TIME = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def without_time(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "processing_time_ms": 0}


def undecodable(sample: Sample) -> bytes:
    """Return a request with an intact image file whose pixels cannot be decoded."""
    return sample.json(image=sample.png_file(512, 512, b"no zlib stream"), verify="pixels")


def turned(sample: Sample) -> bytes:
    """Return an image with an EXIF orientation."""
    tag = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + tag + bytes(4)
    return sample.jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + sample.jpeg[2:]


def test_a_task_is_accepted(with_tasks: Run, sample: Sample) -> None:
    async def scenario(tasks: Tasks) -> None:
        response = await tasks.submit(sample.json())
        task = response.json()
        assert response.status_code == 202
        assert list(task) == MEMBERS
        assert task | OPEN == task
        assert re.fullmatch(TIME, task["submitted_at"])
        assert re.fullmatch("[0-9a-f]{32}", task["task_id"])
        assert response.headers["location"] == f"{CROP}/status/{task['task_id']}"
        assert response.headers["cache-control"] == "no-store"
        status = await tasks.client.get(response.headers["location"])
        assert (status.status_code, status.json()) == (200, task)
        assert status.headers["cache-control"] == "no-store"
        assert (tasks.app.state.web.admission._held.total(), tasks.app.state.web.admission.bodies._used) == (0, 0)

    with_tasks(scenario)


@pytest.mark.parametrize("root_path", ["/faces", "/faces/"])
def test_the_location_includes_the_prefix_of_the_proxy(with_tasks: Run, sample: Sample, root_path: str) -> None:
    async def scenario(tasks: Tasks) -> str:
        return (await tasks.submit(sample.json())).headers["location"]

    assert with_tasks(scenario, root_path=root_path).startswith(f"/faces{CROP}/status/")


def test_the_result_equals_that_of_the_synchronous_route(with_tasks: Run, sample: Sample) -> None:
    requests = [
        ({"content": sample.json(), "headers": JSON}, ""),
        ({"content": sample.json(segmentation_map=sample.labels), "headers": JSON}, "?show_labels=true&simplify=2"),
        ({"content": sample.json(segmentation_map={"b": [1, 2, 3], "a": [61, 0, 291, 17]}), "headers": JSON}, ""),
        ({"content": sample.form(verify=b"pixels"), "headers": {"content-type": sample.multipart}}, ""),
    ]

    async def scenario(tasks: Tasks) -> None:
        await tasks.start_worker()
        for request, query in requests:
            expected = await tasks.client.post(CROP + query, **request)
            taken = await tasks.client.post(f"{CROP}/submit{query}", **request)
            assert taken.status_code == 202, taken.text
            task = (await tasks.client.get(f"{taken.headers['location']}?wait=60")).json()
            assert without_time(task["result"]) == without_time(expected.json())
            assert (task["status"], task["progress"], task["attempts"], task["error"]) == ("SUCCESS", 1.0, 1, None)
            times = [task["submitted_at"], task["started_at"], task["completed_at"]]
            assert all(re.fullmatch(TIME, time) for time in times)
            assert sorted(times) == times

    with_tasks(scenario)


def test_the_status_of_a_failed_task_is_200(with_tasks: Run, sample: Sample) -> None:
    async def scenario(tasks: Tasks) -> None:
        await tasks.start_worker()
        refusal = (await tasks.client.post(CROP, content=undecodable(sample), headers=JSON)).json()
        taken = await tasks.submit(undecodable(sample))
        response = await tasks.status(taken.json()["task_id"], "?wait=60", accept="image/svg+xml")
        task = response.json()
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        assert (task["status"], task["result"]) == ("FAILURE", None)
        assert task["error"] == {name: refusal[name] for name in ("code", "title", "detail")}
        assert task["error"]["code"] == "image_corrupt"

    with_tasks(scenario)


def test_invalid_submissions_have_the_errors_of_the_synchronous_route(with_tasks: Run, sample: Sample) -> None:
    requests: list[dict[str, Any]] = [
        {"content": b"{", "headers": JSON},
        {"content": sample.json(landmarks=sample.pairs[:9]), "headers": JSON},
        {"content": sample.json(image=sample.png[:-4]), "headers": JSON},
        {"content": sample.json(segmentation_map=sample.jpeg), "headers": JSON},
        {"content": sample.json(segmentation_map={"a": [1, 2, 999]}), "headers": JSON},
        {"content": sample.json(upright="always"), "headers": JSON},
        {"content": sample.form(image=b""), "headers": {"content-type": sample.multipart}},
        {"content": sample.json(), "headers": {"content-type": "text/plain"}},
        {"content": sample.json(), "headers": JSON, "params": {"simplify": "nan"}},
        {"content": sample.json(), "headers": JSON, "params": {"wait": "1"}},
    ]

    async def scenario(tasks: Tasks) -> None:
        for request in requests:
            sync, submit = [await tasks.client.post(path, **request) for path in (CROP, f"{CROP}/submit")]
            assert problem(submit) == problem(sync)
            # A submission has no mask; the status has.
            assert submit.json()["detail"] == sync.json()["detail"].replace(", mask;", ";")

    with_tasks(scenario)


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"accept": "image/svg+xml"}, 406), ({"accept": "image/svg+xml, */*;q=0.1"}, 202), ({"accept": "*/*"}, 202)],
)
def test_a_submission_requires_json(with_tasks: Run, sample: Sample, headers: dict[str, str], status: int) -> None:
    async def scenario(tasks: Tasks) -> int:
        return (await tasks.submit(sample.json(), **headers)).status_code

    assert with_tasks(scenario) == status


def test_the_overlay_is_returned_if_preferred(with_tasks: Run, sample: Sample) -> None:
    async def scenario(tasks: Tasks) -> None:
        taken = (await tasks.submit(sample.json(image=turned(sample)))).json()["task_id"]
        pending = await tasks.status(taken, accept="image/svg+xml")
        assert (pending.headers["content-type"], pending.headers["vary"]) == ("application/json", "Accept")
        await tasks.start_worker()
        overlay = await tasks.status(taken, "?wait=60", accept="image/svg+xml")
        task = (await tasks.status(taken)).json()
        assert overlay.headers["content-type"] == "image/svg+xml"
        assert overlay.headers["x-warnings"] == "exif_orientation"
        assert overlay.content == base64.b64decode(task["result"]["svg"])
        assert (await tasks.status(taken, accept="image/jpeg")).status_code == 406

    with_tasks(scenario)


def test_a_key_makes_a_submission_safe_to_repeat(with_tasks: Run, sample: Sample) -> None:
    async def scenario(tasks: Tasks) -> None:
        first = await tasks.submit(sample.json(), idempotency_key="order-17")
        again = await tasks.submit(sample.json(), idempotency_key='"order-17"')
        form = await tasks.client.post(
            f"{CROP}/submit",
            content=sample.form(landmarks=sample.landmarks),
            headers={"content-type": sample.multipart, "idempotency-key": "order-17"},
        )
        assert [first.json(), first.headers["location"]] == [again.json(), again.headers["location"]]
        assert form.json() == first.json(), "the content of the request counts, not its encoding"
        for other in (sample.json(simplify=3), sample.json(image=sample.png)):
            conflict = await tasks.submit(other, idempotency_key="order-17")
            assert problem(conflict) == (409, "idempotency_conflict")
        assert (await tasks.submit(sample.json(), idempotency_key="order-18")).json() != first.json()
        await tasks.start_worker()
        done = (await tasks.status(first.json()["task_id"], "?wait=60")).json()
        later = await tasks.submit(sample.json(), idempotency_key="order-17")
        assert (later.status_code, later.json()) == (202, done)

    with_tasks(scenario)


def test_idempotency_keys_of_different_callers_are_separate(with_tasks: Run, sample: Sample) -> None:
    async def scenario(tasks: Tasks) -> list[str]:
        responses = [
            await tasks.submit(sample.json(), idempotency_key="order-17", x_api_key="first"),
            await tasks.submit(sample.json(), idempotency_key="order-17", authorization="Bearer first"),
            await tasks.submit(sample.json(simplify=3), idempotency_key="order-17", x_api_key="second"),
        ]
        return [response.json()["task_id"] for response in responses]

    ids = with_tasks(scenario, api_keys="first,second")
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("path", ["status/{}", "{}"])
def test_a_task_is_cancelled_before_it_has_ended(with_tasks: Run, sample: Sample, path: str) -> None:
    async def scenario(tasks: Tasks) -> None:
        taken = (await tasks.submit(sample.json())).json()
        url = f"{CROP}/{path.format(taken['task_id'])}"
        responses = [await tasks.client.delete(url) for _ in range(2)]
        status = await tasks.status(taken["task_id"], "?wait=60")
        tasks_seen = [response.json() for response in (*responses, status)]
        assert [response.status_code for response in (*responses, status)] == [200] * 3
        assert tasks_seen[0] == tasks_seen[1] == tasks_seen[2]
        assert tasks_seen[0] | OPEN | {"status": "CANCELLED"} == tasks_seen[0]
        assert re.fullmatch(TIME, tasks_seen[0]["completed_at"])
        await tasks.start_worker()
        done = await tasks.succeed(sample.json())
        ended = await tasks.client.delete(f"{CROP}/{path.format(done['task_id'])}")
        assert problem(ended) == (409, "task_ended")
        assert (await tasks.status(done["task_id"])).json() == done
        assert (await tasks.status(taken["task_id"])).json()["status"] == "CANCELLED"
        assert problem(await tasks.client.delete(f"{CROP}/{path.format(NO_TASK)}")) == (404, "task_unknown")

    with_tasks(scenario)


@pytest.mark.parametrize("query", ["", "wait=0", "wait=-0.0", "wait=0.001", "wait=1e-3", "wait=1E0"])
def test_a_wait_ends_after_its_time(with_tasks: Run, sample: Sample, query: str) -> None:
    async def scenario(tasks: Tasks) -> None:
        taken = (await tasks.submit(sample.json())).json()
        assert (await tasks.status(taken["task_id"], f"?{query}")).json() == taken
        assert problem(await tasks.status(NO_TASK, f"?{query}")) == (404, "task_unknown")

    with_tasks(scenario)


async def ask(app: FastAPI, path: str, query: str, gone: asyncio.Event) -> int:
    """Send a request on a connection that ends when `gone` is set, and return the status of the response."""
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [],
        "client": None,
    }
    await app(scope, receive, send)
    status: int = sent[0]["status"]
    return status


def test_a_disconnect_ends_the_wait(with_tasks: Run, sample: Sample) -> None:
    async def scenario(tasks: Tasks) -> int:
        taken = (await tasks.submit(sample.json())).json()
        gone = asyncio.Event()
        waiting = asyncio.create_task(ask(tasks.app, f"{CROP}/status/{taken['task_id']}", "wait=60", gone))
        await tasks.status(taken["task_id"], "?wait=0.1")  # by then, the other waits too
        assert not waiting.done()
        assert tasks.app.state.web.admission._held.total() == 0, "waiting occupies no slot"
        gone.set()
        async with asyncio.timeout(30):
            return await waiting

    assert with_tasks(scenario) == CLIENT_CLOSED_REQUEST


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_wait_ends_when_the_process_stops(with_tasks: Run, sample: Sample, is_whole: bool) -> None:
    async def scenario(tasks: Tasks) -> None:
        scoreboard = tasks.app.state.web.scoreboard
        scoreboard.heartbeat(3, WorkerState.READY)
        taken = (await tasks.submit(sample.json())).json()
        waiting = asyncio.create_task(tasks.status(taken["task_id"], "?wait=60"))
        await tasks.status(taken["task_id"], "?wait=0.1")
        assert not waiting.done()
        if is_whole:
            scoreboard.drain()
        else:
            scoreboard.heartbeat(3, WorkerState.DRAINING)
        async with asyncio.timeout(30):
            response = await waiting
        assert (response.status_code, response.json()) == (200, taken)

    with_tasks(scenario)


def test_a_task_belongs_to_the_key_that_submitted_it(with_tasks: Run, sample: Sample) -> None:
    async def scenario(tasks: Tasks) -> None:
        mine, rotated, other = ({"x-api-key": key} for key in ("one", "two", "three"))
        taken = (await tasks.submit(sample.json(), idempotency_key="k", **mine)).json()
        path = f"{CROP}/status/{taken['task_id']}"
        for stranger in (other, {"authorization": "Bearer three"}):
            for query in ("", "?wait=0.1"):
                assert problem(await tasks.client.get(path + query, headers=stranger)) == (404, "task_unknown")
            for url in (path, f"{CROP}/{taken['task_id']}"):
                assert problem(await tasks.client.delete(url, headers=stranger)) == (404, "task_unknown")
        unknown = await tasks.client.get(f"{CROP}/status/{NO_TASK}", headers=other)
        found = await tasks.client.get(path, headers=other)
        assert without_ids(found) == without_ids(unknown), "the same as for a task that does not exist"
        theirs = (await tasks.submit(sample.json(), idempotency_key="k", **other)).json()
        assert theirs["task_id"] != taken["task_id"]
        # A key of the same name is the same caller.
        assert (await tasks.client.get(path, headers=rotated)).json() == taken
        assert (await tasks.submit(sample.json(), idempotency_key="k", **rotated)).json() == taken
        assert (await tasks.client.delete(path, headers=rotated)).json()["status"] == "CANCELLED"

    with_tasks(scenario, api_keys="team:one,team:two,three")


def without_ids(response: httpx.Response) -> dict[str, Any]:
    return {name: value for name, value in response.json().items() if name != "request_id"}


def test_a_cached_result_is_found_by_the_key_that_asked_for_it(with_tasks: Run, sample: Sample) -> None:
    async def scenario(tasks: Tasks) -> None:
        await tasks.start_worker()
        taken = (await tasks.submit(sample.json(), **{"x-api-key": "one"})).json()
        await tasks.status(taken["task_id"], "?wait=60", **{"x-api-key": "one"})
        headers = {"content-type": "application/json"}
        for key, lookup in (("one", "hit"), ("two", "miss")):
            response = await tasks.client.post(CROP, content=sample.json(), headers={**headers, "x-api-key": key})
            assert response.headers["x-cache"] == lookup, key

    with_tasks(scenario, api_keys="one,two", result_cache=True)


def test_a_task_that_was_submitted_before_keys_were_set_is_open_to_every_key(
    with_tasks: Run, make_input: Callable[..., CropInput]
) -> None:
    async def scenario(tasks: Tasks) -> None:
        record = await tasks.app.state.web.queue.submit(CropService(ImageLimits()).check(make_input()))
        response = await tasks.status(record.task_id, **{"x-api-key": "one"})
        assert response.json()["status"] == "PENDING"

    with_tasks(scenario, api_keys="one,two")
