import struct
import tracemalloc
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from app.codec.encode import encode_image
from app.codec.icc import MAX_PROFILE_BYTES, IccProfile, read_icc_profile
from app.codec.sniff import sniff_image, verify_structure


def make_profile(space: bytes = b"RGB ", size: int = 560, *, magic: bytes = b"acsp") -> bytes:
    """Build a profile with a valid header; the rest is arbitrary, because it is only passed on."""
    header = struct.pack(">I4sI4s4s", size, b"test", 0x04000000, b"mntr", space) + b"XYZ " + bytes(12) + magic
    return header.ljust(128, b"\0") + bytes(index % 251 for index in range(size - 128))


def embed(make: SimpleNamespace, kind: str, profile: bytes, *, part: int = 60_000) -> bytes:
    is_grey = profile[16:20] == b"GRAY"
    if kind == "jpeg":
        parts = [profile[start : start + part] for start in range(0, len(profile), part)]
        segments = [
            make.jpeg.segment(0xE2, b"ICC_PROFILE\0" + bytes([number, len(parts)]) + each)
            for number, each in enumerate(parts, 1)
        ]
        whole = make.jpeg.encode(make.grey) if is_grey else make.jpeg.whole
        return make.jpeg.insert(whole, b"".join(reversed(segments)))  # in any order
    if kind == "png":
        chunk = make.png.chunk(b"iCCP", b"P3\0\0" + zlib.compress(profile))
        return make.png.build(make.grey if is_grey else make.bgr, colour=0 if is_grey else 2, before=chunk)
    return make.webp.join(make.webp.vp8x(5, 4, 0x20), make.webp.chunk(b"ICCP", profile), make.webp.vp8)


def read(data: bytes) -> IccProfile | None:
    return read_icc_profile(data, verify_structure(data, sniff_image(data, max_pixels=10_000)))


KINDS = ["jpeg", "png", "webp"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [128, 560, 200_000])
@pytest.mark.parametrize("space", [b"RGB ", b"GRAY"])
def test_profiles_are_read(make: SimpleNamespace, kind: str, size: int, space: bytes) -> None:
    if (kind, space) == ("webp", b"GRAY"):
        pytest.skip("WebP has no grey images")
    profile = make_profile(space, size)
    assert read(embed(make, kind, profile)) == IccProfile(profile, "grey" if space == b"GRAY" else "rgb")


def test_profile_for_other_pixels_is_ignored(make: SimpleNamespace) -> None:
    def segment(space: bytes) -> bytes:
        return make.jpeg.segment(0xE2, b"ICC_PROFILE\0\1\1" + make_profile(space))

    assert read(make.jpeg.insert(make.jpeg.whole, segment(b"GRAY"))) is None
    assert read(make.jpeg.insert(make.jpeg.encode(make.grey), segment(b"RGB "))) is None
    assert read(embed(make, "webp", make_profile(b"GRAY"))) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"x" * 500, id="no profile"),
        pytest.param(make_profile()[:100], id="cut in the header"),
        pytest.param(make_profile()[:-1], id="cut"),
        pytest.param(make_profile(magic=b"ACSP"), id="no signature"),
        pytest.param(make_profile(b"CMYK"), id="CMYK"),
        pytest.param(make_profile(b"Lab "), id="Lab"),
        pytest.param(make_profile(size=MAX_PROFILE_BYTES + 1), id="too large"),
    ],
)
def test_unusable_profiles_are_ignored(make: SimpleNamespace, kind: str, profile: bytes) -> None:
    assert read(embed(make, kind, profile)) is None


def test_missing_part_of_a_jpeg_profile_is_ignored(make: SimpleNamespace) -> None:
    segment = make.jpeg.segment(0xE2, b"ICC_PROFILE\0\1\2" + make_profile())
    assert read(make.jpeg.insert(make.jpeg.whole, segment)) is None


def test_compressed_bomb_is_not_inflated(make: SimpleNamespace) -> None:
    data = make.png.build(make.grey, before=make.png.chunk(b"iCCP", b"bomb\0\0" + make.png.zeros(512)))
    tracemalloc.start()
    assert read(data) is None
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"name", b"name\0", b"name\0\1" + b"x" * 99, b"name\0\0no zlib stream"])
def test_malformed_png_profile_is_ignored(make: SimpleNamespace, content: bytes) -> None:
    assert read(make.png.build(make.grey, before=make.png.chunk(b"iCCP", content))) is None


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("space", "name"), [(b"RGB ", "rgb"), (b"GRAY", "grey")])
@pytest.mark.parametrize("size", [560, 200_000])
def test_encoded_images_have_the_profile(
    make: SimpleNamespace, channels: int, space: bytes, name: str, size: int
) -> None:
    profile = IccProfile(make_profile(space, size), name)
    pixels = np.dstack([make.grey] * 3 + [make.bgra[:, :, 3]] * (channels - 3))
    data = encode_image(pixels, profile).data
    assert read(data) == profile
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    plain = cv2.imdecode(np.frombuffer(encode_image(pixels).data, np.uint8), cv2.IMREAD_UNCHANGED)
    if channels == 4:
        np.testing.assert_array_equal(decoded, pixels)
        np.testing.assert_array_equal(plain, pixels)
    else:
        assert decoded.ndim == (2 if name == "grey" else 3)
