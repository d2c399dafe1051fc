"""Photos decoded for being looked at: every kind of pixel, with what shows through."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from app.codec.decode import decode_photo
from app.codec.sniff import sniff_image
from app.codec.verify import verify_structure
from app.face.errors import ImageCorruptError

if TYPE_CHECKING:
    from tests.conftest import Sample


def photo_of(sample: Sample, name: str) -> bytes:
    """Write two pixels in one of the forms that photos come in."""
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


COLOUR, GREY_PIXELS = [[10, 20, 30], [40, 50, 60]], [[20, 20, 20], [50, 50, 50]]


@pytest.mark.parametrize(
    ("name", "colours", "alpha"),
    [
        ("colour", COLOUR, None),
        ("colour, 16 bits", COLOUR, None),
        ("alpha", COLOUR, [0, 128]),
        ("alpha, 16 bits", COLOUR, [0, 128]),
        ("grey", GREY_PIXELS, None),
        ("grey, 16 bits", GREY_PIXELS, None),
        ("grey, alpha", GREY_PIXELS, [0, 128]),
        ("palette, alpha", COLOUR, [0, 128]),
        ("webp", COLOUR, None),
        ("webp, alpha", COLOUR, [1, 129]),
        ("jpeg", None, None),
    ],
)
def test_photos_keep_what_shows_through_them(
    sample: Sample, name: str, colours: list[list[int]] | None, alpha: list[int] | None
) -> None:
    data = photo_of(sample, name)
    pixels = decode_photo(data, verify_structure(data, sniff_image(data, max_pixels=10)))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (1, 2, 3 if alpha is None else 4))
    if colours is not None:
        assert pixels[0, :, :3].tolist() == colours
    if alpha is not None:
        assert pixels[0, :, 3].tolist() == alpha


def test_a_photo_that_does_not_decode_is_told(sample: Sample) -> None:
    for data in (sample.png_file(9, 9, b"no zlib stream"), sample.png_file(9, 9, zlib.compress(b"short"))):
        with pytest.raises(ImageCorruptError):
            decode_photo(data, verify_structure(data, sniff_image(data, max_pixels=100)))
