"""Request parsing: slots and memory of a body, query parameters, task ids and idempotency keys."""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from app.face.errors import InputError
from app.service.body_budget import SaturatedError
from app.web import request_parsing as module
from app.web.problems import ProblemError
from app.web.request_parsing import (
    MAX_KEY,
    RequestHead,
    check_input,
    process_body,
    read_idempotency_key,
    read_query,
    read_status_query,
)
from tests.conftest import BOUNDARY

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.conftest import Sample

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]

CROP = "/api/v1/frontal/crop"
NO_TASK = "0" * 32
JSON = {"content-type": "application/json"}


def make_request(app: FastAPI, *messages: dict[str, Any]) -> Request:
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return Request({"type": "http", "headers": [], "state": {}, "app": app}, receive)


def whole(body: bytes) -> dict[str, Any]:
    return {"type": "http.request", "body": body}


def held(app: FastAPI) -> tuple[int, int]:
    admission = app.state.web.admission
    return admission._held.total(), admission.bodies._used


def test_a_slot_is_held_in_the_block(make_app: MakeApp) -> None:
    app = make_app()

    async def run() -> None:
        async with process_body(make_request(app, whole(b"abc")), app.state.web, len) as size:
            assert size == 3
            assert held(app) == (1, 3)
        assert held(app) == (0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("query", [{}, {"simplify": "1"}])
def test_the_body_is_released_after_parsing(make_app: MakeApp, sample: Sample, query: dict[str, str]) -> None:
    app = make_app()
    check = partial(check_input, app.state.web.crop, RequestHead("application/json", query), is_digested=True)

    async def run() -> int:
        request = make_request(app, whole(sample.json(image=sample.photo)))
        tracemalloc.start()
        async with process_body(request, app.state.web, check) as (checked, digest):
            assert checked.image == sample.photo
            assert digest == checked.digest()
            return tracemalloc.get_traced_memory()[0]

    try:
        assert asyncio.run(run()) < 1.2 * len(sample.photo)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("messages", [[], [whole(b"abc")]])
def test_nothing_is_held_after_a_disconnect(make_app: MakeApp, messages: list[dict[str, Any]]) -> None:
    app = make_app()
    is_over = threading.Event()

    def work(_: bytes) -> bool:
        return is_over.wait(30)

    async def run() -> None:
        request = make_request(app, *messages, {"type": "http.disconnect"})
        with pytest.raises(ClientDisconnect):
            async with process_body(request, app.state.web, work):
                pass
        assert held(app) == (0, 0)

    try:
        asyncio.run(run())
    finally:
        is_over.set()


def test_a_request_is_rejected_before_its_body_is_read(make_app: MakeApp) -> None:
    app = make_app(max_concurrency=1)

    async def run() -> None:
        with app.state.web.admission.enter(), pytest.raises(SaturatedError):
            async with process_body(make_request(app), app.state.web, len):
                pass

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "is_cheap"),
    [
        (b"", True),
        (b"x" * module.INLINE_BYTES, True),
        (b"x" * (module.INLINE_BYTES + 1), False),
        (b"," * module.INLINE_COMMAS, True),
        (b",," * module.INLINE_COMMAS, False),
        (bytes(range(256)) * 4096, True),
    ],
    ids=["empty", "large", "too large", "some values", "many values", "image data"],
)
def test_checks_on_the_event_loop_are_of_small_bodies_with_few_values(body: bytes, *, is_cheap: bool) -> None:
    assert module.is_cheap_to_check(body) is is_cheap


# Relative to an image of nearly INLINE_BYTES, which takes 1.7 ms. The most expensive known body takes 3 times that.
MAX_RATIO = 5
LARGE = module.INLINE_BYTES - 65_536
EMPTY_COMMENT = b"\xff\xfe\x00\x02"
FRAME = b"\xff\xc0\x00\x0b\x08\x02\x00\x02\x00\x01\x01\x11\x00"
SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
REGIONS = {f"{number}:": list(range(90)) for number in range(64)}


def make_jpeg(segments: int, data: bytes) -> bytes:
    return b"\xff\xd8" + EMPTY_COMMENT * segments + FRAME + SCAN + data + b"\xff\xd9"


