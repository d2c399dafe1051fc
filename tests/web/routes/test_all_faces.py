"""Requests for all faces: each result is that of the face alone, on every route and in every format."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cv2
import msgspec
import numpy as np
import orjson
import pytest

from app.web.schemas import CropResponse, LandmarksResponse, TaskResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from tests.conftest import Sample

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]
    Run = Callable[..., Any]
    Scrape = Callable[[], dict[tuple[str, ...], float]]

LANDMARKS = "/api/v1/frontal/landmarks"
JSON = {"content-type": "application/json"}
SVG = "{http://www.w3.org/2000/svg}"
FACES = 3

pytestmark = pytest.mark.usefixtures("face_models")


@pytest.fixture(scope="module")
def group(sample: Sample) -> bytes:
    """Return an image of three faces of different sizes."""
    head = cv2.imdecode(np.frombuffer(sample.photo, np.uint8), cv2.IMREAD_COLOR)[:300, 60:360]
    image = np.full((500, 1200, 3), 127, np.uint8)
    for x, side in ((20, 300), (340, 460), (820, 370)):
        image[20 : 20 + side, x : x + side] = cv2.resize(head, (side, side), interpolation=cv2.INTER_AREA)
    return sample.encode(".png", image)


def without_time(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "processing_time_ms": 0}


def ask(
    call: Call, app: FastAPI, image: bytes, sample: Sample, *, accept: str = "*/*", **fields: Any
) -> httpx.Response:
    body = sample.json(image=image, **{"landmarks": None, **fields})
    return call(app, content=body, headers={**JSON, "accept": accept})


OPTIONS: list[dict[str, Any]] = [
    {},
    {"upright": True, "crop": "face", "output_size": 200, "background": "image"},
    {"output_size": 600, "background": "image", "show_labels": True, "show_landmarks": True},
    {"segmentation_map": {"mouth": [61, 0, 291, 17], "brow": [70, 63, 105]}, "crop": "face"},
    {"segmentation_map": "labels"},
    {"segmentation_map": "labels", "crop": "face", "upright": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_each_result_is_that_of_the_face_alone(
    make_app: MakeApp, call: Call, sample: Sample, group: bytes, options: dict[str, Any]
) -> None:
    app = make_app()
    options = {name: sample.labels if value == "labels" else value for name, value in options.items()}
    response = ask(call, app, group, sample, face="all", **options)
    assert response.status_code == 200, response.text
    found = msgspec.json.decode(response.content, type=list[CropResponse])
    assert msgspec.to_builtins(found) == response.json(), "every member is documented"
    single = [ask(call, app, group, sample, face=face, **options).json() for face in range(FACES)]
    assert list(map(without_time, response.json())) == list(map(without_time, single))
    boxes = [face["bbox"] for face in response.json()[0]["detection"]["faces"]]
    areas = [width * height for _, _, width, height in boxes]
    assert all(area >= 0.99 * following for area, following in pairwise(areas))  # sides are rounded


@pytest.mark.parametrize("options", OPTIONS)
def test_one_svg_has_a_group_for_each_face(
    make_app: MakeApp, call: Call, sample: Sample, group: bytes, options: dict[str, Any]
) -> None:
    app = make_app()
    is_label_map = options.get("segmentation_map") == "labels"
    options = {name: sample.labels if value == "labels" else value for name, value in options.items()}
    results = ask(call, app, group, sample, face="all", **options).json()
    response = ask(call, app, group, sample, face="all", accept="image/svg+xml", **options)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/svg+xml")
    root = ET.fromstring(response.text)  # noqa: S314 - the service's own document
    groups = [one for one in root if one.tag == f"{SVG}g"]
    assert [(one.get("class"), one.get("data-face")) for one in groups] == [("face", str(n)) for n in range(FACES)]
    size = int(root.get("width", "")), int(root.get("height", ""))
    assert root.get("viewBox") == f"0 0 {size[0]} {size[1]}"
    regions = [len(one.findall(f".//{SVG}g[@class='region']")) for one in groups]
    if "crop" not in options:
        assert size == (results[0]["output"]["width"], results[0]["output"]["height"])
        shared = results[0]["regions_detected"]
        assert regions == ([shared, 0, 0] if is_label_map else [one["regions_detected"] for one in results])
        assert len(root.findall(f"{SVG}image")) == ("background" in options)
        assert not root.findall(f".//{SVG}g//{SVG}image")
    else:
        assert regions == [one["regions_detected"] for one in results]
        largest = [max(one["output"][side] for one in results) for side in ("width", "height")]
        assert size == (2 * largest[0], 2 * largest[1])
        places = [re.findall(r"[0-9.]+", one.get("transform", "")) for one in groups]
        assert [(float(x) / largest[0], float(y) / largest[1]) for x, y in places] == [(0, 0), (1, 0), (0, 1)]
        assert [one.find(f"{SVG}svg").get("width") for one in groups] == [
            str(one["output"]["width"]) for one in results
        ]


def test_landmarks_of_all_faces(make_app: MakeApp, call: Call, sample: Sample, group: bytes) -> None:
    app = make_app()

    def find(**fields: Any) -> httpx.Response:
        body = orjson.dumps(
            {name: value for name, value in sample.fields(image=group, **fields).items() if name != "landmarks"}
        )
        return call(app, path=LANDMARKS, content=body, headers=JSON)

    response = find(face="all", landmark_units="normalized")
    found = msgspec.json.decode(response.content, type=list[LandmarksResponse])
    assert msgspec.to_builtins(found) == response.json()
    single = [find(face=face, landmark_units="normalized").json() for face in range(FACES)]
    assert list(map(without_time, response.json())) == list(map(without_time, single))
    refused = find(face=99)
    assert (refused.status_code, refused.json()["code"]) == (422, "face_index")
    assert "3 faces were detected" in refused.json()["detail"]


@pytest.mark.parametrize("wire", ["query", "form", "json"])
def test_the_option_has_one_form_everywhere(
    make_app: MakeApp, call: Call, sample: Sample, group: bytes, wire: str
) -> None:
    app, form = make_app(), {"headers": {"content-type": sample.multipart}}
    path = "/api/v1/frontal/crop"
    response = {
        "query": lambda: call(app, path=f"{path}?face=all", content=sample.form(image=group, landmarks=None), **form),
        "form": lambda: call(app, content=sample.form(image=group, landmarks=None, face=b"all"), **form),
        "json": lambda: ask(call, app, group, sample, face="all"),
    }[wire]()
    assert (response.status_code, len(response.json())) == (200, FACES)
    for value in ("both", "ALL", "1.5", "-1", "100"):
        refused = call(app, path=f"{path}?face={value}", content=sample.form(image=group, landmarks=None), **form)
        assert (refused.status_code, refused.json()["code"]) == (422, "field_invalid")
        assert refused.json()["detail"].startswith("face: expected an integer ")
    assert ask(call, app, group, sample, face=True).json()["detail"] == (
        "face: expected an integer or 'all', got a boolean"
    )


@pytest.mark.parametrize("options", [{}, {"crop": "face"}, {"segmentation_map": "labels"}])
def test_sent_landmarks_are_the_only_face(
    make_app: MakeApp, call: Call, sample: Sample, options: dict[str, Any]
) -> None:
    app = make_app()
    options = {name: sample.labels if value == "labels" else value for name, value in options.items()}
    (found,) = ask(call, app, sample.photo, sample, landmarks=sample.pairs, face="all", **options).json()
    assert without_time(found) == without_time(
        ask(call, app, sample.photo, sample, landmarks=sample.pairs, **options).json()
    )
    assert found["detection"] is None


def test_a_crowd_has_a_warning(make_app: MakeApp, call: Call, sample: Sample) -> None:
    head = cv2.imdecode(np.frombuffer(sample.photo, np.uint8), cv2.IMREAD_COLOR)[:300, 60:360]
    crowd = sample.encode(".png", np.tile(cv2.resize(head, (180, 180), interpolation=cv2.INTER_AREA), (6, 6, 1)))
    app, path = make_app(), {"headers": {"content-type": "image/png"}, "content": crowd}
    for route in ("crop", "landmarks"):
        for face in ("all", "31"):
            response = call(app, path=f"/api/v1/frontal/{route}?face={face}", **path)
            results = response.json() if face == "all" else [response.json()]
            assert len(results) == (32 if face == "all" else 1)
            assert all([one["code"] for one in result["warnings"]] == ["faces_omitted"] for result in results)
            assert response.headers.get("x-warnings") == ("faces_omitted" if route == "crop" else None)
    assert results[0]["warnings"][0]["message"] == (
        "More than 32 candidates for faces were found. The others were not examined, so faces may be missing."
    )


def send_faces(sample: Sample) -> list[list[dict[str, float]]]:
    """Return normalized landmarks of faces that are smaller from face to face, without depth."""
    points = np.array(sample.pairs) / 512
    return [
        [{"x": x, "y": y, "z": 0.0, "visibility": 0.0} for x, y in (scale * points + shift).tolist()]
        for scale, shift in ((0.5, 0.4), (1.0, 0.0), (0.7, 0.1))
    ]


FORMS: dict[str, Callable[[list[Any]], Any]] = {
    "JavaScript": lambda faces: {"faceLandmarks": faces, "faceBlendshapes": []},
    "Python": lambda faces: {"face_landmarks": faces},
    "Face Mesh": lambda faces: {"multi_face_landmarks": [{"landmark": face} for face in faces]},
    "list": lambda faces: faces,
    "pixels": lambda faces: [[[512 * point["x"], 512 * point["y"]] for point in face] for face in faces],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS)
def test_each_sent_face_has_a_result_in_the_order_of_the_request(
    make_app: MakeApp, call: Call, sample: Sample, options: dict[str, Any], form: str
) -> None:
    app = make_app()
    sent = FORMS[form](send_faces(sample))
    options = {name: sample.labels if value == "labels" else value for name, value in options.items()}
    response = ask(call, app, sample.photo, sample, landmarks=sent, face="all", **options)
    assert response.status_code == 200, response.text
    assert msgspec.to_builtins(msgspec.json.decode(response.content, type=list[CropResponse])) == response.json()
    single = [
        ask(call, app, sample.photo, sample, landmarks=sent, face=face, **options).json() for face in range(FACES)
    ]
    assert list(map(without_time, response.json())) == list(map(without_time, single))
    if "output_size" not in options:
        ratios = [one["face"]["interocular_px"] / single[1]["face"]["interocular_px"] for one in single]
        assert ratios == pytest.approx([0.5, 1.0, 0.7], abs=1e-3)
    assert all(one["detection"] is None for one in response.json())
    svg = ask(call, app, sample.photo, sample, landmarks=sent, face="all", accept="image/svg+xml", **options)
    assert svg.text.count('<g class="face"') == FACES


def test_sent_faces_are_limited(make_app: MakeApp, call: Call, sample: Sample) -> None:
    app, faces = make_app(), send_faces(sample)
    for count, code in ((32, None), (33, "landmarks_count")):
        sent = {"faceLandmarks": [[{"x": one["x"], "y": one["y"]} for one in faces[0]]] * count}
        response = ask(call, app, sample.photo, sample, landmarks=sent, face="all")
        if code is None:
            assert (response.status_code, len(response.json())) == (200, count)
        else:
            assert (response.status_code, response.json()["code"]) == (422, code)
            assert response.json()["detail"] == (
                "landmarks: expected at most 32 faces for face=all, got 33; send fewer, or select one"
            )
    refused = ask(call, app, sample.photo, sample, landmarks={"faceLandmarks": faces}, face=FACES)
    assert (refused.status_code, refused.json()["code"]) == (422, "face_index")


def test_sent_faces_with_a_form(make_app: MakeApp, call: Call, sample: Sample) -> None:
    app = make_app()
    sent = orjson.dumps({"face_landmarks": send_faces(sample)})
    form = sample.form(image=sample.photo, landmarks=sent, face=b"all")
    response = call(app, content=form, headers={"content-type": sample.multipart})
    assert (response.status_code, len(response.json())) == (200, FACES)


def test_an_image_without_a_face_is_an_error(make_app: MakeApp, call: Call, sample: Sample) -> None:
    response = ask(call, make_app(), sample.jpeg, sample, face="all")
    assert (response.status_code, response.json()["code"]) == (422, "no_face")


def test_results_and_metrics_are_counted_per_face(
    make_app: MakeApp, call: Call, sample: Sample, group: bytes, scrape: Scrape
) -> None:
    regions = sum(one["regions_detected"] for one in ask(call, make_app(), group, sample, face="all").json())
    counted = scrape()
    assert sum(value for key, value in counted.items() if key[0] == "images_processed_total") == 1
    assert sum(value for key, value in counted.items() if key[0] == "landmarks_processed_total") == FACES * 478
    assert sum(value for key, value in counted.items() if key[0] == "regions_generated_total") == regions
    assert counted["faces_detected_total", "several"] == 1


@pytest.mark.parametrize(
    ("options", "settings", "code"),
    [
        # Each background has 0.6 million pixels.
        ({"background": "image"}, {"max_image_pixels": 1_500_000}, "image_too_large"),
        ({"background": "image"}, {"max_image_pixels": 2_000_000}, None),
        ({"background": "image", "upright": True}, {"max_image_pixels": 2_000_000}, "image_too_large"),
        ({"segmentation_map": {f"r{n}": [0, 1, 2 + n] for n in range(64)}}, {}, None),
        ({"segmentation_map": {f"r{n}": [*range(468)] * 2 for n in range(64)}, "simplify": 0}, {}, None),
    ],
)
def test_results_together_are_limited(
    make_app: MakeApp,
    call: Call,
    sample: Sample,
    group: bytes,
    options: dict[str, Any],
    settings: dict[str, Any],
    code: str | None,
) -> None:
    app = make_app(**settings)
    response = ask(call, app, group, sample, face="all", **options)
    if code is None:
        assert response.status_code == 200, response.text
    else:
        assert (response.status_code, response.json()["code"]) == (422, code)
        assert "faces together" in response.json()["detail"]


def test_label_map_results_together_are_limited(make_app: MakeApp, call: Call, sample: Sample, group: bytes) -> None:
    labels = np.zeros((300, 300), np.uint8)
    labels[::3, ::3] = 1  # 10,000 contours, allowed once but not three times
    response = ask(call, make_app(), group, sample, face="all", segmentation_map=sample.encode(".png", labels))
    assert (response.status_code, response.json()["code"]) == (422, "label_map_too_complex")


def test_tasks_return_all_faces(with_tasks: Run, sample: Sample, group: bytes) -> None:
    async def scenario(tasks: Any) -> None:
        await tasks.start_worker()
        for options in ({}, {"crop": "face", "upright": True, "background": "image", "output_size": 100}):
            body = sample.json(image=group, landmarks=None, face="all", **options)
            task = await tasks.succeed(body)
            assert msgspec.to_builtins(msgspec.convert(task, TaskResponse)) == task
            headers = {**JSON, "accept": "application/json"}
            direct = await tasks.client.post("/api/v1/frontal/crop", content=body, headers=headers)
            assert list(map(without_time, task["result"])) == list(map(without_time, direct.json()))
            overlay = await tasks.client.post(
                "/api/v1/frontal/crop", content=body, headers={**JSON, "accept": "image/svg+xml"}
            )
            stored = await tasks.status(task["task_id"], accept="image/svg+xml")
            assert (stored.headers["content-type"], stored.content) == ("image/svg+xml", overlay.content)

    with_tasks(scenario)


def test_tasks_return_all_sent_faces(with_tasks: Run, sample: Sample) -> None:
    async def scenario(tasks: Any) -> None:
        await tasks.start_worker()
        for face, options in (("all", {}), ("all", {"crop": "face", "upright": True}), (2, {})):
            body = sample.json(
                image=sample.photo, landmarks={"faceLandmarks": send_faces(sample)}, face=face, **options
            )
            task = await tasks.succeed(body)
            direct = await tasks.client.post("/api/v1/frontal/crop", content=body, headers=JSON)
            found, expected = ((one if face == "all" else [one]) for one in (task["result"], direct.json()))
            assert list(map(without_time, found)) == list(map(without_time, expected))
            assert len(found) == (FACES if face == "all" else 1)

    with_tasks(scenario)


def test_cached_results_are_those_of_all_faces(with_tasks: Run, sample: Sample, group: bytes) -> None:
    async def scenario(tasks: Any) -> None:
        await tasks.start_worker()
        body = sample.json(image=group, landmarks=None, face="all")
        task = await tasks.succeed(body)
        for accept in ("application/json", "image/svg+xml"):
            response = await tasks.client.post("/api/v1/frontal/crop", content=body, headers={**JSON, "accept": accept})
            assert response.headers["x-cache"] == "hit"
            if accept == "application/json":
                assert response.json() == task["result"]
            else:
                assert response.text.count('<g class="face"') == FACES

    with_tasks(scenario, result_cache=True)
