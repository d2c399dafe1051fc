import contextlib
from collections.abc import Callable
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from app.codec.webp import is_lossless_webp, read_webp_size, verify_webp
from app.face.errors import ImageCorruptError, ImageFormatError, ImageTruncatedError
from app.face.frame import Size

Context = contextlib.AbstractContextManager[object]

COMPLETE: Context = contextlib.nullcontext()
CORRUPT: Context = pytest.raises(ImageCorruptError)
TRUNCATED: Context = pytest.raises(ImageTruncatedError)
UNSUPPORTED: Context = pytest.raises(ImageFormatError)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(lambda w: w.join(w.vp8), COMPLETE, id="lossy"),
        pytest.param(lambda w: w.join(w.vp8l), COMPLETE, id="lossless"),
        pytest.param(lambda w: w.join(w.canvas, w.vp8), COMPLETE, id="extended lossy"),
        pytest.param(lambda w: w.join(w.canvas, w.vp8l), COMPLETE, id="extended lossless"),
        pytest.param(lambda w: w.join(w.canvas, w.chunk(b"ICCP", b"abc"), w.vp8), COMPLETE, id="odd chunk before"),
        pytest.param(lambda w: w.join(w.canvas, w.vp8, w.chunk(b"abcd", b"abc")), COMPLETE, id="odd chunk at the end"),
        pytest.param(
            lambda w: w.join(w.canvas, w.vp8, w.chunk(b"abcd", b"abc", padding=b"")), COMPLETE, id="no padding"
        ),
        pytest.param(lambda w: w.join(w.odd), COMPLETE, id="odd image"),
        pytest.param(lambda w: w.join(w.odd[:-1]), COMPLETE, id="odd image, no padding"),
        pytest.param(lambda w: w.join(w.odd)[:-1], TRUNCATED, id="padding counted but missing"),
        pytest.param(lambda w: w.join(w.vp8) + b"more", COMPLETE, id="bytes after the container"),
        pytest.param(lambda w: w.join(w.vp8, size=4_000), TRUNCATED, id="container larger than the file"),
        pytest.param(lambda w: w.join(w.vp8, size=2**32 - 1), TRUNCATED, id="container of 4 GiB"),
        pytest.param(lambda w: w.join(w.vp8, size=len(w.vp8) + 2), CORRUPT, id="container smaller than the image"),
        pytest.param(lambda w: w.join(w.vp8, size=4), CORRUPT, id="container of nothing"),
        pytest.param(lambda w: w.join(w.vp8, size=0), CORRUPT, id="container of 0 bytes"),
        pytest.param(lambda w: w.join(w.vp8, b"abcd\xff\xff\xff\xff"), COMPLETE, id="chunk past the container"),
        pytest.param(lambda w: w.join(w.vp8, b"abcd\0"), COMPLETE, id="half a chunk's head"),
        pytest.param(lambda w: w.join(w.canvas), CORRUPT, id="no image"),
        pytest.param(lambda w: w.join(w.canvas, w.vp8, w.vp8l), COMPLETE, id="two images"),
        pytest.param(lambda w: w.join(w.chunk(b"ICCP", b"ab"), w.vp8), CORRUPT, id="unknown chunk first"),
        pytest.param(lambda w: w.join(w.vp8x(6, 4), w.vp8), CORRUPT, id="canvas wider than the image"),
        pytest.param(lambda w: w.join(w.vp8x(5, 3), w.vp8l), CORRUPT, id="canvas lower than the image"),
        pytest.param(lambda w: w.join(w.chunk(b"VP8X", bytes(12)), w.vp8), CORRUPT, id="long extended header"),
        pytest.param(lambda w: w.join(w.chunk(b"VP8X", bytes(8)), w.vp8), CORRUPT, id="short extended header"),
        pytest.param(lambda w: w.join(w.vp8x(5, 4, 0x02), w.vp8), UNSUPPORTED, id="animation"),
        pytest.param(lambda w: w.join(w.chunk(b"VP8 ", w.lossy[:8])), CORRUPT, id="lossy header cut"),
        pytest.param(lambda w: w.join(w.chunk(b"VP8L", w.lossless[:4])), CORRUPT, id="lossless header cut"),
        pytest.param(lambda w: w.join(w.chunk(b"VP8 ", w.lossy[:20])), CORRUPT, id="first part past the image"),
        pytest.param(
            lambda w: w.join(w.chunk(b"VP8 ", bytes([w.lossy[0] | 1]) + w.lossy[1:])), CORRUPT, id="no key frame"
        ),
        pytest.param(
            lambda w: w.join(w.chunk(b"VP8 ", bytes([w.lossy[0] & 0xEF]) + w.lossy[1:])), CORRUPT, id="not shown"
        ),
        pytest.param(lambda w: w.join(w.chunk(b"VP8 ", w.lossy[:3] + b"\0" + w.lossy[4:])), CORRUPT, id="start code"),
        pytest.param(lambda w: w.join(w.chunk(b"VP8 ", w.lossy[:6] + b"\0\0" + w.lossy[8:])), CORRUPT, id="width 0"),
        pytest.param(lambda w: w.join(w.chunk(b"VP8 ", w.lossy[:8] + b"\0\0" + w.lossy[10:])), CORRUPT, id="height 0"),
        pytest.param(lambda w: w.join(w.chunk(b"VP8L", b"\x2e" + w.lossless[1:])), CORRUPT, id="lossless signature"),
        pytest.param(
            lambda w: w.join(w.chunk(b"VP8L", w.lossless[:4] + b"\xe0" + w.lossless[5:])),
            CORRUPT,
            id="lossless version",
        ),
        pytest.param(lambda w: w.join(w.vp8, w.chunk(b"abcd", b"") * 1_100), COMPLETE, id="too many chunks"),
        pytest.param(lambda _: b"", TRUNCATED, id="empty"),
        pytest.param(lambda _: b"RIFF\0\0\0\0WEB", TRUNCATED, id="half a signature"),
        pytest.param(lambda _: b"RIFF\0\0\0\0WAVE" + bytes(20), CORRUPT, id="another signature"),
    ],
)
def test_verify_table(make: SimpleNamespace, build: Callable[..., bytes], expected: Context) -> None:
    with expected:
        assert verify_webp(memoryview(build(make.webp))) == 1