def make_png(sample: Sample, chunks: int, size: int) -> bytes:
    start, end = sample.png_file(512, 512, b"").split(sample.png_chunk(b"IDAT"))
    return start + sample.png_chunk(b"IDAT", bytes(size // chunks - 12)) * chunks + end


@pytest.mark.parametrize("kind", ["json", "multipart"])
def test_no_check_on_the_event_loop_is_much_more_expensive_than_an_image(
    make_app: MakeApp, sample: Sample, kind: str
) -> None:
    service = make_app().state.web.crop
    is_json = kind == "json"
    size = LARGE * 3 // 4 if is_json else LARGE

    def measure(body: bytes) -> float:
        assert module.is_cheap_to_check(body), len(body)
        head = RequestHead("application/json" if is_json else sample.multipart, {})
        times = []
        for _ in range(5):
            start = time.thread_time()
            with suppress(ProblemError, InputError):
                check_input(service, head, body, is_digested=True)
            times.append(time.thread_time() - start)
        return min(times)

    def write(image: bytes, regions: dict[str, list[int]] | None = None) -> bytes:
        if is_json:
            return sample.json(image=image, segmentation_map=regions)
        return sample.form(image=image, segmentation_map=None if regions is None else orjson.dumps(regions))

    images = {
        "chunks": make_png(sample, size // 1024, size),
        "too many chunks": make_png(sample, 8000, size),
        "segments": make_jpeg(1000, bytes(size - 4096)),
        "too many segments": make_jpeg(4000, bytes(size // 2)),
        "fill bytes": make_jpeg(1, b"x" + b"\xff" * size),
        "fill bytes before a marker": b"\xff\xd8" + b"\xff" * size,
        "data bytes": make_jpeg(1, b"\xff\x00" * (size // 2)),
        "line ends": b"\r\n" * (size // 2),
        "boundaries": f"\r\n--{BOUNDARY}x".encode() * (size // (len(BOUNDARY) + 5)),
    }
    costs = {name: measure(write(image)) for name, image in images.items()}
    costs["values"] = measure(write(make_jpeg(1, bytes(size - 32768)), REGIONS))
    usual = measure(write(make_png(sample, size // 8192, size)))
    assert max(costs.values()) < MAX_RATIO * usual, {name: cost / usual for name, cost in costs.items()}


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def make_head(query: bytes = b"", *headers: tuple[bytes, bytes]) -> Request:
    return Request({"type": "http", "query_string": query, "headers": headers})


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=MAX_KEY))
def test_both_forms_of_a_key_are_the_same_key(key: str) -> None:
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert read_idempotency_key(make_head(b"", (b"idempotency-key", quoted.encode()))) == key
    if not key.startswith('"'):
        assert read_idempotency_key(make_head(b"", (b"idempotency-key", key.encode()))) == key


@given(st.binary(max_size=300))
def test_a_key_is_visible_text_or_rejected(value: bytes) -> None:
    with suppress(ProblemError):
        key = read_idempotency_key(make_head(b"", (b"idempotency-key", value)))
        assert key
        assert len(key) <= MAX_KEY
        assert all("!" <= character <= "~" for character in key)


@given(st.floats(0, 60) | st.integers(0, 60))
def test_a_wait_is_parsed_like_a_json_number(wait_s: float) -> None:
    assert read_status_query(make_head(f"wait={wait_s!r}".encode())) == (wait_s, False)


@pytest.mark.parametrize("count", [100, 101])
def test_the_number_of_parameters_is_limited(count: int) -> None:
    with pytest.raises(ProblemError, match="at most 100 parameters, got 101" if count > 100 else "unknown"):
        read_query(make_head(b"&".join([b"a=1"] * count)), ["wait"])


@pytest.mark.parametrize("key", ["", " ", "two words", '"', '""', '"open', '"a" b', '"a";p=1', "x" * 256, "é", "a\tb"])
def test_an_invalid_key_is_rejected(make_app: MakeApp, call: Call, sample: Sample, key: str) -> None:
    headers = {**JSON, "idempotency-key": key.encode()}
    response = call(make_app(), path=f"{CROP}/submit", content=sample.json(), headers=headers)  # type: ignore[arg-type]
    assert problem(response) == (422, "parameter_invalid")
    assert "Idempotency-Key" in response.json()["detail"]


def test_two_keys_are_rejected(make_app: MakeApp, call: Call, sample: Sample) -> None:
    headers = [("content-type", "application/json"), ("idempotency-key", "a"), ("idempotency-key", "a")]
    response = call(make_app(), path=f"{CROP}/submit", content=sample.json(), headers=headers)
    assert problem(response) == (422, "parameter_invalid")


@pytest.mark.parametrize(
    "task_id", ["x", "0" * 31, "0" * 33, "A" * 32, "*", ">", "%00", "a.b", "%2e%2e", "é", "0" * 32 + "%0a"]
)
def test_a_malformed_id_is_an_unknown_task(make_app: MakeApp, call: Call, task_id: str) -> None:
    app = make_app()  # the queue is unreachable, and must not be queried
    for method, path in (("GET", "status/"), ("DELETE", "status/"), ("DELETE", "")):
        response = call(app, method, f"{CROP}/{path}{task_id}")
        assert problem(response) == (404, "task_unknown"), (method, path)
        assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "wait",
    [
        "",
        "a",
        "nan",
        "inf",
        "-1",
        "-1e-9",
        "60.1",
        "1e9",
        "1_0",
        "+1",
        " 1",
        "1&wait=1",
        "0x1",
        "٣",
        "1&x=1",
        "9" * 5000,
    ],
)
def test_an_invalid_wait_is_rejected(make_app: MakeApp, call: Call, wait: str) -> None:
    response = call(make_app(), "GET", f"{CROP}/status/{NO_TASK}?wait={wait}")
    assert problem(response) == (422, "parameter_invalid")


@pytest.mark.parametrize("path", ["status/{}", "{}"])
def test_a_cancellation_has_no_parameters(make_app: MakeApp, call: Call, path: str) -> None:
    response = call(make_app(), "DELETE", f"{CROP}/{path.format(NO_TASK)}?wait=1")
    assert problem(response) == (422, "parameter_invalid")
