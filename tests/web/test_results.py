"""The result cache, and the documents of tasks."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import orjson
import pytest

from app.service.crop import CropService, ImageLimits
from app.service.serialization import result_to_json
from app.tasks.records import Record, TaskError, decode_record, encode_record
from app.web.results import read_result, task_to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from app.service.crop import CropInput
    from tests.conftest import Sample
    from tests.web.conftest import Tasks

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]
    Scrape = Callable[[], dict[tuple[str, ...], float]]

CROP = "/api/v1/frontal/crop"
JSON = {"content-type": "application/json"}


def turned(sample: Sample) -> bytes:
    """Return an image with an EXIF orientation."""
    tag = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + tag + bytes(4)
    return sample.jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + sample.jpeg[2:]


def without_time(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "processing_time_ms": 0}


def test_a_cached_result_is_returned_by_the_synchronous_route(
    scrape: Scrape, with_tasks: Callable[..., Any], sample: Sample
) -> None:
    body, form = sample.json(image=turned(sample)), sample.form(image=turned(sample))

    async def scenario(tasks: Tasks) -> None:
        await tasks.start_worker()
        missed = await tasks.client.post(CROP, content=body, headers=JSON)
        task = await tasks.succeed(body)
        hits = [
            # A task ends shortly before its result is in the cache.
            await tasks.until(
                lambda: tasks.client.post(CROP, content=body, headers=JSON),
                lambda response: response.headers["x-cache"] == "hit",
            ),
            await tasks.client.post(CROP, content=form, headers={"content-type": sample.multipart}),
        ]
        overlay = await tasks.client.post(CROP, content=body, headers={**JSON, "accept": "image/svg+xml"})
        other = await tasks.client.post(f"{CROP}?simplify=3", content=body, headers=JSON)
        again = await tasks.submit(body)
        assert (missed.headers["x-cache"], other.headers["x-cache"]) == ("miss", "miss")
        assert {hit.headers["x-cache"] for hit in (*hits, overlay)} == {"hit"}
        assert {response.headers["x-warnings"] for response in (missed, *hits, overlay)} == {"exif_orientation"}
        assert [hit.json() for hit in hits] == [task["result"]] * 2
        assert without_time(task["result"]) == without_time(missed.json())
        assert overlay.content == base64.b64decode(missed.json()["svg"])
        assert overlay.headers["content-type"] == "image/svg+xml"
        assert (again.status_code, again.json()["status"], again.json()["result"]) == (202, "SUCCESS", task["result"])

    with_tasks(scenario, result_cache=True)
    counted = scrape()
    assert counted["cache_lookups_total", "hit"] == 4
    assert counted["cache_lookups_total", "miss"] >= 3


def test_without_a_queue_the_cache_misses(make_app: MakeApp, call: Call, sample: Sample) -> None:
    response = call(make_app(result_cache=True), content=sample.json(), headers=JSON)
    assert (response.status_code, response.headers["x-cache"]) == (200, "miss")


def test_the_cache_changes_no_error(make_app: MakeApp, call: Call, sample: Sample) -> None:
    undecodable = sample.png_file(512, 512, b"no zlib stream")
    for content in (b"{", sample.json(landmarks=[]), sample.json(image=undecodable, verify="pixels")):
        responses = [call(make_app(result_cache=is_on), content=content, headers=JSON) for is_on in (True, False)]
        documents = [{**response.json(), "request_id": ""} for response in responses]
        assert documents[0] == documents[1]


@pytest.mark.parametrize(
    ("code", "title"),
    [
        ("image_corrupt", "The input cannot be processed"),
        ("internal_error", "The service failed to process the request"),
        ("task_gave_up", "The task failed on every attempt"),
        ("of_a_newer_worker", "The task failed"),
    ],
)
def test_task_errors_have_titles(code: str, title: str) -> None:
    record = Record(task_id="0" * 32, submitted_at=0.5, error=TaskError(code, "what was wrong"))
    task = orjson.loads(task_to_json(record))
    assert task["error"] == {"code": code, "title": title, "detail": "what was wrong"}
    assert task["submitted_at"] == "1970-01-01T00:00:00.500Z"


def test_a_result_is_returned_as_stored() -> None:
    kept = b'{"b": [1.50, 2],"a":null}'
    assert kept in task_to_json(Record(task_id="0" * 32, submitted_at=0, result=msgspec.Raw(kept)))


def test_the_longest_warnings_are_read_from_a_document(make_input: Callable[..., CropInput], sample: Sample) -> None:
    colours = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    colours[..., 2] = 7
    labels = np.kron(colours, np.ones((8, 8, 1), np.uint8))
    labels[:8, :8] = 0
    given = make_input(image=turned(sample), segmentation_map=sample.encode(".png", labels))
    result = CropService(ImageLimits()).process(given)
    assert read_result(result_to_json(result))[1] == ["exif_orientation", "label_colours"]


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("regions", [None, {"a": [1, 2, 3], "line": [1, 2, 1]}])
def test_overlay_and_warnings_are_read_from_a_document(
    make_input: Callable[..., CropInput], sample: Sample, regions: dict[str, list[int]] | None, *, is_turned: bool
) -> None:
    image = turned(sample) if is_turned else sample.jpeg
    result = CropService(ImageLimits()).process(make_input(image=image, segmentation_map=regions))
    document = result_to_json(result)
    overlay, warnings = read_result(document)
    assert overlay == result.face.svg == base64.b64decode(orjson.loads(document)["svg"])
    assert warnings == [warning["code"] for warning in orjson.loads(document)["warnings"]]
    assert len(warnings) == is_turned + (regions is not None)
    assert read_result(msgspec.Raw(memoryview(document))) == (overlay, warnings)


@pytest.mark.parametrize("svg_share", [0.0, 1.0])
def test_large_results_take_the_time_of_a_few_copies(svg_share: float) -> None:
    size = 16_000_000
    svg = base64.b64encode(bytes(int(svg_share * size * 3 / 4))).decode()
    numbers = [[0.25, 1.5]] * int((1 - svg_share) * size / 11)
    document = orjson.dumps({"svg": svg, "contours": numbers, "warnings": [{"code": "a", "message": "b"}]})

    def measure(call: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            start = time.thread_time()
            call()
            times.append(time.thread_time() - start)
        return min(times)

    record = Record(task_id="0" * 32, submitted_at=0, result=msgspec.Raw(document))
    stored = encode_record(record)
    read = decode_record(stored)
    assert read == record
    assert orjson.loads(task_to_json(read))["result"] == orjson.loads(document)
    copy = measure(lambda: bytearray(stored))
    costs = {
        "encode_record": measure(lambda: encode_record(record)),
        "decode_record": measure(lambda: decode_record(stored)),
        "task_to_json": measure(lambda: task_to_json(read)),
        "read_result": measure(lambda: read_result(read.result)),
    }
    # Parsing the document takes 20 times as long as copying it.
    assert max(costs.values()) < 6 * copy, {name: cost / copy for name, cost in costs.items()}
