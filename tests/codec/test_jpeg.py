import contextlib
import io
import struct
from collections.abc import Callable
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from app.codec.decode import decode_image
from app.codec.decoding_policy import DecodingForbiddenError, limit_decoding
from app.codec.jpeg import read_jpeg_header, verify_jpeg
from app.codec.sniff import sniff_image, verify_structure
from app.face.errors import ImageCorruptError, ImageFormatError, ImageTruncatedError
from app.face.frame import Size

Context = contextlib.AbstractContextManager[object]

COMPLETE: Context = contextlib.nullcontext()
CORRUPT: Context = pytest.raises(ImageCorruptError)
TRUNCATED: Context = pytest.raises(ImageTruncatedError)
UNSUPPORTED: Context = pytest.raises(ImageFormatError)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((), id="baseline"),
        pytest.param((cv2.IMWRITE_JPEG_PROGRESSIVE, 1), id="progressive"),
        pytest.param((cv2.IMWRITE_JPEG_OPTIMIZE, 1), id="own tables"),
        pytest.param((cv2.IMWRITE_JPEG_RST_INTERVAL, 1), id="restart markers"),
        pytest.param((cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411), id="subsampled"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_complete_files_are_accepted_and_prefixes_rejected(
    make: SimpleNamespace, settings: tuple[int, ...], channels: int
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, channels), dtype=np.uint8)
    data = make.jpeg.encode(pixels, *settings)
    assert read_jpeg_header(memoryview(data)).size == Size(50, 40)
    assert verify_jpeg(memoryview(data)) == 1
    for end in range(len(data)):
        with pytest.raises(ImageTruncatedError):
            verify_jpeg(memoryview(data)[:end])


def test_sample_contains_restart_markers(make: SimpleNamespace) -> None:
    data = make.jpeg.encode(np.zeros((64, 64, 3), np.uint8), cv2.IMWRITE_JPEG_RST_INTERVAL, 1)
    assert all(bytes([0xFF, marker]) in data for marker in range(0xD0, 0xD8))


