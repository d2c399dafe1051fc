"""AVIF and HEIC: boxes, sizes, transformations and the headers inside images."""

import contextlib
import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from app.codec import sniff
from app.codec.decode import decode_image, decode_image_with_alpha
from app.codec.isobmff import read_header
from app.codec.sniff import sniff_image, verify_structure
from app.face.errors import ImageCorruptError, ImageError, ImageFormatError, ImageTooLargeError, ImageTruncatedError
from app.face.frame import Size

LIMIT = 4_096
TILE = 512


def check(data: bytes, limit: int = LIMIT) -> sniff.ImageInfo:
    return verify_structure(data, sniff_image(data, max_pixels=limit))


# Files of one item with id 1, from the builder, and what checking them raises.
FILES = [
    ("still", lambda b: b.join(b.colour()), contextlib.nullcontext()),
    ("in idat", lambda b: b.join(b.colour(), is_idat=True), contextlib.nullcontext()),
    ("HEIC", lambda b: b.join(b.heic(), brands=b"heic\0\0\0\0mif1heic"), contextlib.nullcontext()),
    ("only mif1", lambda b: b.join(b.colour(), brands=b"mif1\0\0\0\0"), contextlib.nullcontext()),
    ("animation with a still", lambda b: b.join(b.colour(), before=b.box(b"moov")), contextlib.nullcontext()),
    ("animation", lambda b: b.box(b"ftyp", b"avis\0\0\0\0") + b.box(b"moov"), pytest.raises(ImageFormatError)),
    ("video", lambda b: b.box(b"ftyp", b"isom\0\0\0\0"), pytest.raises(ImageFormatError, match="video")),
    ("another codec", lambda b: b.join(b.item(b"x", b.ispe(5, 4), kind=b"jpeg")), pytest.raises(ImageFormatError)),
    ("no size", lambda b: b.join(b.item(b.av1, b.box(b"av1C", b.av1c))), pytest.raises(ImageCorruptError)),
    ("no configuration", lambda b: b.join(b.item(b.av1, b.ispe(5, 4))), pytest.raises(ImageCorruptError)),
    ("size 0", lambda b: b.join(b.colour(size=(0, 4))), pytest.raises(ImageCorruptError)),
    ("too large", lambda b: b.join(b.colour(size=(64, 64))), pytest.raises(ImageTooLargeError)),
    ("no data", lambda b: b.join(b.item(b"", b.ispe(5, 4), b.box(b"av1C", b.av1c))), pytest.raises(ImageCorruptError)),
    ("truncated", lambda b: b.join(b.colour())[:-1], pytest.raises(ImageTruncatedError)),
    ("large alpha", lambda b: b.join(b.colour(), b.item(b.grey, b.ispe(90, 90), b.box(b"av1C", b.grey_av1c),
        b.full(b"auxC", b.alpha_type), auxl=[1])), pytest.raises(ImageTooLargeError)),
    ("grid without tiles", lambda b: b.join(b.grid(1, 1, (5, 4))), pytest.raises(ImageCorruptError)),
    ("grid of another size", lambda b: b.join(b.grid(1, 2, (5, 4)), b.colour()), pytest.raises(ImageError)),
    ("five frames", lambda b: b.join(b.item(b.av1 * 5, b.ispe(5, 4), b.box(b"av1C", b.av1c))),
        pytest.raises(ImageCorruptError, match="frames")),
]  # fmt: skip


@pytest.mark.parametrize(("build", "expected"), [pytest.param(*rest, id=name) for name, *rest in FILES])
def test_files(make: SimpleNamespace, build: object, expected: contextlib.AbstractContextManager[object]) -> None:
    with expected:
        assert check(build(make.isobmff)).size == Size(5, 4)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("has_alpha", "problem"),
    [(False, "at most 2048 pixels in an AVIF, got 64 x 33"), (True, "at most 1024 pixels in an AVIF with alpha, got")],
)
def test_limit_of_avif_is_named(make: SimpleNamespace, has_alpha: bool, problem: str) -> None:
    builder = make.isobmff
    items = [builder.colour(size=(64, 33)), *([builder.alpha(auxl=[1])] if has_alpha else [])]
    with pytest.raises(ImageTooLargeError, match=problem):
        sniff_image(builder.join(*items), max_pixels=LIMIT)


