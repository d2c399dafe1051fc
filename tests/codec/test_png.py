import contextlib
import itertools
import time
import tracemalloc
import zlib
from collections.abc import Callable
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from app.codec import png
from app.codec.decode import decode_image, decode_label_image
from app.codec.decoding_policy import DecodingForbiddenError, limit_decoding
from app.codec.png import PngHeader, iter_chunks, read_png_header, strip_png, verify_png
from app.codec.sniff import ImageInfo, sniff_image, verify_structure
from app.face.errors import ImageCorruptError, ImageTruncatedError
from app.face.frame import Size

Context = contextlib.AbstractContextManager[object]

COMPLETE: Context = contextlib.nullcontext()
CORRUPT: Context = pytest.raises(ImageCorruptError)
TRUNCATED: Context = pytest.raises(ImageTruncatedError)
LEGAL = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
LIMIT = 24_000_000
KINDS = [
    (0, 1),
    (0, 2),
    (0, 4),
    (0, 8),
    (0, 16),
    (2, 8),
    (2, 16),
    (3, 1),
    (3, 2),
    (3, 4),
    (3, 8),
    (4, 8),
    (6, 8),
    (6, 16),
]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def test_read_header() -> None:
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\0\x80\x04\x03\0\0\1"
    header += zlib.crc32(header[12:]).to_bytes(4)
    assert read_png_header(memoryview(header)) == PngHeader(Size(256, 128), 4, 3, is_interlaced=True)