def test_end_of_a_thumbnail_is_ignored(make: SimpleNamespace) -> None:
    thumbnail = make.jpeg.encode(np.zeros((8, 8, 3), np.uint8))
    data = make.jpeg.insert(make.jpeg.whole, make.jpeg.segment(make.jpeg.app1, make.exif.app1() + thumbnail))
    header = read_jpeg_header(memoryview(data))
    assert (header.size, header.exif_orientation) == (Size(5, 4), 6)
    assert verify_jpeg(memoryview(data)) == 6
    with TRUNCATED:
        verify_jpeg(memoryview(data)[:-2])
    with TRUNCATED:
        verify_jpeg(memoryview(data)[: data.index(make.jpeg.eoi) + 2])


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(lambda j: j.whole, COMPLETE, id="complete"),
        pytest.param(lambda j: j.whole + b"\xff\xd8more", COMPLETE, id="bytes after the end"),
        pytest.param(lambda j: j.whole[:-2] + b"\xff\xff\xff\xd9", COMPLETE, id="filling before the end"),
        pytest.param(
            lambda j: j.insert(j.whole, b"\xff\xff\xff", before=j.dht), COMPLETE, id="filling before a segment"
        ),
        pytest.param(lambda j: j.insert(j.whole, j.segment(j.com), before=j.dht), COMPLETE, id="empty comment"),
        pytest.param(lambda j: j.whole[:-2] + j.segment(j.com, b"x") + j.eoi, COMPLETE, id="segment after the scan"),
        pytest.param(lambda j: j.insert(j.whole, j.segment(j.com, b"x\xff\xd9")), COMPLETE, id="end inside a comment"),
        pytest.param(lambda j: j.drop(j.whole, j.sof), CORRUPT, id="no frame"),
        pytest.param(lambda j: j.drop(j.whole, j.sos), CORRUPT, id="no scan header"),
        pytest.param(lambda j: j.join(j.split(j.whole)[0][:-1], j.eoi), CORRUPT, id="no scan"),
        pytest.param(lambda j: j.join(j.split(j.whole)[0], j.eoi), CORRUPT, id="scan of nothing"),
        pytest.param(lambda j: j.whole[:-2], TRUNCATED, id="no end"),
        pytest.param(lambda j: j.whole[:-1], TRUNCATED, id="half an end"),
        pytest.param(lambda j: j.whole[:-2] + b"\xff" * 9, TRUNCATED, id="filling instead of the end"),
        pytest.param(lambda j: b"\xff\xd8" + j.eoi, CORRUPT, id="start and end"),
        pytest.param(lambda j: b"\xff\xd8" + j.whole, CORRUPT, id="two starts"),
        pytest.param(lambda j: j.whole[:-2] + j.whole, COMPLETE, id="another image instead of the end"),
        pytest.param(lambda j: j.whole[:-30] + b"\xff\x02" + j.whole[-28:], CORRUPT, id="reserved marker in the scan"),
        pytest.param(lambda j: j.insert(j.whole, b"\0\0", before=j.dht), COMPLETE, id="garbage between"),
        pytest.param(lambda j: j.insert(j.whole, b"\xff\0", before=j.dht), COMPLETE, id="marker 00 between"),
        pytest.param(lambda j: j.insert(j.whole, b"\xff\xd0", before=j.dht), COMPLETE, id="restart between"),
        pytest.param(lambda j: j.insert(j.whole, b"\xff\xe1\0\1"), COMPLETE, id="segment of length 1"),
        pytest.param(lambda j: j.insert(j.whole, b"\xff\xe1\0\0"), COMPLETE, id="segment of length 0"),
        pytest.param(lambda j: j.whole[:2] + b"\xff\xe1\xff\xff" + j.whole[2:], TRUNCATED, id="segment past the end"),
        pytest.param(
            lambda j: j.insert(j.whole, j.segment(*j.split(j.whole)[0][3]), before=j.sos), CORRUPT, id="two frames"
        ),
        pytest.param(lambda j: j.patch(j.whole, j.sof, 0, b"\x0c"), UNSUPPORTED, id="12 bits"),
        pytest.param(lambda j: j.patch(j.whole, j.sof, 1, b"\0\0"), CORRUPT, id="height 0"),
        pytest.param(lambda j: j.patch(j.whole, j.sof, 3, b"\0\0"), CORRUPT, id="width 0"),
        pytest.param(lambda j: j.patch(j.whole, j.sof, 5, b"\4"), CORRUPT, id="more components than there are"),
        pytest.param(lambda j: j.patch(j.whole, j.sof, 7, b"\0"), CORRUPT, id="sampling 0 x 0"),
        pytest.param(lambda j: j.patch(j.whole, j.sof, 7, b"\x51"), CORRUPT, id="sampling 5 x 1"),
        pytest.param(lambda j: j.patch(j.whole, j.sof, 6, b"\x77"), CORRUPT, id="scan of another component"),
        pytest.param(lambda j: j.patch(j.whole, j.sos, 0, b"\2"), CORRUPT, id="scan header too long"),
        pytest.param(lambda j: j.patch(j.whole, j.sos, 3, b"\1"), CORRUPT, id="component without a scan"),
        pytest.param(lambda j: j.insert(j.whole, j.segment(j.sos), before=j.sos), CORRUPT, id="empty scan header"),
        pytest.param(lambda j: j.insert(j.whole, j.segment(j.sof), before=j.sof), CORRUPT, id="empty frame header"),
        pytest.param(lambda j: j.whole.replace(b"\xff\xc0", b"\xff\xc3"), UNSUPPORTED, id="lossless"),
        pytest.param(lambda j: j.whole.replace(b"\xff\xc0", b"\xff\xc9"), UNSUPPORTED, id="arithmetic"),
        pytest.param(lambda j: j.whole.replace(b"\xff\xc0", b"\xff\xcf"), UNSUPPORTED, id="hierarchical"),
        pytest.param(lambda j: j.insert(j.whole, j.segment(j.com) * 1_100), CORRUPT, id="too many segments"),
        pytest.param(
            lambda j: j.join(
                j.split(j.whole)[0], (b"\x55" + j.segment(*j.split(j.whole)[0][-1])) * 101 + b"\x55" + j.eoi
            ),
            CORRUPT,
            id="too many scans",
        ),
    ],
)
def test_verify_table(make: SimpleNamespace, build: Callable[..., bytes], expected: Context) -> None:
    with expected:
        assert verify_jpeg(memoryview(build(make.jpeg))) == 1


