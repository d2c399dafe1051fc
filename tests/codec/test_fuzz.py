"""Mutated files: what the decoder of the format decodes to the pixels of the original is accepted.

The only errors are `ImageError`s. A crash of a decoder would end the test run.

`FUZZ_MUTATIONS=20000` runs the whole search, in about a minute; the default is bounded for every-day runs.
"""

import os
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pillow_heif
import pytest

from app.codec.decode import decode_image
from app.codec.sniff import sniff_image, verify_structure
from app.face.errors import ImageError

MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "3000"))
LIMIT = 100_000
AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
# Resource limits of the service, which decoders do not have.
LIMITS = ("at most", "animation")
TOKENS = [
    b"\xff",
    b"\xff\xd9",
    b"\xff\xd8",
    b"\xff\xd0",
    b"\xff\x01",
    b"\xff\x02",
    b"\xff\xe1\0\x04ab",
    b"\xff\xfe\0\0",
    b"\0" * 9,
    b"\xff" * 9,
    b"SEFT",
    b"\0\0\0\0tEXt\x12\x34\x56\x78",
    b"\0\0\0\0IEND\xaeB`\x82",
    b"\0\0\0\x03PLTEabc\0\0\0\0",
    b"EXIF\x02\0\0\0ab",
    b"\0\0\0\x08free",
    b"\0\0\0\x01",
    b"avis",
]


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def encode(extension: str, pixels: np.ndarray, *settings: int) -> bytes:
    return cv2.imencode(extension, pixels, settings)[1].tobytes()


@pytest.fixture(scope="module")
def originals(make: SimpleNamespace) -> dict[str, bytes]:
    pixels = smooth(24, 40, 1)
    jpeg, png, webp, exif, isobmff = make.jpeg, make.png, make.webp, make.exif, make.isobmff
    note = png.chunk(b"tEXt", b"a\0note") + png.chunk(b"eXIf", exif.tiff(1))
    coloured = encode(".png", pixels)
    lossy = encode(".webp", pixels, cv2.IMWRITE_WEBP_QUALITY, 60)
    metadata = jpeg.segment(0xE1, exif.app1(exif.tiff(1))) + jpeg.segment(0xFE, b"note")
    return {
        "jpeg": jpeg.insert(encode(".jpg", pixels), metadata),
        "jpeg restarts": encode(".jpg", pixels, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        "jpeg progressive": jpeg.insert(encode(".jpg", pixels, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), metadata),
        "jpeg grey": encode(".jpg", pixels[:, :, 0]),
        "jpeg trailer": encode(".jpg", pixels)[:-2] + b"\0\0\1\nImage_UTC_Data17SEFHe\0\0\0SEFT" * 3,
        "png colour": coloured[:33] + note + coloured[33:],
        "png palette": png.build(pixels[:, :, 0] // 64, depth=2, colour=3, palette=bytes(range(12)), before=note),
        "png interlaced": png.build(pixels[:, :, 0], is_interlaced=True, after=note),
        "png alpha": encode(".png", np.dstack((pixels, pixels[:, :, 0]))),
        "webp lossy": lossy,
        "webp lossless": encode(".webp", pixels, cv2.IMWRITE_WEBP_QUALITY, 101),
        "webp extended": webp.join(webp.vp8x(40, 24, 0x08), lossy[12:], webp.chunk(b"EXIF", exif.tiff(1))),
        "avif": encode(".avif", pixels),
        "avif 10 bit": encode(".avif", pixels.astype(np.uint16) * 4, cv2.IMWRITE_AVIF_DEPTH, 10),
        "avif alpha": encode(".avif", np.dstack((pixels, pixels[:, :, 0]))),
        "avif grid": isobmff.join(isobmff.grid(2, 1, (128, 128)), *[tile(isobmff, number) for number in range(2)]),
        "heic": isobmff.encode_heic(pixels),
        "heic grid": isobmff.encode_heic(smooth(40, 90, 2), tile_size=64),
    }


def tile(isobmff: Any, seed: int) -> SimpleNamespace:
    """Return an item of a grid: AVIF requires tiles of at least 64 pixels."""
    data, config = isobmff.split(encode(".avif", smooth(64, 128, seed)), b"av1C")
    return isobmff.item(data, isobmff.ispe(128, 64), isobmff.box(b"av1C", config))


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a file once or twice: flip, insert, delete, repeat, truncate or append bytes, often at its structure."""
    for _ in range(int(rng.integers(1, 3))):
        # Headers and ends are where parsers differ; the rest is mostly compressed pixels.
        at = int(rng.choice([rng.integers(len(data)), rng.integers(min(len(data), 400)), len(data) - rng.integers(40)]))
        at = max(0, min(at, len(data) - 1))
        token = TOKENS[rng.integers(len(TOKENS))]
        length = int(rng.integers(1, 12))
        match int(rng.integers(7)):
            case 0:
                data = data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
            case 1:
                data = data[:at] + rng.bytes(length) + data[at:]
            case 2:
                data = data[:at] + data[at + length :]
            case 3:
                data = data[:at] + data[at : at + 4 * length] + data[at:]
            case 4:
                data = data[: len(data) - length]
            case 5:
                data += token + rng.bytes(length)
            case _:
                data = data[:at] + token + data[at:]
        if len(data) < 2:
            break
    return data


def decode(data: bytes) -> np.ndarray | str:
    """Return the pixels if the service accepts a file, otherwise the text of its error."""
    try:
        return decode_image(data, verify_structure(data, sniff_image(data, max_pixels=LIMIT)))
    except ImageError as error:
        return str(error)


def decode_with_library(data: bytes, name: str) -> np.ndarray | None:
    """Decode a file as any program would, without the checks of the service."""
    try:
        if name.startswith("heic"):
            return np.asarray(pillow_heif.open_heif(data, bgr_mode=True))
        return cv2.imdecode(np.frombuffer(data, np.uint8), AS_STORED)
    except (cv2.error, ValueError, EOFError, SyntaxError, RuntimeError, OSError, LookupError):
        return None


NAMES = [
    "jpeg",
    "jpeg restarts",
    "jpeg progressive",
    "jpeg grey",
    "jpeg trailer",
    "png colour",
    "png palette",
    "png interlaced",
    "png alpha",
    "webp lossy",
    "webp lossless",
    "webp extended",
    "avif",
    "avif 10 bit",
    "avif alpha",
    "avif grid",
    "heic",
    "heic grid",
]


def test_names_match_the_originals(originals: dict[str, bytes]) -> None:
    assert list(originals) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_lossless_mutations_are_accepted(originals: dict[str, bytes], name: str) -> None:
    original = originals[name]
    pixels = decode_with_library(original, name)
    rng = np.random.default_rng(len(original))
    refused: list[tuple[int, str]] = []
    lossless = 0
    for number in range(MUTATIONS // len(NAMES)):
        data = mutate(original, rng)
        decoded = decode(data)
        if not np.array_equal(decode_with_library(data, name), pixels):
            continue
        lossless += 1
        if isinstance(decoded, str):
            if not any(limit in decoded for limit in LIMITS):
                refused.append((number, decoded))
        else:
            np.testing.assert_array_equal(decoded, pixels)
    assert refused == []
    assert lossless > 0
