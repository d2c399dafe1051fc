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


def make_chrm(primaries: tuple[float, ...], white: tuple[float, float] = (0.3127, 0.3290)) -> bytes:
    return struct.pack(">8I", *(round(100_000 * value) for value in (*white, *primaries)))


GAMA_LINEAR, GAMA_SRGB = struct.pack(">I", 100_000), struct.pack(">I", 45_455)
CHRM_P3, CHRM_SRGB = make_chrm((0.68, 0.32, 0.265, 0.69, 0.15, 0.06)), make_chrm((0.64, 0.33, 0.3, 0.6, 0.15, 0.06))


@pytest.mark.parametrize("rgb", [(200, 120, 90), (120, 140, 100), (128, 128, 128)])
@pytest.mark.parametrize(
    ("gama", "chrm", "numbers"),
    [
        pytest.param(GAMA_LINEAR, b"", (1, 8), id="linear"),
        pytest.param(GAMA_LINEAR, CHRM_SRGB, (1, 8), id="linear with the primaries of sRGB"),
        pytest.param(GAMA_SRGB, CHRM_P3, (12, 13), id="P3 with about the curve of sRGB"),
        pytest.param(b"", CHRM_P3, (12, 13), id="P3 alone"),
        pytest.param(GAMA_LINEAR, CHRM_P3, (12, 8), id="linear P3"),
    ],
)
def test_exponent_and_chromaticities_of_png_become_a_profile(
    make: SimpleNamespace, gama: bytes, chrm: bytes, numbers: tuple[int, int], rgb: tuple[int, int, int]
) -> None:
    chunks = [(b"gAMA", gama), (b"cHRM", chrm)]
    before = b"".join(make.png.chunk(kind, content) for kind, content in chunks if content)
    profile = read(make.png.build(make.bgr, colour=2, before=before))
    assert profile is not None
    assert profile.space == "rgb"
    expected = make_rgb_profile(*numbers)
    assert to_srgb(profile.data, rgb) == pytest.approx(to_srgb(expected, rgb), abs=1)


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([(b"gAMA", GAMA_SRGB), (b"cHRM", CHRM_SRGB)], id="sRGB"),
        pytest.param([(b"sRGB", b"\0"), (b"gAMA", GAMA_LINEAR), (b"cHRM", CHRM_P3)], id="sRGB takes precedence"),
        pytest.param([(b"cICP", bytes([1, 13, 0, 1])), (b"gAMA", GAMA_LINEAR)], id="cICP takes precedence"),
        pytest.param([(b"gAMA", bytes(4))], id="exponent 0"),
        pytest.param([(b"gAMA", b"\xff" * 4)], id="huge exponent"),
        pytest.param([(b"gAMA", b"\0\0\0\1")], id="tiny exponent"),
        pytest.param([(b"gAMA", GAMA_LINEAR[:3])], id="short gAMA"),
        pytest.param([(b"cHRM", CHRM_P3[:-1])], id="short cHRM"),
        pytest.param([(b"cHRM", bytes(32))], id="chromaticities 0"),
        pytest.param([(b"cHRM", b"\xff" * 32)], id="huge chromaticities"),
        pytest.param([(b"cHRM", make_chrm((0.3, 0.3) * 3))], id="primaries of one colour"),
        pytest.param([(b"cHRM", make_chrm((0.64, 0.33, 0.3, 0.6, 0.15, 0.06), (0.7, 0.2)))], id="white outside"),
    ],
)
def test_srgb_and_malformed_colours_of_png_have_no_profile(
    make: SimpleNamespace, chunks: list[tuple[bytes, bytes]]
) -> None:
    before = b"".join(make.png.chunk(kind, content) for kind, content in chunks)
    assert read(make.png.build(make.bgr, colour=2, before=before)) is None


def test_profile_of_png_takes_precedence_over_its_exponent(make: SimpleNamespace) -> None:
    own = make.png.chunk(b"iCCP", b"own\0\0" + zlib.compress(make_profile()))
    before = make.png.chunk(b"gAMA", GAMA_LINEAR) + own
    assert read(make.png.build(make.bgr, colour=2, before=before)) == IccProfile(make_profile(), "rgb")


def test_exponent_of_grey_png_applies_to_its_channels(make: SimpleNamespace) -> None:
    before = make.png.chunk(b"gAMA", GAMA_LINEAR) + make.png.chunk(b"cHRM", CHRM_P3)
    profile = read(make.png.build(make.grey, before=before))
    assert profile is not None
    assert profile.space == "rgb"
    assert to_srgb(profile.data, (60, 60, 60)) == pytest.approx(to_srgb(make_rgb_profile(1, 8), (60, 60, 60)), abs=1)
    pixels = np.dstack([make.grey] * 3)
    assert read(encode_image(pixels, profile).data) == profile


def test_any_content_of_colour_chunks_is_accepted(make: SimpleNamespace) -> None:
    random = np.random.default_rng(15)
    found = 0
    for _ in range(500):
        values = (10.0 ** random.uniform(-1, 5.2, 8)).astype(">u4")
        before = make.png.chunk(b"gAMA", random.bytes(4)) + make.png.chunk(b"cHRM", values.tobytes())
        found += read(make.png.build(make.bgr, colour=2, before=before)) is not None
    assert found
