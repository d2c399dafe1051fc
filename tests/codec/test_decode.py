from __future__ import annotations

import itertools
import struct
import zlib
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from app.codec.decode import (
    check_label_format,
    decode_image,
    decode_image_with_alpha,
    decode_label_image,
    list_reductions,
)
from app.codec.sniff import ImageInfo, sniff_image, verify_structure
from app.face.errors import ImageCorruptError, LabelMapFormatError
from app.face.frame import Size

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace

    from tests.conftest import Sample

LIMIT = 24_000_000
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def decode(data: bytes) -> np.ndarray:
    return decode_image(data, sniff_image(data, max_pixels=LIMIT))


def decode_labels(data: bytes) -> np.ndarray:
    return decode_label_image(data, sniff_image(data, max_pixels=LIMIT))


def read(data: bytes, flags: int) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


class TestOpenCvBehaviour:
    """OpenCV behaviour that the decoders rely on or undo."""

    def test_palette_becomes_colours(self, make: SimpleNamespace) -> None:
        data = make.png.build(make.labels % 2, colour=PALETTE, palette=bytes([1, 2, 3, 4, 5, 6]))
        assert read(data, cv2.IMREAD_UNCHANGED)[0, :2].tolist() == [[3, 2, 1], [6, 5, 4]]

    @pytest.mark.parametrize(("depth", "factor"), [(1, 255), (2, 85), (4, 17)])
    def test_short_grey_is_scaled(self, make: SimpleNamespace, depth: int, factor: int) -> None:
        samples = make.labels % (1 << depth)
        assert (read(make.png.build(samples, depth=depth), cv2.IMREAD_UNCHANGED) == samples * factor).all()

    def test_transparent_colour_becomes_alpha(self, make: SimpleNamespace) -> None:
        data = make.png.build(make.bgr, colour=COLOUR, before=make.png.chunk(b"tRNS", bytes(6)))
        assert read(data, cv2.IMREAD_UNCHANGED).shape == (4, 5, 4)

    def test_orientation_is_applied_by_default(self, samples: dict[str, bytes]) -> None:
        for name in ("png exif", "jpeg exif"):
            assert read(samples[name], cv2.IMREAD_COLOR).shape == (5, 4, 3)
            assert read(samples[name], cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION).shape == (4, 5, 3)
            assert read(samples[name], cv2.IMREAD_UNCHANGED).shape[:2] == (4, 5)

    def test_corrupt_jpeg_scan_is_not_detected(self, make: SimpleNamespace) -> None:
        data = bytearray(make.jpeg.encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
        data[len(data) // 2] ^= 0x10
        assert read(bytes(data), cv2.IMREAD_COLOR) is not None


class TestImage:
    @pytest.mark.parametrize("name", ["png colour", "webp lossless"])
    def test_lossless_formats_keep_the_pixels(
        self, make: SimpleNamespace, samples: dict[str, bytes], name: str
    ) -> None:
        pixels = decode(samples[name])
        np.testing.assert_array_equal(pixels, make.bgr)
        assert pixels.dtype == np.uint8

    @pytest.mark.parametrize("name", ["jpeg baseline", "jpeg progressive", "webp lossy"])
    def test_lossy_formats_match_opencv(self, samples: dict[str, bytes], name: str) -> None:
        np.testing.assert_array_equal(decode(samples[name]), read(samples[name], cv2.IMREAD_COLOR))

    @pytest.mark.parametrize("name", ["png exif", "jpeg exif", "webp extended"])
    def test_orientation_is_not_applied(self, samples: dict[str, bytes], name: str) -> None:
        assert decode(samples[name]).shape == (4, 5, 3)

    def test_grey_alpha_and_16_bits_become_bgr(self, make: SimpleNamespace, samples: dict[str, bytes]) -> None:
        grey = np.repeat(make.grey[:, :, None], 3, axis=2)
        np.testing.assert_array_equal(decode(samples["png grey"]), grey)
        np.testing.assert_array_equal(decode(samples["png 16 bit"]), grey)
        np.testing.assert_array_equal(decode(samples["png alpha"]), make.bgra[:, :, :3])

    def test_animated_png_decodes_to_its_still_image(self, make: SimpleNamespace, samples: dict[str, bytes]) -> None:
        np.testing.assert_array_equal(decode(samples["png animated"]), make.bgr)

    def test_view_into_a_larger_buffer(self, make: SimpleNamespace, samples: dict[str, bytes]) -> None:
        data = samples["png colour"]
        view = memoryview(b"before" + data + b"after")[6:-5]
        np.testing.assert_array_equal(decode_image(view, ImageInfo("png", Size(5, 4))), make.bgr)

    @pytest.mark.parametrize("name", ["png colour", "jpeg baseline", "webp lossy", "webp lossless"])
    def test_pixels_of_another_size_are_corrupt(self, samples: dict[str, bytes], name: str) -> None:
        image_format = sniff_image(samples[name], max_pixels=LIMIT).format
        with pytest.raises(ImageCorruptError, match="size"):
            decode_image(samples[name], ImageInfo(image_format, Size(4, 5)))

    @pytest.mark.parametrize(
        "build",
        [
            pytest.param(lambda m: m.jpeg.drop(m.jpeg.whole, m.jpeg.dqt), id="JPEG without its tables"),
            pytest.param(lambda m: m.webp.join(m.webp.chunk(b"VP8L", m.webp.lossless[:9])), id="truncated WebP"),
        ],
    )
    def test_undecodable_pixels_are_corrupt(self, make: SimpleNamespace, build: Callable[..., bytes]) -> None:
        with pytest.raises(ImageCorruptError, match="can be decoded"):
            decode(build(make))


class TestLabelImage:
    @pytest.mark.parametrize(
        ("colour", "depth", "is_interlaced"), list(itertools.product([GREY, PALETTE], [1, 2, 4, 8], [False, True]))
    )
    def test_stored_values_are_returned(
        self, make: SimpleNamespace, colour: int, depth: int, *, is_interlaced: bool
    ) -> None:
        labels = np.random.default_rng(depth).integers(0, 1 << depth, (33, 41), dtype=np.uint8)
        # Neither order nor brightness of this palette correlates with the index.
        palette = bytes((255 - 7 * i) % 256 for i in range(3 << depth)) if colour == PALETTE else None
        data = make.png.build(labels, depth=depth, colour=colour, is_interlaced=is_interlaced, palette=palette)
        decoded = decode_labels(data)
        np.testing.assert_array_equal(decoded, labels)
        assert (decoded.dtype, decoded.flags.c_contiguous) == (np.uint8, True)

    @pytest.mark.parametrize(("colour", "transparency"), [(GREY, b"\0\7"), (PALETTE, bytes(256)), (PALETTE, b"\xff\0")])
    def test_transparent_colours_are_ignored(self, make: SimpleNamespace, colour: int, transparency: bytes) -> None:
        palette = bytes(768) if colour == PALETTE else None
        extra = make.png.chunk(b"tRNS", transparency)
        data = make.png.build(make.labels, colour=colour, palette=palette, before=extra)
        np.testing.assert_array_equal(decode_labels(data), make.labels)

    def test_index_outside_the_palette_is_a_label(self, make: SimpleNamespace) -> None:
        data = make.png.build(make.labels, colour=PALETTE, palette=bytes(6))
        np.testing.assert_array_equal(decode_labels(data), make.labels)

    def test_transparent_colour_of_a_colour_label_image_is_ignored(self, make: SimpleNamespace) -> None:
        extra = make.png.chunk(b"tRNS", b"\0\0\0\0\0\0")
        data = make.png.build(make.bgr[:, :, ::-1], colour=COLOUR, before=extra)
        np.testing.assert_array_equal(decode_labels(data), make.bgr)

    def test_orientation_is_ignored(self, make: SimpleNamespace) -> None:
        data = make.png.build(make.labels, before=make.png.chunk(b"eXIf", make.exif.tiff(6)))
        np.testing.assert_array_equal(decode_labels(data), make.labels)

    def test_fully_transparent_pixels_are_background(self, make: SimpleNamespace) -> None:
        bgra = make.bgra.copy()
        bgra[1:3, :, 3] = [0, 1, 0, 255, 0]
        expected = np.where(bgra[:, :, 3:] == 0, 0, bgra[:, :, :3])
        png = cv2.imencode(".png", bgra)[1].tobytes()
        webp = cv2.imencode(".webp", bgra, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
        np.testing.assert_array_equal(decode_labels(png), expected)
        np.testing.assert_array_equal(decode_labels(webp), expected)

    def test_grey_with_alpha_is_decoded_as_grey(self, make: SimpleNamespace) -> None:
        samples = np.dstack([make.labels, np.where(make.labels % 2, 255, 0)])
        decoded = decode_labels(make.png.build(samples, colour=GREY_ALPHA))
        np.testing.assert_array_equal(decoded, np.where(make.labels % 2, make.labels, 0))
        assert decoded.flags.c_contiguous

    @pytest.mark.parametrize("name", ["png colour", "webp lossless", "png animated"])
    def test_colour_label_images_are_bgr(self, make: SimpleNamespace, samples: dict[str, bytes], name: str) -> None:
        np.testing.assert_array_equal(decode_labels(samples[name]), make.bgr)

    @pytest.mark.parametrize(
        "name", ["jpeg baseline", "jpeg grey", "webp lossy", "webp extended", "webp alpha", "png 16 bit"]
    )
    def test_formats_without_exact_labels_are_rejected(self, samples: dict[str, bytes], name: str) -> None:
        with pytest.raises(LabelMapFormatError):
            decode_labels(samples[name])

    @pytest.mark.parametrize("colour", [COLOUR, GREY_ALPHA, COLOUR_ALPHA])
    def test_16_bits_are_rejected_for_every_colour_type(self, make: SimpleNamespace, colour: int) -> None:
        channels = {COLOUR: 3, GREY_ALPHA: 2, COLOUR_ALPHA: 4}[colour]
        data = make.png.build(np.zeros((4, 5, channels), np.uint16), depth=16, colour=colour)
        with pytest.raises(LabelMapFormatError, match="16"):
            decode_labels(data)


class TestLabelFormat:
    """The header check has the same result as decoding."""

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("jpeg baseline", "got JPEG"),
            ("jpeg grey", "got JPEG"),
            ("avif colour", "got AVIF"),
            ("heic colour", "got HEIC"),
            ("webp lossy", "got a lossy WebP"),
            ("webp extended", "got a lossy WebP"),
            ("webp alpha", "got a lossy WebP"),
            ("png 16 bit", "at most 8 bits per sample, got 16"),
        ],
    )
    @pytest.mark.parametrize("form", [bytes, memoryview])
    def test_formats_without_exact_labels_are_rejected(
        self, samples: dict[str, bytes], name: str, reason: str, form: Callable[[bytes], bytes | memoryview]
    ) -> None:
        info = sniff_image(samples[name], max_pixels=LIMIT)
        with pytest.raises(LabelMapFormatError, match=reason):
            check_label_format(form(samples[name]), info)

    @pytest.mark.parametrize(
        "name", ["png colour", "png grey", "png alpha", "png exif", "png animated", "webp lossless"]
    )
    @pytest.mark.parametrize("form", [bytes, memoryview])
    def test_formats_with_exact_labels_are_accepted(
        self, samples: dict[str, bytes], name: str, form: Callable[[bytes], bytes | memoryview]
    ) -> None:
        check_label_format(form(samples[name]), sniff_image(samples[name], max_pixels=LIMIT))

    def test_pixels_are_not_decoded(self, make: SimpleNamespace) -> None:
        damaged = make.png.join(make.png.head, make.png.chunk(b"IDAT", b"no zlib stream"), make.png.end)
        check_label_format(damaged, sniff_image(damaged, max_pixels=LIMIT))
        with pytest.raises(ImageCorruptError):
            decode_labels(damaged)


def encode_two_pixels(sample: Sample, name: str) -> bytes:
    """Encode two pixels in one of the supported pixel formats."""
    colours = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    alpha = np.array([[[0], [128]]], np.uint8)
    palette = (b"PLTE", bytes([30, 20, 10, 60, 50, 40])), (b"tRNS", bytes([0, 128]))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0)), *palette]
    chunks += [(b"IDAT", zlib.compress(b"\0\0\1")), (b"IEND", b"")]
    forms = {
        "colour": lambda: sample.encode(".png", colours),
        "colour, 16 bits": lambda: sample.encode(".png", colours.astype(np.uint16) * 256 + 255),
        "alpha": lambda: sample.encode(".png", np.dstack((colours, alpha))),
        "alpha, 16 bits": lambda: sample.encode(".png", np.dstack((colours, alpha)).astype(np.uint16) * 257),
        "grey": lambda: sample.encode(".png", colours[:, :, 1]),
        "grey, 16 bits": lambda: sample.encode(".png", colours[:, :, 1].astype(np.uint16) * 257),
        "grey, alpha": lambda: sample.png_file(2, 1, zlib.compress(bytes([0, 20, 0, 50, 128])), colour=4),
        "palette, alpha": lambda: b"\x89PNG\r\n\x1a\n" + b"".join(sample.png_chunk(*chunk) for chunk in chunks),
        "webp": lambda: sample.encode(".webp", colours, cv2.IMWRITE_WEBP_QUALITY, 101),
        "webp, alpha": lambda: sample.encode(".webp", np.dstack((colours, alpha + 1)), cv2.IMWRITE_WEBP_QUALITY, 101),
        "jpeg": lambda: sample.encode(".jpg", colours),
    }
    return forms[name]()