@pytest.mark.parametrize(("colour", "depth"), list(itertools.product(range(8), [0, 1, 2, 3, 4, 8, 16, 32])))
def test_read_header_checks_depth_against_colour_type(make: SimpleNamespace, colour: int, depth: int) -> None:
    data = make.png.join(make.png.ihdr(5, 4, depth, colour, 0, 0, 0))
    with COMPLETE if depth in LEGAL.get(colour, ()) else CORRUPT:
        assert read_png_header(memoryview(data)).bit_depth == depth


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(lambda png: png.join(png.ihdr(2**31 - 1, 1)), COMPLETE, id="widest"),
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
        pytest.param(lambda _: b"", TRUNCATED, id="empty"),
        pytest.param(lambda _: b"GIF8", CORRUPT, id="another signature"),
    ],
)
def test_read_header_table(make: SimpleNamespace, build: Callable[..., bytes], expected: Context) -> None:
    with expected:
        assert min(read_png_header(memoryview(build(make.png))).size) > 0


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(lambda p: p.join(p.head, p.data, p.end), COMPLETE, id="complete"),
        pytest.param(lambda p: p.join(p.head, p.data, p.end, b"more"), COMPLETE, id="bytes after the end"),
        pytest.param(lambda p: p.join(p.head, p.data, p.data, p.end), COMPLETE, id="data in two chunks"),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"IDAT"), p.data, p.chunk(b"IDAT"), p.end), COMPLETE, id="empty data too"
        ),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"tEXt", b"a\0b"), p.data, p.end), COMPLETE, id="text"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"zzZz"), p.data, p.end), COMPLETE, id="unknown, not critical"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"ZzZz"), p.data, p.end), CORRUPT, id="unknown, critical"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"a1Zz"), p.data, p.end), CORRUPT, id="kind is no letters"),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"\xe9\xe9\xe9\xe9"), p.data, p.end), CORRUPT, id="kind is not ASCII"
        ),
        pytest.param(lambda p: p.join(p.head, p.head, p.data, p.end), CORRUPT, id="second header"),
        pytest.param(lambda p: p.join(p.head, p.end), CORRUPT, id="no data"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"IDAT"), p.end), CORRUPT, id="empty data only"),
        pytest.param(lambda p: p.join(p.head, p.data, p.chunk(b"tEXt"), p.data, p.end), COMPLETE, id="data in pieces"),
        pytest.param(lambda p: p.join(p.head, p.data), TRUNCATED, id="no end"),
        pytest.param(lambda p: p.join(p.head), TRUNCATED, id="header only"),
        pytest.param(lambda p: p.join(p.head, p.data, p.chunk(b"IEND", b"x")), COMPLETE, id="end with content"),
        pytest.param(lambda p: p.join(p.head, p.data, p.end[:-1]), TRUNCATED, id="cut in the last checksum"),
        pytest.param(lambda p: p.join(p.head, b"\x7f\xff\xff\xffIDAT", p.data, p.end), TRUNCATED, id="longest chunk"),
        pytest.param(
            lambda p: p.join(p.head, b"\x80\0\0\0IDAT", p.data, p.end), CORRUPT, id="length above the format's"
        ),
        pytest.param(lambda p: p.join(p.head, b"\xff\xff\xff\xffIDAT", p.data, p.end), CORRUPT, id="length -1"),
        pytest.param(lambda p: p.join(p.head, b"\0\0\0\x80" + p.data[4:], p.end), TRUNCATED, id="chunk past the end"),
        pytest.param(lambda p: p.join(p.head, p.data[:-1] + b"\0", p.end), CORRUPT, id="checksum of data"),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"tEXt")[:-1] + b"\0", p.data, p.end), COMPLETE, id="checksum of text"
        ),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"PLTE", bytes(3)), p.data, p.end), COMPLETE, id="palette not needed"
        ),
        pytest.param(
            lambda p: p.join(p.head, p.data, p.chunk(b"PLTE", bytes(3)), p.end), COMPLETE, id="palette after data"
        ),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"PLTE"), p.data, p.end), COMPLETE, id="palette of nothing"),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"PLTE", bytes(4)), p.data, p.end), COMPLETE, id="palette of 4 bytes"
        ),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"PLTE", bytes(768)), p.data, p.end), COMPLETE, id="palette of 256"
        ),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"PLTE", bytes(771)), p.data, p.end), COMPLETE, id="palette of 257"
        ),
        pytest.param(
            lambda p: p.join(p.head, *[p.chunk(b"PLTE", bytes(3))] * 2, p.data, p.end), COMPLETE, id="two palettes"
        ),
        pytest.param(lambda p: p.join(p.ihdr(5, 4, 8, 3, 0, 0, 0), p.data, p.end), CORRUPT, id="palette missing"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"tEXt") * 1000, p.data, p.end), COMPLETE, id="many chunks"),
        pytest.param(lambda p: p.join(p.head, p.chunk(b"tEXt") * 1100, p.data, p.end), CORRUPT, id="too many chunks"),
        pytest.param(
            lambda p: p.join(p.head, p.chunk(b"tEXt", bytes(1020)) * 9000, p.data, p.end),
            COMPLETE,
            id="many large chunks",
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


def test_malformed_exif_is_upright(make: SimpleNamespace) -> None:
    data = make.png.build(make.grey, before=make.png.chunk(b"eXIf", b"MM nonsense"))
    assert verify_png(memoryview(data)) == 1


@pytest.mark.parametrize("name", ["png grey", "png palette"])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_verify_rejects_any_changed_byte(samples: dict[str, bytes], name: str, flip: int) -> None:
    whole = np.frombuffer(samples[name], np.uint8)
    for position in range(len(whole) - 4):  # libpng ignores the checksum of IEND
        changed = whole.copy()
        changed[position] ^= flip
        with pytest.raises((ImageCorruptError, ImageTruncatedError)):
            verify_png(memoryview(changed.tobytes()))


def test_damaged_ancillary_chunks_are_ignored(make: SimpleNamespace) -> None:
    exif = bytearray(make.png.chunk(b"eXIf", make.exif.tiff(6)))
    exif[-1] ^= 1
    data = make.png.build(make.grey, before=bytes(exif))
    assert verify_png(memoryview(data)) == 1


def test_first_group_of_image_data_must_be_complete(make: SimpleNamespace) -> None:
    stream = zlib.compress(make.png.raw(make.grey, 8))
    text, more = make.png.chunk(b"tEXt", b"a\0b"), make.png.chunk(b"IDAT", stream[9:])
    whole = make.png.join(make.png.head, make.png.chunk(b"IDAT", stream), text, more, make.png.end)
    assert verify_png(memoryview(whole)) == 1
    np.testing.assert_array_equal(decode_image(whole, ImageInfo("png", Size(5, 4)))[:, :, 0], make.grey)
    split = make.png.join(make.png.head, make.png.chunk(b"IDAT", stream[:9]), text, more, make.png.end)
    with CORRUPT:
        verify_png(memoryview(split))
    with limit_decoding(0), pytest.raises(DecodingForbiddenError):
        verify_png(memoryview(whole))


def noise(colour: int, depth: int, width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(width)
    samples = rng.integers(0, 1 << depth, (height, width, CHANNELS[colour]), dtype=np.uint16)
    return samples[:, :, 0] if CHANNELS[colour] == 1 else samples


def read(data: bytes | bytearray) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


@pytest.mark.parametrize(("colour", "depth"), KINDS)
@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 9), (13, 2), (61, 67)])
@pytest.mark.parametrize("is_stored", [False, True])
def test_stripping_keeps_every_pixel(  # noqa: PLR0913 - the product of all kinds of PNG
    monkeypatch: pytest.MonkeyPatch,
    make: SimpleNamespace,
    colour: int,
    depth: int,
    *,
    is_interlaced: bool,
    width: int,
    height: int,
    is_stored: bool,
) -> None:
    samples = noise(colour, depth, width, height)
    palette = bytes(range(3 << depth)) if colour == 3 and depth < 8 else bytes(range(256)) * 3 if colour == 3 else None
    extras = make.png.chunk(b"gAMA", b"\0\0\0\1") + make.png.chunk(b"tEXt", b"a\0b")
    data = make.png.build(
        samples, depth=depth, colour=colour, is_interlaced=is_interlaced, palette=palette, before=extras
    )
    if is_stored:
        monkeypatch.setattr(png, "_MAX_SURPLUS_BYTES", -(2**40))
        monkeypatch.setattr(png, "_MAX_BLOCK_BYTES", 100)
        monkeypatch.setattr(png, "_PIECE_BYTES", 37)
    stripped = strip_png(memoryview(data))
    kinds = [kind for kind, _, _ in iter_chunks(memoryview(stripped))]
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"} | ({b"PLTE"} if colour == 3 else set())
    assert (kinds.count(b"IDAT") > 1) is is_stored
    np.testing.assert_array_equal(read(stripped), read(data))


