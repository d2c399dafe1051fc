"""Task routes while the queue is unreachable or full, and for requests that are rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from tests.conftest import Sample
    from tests.web.conftest import Tasks

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]
    Run = Callable[..., Any]
    Scrape = Callable[[], dict[tuple[str, ...], float]]

CROP = "/api/v1/frontal/crop"
LANDMARKS = "/api/v1/frontal/landmarks"
NO_TASK = "0" * 32
JSON = {"content-type": "application/json"}


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def test_an_unreachable_queue_is_reported(scrape: Scrape, make_app: MakeApp, call: Call, sample: Sample) -> None:
    app = make_app(retry_after_s=7)
    responses = [
        call(app, path=f"{CROP}/submit", content=sample.json(), headers=JSON),
        call(app, "GET", f"{CROP}/status/{NO_TASK}"),
        call(app, "GET", f"{CROP}/status/{NO_TASK}?wait=60"),
        call(app, "DELETE", f"{CROP}/status/{NO_TASK}"),
        call(app, "DELETE", f"{CROP}/{NO_TASK}"),
    ]
    assert {problem(response) for response in responses} == {(503, "queue_unavailable")}
    assert {response.headers["retry-after"] for response in responses} == {"7"}
    assert not any("connection" in response.headers for response in responses)
    counted = scrape()
    assert counted["api_rejections_total", "queue_unavailable"] == 1
    assert counted["errors_total", "tasks", "queue_unavailable"] == 4
    assert call(app, content=sample.json(), headers=JSON).status_code == 200, "the synchronous route needs no queue"


def test_a_full_queue_is_reported(scrape: Scrape, with_tasks: Run, sample: Sample) -> None:
    async def scenario(tasks: Tasks) -> None:
        taken = await tasks.submit(sample.json())
        responses = [await tasks.submit(sample.json()) for _ in range(2)]
        assert taken.status_code == 202
        assert {problem(response) for response in responses} == {(503, "queue_full")}
        assert {response.headers["retry-after"] for response in responses} == {"1"}
        assert (tasks.app.state.web.admission._held.total(), tasks.app.state.web.admission.bodies._used) == (0, 0)

    with_tasks(scenario, task_queue_max_messages=1)
    counted = scrape()
    assert counted["api_rejections_total", "queue_full"] == 2
    assert counted["task_submissions_total", "facial_processing"] == 1
    assert ("errors_total", "tasks", "queue_full") not in counted


def test_a_task_above_the_size_limit_of_the_server_is_reported(with_tasks: Run, sample: Sample) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (700, 700, 3), np.uint8)  # the server's limit is 1 MiB

    async def scenario(tasks: Tasks) -> httpx.Response:
        return await tasks.submit(sample.json(image=sample.encode(".png", noise)))

    assert problem(with_tasks(scenario)) == (413, "task_too_large")


def test_a_submission_at_capacity_is_rejected(make_app: MakeApp, call: Call, sample: Sample) -> None:
    app = make_app(max_concurrency=1)
    with app.state.web.admission.enter():
        response = call(app, path=f"{CROP}/submit", content=sample.json(), headers=JSON)
    assert problem(response) == (503, "saturated")
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "submit"), ("GET", "status/x"), ("DELETE", "status/x"), ("DELETE", "x")]
)
def test_an_api_key_is_required(make_app: MakeApp, call: Call, method: str, path: str) -> None:
    app = make_app(api_keys="first-key")
    assert call(app, method, f"{CROP}/{path}", headers={"accept": "image/png"}).status_code == 401
    assert call(app, method, f"{CROP}/{path}", headers={"x-api-key": "first-key"}).status_code in {404, 415}


def test_without_tasks_their_routes_do_not_exist(make_app: MakeApp, call: Call, sample: Sample) -> None:
    app = make_app(enable_tasks=False, result_cache=True)
    assert [path for path in app.openapi()["paths"] if path.startswith("/api/")] == [CROP, LANDMARKS]
    assert problem(call(app, path=f"{CROP}/submit", content=sample.json(), headers=JSON)) == (404, "not_found")
    assert problem(call(app, "GET", f"{CROP}/status/{NO_TASK}")) == (404, "not_found")
    assert problem(call(app, "DELETE", f"{CROP}/{NO_TASK}")) == (404, "not_found")
    response = call(app, content=sample.json(), headers=JSON)
    assert response.status_code == 200
    assert "x-cache" not in response.headers


def test_allow_lists_all_methods_of_a_path(make_app: MakeApp, call: Call) -> None:
    app = make_app()
    responses = [call(app, "PUT", f"{CROP}/{path}") for path in (f"status/{NO_TASK}", "submit", NO_TASK)]
    assert {problem(response) for response in responses} == {(405, "method_not_allowed")}
    assert [response.headers["allow"] for response in responses] == ["DELETE, GET", "DELETE, POST", "DELETE"]