COLOUR_PIXELS, GREY_PIXELS = [[10, 20, 30], [40, 50, 60]], [[20, 20, 20], [50, 50, 50]]


@pytest.mark.parametrize(
    ("name", "colours", "alpha"),
    [
        ("colour", COLOUR_PIXELS, None),
        ("colour, 16 bits", COLOUR_PIXELS, None),
        ("alpha", COLOUR_PIXELS, [0, 128]),
        ("alpha, 16 bits", COLOUR_PIXELS, [0, 128]),
        ("grey", GREY_PIXELS, None),
        ("grey, 16 bits", GREY_PIXELS, None),
        ("grey, alpha", GREY_PIXELS, [0, 128]),
        ("palette, alpha", COLOUR_PIXELS, [0, 128]),
        ("webp", COLOUR_PIXELS, None),
        ("webp, alpha", COLOUR_PIXELS, [1, 129]),
        ("jpeg", None, None),
    ],
)
def test_transparency_is_kept(
    sample: Sample, name: str, colours: list[list[int]] | None, alpha: list[int] | None
) -> None:
    data = encode_two_pixels(sample, name)
    pixels = decode_image_with_alpha(data, verify_structure(data, sniff_image(data, max_pixels=10)))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (1, 2, 3 if alpha is None else 4))
    if colours is not None:
        assert pixels[0, :, :3].tolist() == colours
    if alpha is not None:
        assert pixels[0, :, 3].tolist() == alpha


