"""The crop route: response formats, options in the query, limits, capacity and disconnects."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import cv2
import httpx
import numpy as np
import orjson
import pillow_heif
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastapi import FastAPI

    from tests.conftest import Sample

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]

CROP = "/api/v1/frontal/crop"
JSON = {"content-type": "application/json"}


def test_svg_equals_the_one_in_the_json_response(make_app: MakeApp, call: Call, sample: Sample) -> None:
    app = make_app()
    json = call(app, content=sample.json(), headers=JSON)
    svg = call(app, content=sample.json(), headers={**JSON, "accept": "image/svg+xml"})
    assert json.headers["content-type"] == "application/json"
    assert svg.headers["content-type"] == "image/svg+xml"
    assert svg.content == base64.b64decode(json.json()["svg"])
    assert ET.fromstring(svg.text).get("viewBox") == "0 0 512 512"  # noqa: S314 - our own
    assert [response.headers["vary"] for response in (json, svg)] == ["Accept", "Accept"]


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "application/json;"])
def test_parameters_of_the_content_type_are_ignored(
    make_app: MakeApp, call: Call, sample: Sample, content_type: str
) -> None:
    assert call(make_app(), content=sample.json(), headers={"content-type": content_type}).status_code == 200


@pytest.mark.parametrize("form", ["json", "multipart"])
def test_query_takes_precedence_over_the_body(make_app: MakeApp, call: Call, sample: Sample, form: str) -> None:
    app = make_app()

    def titles(path: str) -> int:
        body = sample.json(show_labels=False) if form == "json" else sample.form(show_labels=b"false")
        headers = {"content-type": JSON["content-type"] if form == "json" else sample.multipart}
        response = call(app, path=path, content=body, headers={**headers, "accept": "image/svg+xml"})
        assert response.status_code == 200
        return response.text.count("<text")

    assert titles(CROP) == 0
    assert titles(f"{CROP}?show_labels=true") > 0


def test_query_keeps_other_options_of_the_body(make_app: MakeApp, call: Call, sample: Sample) -> None:
    body = sample.json(landmark_units="normalized", landmarks=[[x / 512, y / 512] for x, y in sample.pairs])
    response = call(make_app(), path=f"{CROP}?simplify=0", content=body, headers=JSON)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(("encoding", "status"), [("identity", 200), ("Identity ", 200), ("gzip", 415), ("br", 415)])
def test_content_encoding(make_app: MakeApp, call: Call, sample: Sample, encoding: str, status: int) -> None:
    headers = {**JSON, "content-encoding": encoding}
    assert call(make_app(), content=sample.json(), headers=headers).status_code == status


def test_limits_come_from_the_settings(make_app: MakeApp, call: Call, sample: Sample) -> None:
    outside = sample.json(landmarks=[[-1.0, 1.0], *sample.pairs[1:]])
    cases = [
        (make_app(max_body_bytes=1024), sample.json(), "body_too_large"),
        (make_app(max_image_pixels=512 * 512 - 1), sample.json(), "image_too_large"),
        (make_app(landmark_margin=0), outside, "landmarks_out_of_range"),
    ]
    assert [call(app, content=body, headers=JSON).json().get("code") for app, body, _ in cases] == [
        code for *_, code in cases
    ]
    assert call(make_app(max_image_pixels=512 * 512), content=outside, headers=JSON).status_code == 200


def test_a_slow_body_occupies_no_slot(make_app: MakeApp, sample: Sample) -> None:
    app = make_app(max_concurrency=1)
    body = sample.json()

    async def run() -> list[httpx.Response]:
        begun, is_allowed_to_end = asyncio.Event(), asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield body[:100]
            begun.set()
            await is_allowed_to_end.wait()
            yield body[100:]

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            first = asyncio.create_task(client.post(CROP, content=slowly(), headers=JSON))
            await asyncio.wait_for(begun.wait(), 10)
            second = await client.post(CROP, content=body, headers=JSON)
            is_allowed_to_end.set()
            return [await first, second]

    assert [response.status_code for response in asyncio.run(run())] == [200, 200]


def test_a_worker_at_capacity_closes_the_connection(make_app: MakeApp, sample: Sample) -> None:
    app = make_app(max_concurrency=1, retry_after_s=7)

    async def run() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            with app.state.web.admission.enter():
                rejected = await client.post(CROP, content=sample.json(), headers=JSON)
            return rejected, await client.post(CROP, content=sample.json(), headers=JSON)

    rejected, accepted = asyncio.run(run())
    assert (rejected.status_code, rejected.json()["code"]) == (503, "saturated")
    assert (rejected.headers["retry-after"], rejected.headers["connection"]) == ("7", "close")
    assert accepted.status_code == 200


def test_a_slot_is_always_released(make_app: MakeApp, call: Call, sample: Sample) -> None:
    app = make_app(max_concurrency=1, max_body_bytes=2**20, body_timeout_s=0.05)

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def too_much() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield bytes(2**16)

    statuses = [
        call(app, content=content, headers=JSON).status_code
        for content in (b"{", b"{}", sample.json(image=b"x"), never(), too_much(), sample.json())
    ]
    assert statuses == [400, 422, 422, 408, 413, 200]


def test_a_disconnect_has_status_499(make_app: MakeApp) -> None:
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": CROP,
            "raw_path": CROP.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await make_app()(scope, receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 499


@pytest.mark.usefixtures("face_models")
@pytest.mark.parametrize("name", ["image/jpeg", "image/png", "image/webp", "IMAGE/PNG", "image/jpg; q=1"])
def test_a_body_may_be_an_image(make_app: MakeApp, call: Call, sample: Sample, name: str) -> None:
    app = make_app()
    query = "?upright=true&crop=face&output_size=200"
    form = sample.form(image=sample.photo, landmarks=None)
    expected = call(app, path=CROP + query, content=form, headers={"content-type": sample.multipart}).json()
    found = call(app, path=CROP + query, content=sample.photo, headers={"content-type": name}).json()
    assert max(found["output"].values()) == 200
    assert found | {"processing_time_ms": 0} == expected | {"processing_time_ms": 0}


@pytest.mark.usefixtures("face_models")
@pytest.mark.parametrize("image_format", ["avif", "heic"])
def test_avif_and_heic_are_decoded(make_app: MakeApp, call: Call, sample: Sample, image_format: str) -> None:
    pixels = cv2.imdecode(np.frombuffer(sample.photo, np.uint8), cv2.IMREAD_COLOR)
    file = io.BytesIO()
    if image_format == "avif":
        file.write(cv2.imencode(".avif", pixels)[1].tobytes())
    else:
        size = pixels.shape[1], pixels.shape[0]
        pillow_heif.from_bytes("BGR", size, pixels.tobytes()).save(file, quality=80)
    headers = {"content-type": f"image/{image_format}"}
    response = call(make_app(), path=CROP + "?background=image", content=file.getvalue(), headers=headers)
    assert response.status_code == 200, response.text
    result = response.json()
    assert result["image"]["format"] == image_format
    assert b"data:image/jpeg;base64," in base64.b64decode(result["svg"])
    truncated = call(make_app(), path=CROP, content=file.getvalue()[:-9], headers=headers)
    assert (truncated.status_code, truncated.json()["code"]) == (422, "image_truncated")


@pytest.mark.usefixtures("face_models")
@pytest.mark.parametrize("path", [CROP, "/api/v1/frontal/landmarks"])
@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("image/gif", b"GIF89a", "unsupported_media_type"),
        ("application/octet-stream", b"x", "unsupported_media_type"),
        ("image/png", b"", "image_empty"),
        ("image/png", b"GIF89a, or so", "image_unsupported_format"),
        ("image/heif", b"BM, or so", "image_unsupported_format"),
    ],
)
def test_other_bodies_are_refused(
    make_app: MakeApp, call: Call, path: str, name: str, content: bytes, code: str
) -> None:
    response = call(make_app(), path=path, content=content, headers={"content-type": name})
    assert response.json()["code"] == code


def test_what_swagger_sends_for_untouched_fields_is_accepted(make_app: MakeApp, call: Call, sample: Sample) -> None:
    """Every example of the form's schema, and an empty part for each field without one."""
    app = make_app()
    document = app.openapi()
    form = document["components"]["schemas"]["CropForm"]["properties"]
    given = {name: schema.get("examples", [""])[0] for name, schema in form.items() if name != "image"}
    texts = {name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in given.items()}
    body = sample.form(**{**{name: text.encode() for name, text in texts.items()}, "landmarks": sample.landmarks})
    response = call(app, content=body, headers={"content-type": sample.multipart})
    assert response.status_code == 200, response.text
    assert texts["landmarks"] == "", "an empty text, because Swagger would send the text `string`"
