"""Broken, oversized and mistyped files as image and as label map, sent to two workers."""

from __future__ import annotations

import zlib
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Sample
    from tests.live.conftest import Attacker

    Build = Callable[[Sample], bytes]

pytestmark = pytest.mark.live

CANARY = "QXcanaryQX"
MIB = 1024 * 1024
PIXELS = "?verify=pixels"


def flip(data: bytes, at: int) -> bytes:
    """Change one byte."""
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def patch(data: bytes, at: int, content: bytes) -> bytes:
    return data[:at] + content + data[at + len(content) :]


def patch_after(data: bytes, mark: bytes, skip: int, content: bytes) -> bytes:
    return patch(data, data.index(mark) + len(mark) + skip, content)


def encode_png(sample: Sample, pixels: np.ndarray) -> bytes:
    return sample.encode(".png", pixels.astype(np.uint8))


def many_colours(sample: Sample) -> bytes:
    numbers = np.arange(1, 301)
    return encode_png(sample, np.stack((numbers >> 8, numbers & 0xFF, numbers % 2), axis=-1)[None])


def black(rows: int, row_bytes: int) -> bytes:
    packer = zlib.compressobj(6)
    return b"".join(packer.compress(bytes(1 + row_bytes)) for _ in range(rows)) + packer.flush()


@cache
def bomb(sample: Sample) -> bytes:
    """A PNG of 164 Mpx in about 200 kB, which would decode to half a gigabyte."""
    return sample.png_file(12_800, 12_800, black(12_800, 12_800))