@pytest.fixture
def photo() -> np.ndarray:
    """Return smooth noise: no part of its scan can be missing without a difference in the pixels."""
    noise = np.random.default_rng(5).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1)


# In place of the end marker, or after bytes without one.
TRAILERS = [
    pytest.param(b"\0\0\1\nImage_UTC_Data1700000000000SEFHe\0\0\0\1\0\0\0SEFT", id="Samsung"),
    pytest.param(b"\xff\xd8\xff\xe0\0\4ab", id="another image"),
    pytest.param(b"\0" * 32 + b"\xff\xe1\xff\xff", id="segment past the end"),
    pytest.param(b"\xff\2reserved marker", id="reserved marker"),
    pytest.param(b"\0\0\0\x18ftypmp42" + bytes(1_000), id="video"),
]
SEQUENTIAL = [(), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1), (cv2.IMWRITE_JPEG_OPTIMIZE, 1)]


@pytest.mark.parametrize("trailer", TRAILERS)
@pytest.mark.parametrize("settings", SEQUENTIAL)
def test_complete_scan_without_end_marker_is_complete(
    make: SimpleNamespace, photo: np.ndarray, settings: tuple[int, ...], trailer: bytes
) -> None:
    whole = make.jpeg.encode(photo, *settings)
    assert verify_jpeg(memoryview(whole[:-2] + trailer)) == 1
    assert verify_jpeg(memoryview(whole + trailer)) == 1
    cut = whole[: -len(whole) // 3]
    with pytest.raises((ImageCorruptError, ImageTruncatedError)):
        verify_jpeg(memoryview(cut + trailer[:40]))
    with limit_decoding(0), pytest.raises(DecodingForbiddenError):
        verify_jpeg(memoryview(whole[:-2] + trailer))


@pytest.mark.parametrize("inserted", [b"\xff\2", b"\xff\xa6more\xff\0", b"\xff\2\xff\2"])
def test_reserved_marker_before_a_restart_marker_is_skipped(
    make: SimpleNamespace, photo: np.ndarray, inserted: bytes
) -> None:
    whole = make.jpeg.encode(photo, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
    at = whole.index(b"\xff\xd3")
    damaged = whole[:at] + inserted + whole[at:]
    assert verify_jpeg(memoryview(damaged)) == 1
    pixels = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in (whole, damaged)]
    np.testing.assert_array_equal(*pixels)
    end = whole.index(b"\xff", at + 2)  # of the data after the restart marker, in which more would be lost
    with pytest.raises(ImageCorruptError):
        verify_jpeg(memoryview(whole[:at] + (b"\xff\2" + whole[at:end]) * 17 + whole[at:]))


@pytest.mark.parametrize("trailer", TRAILERS)
def test_progressive_image_needs_its_end_marker(make: SimpleNamespace, photo: np.ndarray, trailer: bytes) -> None:
    whole = make.jpeg.encode(photo, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert verify_jpeg(memoryview(whole + trailer)) == 1
    with pytest.raises((ImageCorruptError, ImageTruncatedError)):
        verify_jpeg(memoryview(whole[:-2] + trailer))


@pytest.mark.parametrize("inserted", [b"x" * 608, b"\xff\0\xff\1\xff\xd3", b"\xff\xff", b"\0"])
@pytest.mark.parametrize("settings", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
def test_bytes_before_any_marker_are_skipped(
    make: SimpleNamespace, photo: np.ndarray, settings: tuple[int, ...], inserted: bytes
) -> None:
    whole = make.jpeg.encode(photo, *settings)
    whole = make.jpeg.insert(whole, make.jpeg.segment(make.jpeg.com, b"note") + inserted, before=make.jpeg.dqt)
    assert verify_jpeg(memoryview(whole)) == 1
    assert read_jpeg_header(memoryview(whole)).size == Size(80, 64)


def test_fourth_segment_of_the_sample_is_the_frame(make: SimpleNamespace) -> None:
    assert make.jpeg.split(make.jpeg.whole)[0][3][0] == make.jpeg.sof


def test_100_scans_are_accepted(make: SimpleNamespace) -> None:
    segments, _ = make.jpeg.split(make.jpeg.whole)
    again = b"\x55" + make.jpeg.segment(*segments[-1])
    assert verify_jpeg(memoryview(make.jpeg.join(segments, again * 99 + b"\x55" + make.jpeg.eoi))) == 1


@pytest.mark.parametrize(("side", "allowed"), [(2_000, 100), (4_000, 25), (8_000, 16)])
def test_scan_limit_depends_on_the_image_size(make: SimpleNamespace, side: int, allowed: int) -> None:
    data = bytearray(make.jpeg.whole)
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = side.to_bytes(2) * 2
    segments, _ = make.jpeg.split(bytes(data))
    scan = b"\x55" + make.jpeg.segment(*segments[-1])
    assert verify_jpeg(memoryview(make.jpeg.join(segments, scan * (allowed - 1) + b"\x55" + make.jpeg.eoi))) == 1
    with pytest.raises(ImageCorruptError, match=f"at most {allowed} scans"):
        verify_jpeg(memoryview(make.jpeg.join(segments, scan * allowed + b"\x55" + make.jpeg.eoi)))


@pytest.mark.parametrize("before", [None, 0xDA])
@pytest.mark.parametrize("order", ["<", ">"])
def test_verify_finds_orientation(make: SimpleNamespace, before: int | None, order: str) -> None:
    xmp = make.jpeg.segment(make.jpeg.app1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    exif = make.jpeg.segment(make.jpeg.app1, make.exif.app1(make.exif.tiff(3, order=order)))
    later = make.jpeg.segment(make.jpeg.app1, make.exif.app1(make.exif.tiff(8, order=order)))
    data = make.jpeg.insert(make.jpeg.whole, xmp + exif + later, before=before)
    assert verify_jpeg(memoryview(data)) == 3
    assert read_jpeg_header(memoryview(data)).exif_orientation == (3 if before is None else 1)


@pytest.mark.parametrize("exif", [b"", b"Exif\0", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0"])
def test_malformed_exif_is_upright(make: SimpleNamespace, exif: bytes) -> None:
    data = make.jpeg.insert(make.jpeg.whole, make.jpeg.segment(make.jpeg.app1, exif))
    assert read_jpeg_header(memoryview(data)).exif_orientation == 1
    assert verify_jpeg(memoryview(data)) == 1


def test_read_header_needs_only_the_frame_header(make: SimpleNamespace) -> None:
    frame_end = make.jpeg.whole.index(b"\xff\xc0") + 19
    assert read_jpeg_header(memoryview(make.jpeg.whole)[:frame_end]).size == Size(5, 4)
    with TRUNCATED:
        read_jpeg_header(memoryview(make.jpeg.whole)[: frame_end - 1])
    with CORRUPT:
        read_jpeg_header(memoryview(make.jpeg.drop(make.jpeg.whole, make.jpeg.sof)))


def test_files_of_several_images_are_read_as_the_first_one(make: SimpleNamespace) -> None:
    first = np.full((64, 64, 3), 200, np.uint8)
    burst = io.BytesIO()
    images = [Image.fromarray(first), Image.new("RGB", (32, 32)), Image.new("RGB", (128, 128))]
    images[0].save(burst, "MPO", save_all=True, append_images=images[1:])
    jpeg = make.jpeg.encode(first)
    index = make.jpeg.segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\0\0")
    video = struct.pack(">I", 24) + b"ftypmp42" + bytes(12)
    for data in (
        burst.getvalue(),
        make.jpeg.insert(jpeg, index) + make.jpeg.encode(first[:16, :16]),
        jpeg + b"\xff\xd9",
        jpeg + video,
    ):
        info = verify_structure(data, sniff_image(data, max_pixels=4_096))
        assert info.size == Size(64, 64)
        assert np.abs(decode_image(data, info).astype(int) - 200).max() < 3