def test_larger_frames_than_declared_are_refused(make: SimpleNamespace) -> None:
    builder = make.isobmff
    data, config = builder.split(builder.encode_heic(np.zeros((400, 400, 3), np.uint8)), b"hvcC")
    small = builder.item(data, builder.ispe(5, 4), builder.box(b"hvcC", config), kind=b"hvc1")
    with pytest.raises(ImageCorruptError, match="larger"):
        check(builder.join(small, brands=b"heic\0\0\0\0mif1heic"))


@pytest.mark.parametrize(
    ("turns", "mirror", "orientation"),
    [(0, None, 1), (3, None, 6), (2, None, 3), (1, None, 8), (0, 0, 4), (0, 1, 2), (1, 0, 5), (3, 0, 7)],
)
def test_rotation_and_mirroring_become_the_orientation(
    make: SimpleNamespace, turns: int, mirror: int | None, orientation: int
) -> None:
    builder = make.isobmff
    transforms = [builder.box(b"irot", bytes([turns]))]
    if mirror is not None:
        transforms.append(builder.box(b"imir", bytes([mirror])))
    plain, turned = builder.join(builder.colour()), builder.join(builder.colour(*transforms))
    info = check(turned)
    assert info.exif_orientation == orientation
    np.testing.assert_array_equal(decode_image(turned, info), decode_image(plain, check(plain)))


def test_clean_aperture_is_cropped(make: SimpleNamespace) -> None:
    builder = make.isobmff
    whole = builder.join(builder.colour())
    data = builder.join(builder.colour(builder.clap(3, 2, (0, 1), (0, 1))))
    info = check(data)
    assert info.size == Size(3, 2)
    np.testing.assert_array_equal(decode_image(data, info), decode_image(whole, check(whole))[1:3, 1:4])


def test_alpha_of_grey_is_decoded(make: SimpleNamespace) -> None:
    builder = make.isobmff
    grey = builder.item(builder.grey, builder.ispe(5, 4), builder.box(b"av1C", builder.grey_av1c))
    data = builder.join(grey, builder.alpha(auxl=[1]))
    image = decode_image_with_alpha(data, check(data))
    assert image.shape == (4, 5, 4)
    np.testing.assert_array_equal(image[:, :, 3], image[:, :, 0])


def test_alpha_may_be_rotated_with_its_image(make: SimpleNamespace) -> None:
    builder = make.isobmff
    turned = builder.box(b"irot", b"\3")
    data = builder.join(builder.colour(turned), builder.alpha(turned, auxl=[1]))
    plain = builder.join(builder.colour(), builder.alpha(auxl=[1]))
    info = check(data)
    assert info.exif_orientation == 6
    np.testing.assert_array_equal(decode_image_with_alpha(data, info), decode_image_with_alpha(plain, check(plain)))


def phone_heic(make: SimpleNamespace, image: np.ndarray) -> bytes:
    """Build a HEIC as phones write them: a grid of tiles, rotated, with everything that phones add."""
    builder = make.isobmff
    height, width = image.shape[:2]
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = cv2.copyMakeBorder(image, 0, rows * TILE - height, 0, columns * TILE - width, cv2.BORDER_REPLICATE)

    def encode(pixels: np.ndarray, *properties: bytes, **refs: list[int]) -> SimpleNamespace:
        coded = builder.encode_heic(np.ascontiguousarray(pixels), enc_params={"preset": "ultrafast"})
        data, config = builder.split(coded, b"hvcC")
        size = builder.ispe(pixels.shape[1], pixels.shape[0])
        return builder.item(data, size, builder.box(b"hvcC", config), *properties, kind=b"hvc1", **refs)

    def auxiliary(kind: bytes) -> SimpleNamespace:
        return encode(image[::2, ::2], builder.full(b"auxC", kind + b"\0"), auxl=[1])

    tiles = [
        encode(padded[TILE * row : TILE * (row + 1), TILE * column : TILE * (column + 1)])
        for row in range(rows)
        for column in range(columns)
    ]
    description = [
        builder.item(b"\0\0\0\6Exif\0\0" + make.exif.tiff(), kind=b"Exif", cdsc=[1]),
        builder.item(b"<x:xmpmeta/>", kind=b"mime", cdsc=[1]),
    ]
    gain = 2 + len(tiles) + 2
    return bytes(
        builder.join(
            builder.grid(rows, columns, (width, height), builder.box(b"irot", b"\3")),
            *tiles,
            encode(image[::4, ::4], thmb=[1]),
            auxiliary(b"urn:mpeg:hevc:2015:auxid:2"),  # depth
            auxiliary(b"urn:com:apple:photo:2020:aux:hdrgainmap"),
            *description,
            builder.item(bytes(62), builder.ispe(width, height), kind=b"tmap", dimg=[1, gain]),
            brands=b"heic\0\0\0\0mif1MiHBMiHAheixMiHEMiPrmiafheictmap",
        )
    )


