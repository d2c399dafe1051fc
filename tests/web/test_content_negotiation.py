"""Content negotiation by the Accept header."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.web.content_negotiation import JSON, MAX_ACCEPT, SVG, negotiate_media_type, require_json
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

rejected = pytest.raises(ProblemError, check=lambda error: error.code == "not_acceptable")
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, nullcontext(JSON)),
        ("", nullcontext(JSON)),
        ("*/*", nullcontext(JSON)),
        ("*", nullcontext(JSON)),
        ("application/json", nullcontext(JSON)),
        ("application/*", nullcontext(JSON)),
        ("image/svg+xml", nullcontext(SVG)),
        ("IMAGE/*", rejected),
        ("image/*", nullcontext(SVG)),
        ("image/svg+xml, application/json", nullcontext(JSON)),
        ("image/svg+xml, application/json;q=0.9", nullcontext(SVG)),
        ("image/svg+xml;q=0.1, application/json;q=0.2", nullcontext(JSON)),
        ("image/svg+xml, */*;q=0.1", nullcontext(SVG)),
        ("*/*, application/json;q=0", nullcontext(SVG)),
        (BROWSER, nullcontext(JSON)),
        ("image/png", rejected),
        ("text/html, image/png", rejected),
        ("*/*;q=0", rejected),
        ("application/json;q=0", rejected),
        ("nonsense", rejected),
        ("a/b/c", rejected),
        ("application/json, " + "x" * MAX_ACCEPT, rejected),
    ],
)
def test_media_type_is_negotiated(accept: str | None, form: AbstractContextManager[Any]) -> None:
    with form as expected:
        assert negotiate_media_type(accept) == expected


@given(
    st.text(st.characters(max_codepoint=255))
    | st.lists(st.sampled_from(["image/", "svg+xml", JSON, "*/*", "*", ";", "q=", ",", "0.5", "nan", '"', "=", " "]))
    .map("".join)
)  # fmt: skip
def test_arbitrary_headers_raise_only_problems(accept: str) -> None:
    with suppress(ProblemError):
        assert negotiate_media_type(accept) in {JSON, SVG}


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
