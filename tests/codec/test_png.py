import contextlib
import itertools
import zlib
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from app.codec.png import PngHeader, read_png_header, verify_png
from app.face.errors import ImageCorruptError, ImageTruncatedError
from app.face.frame import Size

Context = contextlib.AbstractContextManager[object]

WHOLE: Context = contextlib.nullcontext()
CORRUPT: Context = pytest.raises(ImageCorruptError)
TRUNCATED: Context = pytest.raises(ImageTruncatedError)
LEGAL = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}


def test_read_header() -> None:
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\0\x80\x04\x03\0\0\1"
    header += zlib.crc32(header[12:]).to_bytes(4)
    assert read_png_header(memoryview(header)) == PngHeader(Size(256, 128), 4, 3, is_interlaced=True)


@pytest.mark.parametrize(("colour", "depth"), list(itertools.product(range(8), [0, 1, 2, 3, 4, 8, 16, 32])))
def test_read_header_checks_depth_against_colour_type(make: SimpleNamespace, colour: int, depth: int) -> None:
    data = make.png.join(make.png.ihdr(5, 4, depth, colour, 0, 0, 0))
    with WHOLE if depth in LEGAL.get(colour, ()) else CORRUPT:
        assert read_png_header(memoryview(data)).bit_depth == depth


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(lambda png: png.join(png.ihdr(2**31 - 1, 1)), WHOLE, id="widest"),
        pytest.param(lambda png: png.join(png.ihdr(0, 4)), CORRUPT, id="no width"),
        pytest.param(lambda png: png.join(png.ihdr(5, 0)), CORRUPT, id="no height"),
        pytest.param(lambda png: png.join(png.ihdr(2**31, 4)), CORRUPT, id="width above the format's"),
        pytest.param(lambda png: png.join(png.ihdr(5, 2**32 - 1)), CORRUPT, id="height above the format's"),
        pytest.param(lambda png: png.join(png.ihdr(5, 4, 8, 0, 1, 0, 0)), CORRUPT, id="compression method"),
        pytest.param(lambda png: png.join(png.ihdr(5, 4, 8, 0, 0, 1, 0)), CORRUPT, id="filter method"),
        pytest.param(lambda png: png.join(png.ihdr(5, 4, 8, 0, 0, 0, 2)), CORRUPT, id="interlace method"),
        pytest.param(lambda png: png.join(png.chunk(b"IHDR", bytes(12)), png.end), CORRUPT, id="length 12"),
        pytest.param(lambda png: png.join(png.chunk(b"IHDR", bytes(14))), CORRUPT, id="length 14"),
        pytest.param(lambda png: png.join(png.chunk(b"IDAT", bytes(13))), CORRUPT, id="another chunk first"),
        pytest.param(lambda png: png.join(png.ihdr())[:-1] + b"\0", CORRUPT, id="checksum"),
        pytest.param(lambda png: png.join(png.ihdr())[:-1], TRUNCATED, id="cut in the checksum"),
        pytest.param(lambda png: b"\x89PNG\n\x1a\n\n" + png.ihdr(), CORRUPT, id="line ends translated"),
        pytest.param(lambda _: b"\x89PNG", TRUNCATED, id="half a signature"),
        pytest.param(lambda _: b"", TRUNCATED, id="nothing"),
        pytest.param(lambda _: b"GIF8", CORRUPT, id="another signature"),
    ],
)
def test_read_header_table(make: SimpleNamespace, build: Callable[..., bytes], expected: Context) -> None:
    with expected:
        assert min(read_png_header(memoryview(build(make.png))).size) > 0


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(lambda p: p.join(p.head, p.data, p.end), WHOLE, id="whole"),
        pytest.param(lambda p: p.join(p.head, p.data, p.end, b"more"), WHOLE, id="bytes after the end"),
        pytest.param(lambda p: p.join(p.head, p.data, p.data, p.end), WHOLE, id="data in two chunks"),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"IDAT"), p.data, p.chunk(b"IDAT"), p.end), WHOLE, id="empty data too"
        ),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"tEXt", b"a\0b"), p.data, p.end), WHOLE, id="text"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"zzZz"), p.data, p.end), WHOLE, id="unknown, not critical"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"ZzZz"), p.data, p.end), CORRUPT, id="unknown, critical"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"a1Zz"), p.data, p.end), CORRUPT, id="kind is no letters"),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"\xe9\xe9\xe9\xe9"), p.data, p.end), CORRUPT, id="kind is not ASCII"
        ),
        pytest.param(lambda p: p.join(p.head, p.head, p.data, p.end), CORRUPT, id="second header"),
        pytest.param(lambda p: p.join(p.head, p.end), CORRUPT, id="no data"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"IDAT"), p.end), CORRUPT, id="empty data only"),
        pytest.param(lambda p: p.join(p.head, p.data, p.chunk(b"tEXt"), p.data, p.end), CORRUPT, id="data in pieces"),
        pytest.param(lambda p: p.join(p.head, p.data), TRUNCATED, id="no end"),
        pytest.param(lambda p: p.join(p.head), TRUNCATED, id="header only"),
        pytest.param(lambda p: p.join(p.head, p.data, p.chunk(b"IEND", b"x")), CORRUPT, id="end with content"),
        pytest.param(lambda p: p.join(p.head, p.data, p.end[:-1]), TRUNCATED, id="cut in the last checksum"),
        pytest.param(lambda p: p.join(p.head, b"\x7f\xff\xff\xffIDAT", p.data, p.end), TRUNCATED, id="longest chunk"),
        pytest.param(
            lambda p: p.join(p.head, b"\x80\0\0\0IDAT", p.data, p.end), CORRUPT, id="length above the format's"
        ),
        pytest.param(lambda p: p.join(p.head, b"\xff\xff\xff\xffIDAT", p.data, p.end), CORRUPT, id="length -1"),
        pytest.param(lambda p: p.join(p.head, b"\0\0\0\x80" + p.data[4:], p.end), TRUNCATED, id="chunk past the end"),
        pytest.param(lambda p: p.join(p.head, p.data[:-1] + b"\0", p.end), CORRUPT, id="checksum of data"),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"tEXt")[:-1] + b"\0", p.data, p.end), CORRUPT, id="checksum of text"
        ),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"PLTE", bytes(3)), p.data, p.end), WHOLE, id="palette not needed"
        ),
        pytest.param(
            lambda p: p.join(p.head, p.data, p.chunk(b"PLTE", bytes(3)), p.end), CORRUPT, id="palette after data"
        ),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"PLTE"), p.data, p.end), CORRUPT, id="palette of nothing"),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"PLTE", bytes(4)), p.data, p.end), CORRUPT, id="palette of 4 bytes"
        ),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"PLTE", bytes(768)), p.data, p.end), WHOLE, id="palette of 256"),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"PLTE", bytes(771)), p.data, p.end), CORRUPT, id="palette of 257"
        ),
        pytest.param(
            lambda p: p.join(p.head, *[p.chunk(b"PLTE", bytes(3))] * 2, p.data, p.end), CORRUPT, id="two palettes"
        ),
        pytest.param(lambda p: p.join(p.ihdr(5, 4, 8, 3, 0, 0, 0), p.data, p.end), CORRUPT, id="palette missing"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"tEXt") * 1000, p.data, p.end), WHOLE, id="many chunks"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"tEXt") * 1100, p.data, p.end), CORRUPT, id="too many chunks"),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"tEXt", bytes(1020)) * 9000, p.data, p.end), WHOLE, id="many large chunks"
        ),
    ],
)
def test_verify_table(make: SimpleNamespace, build: Callable[..., bytes], expected: Context) -> None:
    with expected:
        assert verify_png(memoryview(build(make.png))) == 1


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_verify_finds_orientation(make: SimpleNamespace, place: str, order: str) -> None:
    chunk = make.png.chunk(b"eXIf", make.exif.tiff(8, order=order))
    data = make.png.build(make.grey, **{place: chunk + make.png.chunk(b"eXIf", make.exif.tiff(3))})
    assert verify_png(memoryview(data)) == 8


def test_verify_takes_malformed_exif_as_upright(make: SimpleNamespace) -> None:
    data = make.png.build(make.grey, before=make.png.chunk(b"eXIf", b"MM nonsense"))
    assert verify_png(memoryview(data)) == 1


@pytest.mark.parametrize("name", ["png grey", "png palette", "png exif", "png animated"])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_verify_refuses_any_changed_byte(samples: dict[str, bytes], name: str, flip: int) -> None:
    whole = np.frombuffer(samples[name], np.uint8)
    for position in range(len(whole)):
        changed = whole.copy()
        changed[position] ^= flip
        with pytest.raises((ImageCorruptError, ImageTruncatedError)):
            verify_png(memoryview(changed.tobytes()))
