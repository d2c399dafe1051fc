import contextlib
import struct
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec.sniff import MAX_SIDE_PX, ImageInfo, sniff_image
from app.face.errors import (
    ImageCorruptError,
    ImageEmptyError,
    ImageError,
    ImageFormatError,
    ImageTooLargeError,
    ImageTruncatedError,
)
from app.face.frame import Size

LIMIT = 24_000_000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("png colour", ImageInfo("png", Size(5, 4))),
        ("png interlaced", ImageInfo("png", Size(5, 4))),
        ("png animated", ImageInfo("png", Size(5, 4))),
        ("jpeg baseline", ImageInfo("jpeg", Size(5, 4))),
        ("jpeg progressive", ImageInfo("jpeg", Size(5, 4))),
        ("jpeg exif", ImageInfo("jpeg", Size(5, 4), exif_orientation=6)),
        ("webp lossy", ImageInfo("webp", Size(5, 4))),
        ("webp lossless", ImageInfo("webp", Size(5, 4))),
        ("webp extended", ImageInfo("webp", Size(5, 4))),
        ("webp alpha", ImageInfo("webp", Size(5, 4))),
    ],
)
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_sniff_complete_files(
    samples: dict[str, bytes], name: str, expected: ImageInfo, kind: Callable[[bytes], bytes | memoryview]
) -> None:
    assert sniff_image(kind(samples[name]), max_pixels=20) == expected
    with pytest.raises(ImageTooLargeError, match="20 pixels"):
        sniff_image(kind(samples[name]), max_pixels=19)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", pytest.raises(ImageEmptyError), id="nothing"),
        pytest.param(b"\x89", pytest.raises(ImageTruncatedError), id="a byte of PNG"),
        pytest.param(b"\x89PNG\r\n\x1a", pytest.raises(ImageTruncatedError), id="seven bytes of PNG"),
        pytest.param(b"\x89PNG\n\x1a\n\n", pytest.raises(ImageFormatError), id="PNG with its line ends translated"),
        pytest.param(b"\xff", pytest.raises(ImageTruncatedError), id="a byte of JPEG"),
        pytest.param(b"\xff\xd8", pytest.raises(ImageTruncatedError), id="two bytes of JPEG"),
        pytest.param(b"\xff\xd8\xff", pytest.raises(ImageTruncatedError), id="three bytes of JPEG"),
        pytest.param(b"\xff\xd8\0", pytest.raises(ImageFormatError), id="JPEG without a second marker"),
        pytest.param(b"RI", pytest.raises(ImageTruncatedError), id="two bytes of RIFF"),
        pytest.param(b"RIFF\0\0\0\0WE", pytest.raises(ImageTruncatedError), id="ten bytes of WebP"),
        pytest.param(b"RIFF\0\0\0\0WEBP", pytest.raises(ImageTruncatedError), id="twelve bytes of WebP"),
        pytest.param(b"RIFF\0\0\0\0WAVE", pytest.raises(ImageFormatError, match="unknown"), id="sound"),
        pytest.param(b"GIF89a", pytest.raises(ImageFormatError, match="GIF"), id="GIF"),
        pytest.param(b"BM\x36\0\0\0", pytest.raises(ImageFormatError, match="BMP"), id="BMP"),
        pytest.param(b"II*\0\x08\0\0\0", pytest.raises(ImageFormatError, match="TIFF"), id="TIFF"),
        pytest.param(b"\0\0\0\x18ftypheic", pytest.raises(ImageTruncatedError), id="start of HEIC"),
        pytest.param(b"\0\0\0\x20fty", pytest.raises(ImageTruncatedError), id="seven bytes of AVIF"),
        pytest.param(b"\0\0\0\x10ftypisom\0\0\0\0", pytest.raises(ImageFormatError, match="video"), id="MP4"),
        pytest.param(b"<svg xmlns=''/>", pytest.raises(ImageFormatError, match="SVG"), id="SVG"),
        pytest.param(b"iVBORw0KGgo=", pytest.raises(ImageFormatError, match="unknown"), id="base64"),
        pytest.param(bytes(64), pytest.raises(ImageFormatError), id="zeros"),
    ],
)
def test_sniff_other_bytes(data: bytes, expected: contextlib.AbstractContextManager[object]) -> None:
    with expected:
        sniff_image(data, max_pixels=LIMIT)


def test_messages_contain_no_file_content() -> None:
    with pytest.raises(ImageFormatError) as caught:
        sniff_image(b"SECRET BYTES OF A CALLER", max_pixels=LIMIT)
    assert "SECRET" not in str(caught.value)


def test_decompression_bomb_is_rejected_by_its_header(make: SimpleNamespace) -> None:
    side = 13_000
    data = make.png.join(make.png.ihdr(side, side), make.png.chunk(b"IDAT", make.png.zeros(162)), make.png.end)
    assert side * (side + 1) < 162 << 20
    assert side * side * 3 > 500_000_000
    assert len(data) < 236_000
    tracemalloc.start()
    with pytest.raises(ImageTooLargeError, match="13000 x 13000"):
        sniff_image(data, max_pixels=LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda m: m.png.join(m.png.ihdr(2**31 - 1, 2**31 - 1)), id="largest PNG"),
        pytest.param(lambda m: m.jpeg.patch(m.jpeg.whole, m.jpeg.sof, 1, b"\xff" * 4), id="largest JPEG"),
        pytest.param(lambda m: m.webp.join(m.webp.vp8x(2**24, 2**24)), id="largest WebP canvas"),
        pytest.param(lambda m: m.webp.join(m.webp.chunk(b"VP8L", b"\x2f\xff\xff\xff\x0f")), id="largest lossless WebP"),
        pytest.param(
            lambda m: m.webp.join(
                m.webp.chunk(b"VP8 ", m.webp.lossy[:6] + struct.pack("<HH", 16_383, 16_383) + bytes(99))
            ),
            id="largest lossy WebP",
        ),
        pytest.param(lambda m: m.png.join(m.png.ihdr(MAX_SIDE_PX + 1, 1)), id="wide"),
        pytest.param(lambda m: m.png.join(m.png.ihdr(1, MAX_SIDE_PX + 1)), id="high"),
    ],
)
def test_too_large_images_are_rejected(make: SimpleNamespace, build: Callable[[SimpleNamespace], bytes]) -> None:
    with pytest.raises(ImageTooLargeError):
        sniff_image(build(make), max_pixels=LIMIT)


def test_maximum_side_is_accepted(make: SimpleNamespace) -> None:
    assert sniff_image(make.png.join(make.png.ihdr(MAX_SIDE_PX, 1)), max_pixels=LIMIT).size == Size(MAX_SIDE_PX, 1)


def test_corrupt_header_is_reported_before_size(make: SimpleNamespace) -> None:
    with pytest.raises(ImageCorruptError):
        sniff_image(make.png.join(make.png.ihdr(2**31, 2**31)), max_pixels=LIMIT)


@given(
    st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"RIFF\xff\0\0\0WEBPVP8X\n\0\0\0"]
    ),
    st.binary(max_size=64),
)
def test_any_bytes_return_info_or_raise_image_error(start: bytes, rest: bytes) -> None:
    with contextlib.suppress(ImageError):
        info = sniff_image(start + rest, max_pixels=LIMIT)
        assert 0 < info.size.width * info.size.height <= LIMIT
        assert info.exif_orientation in range(1, 9)