@pytest.mark.parametrize(
    ("colour", "depth", "transparency", "is_kept"),
    [
        *[(GREY, depth, struct.pack(">H", 1), True) for depth in (1, 2, 4, 8, 16)],
        *[(COLOUR, depth, struct.pack(">HHH", 1, 1, 1), True) for depth in (8, 16)],
        (GREY, 8, b"\0", False),  # libpng ignores a tRNS chunk of another length
        (COLOUR, 8, b"\0\1", False),
        (GREY, 2, struct.pack(">H", 5), True),  # bits above the depth are ignored
    ],
)
def test_transparent_value_of_grey_and_colour_is_kept(
    make: SimpleNamespace, colour: int, depth: int, transparency: bytes, *, is_kept: bool
) -> None:
    values = make.labels.astype(np.uint16) % 2
    pixels = values if colour == GREY else np.dstack([values] * 3)
    data = make.png.build(pixels, depth=depth, colour=colour, before=make.png.chunk(b"tRNS", transparency))
    decoded = decode_image_with_alpha(data, sniff_image(data, max_pixels=LIMIT))
    if is_kept:
        np.testing.assert_array_equal(decoded[:, :, 3], np.where(values == 1, 0, 255))
    else:
        assert decoded.shape == (4, 5, 3)
    assert decode_image(data, sniff_image(data, max_pixels=LIMIT)).shape == (4, 5, 3)


