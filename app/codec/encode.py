"""Pixels to a file that every viewer reads: PNG where something of the picture is transparent, otherwise JPEG."""

from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from app.codec.png import CHECKSUM, CHUNK_HEAD, COLOUR_ALPHA, IHDR, SIGNATURE

JPEG_QUALITY: Final = 90
"""Above it files grow fast, and nobody sees a difference under coloured regions."""

# Of zlib's nine: the first is several times as fast as the default, for files a tenth larger.
_PNG_LEVEL: Final = 1
_BGRA_CHANNELS: Final = 4
_ISAL_LEVEL: Final = 1
_SUB_FILTER: Final = 1
# Rows are filtered and compressed in bands, so that no second copy of a large image is in memory.
_BAND_BYTES: Final = 4 << 20


class EncodedPicture(NamedTuple):
    """A file's bytes and their type."""

    data: bytes
    media_type: str


def encode_picture(picture: npt.NDArray[np.uint8]) -> EncodedPicture:
    """Write a picture.

    Args:
        picture: ``(H, W, 3)`` BGR, or ``(H, W, 4)`` BGRA.

    Returns:
        A JPEG, or with four channels a PNG; without any of the metadata of the file that the pixels came from.
    """
    if picture.shape[2] == _BGRA_CHANNELS:
        return EncodedPicture(_encode_png(picture), "image/png")
    return EncodedPicture(_encode(".jpg", picture, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY), "image/jpeg")


def encode_drawing(picture: npt.NDArray[np.uint8]) -> bytes:
    """Write a picture of flat colours, most of it clear.

    Args:
        picture: ``(H, W, 4)`` BGRA.

    Returns:
        A PNG.
    """
    # To look for a filter in each row takes three quarters of the time, and flat colours are the larger for it.
    options = cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE
    return _encode(".png", picture, *options)


def _encode_png(picture: npt.NDArray[np.uint8]) -> bytes:
    """Write a BGRA image as a PNG.

    libpng takes up to 3 s for 24 million noisy pixels. ISA-L compresses to the same size in a tenth of that.
    """
    height, width = picture.shape[:2]
    row_bytes = width * _BGRA_CHANNELS
    compressor = isal_zlib.compressobj(_ISAL_LEVEL)
    data: list[bytes] = []
    rows = max(1, _BAND_BYTES // row_bytes)
    for top in range(0, height, rows):
        band = cv2.cvtColor(np.ascontiguousarray(picture[top : top + rows]), cv2.COLOR_BGRA2RGBA)
        pixels = band.reshape(len(band), row_bytes)
        filtered = np.empty((len(band), 1 + row_bytes), np.uint8)
        filtered[:, 0] = _SUB_FILTER
        filtered[:, 1 : 1 + _BGRA_CHANNELS] = pixels[:, :_BGRA_CHANNELS]
        np.subtract(pixels[:, _BGRA_CHANNELS:], pixels[:, :-_BGRA_CHANNELS], out=filtered[:, 1 + _BGRA_CHANNELS :])
        data.append(compressor.compress(filtered))
    data.append(compressor.flush())
    header = IHDR.pack(width, height, 8, COLOUR_ALPHA, 0, 0, 0)
    parts = [SIGNATURE]
    for kind, content in ((b"IHDR", header), (b"IDAT", b"".join(data)), (b"IEND", b"")):
        checksum = isal_zlib.crc32(content, isal_zlib.crc32(kind))
        parts += (CHUNK_HEAD.pack(len(content), kind), content, CHECKSUM.pack(checksum))
    return b"".join(parts)


def _encode(extension: str, picture: npt.NDArray[np.uint8], *options: int) -> bytes:
    is_done, data = cv2.imencode(extension, picture, options)
    if not is_done:
        raise ValueError(f"{extension}: the picture was not written")
    return data.tobytes()
