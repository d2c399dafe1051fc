"""Taking in a crop request: what is held, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect

from app.face.errors import InputError
from app.service.admission import SaturatedError
from app.web import intake as module
from app.web.intake import Head, check_input, work_on_body
from app.web.problem_codes import ProblemError
from tests.conftest import BOUNDARY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Sample

    MakeApp = Callable[..., FastAPI]


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
    return admission._held.total(), admission._bodies._used


def test_a_place_is_held_for_the_block(make_app: MakeApp) -> None:
    app = make_app()

    async def run() -> None:
        async with work_on_body(make_request(app, whole(b"abc")), app.state.web, len) as size:
            assert size == 3
            assert held(app) == (1, 3)
        assert held(app) == (0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("query", [{}, {"simplify": "1"}])
def test_the_body_is_let_go_once_it_is_read(make_app: MakeApp, sample: Sample, query: dict[str, str]) -> None:
    app = make_app()
    check = partial(check_input, app.state.web.crop, Head("application/json", query), is_digested=True)

    async def run() -> int:
        request = make_request(app, whole(sample.json(image=sample.photo)))
        tracemalloc.start()
        async with work_on_body(request, app.state.web, check) as (checked, digest):
            assert checked.image == sample.photo
            assert digest == checked.digest()
            return tracemalloc.get_traced_memory()[0]

    try:
        assert asyncio.run(run()) < 1.2 * len(sample.photo)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("messages", [[], [whole(b"abc")]])
def test_nothing_is_held_for_a_caller_who_went_away(make_app: MakeApp, messages: list[dict[str, Any]]) -> None:
    app = make_app()
    is_over = threading.Event()

    def work(_: bytes) -> bool:
        return is_over.wait(30)

    async def run() -> None:
        request = make_request(app, *messages, {"type": "http.disconnect"})
        with pytest.raises(ClientDisconnect):
            async with work_on_body(request, app.state.web, work):
                pass
        assert held(app) == (0, 0)

    try:
        asyncio.run(run())
    finally:
        is_over.set()


def test_a_request_is_refused_before_its_body_is_read(make_app: MakeApp) -> None:
    app = make_app(max_concurrency=1)

    async def run() -> None:
        with app.state.web.admission.enter(), pytest.raises(SaturatedError):
            async with work_on_body(make_request(app), app.state.web, len):
                pass

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "is_quick"),
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
def test_what_is_checked_on_the_event_loop_is_small_and_has_few_values(body: bytes, *, is_quick: bool) -> None:
    assert module.is_checked_quickly(body) is is_quick


# Times the cost of a photo of nearly INLINE_BYTES, 1.7 ms. The most expensive body that was found costs 3 times that.
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
def test_no_check_on_the_event_loop_costs_much_more_than_that_of_a_photo(
    make_app: MakeApp, sample: Sample, kind: str
) -> None:
    service = make_app().state.web.crop
    is_json = kind == "json"
    size = LARGE * 3 // 4 if is_json else LARGE

    def measure(body: bytes) -> float:
        assert module.is_checked_quickly(body), len(body)
        head = Head("application/json" if is_json else sample.multipart, {})
        times = []
        for _ in range(5):
            start = time.thread_time()
            with contextlib.suppress(ProblemError, InputError):
                check_input(service, head, body, is_digested=True)
            times.append(time.thread_time() - start)
        return min(times)

    def write(image: bytes, regions: dict[str, list[int]] | None = None) -> bytes:
        if is_json:
            return sample.json(image=image, segmentation_map=regions)
        return sample.form(image=image, segmentation_map=None if regions is None else orjson.dumps(regions))

    photos = {
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
    costs = {name: measure(write(photo)) for name, photo in photos.items()}
    costs["values"] = measure(write(make_jpeg(1, bytes(size - 32768)), REGIONS))
    usual = measure(write(make_png(sample, size // 8192, size)))
    assert max(costs.values()) < MAX_RATIO * usual, {name: cost / usual for name, cost in costs.items()}
