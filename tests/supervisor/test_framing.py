"""Framing of requests, regardless of the pieces in which their bytes arrive."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.supervisor.framing import MAX_HEAD_BYTES, ChunkedBody, Head, RefusedError, SizedBody, body_of

NEXT = b"GET / HTTP/1.1\r\n"


def measure(part: ChunkedBody | SizedBody | Head, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """Return the bytes that belong to a part, and those that are left."""
    unread, found = bytearray(), b""
    for piece in pieces:
        unread += piece
        if isinstance(part, Head):
            part.skip_empty_lines(unread)
        while not part.is_complete and (size := part.measure(unread)):
            found += unread[:size]
            del unread[:size]
    return found, bytes(unread)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


CUTS = st.lists(st.integers(0, 300))
CHUNKS = st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from([b"", b";a", b';a="b;c"'])))


@given(CHUNKS, st.lists(st.sampled_from([b"A: b", b"A:"])), CUTS)
def test_a_chunked_body_ends_after_its_trailers(
    chunks: list[tuple[bytes, bytes]], trailers: list[bytes], cuts: list[int]
) -> None:
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(data), extension, data) for data, extension in chunks)
    body += b"0\r\n" + b"".join(line + b"\r\n" for line in trailers) + b"\r\n"
    part = ChunkedBody()
    assert measure(part, split(body + NEXT, cuts)) == (body, NEXT)
    assert part.is_complete


@given(st.binary(max_size=200), CUTS)
def test_a_body_with_a_length_ends_after_it(body: bytes, cuts: list[int]) -> None:
    part = body_of([(b"content-length", b"%d" % len(body))])
    assert isinstance(part, SizedBody)
    assert measure(part, split(body + NEXT, cuts)) == (body, NEXT)


@given(st.sampled_from([b"", b"\r\n", b"\r\n\r\n"]), CUTS)
def test_a_head_is_passed_on_as_a_whole(before: bytes, cuts: list[int]) -> None:
    head = NEXT + b"Host: a\r\n\r\n"
    part = Head()
    assert measure(part, split(before + head + NEXT, cuts)) == (head, NEXT)
    assert part.is_complete


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES, MAX_HEAD_BYTES + 1])
def test_the_limit_of_trailers_is_exact(size: int) -> None:
    body = b"0\r\nX: \r\n\r\n".replace(b"X: ", b"X: " + b"a" * (size - len(b"X: \r\n\r\n")))
    if size > MAX_HEAD_BYTES:
        with pytest.raises(RefusedError):
            measure(ChunkedBody(), [body])
    else:
        assert measure(ChunkedBody(), [body]) == (body, b"")


@pytest.mark.parametrize("line", [b"\r\n", b";a\r\n", b"-1\r\n", b" 1\r\n", b"x\r\n"])
def test_a_chunk_needs_a_size(line: bytes) -> None:
    with pytest.raises(RefusedError):
        measure(ChunkedBody(), [line])