@pytest.mark.parametrize("trailer", ["", "mpvd", "SEFT"])
def test_heic_of_a_phone(make: SimpleNamespace, trailer: str) -> None:
    ramp = np.linspace(0, 250, 700, dtype=np.uint8)
    image = np.dstack(np.broadcast_arrays(ramp[:600, None], ramp[None], np.uint8(90)))
    data = phone_heic(make, image)
    if trailer == "mpvd":
        data += make.isobmff.box(b"mpvd", make.isobmff.box(b"ftyp", b"mp42\0\0\0\0") + bytes(500))  # motion photo
    elif trailer:
        data += b"SEFHk\0\0\0" + bytes(20) + b"SEFT"
    info = check(data, 1 << 20)
    assert (info.size, info.exif_orientation) == (Size(700, 600), 6)
    assert np.abs(decode_image_with_alpha(data, info).astype(int) - image).mean() < 2


@pytest.mark.parametrize("image_format", ["avif", "heic"])
def test_premultiplied_alpha_is_divided_out(make: SimpleNamespace, image_format: str) -> None:
    builder = make.isobmff
    bgra = np.zeros((64, 64, 4), np.uint8)
    bgra[:] = 60, 40, 100, 128  # of the colour (120, 80, 199)
    if image_format == "heic":
        data = builder.encode_heic(bgra)
    else:
        data = cv2.imencode(".avif", bgra, [cv2.IMWRITE_AVIF_QUALITY, 95])[1].tobytes()
    data = add_reference(data, b"prem")
    info = check(data, 4 * LIMIT)
    assert read_header(memoryview(data)).is_premultiplied
    colours = decode_image_with_alpha(data, info)[8:-8, 8:-8].mean(axis=(0, 1))
    np.testing.assert_allclose(colours, (120, 80, 199, 128), atol=4)
    assert decode_image(data, info).shape == (64, 64, 3)


def add_reference(data: bytes, kind: bytes) -> bytes:
    """Add a reference from the image, with id 1, to its alpha, with id 2, to a file whose data follow `meta`."""
    reference = struct.pack(">I4sHHH", 14, kind, 1, 1, 2)
    file = bytearray(data)
    meta, iref = data.index(b"meta") - 4, data.index(b"iref") - 4
    end = iref + int.from_bytes(data[iref : iref + 4])
    for start in (meta, iref):
        file[start : start + 4] = (int.from_bytes(data[start : start + 4]) + len(reference)).to_bytes(4)
    file[end:end] = reference
    return bytes(shift_extents(file, len(reference)))


def shift_extents(file: bytearray, distance: int) -> bytearray:
    """Move the offsets in a box `iloc` with offsets of 32 bits and one extent each."""
    position = file.index(b"iloc") + 4
    version, sizes, base = file[position], file[position + 4], file[position + 5] >> 4
    assert (sizes, base) in {(0x44, 0), (0x44, 4)}
    count = int.from_bytes(file[position + 6 : position + 8])
    step = 4 + 2 * (version > 0) + base + 2
    at = position + 8
    for _ in range(count):
        place = at + step if not base else at + 4 + 2 * (version > 0)
        value = int.from_bytes(file[place : place + 4]) + distance
        file[place : place + 4] = value.to_bytes(4)
        at += step + 8
    return file


def test_alpha_without_data_is_ignored(make: SimpleNamespace) -> None:
    builder = make.isobmff
    alpha = builder.alpha(auxl=[1])
    alpha.data = b""
    data, plain = builder.join(builder.colour(), alpha), builder.join(builder.colour())
    for decode in (decode_image, decode_image_with_alpha):
        np.testing.assert_array_equal(decode(data, check(data)), decode(plain, check(plain)))


def test_profile_is_read(make: SimpleNamespace) -> None:
    builder = make.isobmff
    assert read_header(memoryview(builder.join(builder.colour(builder.icc(b"profile"))))).profile == b"profile"


def test_missing_decoder_is_named(samples: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sniff, "find_spec", lambda _: None)
    with pytest.raises(ImageFormatError, match=r"install facial-service\[heif\]"):
        sniff_image(samples["heic colour"], max_pixels=LIMIT)
    sniff_image(samples["avif colour"], max_pixels=LIMIT)