PHOTOS: list[tuple[str, Build, str]] = [
    ("png cut in half", lambda s: s.png[: len(s.png) // 2], "image_truncated"),
    ("png cut inside its header", lambda s: s.png[:20], "image_truncated"),
    ("png cut before its last bytes", lambda s: s.png[:-4], "image_truncated"),
    ("png of its signature alone", lambda s: s.png[:8], "image_truncated"),
    ("png with a damaged header", lambda s: flip(s.png, 18), "image_corrupt"),
    ("png with damaged data", lambda s: flip(s.png, len(s.png) // 2), "image_corrupt"),
    ("png with a damaged signature", lambda s: flip(s.png, 6), "image_unsupported_format"),
    ("png without data", lambda s: s.png_file(512, 512, b""), "image_corrupt"),
    ("png of no width", lambda s: s.png_file(0, 512, zlib.compress(b"")), "image_corrupt"),
    ("png of 3 bits", lambda s: s.png_file(512, 512, zlib.compress(b""), depth=3), "image_corrupt"),
    (
        "png of a colour type that is none",
        lambda s: s.png_file(512, 512, zlib.compress(b""), colour=5),
        "image_corrupt",
    ),
    ("png with an endless chunk", lambda s: patch(s.png, 33, b"\xff\xff\xff\xff"), "image_corrupt"),
    ("png with an unknown critical chunk", lambda s: s.png[:33] + s.png_chunk(b"EVIL") + s.png[33:], "image_corrupt"),
    ("png that is a bomb", bomb, "image_too_large"),
    (
        "png one pixel high and too wide",
        lambda s: s.png_file(70_000, 1, zlib.compress(bytes(70_001))),
        "image_too_large",
    ),
    ("png that announces 4 exapixels", lambda s: s.png_file(2**31 - 1, 2**31 - 1, b"x"), "image_too_large"),
    ("jpeg cut in half", lambda s: s.jpeg[: len(s.jpeg) // 2], "image_truncated"),
    ("jpeg without its end", lambda s: s.jpeg[:-2], "image_truncated"),
    ("jpeg of its signature alone", lambda s: s.jpeg[:3], "image_truncated"),
    ("jpeg that ends after its headers", lambda s: s.jpeg[: s.jpeg.index(b"\xff\xda")] + b"\xff\xd9", "image_corrupt"),
    ("jpeg of garbage", lambda _: b"\xff\xd8\xff" + bytes(1000), "image_corrupt"),
    ("jpeg of no height", lambda s: patch_after(s.jpeg, b"\xff\xc0", 3, b"\0\0"), "image_corrupt"),
    ("jpeg of 4 gigapixels", lambda s: patch_after(s.jpeg, b"\xff\xc0", 3, b"\xff\xff\xff\xff"), "image_too_large"),
    ("jpeg with arithmetic coding", lambda s: s.jpeg.replace(b"\xff\xc0", b"\xff\xc9", 1), "image_unsupported_format"),
    ("jpeg of 12 bits", lambda s: patch_after(s.jpeg, b"\xff\xc0", 2, b"\x0c"), "image_unsupported_format"),
    ("webp cut in half", lambda s: s.webp[: len(s.webp) // 2], "image_truncated"),
    ("webp of its signature alone", lambda s: s.webp[:12], "image_truncated"),
    ("webp larger than the file", lambda s: patch(s.webp, 4, b"\xff\xff\xff\x7f"), "image_truncated"),
    ("webp with an unknown chunk first", lambda s: patch(s.webp, 12, b"EVIL"), "image_corrupt"),
    ("webp without a key frame", lambda s: flip(s.webp, 20), "image_corrupt"),
    ("webp of the wrong lossless signature", lambda s: flip(s.lossless_webp, 20), "image_corrupt"),
    ("webp of 268 Mpx", lambda s: patch(s.lossless_webp, 21, b"\xff\xff\xff\x0f"), "image_too_large"),
    ("no bytes", lambda _: b"", "image_empty"),
    ("gif", lambda _: b"GIF89a" + bytes(100), "image_unsupported_format"),
    ("heic", lambda _: b"\0\0\0\x18ftypheic" + bytes(100), "image_truncated"),
    ("svg", lambda _: f"<svg onload='{CANARY}'/>".encode(), "image_unsupported_format"),
    ("text", lambda _: CANARY.encode() * 10, "image_unsupported_format"),
    ("base64 of base64", lambda s: s.fields()["image"].encode(), "image_unsupported_format"),
]

DECODED: list[tuple[str, Build, str]] = [
    ("png whose data are no zlib stream", lambda s: s.png_file(512, 512, CANARY.encode()), "image_corrupt"),
    ("png with too few rows", lambda s: s.png_file(512, 512, zlib.compress(bytes(513 * 9))), "image_corrupt"),
    ("webp with damaged data", lambda s: patch(s.lossless_webp, 30, bytes(60)), "image_corrupt"),
]


def specks(sample: Sample) -> bytes:
    grid = np.zeros((600, 600))
    grid[::3, ::3] = 1
    return encode_png(sample, grid)


MAPS: list[tuple[str, Build, str]] = [
    ("jpeg", lambda s: s.jpeg, "label_map_format"),
    ("lossy webp", lambda s: s.webp, "label_map_format"),
    ("16 bits", lambda s: s.encode(".png", np.ones((8, 8), np.uint16)), "label_map_format"),
    ("nothing but background", lambda s: encode_png(s, np.zeros((64, 64))), "label_map_labels"),
    ("nothing but black", lambda s: encode_png(s, np.zeros((64, 64, 3))), "label_map_labels"),
    (
        "24 Mpx of nothing but black",
        lambda s: s.png_file(4_896, 4_896, black(4_896, 3 * 4_896), colour=2),
        "label_map_labels",
    ),
    ("300 colours", many_colours, "label_map_labels"),
    ("noise", lambda s: encode_png(s, np.arange(1_000_000).reshape(1000, 1000) % 7), "label_map_too_complex"),
    ("specks", specks, "label_map_too_complex"),
    ("bomb", bomb, "image_too_large"),
    ("cut in half", lambda s: s.labels[: len(s.labels) // 2], "image_truncated"),
    ("damaged", lambda s: flip(s.labels, len(s.labels) // 2), "image_corrupt"),
    ("data that are no zlib stream", lambda s: s.png_file(64, 64, CANARY.encode()), "image_corrupt"),
    ("text", lambda _: CANARY.encode(), "image_unsupported_format"),
]


def rows(table: list[tuple[str, Build, str]]) -> list[Any]:
    return [pytest.param(build, code, id=name.replace(" ", "-")) for name, build, code in table]


@pytest.mark.parametrize(("build", "code"), rows(PHOTOS))
@pytest.mark.parametrize("form", ["json", "multipart"])
def test_photo_is_refused(attacker: Attacker, sample: Sample, form: str, build: Build, code: str) -> None:
    image = build(sample)
    if form == "json":
        answer = attacker.send(sample.json(image=image), headers={"content-type": "application/json"})
    else:
        answer = attacker.send(sample.form(image=image), headers={"content-type": sample.multipart})
    attacker.require_problem(answer, 422, code, CANARY)
    attacker.require_service()


@pytest.mark.parametrize(("build", "code"), rows(DECODED))
def test_photo_is_refused_once_decoded(attacker: Attacker, sample: Sample, build: Build, code: str) -> None:
    body, headers = sample.form(image=build(sample)), {"content-type": sample.multipart}
    attacker.require_problem(attacker.send(body, headers=headers, path=attacker.path + PIXELS), 422, code, CANARY)
    attacker.require_service()


@pytest.mark.parametrize(("build", "code"), rows(MAPS))
def test_label_map_is_refused(attacker: Attacker, sample: Sample, build: Build, code: str) -> None:
    answer = attacker.send(sample.form(segmentation_map=build(sample)), headers={"content-type": sample.multipart})
    attacker.require_problem(answer, 422, code, CANARY)
    attacker.require_service()


def test_bomb_is_small_on_the_wire_and_large_in_memory(sample: Sample) -> None:
    assert len(bomb(sample)) < 240_000
    decoded = 12_800 * 12_800 * 3
    assert decoded > 450 * MIB


def test_files_left_no_trace(attacker: Attacker) -> None:
    attacker.require_service()
    attacker.require_quiet_log(CANARY)
    attacker.require_bounded_memory(256 * MIB)