def test_large_photo_is_stored_with_the_same_pixels() -> None:
    photo = np.random.default_rng(0).integers(0, 40, (200, 300, 3), dtype=np.uint8)
    data = cv2.imencode(".png", photo)[1].tobytes()
    kinds = [kind for kind, _, _ in iter_chunks(memoryview(strip_png(memoryview(data))))]
    assert kinds.count(b"IDAT") >= 2 + 200 * 901 // 65_535
    np.testing.assert_array_equal(decode_image(data, sniff_image(data, max_pixels=LIMIT)), photo)


@pytest.mark.parametrize("surplus", [0, 1, 200_000])
def test_image_data_of_a_large_image_is_copied_as_it_is_if_it_has_no_surplus(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, surplus: int
) -> None:
    monkeypatch.setattr(png, "_MAX_COPIED_BYTES", 150_000)
    photo = np.random.default_rng(0).integers(0, 40, (200, 300, 3), dtype=np.uint8)
    data = make.png.build(photo, colour=2, raw=make.png.raw(photo, 8) + bytes(surplus))
    chunks = iter_chunks(memoryview(strip_png(memoryview(data))))
    assert ([kind for kind, _, _ in chunks].count(b"IDAT") == 1) is (surplus == 0)
    np.testing.assert_array_equal(decode_image(data, sniff_image(data, max_pixels=LIMIT))[..., ::-1], photo)


