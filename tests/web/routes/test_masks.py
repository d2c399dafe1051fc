"""The label mask of a result as a PNG, from the synchronous route and from a task."""

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
MASK = f"{CROP}?mask=labels"
JSON = {"content-type": "application/json"}


def make_labels() -> np.ndarray:
    """Return a label map of the size of the photo, with holes, islands, a touching label and a high id."""
    labels = np.zeros((512, 512), np.uint8)
    cv2.circle(labels, (250, 250), 200, 1, cv2.FILLED)
    cv2.ellipse(labels, (250, 200), (90, 40), 20, 0, 360, 0, cv2.FILLED)
    cv2.circle(labels, (250, 200), 20, 1, cv2.FILLED)
    cv2.rectangle(labels, (200, 300), (330, 360), 7, cv2.FILLED)
    labels[310:330, 220:300] = 255
    labels[:9, -7:] = 10
    labels[400, 400] = 0
    return labels


def decode(response: httpx.Response) -> np.ndarray:
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png"), response.text[:500]
    assert response.headers["vary"] == "Accept"
    mask = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert (mask.dtype, mask.ndim) == (np.uint8, 2)
    return mask


def test_mask_restores_a_label_map(make_app: MakeApp, call: Call, sample: Sample) -> None:
    labels = make_labels()
    body = sample.json(segmentation_map=sample.encode(".png", labels), simplify=0)
    response = call(make_app(), path=MASK, content=body, headers=JSON)
    assert (decode(response) == labels).all()
    for text in (b"label 1\0\0\0\0\0skin", b"label 255\0\0\0\0\0label_255"):
        assert b"iTXt" + text in response.content


def test_mask_restores_a_label_map_in_a_crop(make_app: MakeApp, call: Call, sample: Sample) -> None:
    labels, app = make_labels(), make_app()
    body = sample.json(segmentation_map=sample.encode(".png", labels), simplify=0, crop="face", margin=0.1)
    document = call(app, content=body, headers=JSON).json()
    (_, _, left), (_, _, top) = document["inverse_transform"]
    height, width = document["output"]["height"], document["output"]["width"]
    mask = decode(call(app, path=MASK, content=body, headers=JSON))
    assert (mask == labels[int(top) :, int(left) :][:height, :width]).all()


def test_mask_contains_the_ids_of_the_regions(make_app: MakeApp, call: Call, sample: Sample) -> None:
    app, body = make_app(), sample.json(crop="face", upright=True, output_size=900)
    document = call(app, content=body, headers=JSON).json()
    mask = decode(call(app, path=MASK, content=body, headers=JSON))
    assert mask.shape == (document["output"]["height"], document["output"]["width"])
    eye = next(region for region in document["regions"] if region["name"] == "left_eye")
    assert (mask == eye["id"]).sum() == pytest.approx(eye["area_px"], rel=0.02)
    assert set(np.unique(mask)) <= {0, *(region["id"] for region in document["regions"])}


def test_later_regions_cover_earlier_ones(make_app: MakeApp, call: Call, sample: Sample) -> None:
    oval, eye = [10, 338, 297, 284, 454, 361, 152, 132, 234, 54], [263, 386, 362, 374]
    masks = [
        decode(
            call(
                make_app(),
                path=f"{MASK}&simplify=0",
                content=sample.json(segmentation_map=dict(regions)),
                headers=JSON,
            )
        )
        for regions in ([("oval", oval), ("eye", eye)], [("eye", eye), ("oval", oval)])
    ]
    assert [np.unique(mask).tolist() for mask in masks] == [[0, 1, 2], [0, 2]]


@pytest.mark.parametrize(
    ("query", "fields", "accept", "expected"),  # the status and the code
    [
        ("?mask=colours", {}, "*/*", (422, "parameter_invalid")),
        ("?mask=", {}, "*/*", (422, "parameter_invalid")),
        ("?mask=labels&mask=labels", {}, "*/*", (422, "parameter_invalid")),
        ("?mask=labels&face=all", {}, "*/*", (422, "parameter_invalid")),
        ("?mask=labels", {"face": "all"}, "*/*", (422, "parameter_invalid")),
        ("?mask=labels", {}, "application/json", (406, "not_acceptable")),
        ("?mask=labels", {}, "image/svg+xml", (406, "not_acceptable")),
        ("?mask=labels", {}, "image/png", (200, None)),
        ("?mask=labels", {}, "image/*;q=0.5", (200, None)),
        ("", {}, "image/jpeg", (406, "not_acceptable")),
    ],
)
def test_requests_for_a_mask(
    make_app: MakeApp, call: Call, sample: Sample, query: str, fields: Any, accept: str, expected: Any
) -> None:
    for result_cache in (False, True):
        app = make_app(result_cache=result_cache)
        response = call(app, path=CROP + query, content=sample.json(**fields), headers={**JSON, "accept": accept})
        is_mask = response.headers["content-type"] == "image/png"
        assert (response.status_code, None if is_mask else response.json()["code"]) == expected


def test_mask_of_a_frame_that_is_too_large_is_rejected(make_app: MakeApp, call: Call, sample: Sample) -> None:
    app, body = make_app(max_image_pixels=512 * 512), sample.json(upright=True)
    assert call(app, content=body, headers=JSON).status_code == 200
    problem = call(app, path=MASK, content=body, headers=JSON).json()
    assert (problem["status"], problem["code"]) == (422, "image_too_large")


def test_mask_of_a_task_is_that_of_the_synchronous_route(with_tasks: Callable[..., Any], sample: Sample) -> None:
    body = sample.json(segmentation_map=sample.labels, upright=True)

    async def scenario(tasks: Tasks) -> None:
        expected, all_faces = await asyncio.gather(
            tasks.client.post(MASK, content=body, headers=JSON), tasks.submit(sample.json(face="all"))
        )
        taken = (await tasks.submit(body)).json()["task_id"]
        pending = await tasks.status(taken, "?mask=labels")
        assert (pending.headers["content-type"], pending.json()["status"]) == ("application/json", "PENDING")
        await tasks.start_worker()
        assert (await tasks.status(taken, "?wait=60&mask=labels")).content == expected.content
        stored = await tasks.status(taken, "?mask=labels", accept="image/png")
        assert (decode(stored) == decode(expected)).all()
        assert (await tasks.status(taken, "?mask=labels", accept="application/json")).status_code == 406
        assert (await tasks.status(taken, "?mask=names")).json()["code"] == "parameter_invalid"
        response = await tasks.status(all_faces.json()["task_id"], "?wait=60&mask=labels")
        assert (response.status_code, response.json()["code"]) == (422, "parameter_invalid")

    with_tasks(scenario)


def test_mask_of_a_cached_result(with_tasks: Callable[..., Any], sample: Sample) -> None:
    body = sample.json(image=sample.png)

    async def scenario(tasks: Tasks) -> None:
        missed = await tasks.client.post(MASK, content=body, headers=JSON)
        await tasks.start_worker()
        await tasks.succeed(body)
        hit = await tasks.until(
            lambda: tasks.client.post(MASK, content=body, headers=JSON),
            lambda response: response.headers["x-cache"] == "hit",
        )
        assert hit.content == missed.content

    with_tasks(scenario, result_cache=True)
