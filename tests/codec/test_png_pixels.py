import time
import tracemalloc
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from app.codec import png_pixels
from app.codec.decode import decode_image, decode_label_image
from app.codec.png import iter_chunks
from app.codec.png_pixels import strip_png
from app.codec.sniff import ImageInfo, sniff_image
from app.codec.verify import verify_structure
from app.face.errors import ImageCorruptError
from app.face.frame import Size

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
def test_stripping_changes_no_pixel(  # noqa: PLR0913 -- the product of all kinds of PNG
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
        monkeypatch.setattr(png_pixels, "_MAX_SURPLUS_BYTES", -(2**40))
        monkeypatch.setattr(png_pixels, "_MAX_BLOCK_BYTES", 100)
        monkeypatch.setattr(png_pixels, "_PIECE_BYTES", 37)
    stripped = strip_png(memoryview(data))
    kinds = [kind for kind, _, _ in iter_chunks(memoryview(stripped))]
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"} | ({b"PLTE"} if colour == 3 else set())
    assert (kinds.count(b"IDAT") > 1) is is_stored
    np.testing.assert_array_equal(read(stripped), read(data))


def test_large_photo_is_stored_and_keeps_its_pixels() -> None:
    photo = np.random.default_rng(0).integers(0, 40, (200, 300, 3), dtype=np.uint8)
    data = cv2.imencode(".png", photo)[1].tobytes()
    kinds = [kind for kind, _, _ in iter_chunks(memoryview(strip_png(memoryview(data))))]
    assert kinds.count(b"IDAT") >= 2 + 200 * 901 // 65_535
    np.testing.assert_array_equal(decode_image(data, sniff_image(data, max_pixels=LIMIT)), photo)


@pytest.mark.parametrize("length", [0, 1, 20, 23, 25, 1_000])
def test_too_little_is_corrupt_and_too_much_is_ignored(make: SimpleNamespace, length: int) -> None:
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
def test_too_little_of_a_large_photo_is_corrupt(make: SimpleNamespace, missing: int) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    data = make.png.build(photo, colour=2, raw=make.png.raw(photo, 8)[:-missing])
    with pytest.raises(ImageCorruptError, match="less than its header"):
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
def test_image_data_that_is_none(make: SimpleNamespace, content: bytes) -> None:
    data = make.png.join(make.png.head, make.png.chunk(b"IDAT", content), make.png.end)
    with pytest.raises(ImageCorruptError):
        decode_image(data, ImageInfo("png", Size(5, 4)))


@pytest.mark.parametrize("split", [None, 100_000, 40_000])
def test_sixteen_gigabytes_behind_the_last_row_cost_nothing(make: SimpleNamespace, split: int | None) -> None:
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


def test_compressed_text_is_not_passed_on(make: SimpleNamespace) -> None:
    bomb = b"note\0\0" + make.png.zeros(64)
    profile = b"profile\0\0" + make.png.zeros(64)
    before = make.png.chunk(b"iCCP", profile) + make.png.chunk(b"zTXt", bomb)
    data = make.png.build(make.grey, before=before, after=make.png.chunk(b"zTXt", bomb))
    assert len(strip_png(memoryview(data))) < 120
