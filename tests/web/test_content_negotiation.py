"""Content negotiation by the Accept header."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.web.content_negotiation import JSON, MAX_ACCEPT, negotiate_format, require_json
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

rejected = pytest.raises(ProblemError, check=lambda error: error.code == "not_acceptable")
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, nullcontext("json")),
        ("", nullcontext("json")),
        ("*/*", nullcontext("json")),
        ("*", nullcontext("json")),
        ("application/json", nullcontext("json")),
        ("application/*", nullcontext("json")),
        ("image/svg+xml", nullcontext("svg")),
        ("IMAGE/*", rejected),
        ("image/*", nullcontext("svg")),
        ("image/svg+xml, application/json", nullcontext("json")),
        ("image/svg+xml, application/json;q=0.9", nullcontext("svg")),
        ("image/svg+xml;q=0.1, application/json;q=0.2", nullcontext("json")),
        ("image/svg+xml, */*;q=0.1", nullcontext("svg")),
        ("*/*, application/json;q=0", nullcontext("svg")),
        (BROWSER, nullcontext("json")),
        ("image/png", nullcontext("png")),
        ("text/html, image/png", nullcontext("png")),
        ("IMAGE/PNG", rejected),
        ("image/png, image/svg+xml", nullcontext("svg")),
        ("image/png, image/svg+xml;q=0.9, */*;q=0.1", nullcontext("png")),
        ("image/*, image/svg+xml;q=0", nullcontext("png")),
        ("image/png;q=0.5, application/json;q=0.4", nullcontext("png")),
        ("image/jpeg", rejected),
        ("*/*;q=0", rejected),
        ("application/json;q=0", rejected),
        ("nonsense", rejected),
        ("a/b/c", rejected),
        ("application/json, " + "x" * MAX_ACCEPT, rejected),
    ],
)
def test_media_type_is_negotiated(accept: str | None, form: AbstractContextManager[Any]) -> None:
    with form as expected:
        assert negotiate_format(accept) == expected


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, nullcontext("mask")),
        ("image/png", nullcontext("mask")),
        ("image/svg+xml, */*;q=0.1", nullcontext("mask")),
        ("image/svg+xml", rejected),
        ("application/json", rejected),
    ],
)
def test_mask_needs_png(accept: str | None, form: AbstractContextManager[Any]) -> None:
    with form as expected:
        assert negotiate_format(accept, is_mask=True) == expected


@given(
    st.text(st.characters(max_codepoint=255))
    | st.lists(st.sampled_from(["image/", "svg+xml", "png", JSON, "*/*", "*", ";", "q=", ",", "0.5", "nan", '"', "="]))
    .map("".join)
)  # fmt: skip
def test_arbitrary_headers_raise_only_problems(accept: str) -> None:
    with suppress(ProblemError):
        assert negotiate_format(accept) in {"json", "svg", "png"}


@pytest.mark.parametrize(
    ("accept", "outcome"),
    [
        (None, nullcontext()),
        ("*/*", nullcontext()),
        ("application/*;q=0.1", nullcontext()),
        ("image/svg+xml, application/json;q=0.1", nullcontext()),
        ("image/svg+xml", rejected),
        ("nonsense", rejected),
    ],
)
def test_json_is_required(accept: str | None, outcome: AbstractContextManager[Any]) -> None:
    with outcome:
        require_json(accept)
