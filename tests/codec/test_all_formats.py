"""Tests for all formats; the test module of each format covers its own rules."""

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.codec.decode import decode_image, decode_label_image
from app.codec.sniff import ImageInfo, sniff_image, verify_structure
from app.face.errors import ImageEmptyError, ImageError, ImageTruncatedError, LabelMapFormatError
from app.face.frame import Size

NAMES = [
    "png grey",
    "png colour",
    "png alpha",
    "png palette",
    "png interlaced",
    "png 16 bit",
    "png exif",
    "png animated",
    "jpeg baseline",
    "jpeg grey",
    "jpeg progressive",
    "jpeg restarts",
    "jpeg exif",
    "webp lossy",
    "webp lossless",
    "webp extended",
    "webp alpha",
    "avif colour",
    "avif grey",
    "avif alpha",
    "avif 10 bit",
    "avif rotated",
    "heic colour",
    "heic grey",
    "heic alpha",
]
LIMIT = 4_096
# An edit: position (modulo the length), number of bytes to remove, and their replacement.
EDITS = st.lists(st.tuples(st.integers(0, 4_096), st.integers(0, 8), st.binary(max_size=8)), max_size=4)
MARKS = [
    b"\xff\xd8",
    b"\xff\xd9",
    b"\xff\xda",
    b"\xff\xc0",
    b"IHDR",
    b"IDAT",
    b"IEND",
    b"VP8X",
    b"ANMF",
    b"moov",
    b"meta",
    b"av01",
    b"hvc1",
    b"grid",
    b"\0\0\0\1",
    b"\xff" * 4,
]
NASTY_EDITS = st.lists(st.tuples(st.integers(0, 4_096), st.integers(0, 8), st.sampled_from(MARKS)), max_size=3)


def edit(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for position, count, instead in edits:
        start = position % (len(data) + 1)
        data = data[:start] + instead + data[start + count :]
    return data


def test_names_match_the_samples(samples: dict[str, bytes]) -> None:
    assert list(samples) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_complete_files_are_accepted(
    samples: dict[str, bytes], name: str, kind: Callable[[bytes], bytes | memoryview]
) -> None:
    data = kind(samples[name])
    info = verify_structure(data, sniff_image(data, max_pixels=LIMIT))
    orientation = 6 if name in {"png exif", "jpeg exif", "webp extended", "avif rotated"} else 1
    assert info == ImageInfo(name.split(maxsplit=1)[0], Size(5, 4), orientation)


@pytest.mark.parametrize("name", NAMES)
def test_every_prefix_is_rejected(samples: dict[str, bytes], name: str) -> None:
    data = samples[name]
    info = sniff_image(data, max_pixels=LIMIT)
    for end in range(len(data)):
        with pytest.raises(ImageTruncatedError if end else ImageEmptyError):
            verify_structure(data[:end], sniff_image(data[:end], max_pixels=LIMIT))
        # The error is the same if the info belongs to other bytes.
        with pytest.raises(ImageTruncatedError):
            verify_structure(data[:end], info)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tail", [b"\0", b"\xff\xd9", b"IEND", b"\xff\xd8\xff\xe0 another picture", bytes(4_096)])
def test_trailing_bytes_are_allowed(samples: dict[str, bytes], name: str, tail: bytes) -> None:
    info = sniff_image(samples[name], max_pixels=LIMIT)
    assert verify_structure(samples[name] + tail, info) == verify_structure(samples[name], info)


@settings(max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(NAMES), EDITS | NASTY_EDITS)
def test_edited_files_return_pixels_or_raise_image_error(
    samples: dict[str, bytes], name: str, edits: list[tuple[int, int, bytes]]
) -> None:
    data = edit(samples[name], edits)
    with contextlib.suppress(ImageError):
        info = sniff_image(data, max_pixels=LIMIT)
        # Decoding must be safe even if the caller skips verification.
        with contextlib.suppress(ImageError):
            assert verify_structure(data, info).size == info.size
        with contextlib.suppress(LabelMapFormatError, ImageError):
            assert decode_label_image(data, info).shape[:2] == (info.size.height, info.size.width)
        assert decode_image(data, info).shape == (info.size.height, info.size.width, 3)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["png", "jpeg", "webp", "avif", "heic"]), st.sampled_from(NAMES), EDITS)
def test_any_bytes_with_any_info_are_accepted_or_raise_image_error(
    samples: dict[str, bytes], image_format: str, name: str, edits: list[tuple[int, int, bytes]]
) -> None:
    data = edit(samples[name], edits)
    info = ImageInfo(image_format, Size(5, 4))
    with contextlib.suppress(ImageError):
        assert verify_structure(data, info).exif_orientation in range(1, 9)
    with contextlib.suppress(ImageError):
        assert decode_image(data, info).shape == (4, 5, 3)
    with contextlib.suppress(ImageError, LabelMapFormatError):
        assert decode_label_image(data, info).shape[:2] == (4, 5)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "avif", "heic"])
@pytest.mark.parametrize("function", [verify_structure, decode_image, decode_label_image])
@pytest.mark.parametrize("data", [b"", b"x", b"\x89PNG", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", bytes(100)])
def test_bytes_that_contradict_the_info_raise_errors(
    image_format: str, function: Callable[[bytes, ImageInfo], object], data: bytes
) -> None:
    with pytest.raises((ImageError, LabelMapFormatError)):
        function(data, ImageInfo(image_format, Size(5, 4)))
