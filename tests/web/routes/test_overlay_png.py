"""The overlay as a PNG, from the synchronous route and from a task."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import cv2
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

CROP = "/api/v1/frontal/crop"
PNG = {"content-type": "application/json", "accept": "image/png"}


def decode(response: httpx.Response) -> np.ndarray:
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png"), response.text[:500]
    assert response.headers["vary"] == "Accept"
    image = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def test_overlay_is_transparent_without_a_background(make_app: MakeApp, call: Call, sample: Sample) -> None:
    app, document = make_app(), call(make_app(), content=sample.json(), headers=PNG | {"accept": "*/*"}).json()
    image = decode(call(app, content=sample.json(region_opacity=1, stroke_width=0), headers=PNG))
    assert image.shape == (512, 512, 4)
    eye = next(region for region in document["regions"] if region["name"] == "left_eye")
    x, y = np.mean(eye["contours"][0], axis=0).astype(int)
    blue, green, red, alpha = image[y, x].tolist()
    assert (f"#{red:02x}{green:02x}{blue:02x}", alpha) == (eye["colour"], 255)
    assert not image[:9, :9].any()


@pytest.mark.parametrize("is_cached", [False, True])
def test_options_change_the_image(make_app: MakeApp, call: Call, sample: Sample, *, is_cached: bool) -> None:
    app = make_app(result_cache=is_cached)
    options: list[dict[str, Any]] = [
        {},
        {"show_labels": True},
        {"show_landmarks": True},
        {"region_opacity": 0.9},
        {"stroke_width": 4},
        {"background": "image"},
        {"output_size": 300},
        {"crop": "face", "upright": True},
        {"segmentation_map": sample.labels},
    ]
    images = [decode(call(app, content=sample.json(**fields), headers=PNG)) for fields in options]
    assert len({image.tobytes() for image in images}) == len(options)
    photo = cv2.imdecode(np.frombuffer(sample.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert photo is not None
    assert images[5].shape == photo.shape
    assert np.abs(images[5][:99].astype(int) - photo[:99]).mean() < 3


def test_warnings_are_in_a_header(make_app: MakeApp, call: Call, sample: Sample) -> None:
    body = sample.json(segmentation_map={"a": [1, 2, 3], "line": [1, 2, 1]})
    expected = call(make_app(), content=body, headers=PNG | {"accept": "*/*"}).headers["x-warnings"]
    response = call(make_app(), content=body, headers=PNG)
    assert decode(response).any()
    assert response.headers["x-warnings"] == expected == "regions_omitted"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"background": "image"}, "at most 104857 pixels with a background"),
        ({"upright": True}, "at most 262144 pixels and sides"),
    ],
)
def test_image_that_is_too_large_is_rejected(
    make_app: MakeApp, call: Call, sample: Sample, fields: dict[str, Any], expected: str
) -> None:
    app, body = make_app(max_image_pixels=512 * 512), sample.json(**fields)
    assert call(app, content=body, headers=PNG | {"accept": "image/svg+xml"}).status_code == 200
    problem = call(app, content=body, headers=PNG).json()
    assert (problem["status"], problem["code"]) == (422, "image_too_large")
    assert expected in problem["detail"]
    assert "output_size" in problem["detail"]
    assert call(app, content=sample.json(**fields, output_size=300), headers=PNG).status_code == 200


def make_faces(sample: Sample) -> Any:
    points = np.array(sample.pairs)
    return np.stack([points, points * 0.5 + 20, points * 0.4 + (280, 60)]).tolist()


def test_png_of_a_task_is_that_of_the_synchronous_route(with_tasks: Callable[..., Any], sample: Sample) -> None:
    bodies = [
        sample.json(segmentation_map=sample.labels, show_labels=True, show_landmarks=True, region_opacity=0.123456),
        sample.json(crop="face", upright=True, background="image", output_size=300, show_landmarks=True),
        sample.json(landmarks=make_faces(sample), face="all", show_landmarks=True),
        sample.json(landmarks=make_faces(sample), face="all", crop="face", background="image"),
    ]

    async def scenario(tasks: Tasks) -> None:
        expected = await asyncio.gather(*(tasks.client.post(CROP, content=body, headers=PNG) for body in bodies))
        ids = [(await tasks.submit(body)).json()["task_id"] for body in bodies]
        pending = await tasks.status(ids[0], accept="image/png, */*;q=0.1")
        assert (pending.headers["content-type"], pending.json()["status"]) == ("application/json", "PENDING")
        await tasks.start_worker()
        for task_id, response in zip(ids, expected, strict=True):
            stored = await tasks.status(task_id, "?wait=60", accept="image/png")
            assert (decode(stored) == decode(response)).all()
            assert stored.headers.get("x-warnings") == response.headers.get("x-warnings")

    with_tasks(scenario)


def test_png_of_a_cached_result(with_tasks: Callable[..., Any], sample: Sample) -> None:
    body = sample.json(image=sample.png, background="image")

    async def scenario(tasks: Tasks) -> None:
        missed = await tasks.client.post(CROP, content=body, headers=PNG)
        await tasks.start_worker()
        await tasks.succeed(body)
        hit = await tasks.until(
            lambda: tasks.client.post(CROP, content=body, headers=PNG),
            lambda response: response.headers["x-cache"] == "hit",
        )
        assert (decode(hit) == decode(missed)).all()

    with_tasks(scenario, result_cache=True)


def test_png_of_a_task_that_is_too_large_is_rejected(with_tasks: Callable[..., Any], sample: Sample) -> None:
    async def scenario(tasks: Tasks) -> None:
        await tasks.start_worker()
        taken = (await tasks.submit(sample.json(background="image"))).json()["task_id"]
        response = await tasks.status(taken, "?wait=60", accept="image/png")
        assert (response.status_code, response.json()["code"]) == (422, "image_too_large")
        assert (await tasks.status(taken, accept="image/svg+xml")).status_code == 200

    with_tasks(scenario, max_image_pixels=512 * 512)
