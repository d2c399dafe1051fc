import io
import struct
import tracemalloc
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from app.codec.encode import encode_image
from app.codec.icc import MAX_PROFILE_BYTES, IccProfile, make_rgb_profile, read_icc_profile
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


SRGB = ImageCms.createProfile("sRGB")


def to_srgb(profile: bytes, rgb: tuple[int, int, int]) -> tuple[int, ...]:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    image = Image.new("RGB", (1, 1), rgb)
    converted = ImageCms.profileToProfile(image, source, SRGB, ImageCms.Intent.RELATIVE_COLORIMETRIC)
    assert converted is not None
    pixel = converted.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


# From linear colours of the primaries to those of sRGB: CSS Color 4 (Display P3) and ITU-R BT.2087 (BT.2020).
MATRICES = {
    1: np.eye(3),
    9: np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]),
    12: np.array([[1.2249, -0.2249, 0], [-0.0420, 1.0420, 0], [-0.0197, -0.0786, 1.0983]]),
}
EXPONENTS = {4: 2.2, 8: 1.0}


@pytest.mark.parametrize("rgb", [(200, 120, 90), (120, 140, 100), (128, 128, 128), (90, 100, 160)])
@pytest.mark.parametrize(("primaries", "transfer"), [(12, 13), (12, 1), (9, 13), (9, 4), (1, 8), (1, 4)])
def test_named_colours_become_a_profile(primaries: int, transfer: int, rgb: tuple[int, int, int]) -> None:
    samples = np.array(rgb) / 255
    srgb = np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)
    linear = MATRICES[primaries] @ (samples ** EXPONENTS[transfer] if transfer in EXPONENTS else srgb)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)
    assert to_srgb(make_rgb_profile(primaries, transfer), rgb) == pytest.approx(np.clip(expected, 0, 255), abs=2)


@pytest.mark.parametrize(("primaries", "transfer"), [(1, 13), (1, 1), (2, 2), (9, 16), (9, 18), (1, 16), (99, 13)])
def test_srgb_unknown_colours_and_hdr_have_no_profile(primaries: int, transfer: int) -> None:
    assert make_rgb_profile(primaries, transfer) == b""


@pytest.mark.parametrize("kind", ["colour", "heic"])
def test_profile_of_avif_and_heic(make: SimpleNamespace, kind: str) -> None:
    builder = make.isobmff
    brands = b"heic\0\0\0\0mif1heic" if kind == "heic" else b"avif\0\0\0\0avifmif1miaf"

    def read_with(*properties: bytes) -> IccProfile | None:
        return read(builder.join(getattr(builder, kind)(*properties), brands=brands))

    assert read_with() is None
    assert read_with(builder.nclx(1)) is None
    assert read_with(builder.nclx(12)) == IccProfile(make_rgb_profile(12, 13), "rgb")
    own = make_profile()
    assert read_with(builder.nclx(12), builder.icc(own)) == IccProfile(own, "rgb")


def test_named_colours_of_png(make: SimpleNamespace) -> None:
    chunk = make.png.chunk
    named, own = chunk(b"cICP", bytes([12, 13, 0, 1])), chunk(b"iCCP", b"own\0\0" + zlib.compress(make_profile()))
    expected = IccProfile(make_rgb_profile(12, 13), "rgb")
    assert read(make.png.build(make.bgr, colour=2, before=named)) == expected
    assert read(make.png.build(make.bgr, colour=2, before=own + named)) == expected
    assert read(make.png.build(make.bgr, colour=2, before=chunk(b"cICP", bytes([1, 13, 0, 1])))) is None
    assert read(make.png.build(make.grey, before=named)) is None
