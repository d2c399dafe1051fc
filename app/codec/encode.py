"""Pixels to image files: PNG if the image has transparency, otherwise JPEG."""

from typing import Final, NamedTuple

import cv2
import numpy as np
from isal import isal_zlib

from app.codec.png import CHECKSUM, CHUNK_HEAD, COLOUR_ALPHA, IHDR, SIGNATURE
from app.face.frame import BGRA_CHANNELS, ByteArray

JPEG_QUALITY: Final = 90
"""Higher values enlarge the file quickly, without a visible difference under coloured regions."""

# Level 1 of zlib's 9 is several times as fast as the default; the files are 10 % larger.
_PNG_LEVEL: Final = 1
_ISAL_LEVEL: Final = 1
_SUB_FILTER: Final = 1
# Rows are filtered and compressed in bands, so that memory never holds a second copy of a large image.
_BAND_BYTES: Final = 4 << 20


class EncodedImage(NamedTuple):
    """The bytes of an image file and its media type."""

    data: bytes
    media_type: str


def encode_image(image: ByteArray) -> EncodedImage:
    """Encode an image, without the metadata of the file that the pixels came from.

    ``(H, W, 4)`` BGRA becomes a PNG, ``(H, W, 3)`` BGR a JPEG.
    """
    if image.shape[2] == BGRA_CHANNELS:
        return EncodedImage(_encode_png(image), "image/png")
    return EncodedImage(_imencode(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY), "image/jpeg")


def encode_flat_png(image: ByteArray) -> bytes:
    """Encode an ``(H, W, 4)`` BGRA image of flat colours, most of it transparent, as PNG."""
    # Choosing a filter for each row takes three quarters of the time, and makes flat colours larger.
    options = cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE
    return _imencode(".png", image, *options)


def _encode_png(image: ByteArray) -> bytes:
    """Encode a BGRA image as PNG with ISA-L.

    libpng takes up to 3 s for 24 million noisy pixels. ISA-L compresses to the same size in a tenth of that.
    """
    height, width = image.shape[:2]
    row_bytes = width * BGRA_CHANNELS
    compressor = isal_zlib.compressobj(_ISAL_LEVEL)
    data: list[bytes] = []
    rows = max(1, _BAND_BYTES // row_bytes)
    for top in range(0, height, rows):
        band = cv2.cvtColor(np.ascontiguousarray(image[top : top + rows]), cv2.COLOR_BGRA2RGBA)
        pixels = band.reshape(len(band), row_bytes)
        filtered = np.empty((len(band), 1 + row_bytes), np.uint8)
        filtered[:, 0] = _SUB_FILTER
        filtered[:, 1 : 1 + BGRA_CHANNELS] = pixels[:, :BGRA_CHANNELS]
        np.subtract(pixels[:, BGRA_CHANNELS:], pixels[:, :-BGRA_CHANNELS], out=filtered[:, 1 + BGRA_CHANNELS :])
        data.append(compressor.compress(filtered))
    data.append(compressor.flush())
    header = IHDR.pack(width, height, 8, COLOUR_ALPHA, 0, 0, 0)
    parts = [SIGNATURE]
    for kind, content in ((b"IHDR", header), (b"IDAT", b"".join(data)), (b"IEND", b"")):
        checksum = isal_zlib.crc32(content, isal_zlib.crc32(kind))
        parts += (CHUNK_HEAD.pack(len(content), kind), content, CHECKSUM.pack(checksum))
    return b"".join(parts)


def _imencode(extension: str, image: ByteArray, *options: int) -> bytes:
    is_done, data = cv2.imencode(extension, image, options)
    if not is_done:
        raise ValueError(f"{extension}: OpenCV failed to encode the image")
    return data.tobytes()
