"""Reading bodies: limits of size and time, and disconnects."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from app.service.body_budget import BodyBudget
from app.web.body import BodyLimits, _Chunks, cancel_on_disconnect, read_body, require_declared_size
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

too_large = pytest.raises(ProblemError, check=lambda error: error.code == "body_too_large")
LIMIT = 100


def make_request(messages: list[dict[str, Any]], headers: dict[str, str] | None = None) -> Request:
    """Return a request with these messages, after which none arrives."""
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        try:
            return next(left)
        except StopIteration:
            await asyncio.Event().wait()
            raise

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "headers": raw, "state": {}}, receive)


def chunks(*parts: bytes, is_whole: bool = True) -> list[dict[str, Any]]:
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    return [*messages, {"type": "http.request"}] if is_whole else messages


def read(request: Request, timeout_s: float = 30, min_rate: float = 0) -> bytes:
    return asyncio.run(take(request, timeout_s, min_rate))


async def take(request: Request, timeout_s: float = 30, min_rate: float = 0) -> bytes:
    budget = BodyBudget(max_bytes=10 * LIMIT, max_body_bytes=LIMIT)
    with budget.open() as buffer:
        return await read_body(request, buffer, BodyLimits(LIMIT, timeout_s, min_rate))


def make_slow_request(parts: int, pause_s: float) -> Request:
    """Return a request that sends one byte at a time, with a pause before each."""
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        await asyncio.sleep(pause_s)
        sent += 1
        return {"type": "http.request", "body": b"x", "more_body": sent < parts}

    return Request({"type": "http", "headers": [], "state": {}}, receive)


@given(st.lists(st.binary(max_size=40)))
def test_the_body_is_complete_or_rejected(parts: list[bytes]) -> None:
    request = make_request(chunks(*parts))
    whole = b"".join(parts)
    with too_large if len(whole) > LIMIT else nullcontext():
        assert read(request) == whole
        assert request.state.body_bytes == len(whole)


def test_a_body_in_one_piece_is_not_copied() -> None:
    body = b"x" * LIMIT
    assert read(make_request([{"type": "http.request", "body": body, "more_body": False}])) is body


def test_nothing_is_read_beyond_the_limit() -> None:
    messages = chunks(*[b"x" * 60] * 5)
    with too_large as caught:
        asyncio.run(take(make_request(messages)))
    assert caught.value.extra == {"max_bytes": LIMIT}
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, nullcontext()),
        ({"content-length": "0"}, nullcontext()),
        ({"content-length": "100"}, nullcontext()),
        ({"content-length": "101"}, too_large),
        ({"content-length": "9" * 30}, too_large),
    ],
)
def test_a_declared_length_above_the_limit_is_rejected(
    headers: dict[str, str], expected: AbstractContextManager[Any]
) -> None:
    with expected:
        require_declared_size(make_request([], headers), LIMIT)


def test_a_body_that_does_not_arrive_times_out() -> None:
    with pytest.raises(ProblemError, match="got 3 bytes") as caught:
        read(make_request(chunks(b"abc", is_whole=False)), timeout_s=0.05)
    assert (caught.value.code, caught.value.status) == ("body_timeout", 408)
    assert caught.value.headers == {"Connection": "close"}


def test_a_disconnect_while_reading_is_not_a_problem() -> None:
    with pytest.raises(ClientDisconnect):
        read(make_request([*chunks(b"abc", is_whole=False), {"type": "http.disconnect"}]))


def test_progress_above_the_minimum_rate_has_no_time_limit() -> None:
    assert read(make_slow_request(60, 0.01), timeout_s=0.3, min_rate=1) == b"x" * 60  # twice the timeout in all


def test_progress_below_the_minimum_rate_times_out() -> None:
    with pytest.raises(ProblemError, match="at least 1000 bytes/s") as caught:
        read(make_slow_request(LIMIT, 0.05), timeout_s=0.2, min_rate=1000)
    assert caught.value.code == "body_timeout"


@given(st.lists(st.binary(max_size=40), max_size=LIMIT))
def test_small_pieces_are_merged(parts: list[bytes]) -> None:
    chunks = _Chunks()
    for part in parts:
        chunks.append(part)
    assert chunks.join() == b"".join(parts)
    assert len(chunks._pieces) <= 1


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("is_cancelled_first", [True, False])
def test_a_cancellation_that_coincides_with_a_disconnect_stays_a_cancellation(
    steps: int, *, is_cancelled_first: bool
) -> None:
    async def run() -> None:
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        work = asyncio.get_running_loop().create_future()
        request = Request({"type": "http", "headers": [], "state": {}}, receive)
        task = asyncio.ensure_future(cancel_on_disconnect(request, work))
        await asyncio.sleep(0.01)
        gone.set()
        if is_cancelled_first:
            task.cancel()
        for _ in range(steps):
            await asyncio.sleep(0)
        is_cancelled = is_cancelled_first or task.cancel()
        with pytest.raises(asyncio.CancelledError if is_cancelled else ClientDisconnect):
            await task
        assert work.cancelled()

    asyncio.run(run())


def test_work_is_cancelled_on_a_disconnect() -> None:
    async def run() -> None:
        work = asyncio.get_running_loop().create_future()
        with pytest.raises(ClientDisconnect):
            await cancel_on_disconnect(make_request([{"type": "http.disconnect"}]), work)
        assert work.cancelled()

    asyncio.run(run())
