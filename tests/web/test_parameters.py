"""What a request says beside its body: parameters of the query, ids in the path, the key of a submission."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from app.web.parameters import MAX_KEY, read_idempotency_key, read_query, read_wait_s
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from tests.conftest import Sample

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]

CROP = "/api/v1/frontal/crop"
NO_TASK = "0" * 32
JSON = {"content-type": "application/json"}


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def make_request(query: bytes = b"", *headers: tuple[bytes, bytes]) -> Request:
    return Request({"type": "http", "query_string": query, "headers": headers})


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=MAX_KEY))
def test_a_key_is_the_same_in_either_form(key: str) -> None:
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert read_idempotency_key(make_request(b"", (b"idempotency-key", quoted.encode()))) == key
    if not key.startswith('"'):
        assert read_idempotency_key(make_request(b"", (b"idempotency-key", key.encode()))) == key


@given(st.binary(max_size=300))
def test_a_key_is_visible_text_or_refused(value: bytes) -> None:
    with suppress(ProblemError):
        key = read_idempotency_key(make_request(b"", (b"idempotency-key", value)))
        assert key
        assert len(key) <= MAX_KEY
        assert all("!" <= character <= "~" for character in key)


@given(st.floats(0, 60) | st.integers(0, 60))
def test_a_wait_is_read_as_json_writes_it(wait_s: float) -> None:
    assert read_wait_s(make_request(f"wait={wait_s!r}".encode())) == wait_s


@pytest.mark.parametrize("count", [100, 101])
def test_only_so_many_parameters_are_read(count: int) -> None:
    with pytest.raises(ProblemError, match="at most 100 parameters, got 101" if count > 100 else "of another name"):
        read_query(make_request(b"&".join([b"a=1"] * count)), ["wait"])


@pytest.mark.parametrize("key", ["", " ", "two words", '"', '""', '"open', '"a" b', '"a";p=1', "x" * 256, "é", "a\tb"])
def test_a_key_of_another_form_is_refused(make_app: MakeApp, call: Call, sample: Sample, key: str) -> None:
    headers = {**JSON, "idempotency-key": key.encode()}
    answer = call(make_app(), path=f"{CROP}/submit", content=sample.json(), headers=headers)  # type: ignore[arg-type]
    assert problem(answer) == (422, "parameter_invalid")
    assert "Idempotency-Key" in answer.json()["detail"]


def test_two_keys_are_refused(make_app: MakeApp, call: Call, sample: Sample) -> None:
    headers = [("content-type", "application/json"), ("idempotency-key", "a"), ("idempotency-key", "a")]
    answer = call(make_app(), path=f"{CROP}/submit", content=sample.json(), headers=headers)
    assert problem(answer) == (422, "parameter_invalid")


@pytest.mark.parametrize(
    "task_id", ["x", "0" * 31, "0" * 33, "A" * 32, "*", ">", "%00", "a.b", "%2e%2e", "é", "0" * 32 + "%0a"]
)
def test_what_is_no_id_is_an_unknown_task(make_app: MakeApp, call: Call, task_id: str) -> None:
    app = make_app()  # whose queue is away: it is not even asked
    for method, path in (("GET", "status/"), ("DELETE", "status/"), ("DELETE", "")):
        answer = call(app, method, f"{CROP}/{path}{task_id}")
        assert problem(answer) == (404, "task_unknown"), (method, path)
        assert answer.headers["cache-control"] == "no-store"


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
def test_a_wait_of_another_form_is_refused(make_app: MakeApp, call: Call, wait: str) -> None:
    answer = call(make_app(), "GET", f"{CROP}/status/{NO_TASK}?wait={wait}")
    assert problem(answer) == (422, "parameter_invalid")


@pytest.mark.parametrize("path", ["status/{}", "{}"])
def test_a_cancellation_takes_no_parameters(make_app: MakeApp, call: Call, path: str) -> None:
    answer = call(make_app(), "DELETE", f"{CROP}/{path.format(NO_TASK)}?wait=1")
    assert problem(answer) == (422, "parameter_invalid")