def test_damaged_transparency_is_ignored(make: SimpleNamespace) -> None:
    chunk = bytearray(make.png.chunk(b"tRNS", bytes(2)))
    chunk[-1] ^= 1
    data = make.png.build(make.grey, before=bytes(chunk))
    assert decode_image_with_alpha(data, sniff_image(data, max_pixels=LIMIT)).shape == (4, 5, 3)


def test_undecodable_image_with_alpha_is_corrupt(sample: Sample) -> None:
    for data in (sample.png_file(9, 9, b"no zlib stream"), sample.png_file(9, 9, zlib.compress(b"short"))):
        with pytest.raises(ImageCorruptError):
            decode_image_with_alpha(data, verify_structure(data, sniff_image(data, max_pixels=100)))


@pytest.mark.parametrize("settings", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)], ids=["baseline", "progressive"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(48, 64), (51, 77), (1, 9)])
def test_reduced_pixels_are_averages_of_blocks(
    sample: Sample, shape: tuple[int, int], channels: int, settings: tuple[int, ...]
) -> None:
    """A pixel of a reduced JPEG covers exactly the square of its side, regardless of the size of the image."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([(2 * columns + rows) % 200, columns, rows][:channels], axis=2).astype(np.uint8)
    data = sample.encode(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, 100, *settings)
    info = verify_structure(data, sniff_image(data, max_pixels=LIMIT))
    assert list_reductions(info) == (1, 2, 4, 8)
    full = decode_image(data, info).astype(float)
    for reduction in list_reductions(info):
        reduced = decode_image(data, info, reduction)
        assert reduced.shape == (-(-height // reduction), -(-width // reduction), 3)
        assert np.array_equal(decode_image_with_alpha(data, info, reduction), reduced)
        whole_rows, whole_columns = height // reduction, width // reduction
        if not (whole_rows and whole_columns):
            continue
        blocks = full[: whole_rows * reduction, : whole_columns * reduction]
        averages = blocks.reshape(whole_rows, reduction, whole_columns, reduction, 3).mean(axis=(1, 3))
        assert np.abs(reduced[:whole_rows, :whole_columns] - averages).mean() < 3


def test_reduced_pixels_are_those_stored(make: SimpleNamespace, sample: Sample) -> None:
    """The EXIF orientation is not applied at any reduction."""
    data = sample.encode(".jpg", np.zeros((40, 80, 3), np.uint8))
    data = make.jpeg.insert(data, make.jpeg.segment(0xE1, make.exif.app1(make.exif.tiff(orientation=6))))
    info = verify_structure(data, sniff_image(data, max_pixels=LIMIT))
    assert info.exif_orientation == 6
    assert [decode_image(data, info, reduction).shape[:2] for reduction in (1, 2, 4, 8)] == [
        (40, 80),
        (20, 40),
        (10, 20),
        (5, 10),
    ]


def test_other_formats_are_decoded_in_full(samples: dict[str, bytes]) -> None:
    for name, data in samples.items():
        info = sniff_image(data, max_pixels=LIMIT)
        assert info.format == "jpeg" or list_reductions(info) == (1,), name