def test_decoder_accepts_odd_image_without_padding(make: SimpleNamespace) -> None:
    assert len(make.webp.odd) % 2 == 0
    data = np.frombuffer(make.webp.join(make.webp.odd[:-1]), np.uint8)
    assert cv2.imdecode(data, cv2.IMREAD_COLOR) is not None


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_verify_finds_orientation(make: SimpleNamespace, order: str, prefix: bytes) -> None:
    exif = make.webp.chunk(b"EXIF", prefix + make.exif.tiff(5, order=order))
    later = make.webp.chunk(b"EXIF", make.exif.tiff(2))
    assert verify_webp(memoryview(make.webp.join(make.webp.vp8x(5, 4, 0x08), make.webp.vp8, exif, later))) == 5


def test_malformed_exif_is_upright(make: SimpleNamespace) -> None:
    exif = make.webp.chunk(b"EXIF", b"II*\0nonsense")
    assert verify_webp(memoryview(make.webp.join(make.webp.vp8x(5, 4, 0x08), make.webp.vp8, exif))) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [("webp lossy", False), ("webp lossless", True), ("webp extended", False), ("webp alpha", False)],
)
def test_is_lossless(samples: dict[str, bytes], name: str, *, expected: bool) -> None:
    assert is_lossless_webp(memoryview(samples[name])) is expected


@pytest.mark.parametrize("name", ["webp lossy", "webp lossless", "webp extended", "webp alpha"])
def test_read_size_needs_only_the_header(samples: dict[str, bytes], name: str) -> None:
    assert read_webp_size(memoryview(samples[name])[:30]) == Size(5, 4)


def test_animation_is_rejected_by_its_header(make: SimpleNamespace) -> None:
    animation = cv2.Animation()
    animation.frames, animation.durations = [make.bgr, 255 - make.bgr], [100, 100]
    data = cv2.imencodeanimation(".webp", animation)[1].tobytes()
    with UNSUPPORTED:
        read_webp_size(memoryview(data))
