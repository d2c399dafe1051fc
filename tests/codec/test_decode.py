import itertools
from collections.abc import Callable
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from app.codec.decode import decode_image, decode_label_image, require_label_format
from app.codec.sniff import ImageInfo, sniff_image
from app.face.errors import ImageCorruptError, LabelMapFormatError
from app.face.frame import Size

LIMIT = 24_000_000
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def decode(data: bytes) -> np.ndarray:
    return decode_image(data, sniff_image(data, max_pixels=LIMIT))


def decode_labels(data: bytes) -> np.ndarray:
    return decode_label_image(data, sniff_image(data, max_pixels=LIMIT))


def read(data: bytes, flags: int) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


class TestAssumptionsAboutCv2:
    """What the decoders rely on, and what they are there to undo."""

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

    def test_orientation_is_applied_unless_told_otherwise(self, samples: dict[str, bytes]) -> None:
        for name in ("png exif", "jpeg exif"):
            assert read(samples[name], cv2.IMREAD_COLOR).shape == (5, 4, 3)
            assert read(samples[name], cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION).shape == (4, 5, 3)
            assert read(samples[name], cv2.IMREAD_UNCHANGED).shape[:2] == (4, 5)

    def test_damage_inside_a_jpeg_scan_goes_unseen(self, make: SimpleNamespace) -> None:
        data = bytearray(make.jpeg.encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
        data[len(data) // 2] ^= 0x10
        assert read(bytes(data), cv2.IMREAD_COLOR) is not None


class TestPhoto:
    @pytest.mark.parametrize("name", ["png colour", "webp lossless"])
    def test_lossless_formats_give_the_pixels(
        self, make: SimpleNamespace, samples: dict[str, bytes], name: str
    ) -> None:
        pixels = decode(samples[name])
        np.testing.assert_array_equal(pixels, make.bgr)
        assert pixels.dtype == np.uint8

    @pytest.mark.parametrize("name", ["jpeg baseline", "jpeg progressive", "webp lossy"])
    def test_lossy_formats_give_what_cv2_gives(self, samples: dict[str, bytes], name: str) -> None:
        np.testing.assert_array_equal(decode(samples[name]), read(samples[name], cv2.IMREAD_COLOR))

    @pytest.mark.parametrize("name", ["png exif", "jpeg exif", "webp extended"])
    def test_orientation_is_not_applied(self, samples: dict[str, bytes], name: str) -> None:
        assert decode(samples[name]).shape == (4, 5, 3)

    def test_grey_alpha_and_16_bits_become_bgr(self, make: SimpleNamespace, samples: dict[str, bytes]) -> None:
        grey = np.repeat(make.grey[:, :, None], 3, axis=2)
        np.testing.assert_array_equal(decode(samples["png grey"]), grey)
        np.testing.assert_array_equal(decode(samples["png 16 bit"]), grey)
        np.testing.assert_array_equal(decode(samples["png alpha"]), make.bgra[:, :, :3])

    def test_animated_png_is_its_still_image(self, make: SimpleNamespace, samples: dict[str, bytes]) -> None:
        np.testing.assert_array_equal(decode(samples["png animated"]), make.bgr)

    def test_view_into_a_larger_buffer(self, make: SimpleNamespace, samples: dict[str, bytes]) -> None:
        data = samples["png colour"]
        view = memoryview(b"before" + data + b"after")[6:-5]
        np.testing.assert_array_equal(decode_image(view, ImageInfo("png", Size(5, 4))), make.bgr)

    @pytest.mark.parametrize("name", ["png colour", "jpeg baseline", "webp lossy", "webp lossless"])
    def test_pixels_of_another_size_than_announced_are_corrupt(self, samples: dict[str, bytes], name: str) -> None:
        image_format = sniff_image(samples[name], max_pixels=LIMIT).format
        with pytest.raises(ImageCorruptError, match="size"):
            decode_image(samples[name], ImageInfo(image_format, Size(4, 5)))

    @pytest.mark.parametrize(
        "build",
        [
            pytest.param(lambda m: m.jpeg.drop(m.jpeg.whole, m.jpeg.dqt), id="JPEG without its tables"),
            pytest.param(lambda m: m.webp.join(m.webp.chunk(b"VP8L", m.webp.lossless[:9])), id="WebP cut and patched"),
        ],
    )
    def test_pixels_that_do_not_decode(self, make: SimpleNamespace, build: Callable[..., bytes]) -> None:
        with pytest.raises(ImageCorruptError, match="do not decode"):
            decode(build(make))


class TestLabelImage:
    @pytest.mark.parametrize(
        ("colour", "depth", "is_interlaced"), list(itertools.product([GREY, PALETTE], [1, 2, 4, 8], [False, True]))
    )
    def test_stored_values_come_back(
        self, make: SimpleNamespace, colour: int, depth: int, *, is_interlaced: bool
    ) -> None:
        labels = np.random.default_rng(depth).integers(0, 1 << depth, (33, 41), dtype=np.uint8)
        # A palette in which neither order nor brightness has anything to do with the index.
        palette = bytes((255 - 7 * i) % 256 for i in range(3 << depth)) if colour == PALETTE else None
        data = make.png.build(labels, depth=depth, colour=colour, is_interlaced=is_interlaced, palette=palette)
        decoded = decode_labels(data)
        np.testing.assert_array_equal(decoded, labels)
        assert (decoded.dtype, decoded.flags.c_contiguous) == (np.uint8, True)

    @pytest.mark.parametrize(("colour", "transparency"), [(GREY, b"\0\7"), (PALETTE, bytes(256)), (PALETTE, b"\xff\0")])
    def test_transparency_by_colour_is_ignored(self, make: SimpleNamespace, colour: int, transparency: bytes) -> None:
        palette = bytes(768) if colour == PALETTE else None
        extra = make.png.chunk(b"tRNS", transparency)
        data = make.png.build(make.labels, colour=colour, palette=palette, before=extra)
        np.testing.assert_array_equal(decode_labels(data), make.labels)

    def test_index_outside_its_palette_is_still_a_label(self, make: SimpleNamespace) -> None:
        data = make.png.build(make.labels, colour=PALETTE, palette=bytes(6))
        np.testing.assert_array_equal(decode_labels(data), make.labels)

    def test_transparent_colour_of_a_colour_map_is_ignored(self, make: SimpleNamespace) -> None:
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

    def test_grey_with_alpha_is_grey(self, make: SimpleNamespace) -> None:
        samples = np.dstack([make.labels, np.where(make.labels % 2, 255, 0)])
        decoded = decode_labels(make.png.build(samples, colour=GREY_ALPHA))
        np.testing.assert_array_equal(decoded, np.where(make.labels % 2, make.labels, 0))
        assert decoded.flags.c_contiguous

    @pytest.mark.parametrize("name", ["png colour", "webp lossless", "png animated"])
    def test_colour_maps_are_bgr(self, make: SimpleNamespace, samples: dict[str, bytes], name: str) -> None:
        np.testing.assert_array_equal(decode_labels(samples[name]), make.bgr)

    @pytest.mark.parametrize(
        "name", ["jpeg baseline", "jpeg grey", "webp lossy", "webp extended", "webp alpha", "png 16 bit"]
    )
    def test_formats_that_hold_no_exact_labels(self, samples: dict[str, bytes], name: str) -> None:
        with pytest.raises(LabelMapFormatError):
            decode_labels(samples[name])

    @pytest.mark.parametrize("colour", [COLOUR, GREY_ALPHA, COLOUR_ALPHA])
    def test_16_bits_are_refused_whatever_the_colour_type(self, make: SimpleNamespace, colour: int) -> None:
        channels = {COLOUR: 3, GREY_ALPHA: 2, COLOUR_ALPHA: 4}[colour]
        data = make.png.build(np.zeros((4, 5, channels), np.uint16), depth=16, colour=colour)
        with pytest.raises(LabelMapFormatError, match="16"):
            decode_labels(data)


class TestLabelFormat:
    """By the header alone, the same as decoding says."""

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("jpeg baseline", "cannot be a JPEG"),
            ("jpeg grey", "cannot be a JPEG"),
            ("webp lossy", "cannot be a lossy WebP"),
            ("webp extended", "cannot be a lossy WebP"),
            ("webp alpha", "cannot be a lossy WebP"),
            ("png 16 bit", "8 bits a sample or fewer, not 16"),
        ],
    )
    @pytest.mark.parametrize("form", [bytes, memoryview])
    def test_what_holds_no_exact_labels_is_refused(
        self, samples: dict[str, bytes], name: str, reason: str, form: Callable[[bytes], bytes | memoryview]
    ) -> None:
        info = sniff_image(samples[name], max_pixels=LIMIT)
        with pytest.raises(LabelMapFormatError, match=reason):
            require_label_format(form(samples[name]), info)

    @pytest.mark.parametrize(
        "name", ["png colour", "png grey", "png alpha", "png exif", "png animated", "webp lossless"]
    )
    @pytest.mark.parametrize("form", [bytes, memoryview])
    def test_what_can_hold_them_is_taken(
        self, samples: dict[str, bytes], name: str, form: Callable[[bytes], bytes | memoryview]
    ) -> None:
        require_label_format(form(samples[name]), sniff_image(samples[name], max_pixels=LIMIT))

    def test_no_pixel_is_looked_at(self, make: SimpleNamespace) -> None:
        damaged = make.png.join(make.png.head, make.png.chunk(b"IDAT", b"no zlib stream"), make.png.end)
        require_label_format(damaged, sniff_image(damaged, max_pixels=LIMIT))
        with pytest.raises(ImageCorruptError):
            decode_labels(damaged)