@pytest.mark.parametrize("length", [0, 1, 20, 23, 25, 1_000])
def test_missing_data_is_corrupt_and_surplus_data_is_ignored(make: SimpleNamespace, length: int) -> None:
    data = make.png.build(make.grey, raw=(make.png.raw(make.grey, 8) + bytes(1_000))[:length])
    info = verify_structure(data, sniff_image(data, max_pixels=LIMIT))
    if length < 24:
        with pytest.raises(ImageCorruptError):
            decode_image(data, info)
        with pytest.raises(ImageCorruptError):
            decode_label_image(data, info)
    else:
        np.testing.assert_array_equal(decode_label_image(data, info), make.grey)


@pytest.mark.parametrize("missing", [1, 901, 100_000])
@pytest.mark.parametrize("max_copied", [png._MAX_COPIED_BYTES, 0])
def test_missing_data_of_a_large_photo_is_corrupt(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, missing: int, max_copied: int
) -> None:
    monkeypatch.setattr(png, "_MAX_COPIED_BYTES", max_copied)
    photo = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    data = make.png.build(photo, colour=2, raw=make.png.raw(photo, 8)[:-missing])
    with pytest.raises(ImageCorruptError, match="as the header declares, got less"):
        decode_image(data, ImageInfo("png", Size(300, 200)))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x78", id="a byte"),
        pytest.param(b"not a zlib stream", id="no stream"),
        pytest.param(b"no zlib stream either" * 10_000, id="no stream, and large"),
        pytest.param(zlib.compress(bytes(24))[:-3], id="cut"),
        pytest.param(zlib.compress(bytes(24))[:-1] + b"\0", id="wrong checksum"),
        pytest.param(zlib.compress(bytes([9]) * 24), id="filter that does not exist"),
    ],
)
@pytest.mark.parametrize("max_copied", [png._MAX_COPIED_BYTES, 0])
def test_invalid_image_data_is_corrupt(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, content: bytes, max_copied: int
) -> None:
    monkeypatch.setattr(png, "_MAX_COPIED_BYTES", max_copied)
    data = make.png.join(make.png.head, make.png.chunk(b"IDAT", content), make.png.end)
    with pytest.raises(ImageCorruptError):
        decode_image(data, ImageInfo("png", Size(5, 4)))


@pytest.mark.parametrize("split", [None, 100_000, 40_000])
@pytest.mark.parametrize("max_copied", [png._MAX_COPIED_BYTES, 0])
def test_16_gb_after_the_last_row_are_not_inflated(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, split: int | None, max_copied: int
) -> None:
    monkeypatch.setattr(png, "_MAX_COPIED_BYTES", max_copied)
    stream = make.png.zeros(16 << 10)
    assert 16_000_000 < len(stream) < 18_000_000
    size = split or len(stream)
    chunks = (make.png.chunk(b"IDAT", stream[start : start + size]) for start in range(0, len(stream), size))
    data = make.png.join(make.png.head, *chunks, make.png.end)
    info = verify_structure(data, sniff_image(data, max_pixels=LIMIT))
    tracemalloc.start()
    started = time.process_time()
    pixels = decode_image(data, info)
    spent, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not pixels.any()
    assert spent < 1
    assert peak < 1 << 20


def test_compressed_text_and_profiles_are_removed(make: SimpleNamespace) -> None:
    bomb = b"note\0\0" + make.png.zeros(64)
    profile = b"profile\0\0" + make.png.zeros(64)
    before = make.png.chunk(b"iCCP", profile) + make.png.chunk(b"zTXt", bomb)
    data = make.png.build(make.grey, before=before, after=make.png.chunk(b"zTXt", bomb))
    assert len(strip_png(memoryview(data))) < 120
