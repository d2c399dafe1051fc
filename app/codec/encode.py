"""Pixels to image files: PNG if the image has transparency, otherwise JPEG."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
from isal import isal_zlib

from app.codec.icc import JPEG_SEGMENT_START, IccProfile
from app.codec.png import CHECKSUM, CHUNK_HEAD, COLOUR_ALPHA, GREY, GREY_ALPHA, IHDR, SIGNATURE
from app.face.frame import BGRA_CHANNELS, ByteArray

JPEG_QUALITY: Final = 90
"""Higher values enlarge the file quickly, without a visible difference under coloured regions."""

_APP2: Final = b"\xff\xe2"
_MAX_PROFILE_PART: Final = 65_519  # the longest segment, without its length, prefix and numbers
_JFIF_START: Final = 4  # position of its length, after the start marker and its own marker

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


def encode_image(image: ByteArray, profile: IccProfile | None = None) -> EncodedImage:
    """Encode an image, with its ICC profile, but without other metadata of the file that the pixels came from.

    ``(H, W, 4)`` BGRA becomes a PNG, ``(H, W, 3)`` BGR a JPEG. With the profile of a grey image, both are grey.
    """
    if image.shape[2] == BGRA_CHANNELS:
        return EncodedImage(_encode_png(image, profile), "image/png")
    pixels = cv2.extractChannel(image, 0) if profile is not None and profile.space == "grey" else image
    data = _imencode(".jpg", np.asarray(pixels, np.uint8), cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
    return EncodedImage(data if profile is None else _insert_profile(data, profile.data), "image/jpeg")


def _insert_profile(jpeg: bytes, profile: bytes) -> bytes:
    """Insert an ICC profile after the start marker and the JFIF segment of a JPEG."""
    parts = [profile[start : start + _MAX_PROFILE_PART] for start in range(0, len(profile), _MAX_PROFILE_PART)]
    segments = b"".join(
        _APP2
        + (2 + len(JPEG_SEGMENT_START) + 2 + len(part)).to_bytes(2)
        + JPEG_SEGMENT_START
        + bytes([number, len(parts)])
        + part
        for number, part in enumerate(parts, 1)
    )
    end = _JFIF_START + int.from_bytes(jpeg[_JFIF_START : _JFIF_START + 2])
    return jpeg[:end] + segments + jpeg[end:]


def encode_flat_png(image: ByteArray) -> bytes:
    """Encode an ``(H, W, 4)`` BGRA image of flat colours, most of it transparent, as PNG."""
    # Choosing a filter for each row takes three quarters of the time, and enlarges files of flat colours.
    options = cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE
    return _imencode(".png", image, *options)


def _encode_png(image: ByteArray, profile: IccProfile | None) -> bytes:
    """Encode a BGRA image as PNG with ISA-L.

    libpng takes up to 3 s for 24 million noisy pixels. ISA-L compresses to the same size in a tenth of that.
    """
    height, width = image.shape[:2]
    is_grey = profile is not None and profile.space == "grey"
    channels = 2 if is_grey else BGRA_CHANNELS
    row_bytes = width * channels

    def filter_rows(rows: slice) -> ByteArray:
        band: ByteArray = np.ascontiguousarray(image[rows, :, 2:] if is_grey else image[rows])
        if not is_grey:
            band = cv2.cvtColor(band, cv2.COLOR_BGRA2RGBA).astype(np.uint8, copy=False)
        pixels = band.reshape(len(band), row_bytes)
        filtered = np.empty((len(band), 1 + row_bytes), np.uint8)
        filtered[:, 0] = _SUB_FILTER
        filtered[:, 1 : 1 + channels] = pixels[:, :channels]
        np.subtract(pixels[:, channels:], pixels[:, :-channels], out=filtered[:, 1 + channels :])
        return filtered

    header = IHDR.pack(width, height, 8, GREY_ALPHA if is_grey else COLOUR_ALPHA, 0, 0, 0)
    profiles = [] if profile is None else [(b"iCCP", b"icc\0\0" + isal_zlib.compress(profile.data))]
    return _join_chunks([(b"IHDR", header), *profiles, (b"IDAT", _compress_rows(height, row_bytes, filter_rows))])


def encode_label_png(labels: ByteArray, names: Mapping[int, str]) -> bytes:
    """Encode label ids ``(H, W)`` as a grey PNG.

    The name of each id is the text of an iTXt chunk with the keyword ``label N``.
    """
    height, width = labels.shape

    def filter_rows(rows: slice) -> ByteArray:
        band = labels[rows]
        filtered = np.zeros((len(band), 1 + width), np.uint8)  # no filter, because flat areas compress best as they are
        filtered[:, 1:] = band
        return filtered

    # No compression, language or translated keyword.
    texts = [(b"iTXt", b"label %d\0\0\0\0\0%b" % (label_id, name.encode())) for label_id, name in names.items()]
    header = IHDR.pack(width, height, 8, GREY, 0, 0, 0)
    return _join_chunks([(b"IHDR", header), *texts, (b"IDAT", _compress_rows(height, width, filter_rows))])


def _compress_rows(height: int, row_bytes: int, filter_rows: Callable[[slice], ByteArray]) -> bytes:
    """Compress the filtered rows of a PNG in bands, which bounds memory."""
    compressor = isal_zlib.compressobj(_ISAL_LEVEL)
    rows = max(1, _BAND_BYTES // row_bytes)
    data = [compressor.compress(filter_rows(slice(top, top + rows))) for top in range(0, height, rows)]
    return b"".join([*data, compressor.flush()])


def _join_chunks(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG file of chunks, each a type and its content; the last chunk, which is empty, is added."""
    parts = [SIGNATURE]
    for kind, content in [*chunks, (b"IEND", b"")]:
        checksum = isal_zlib.crc32(content, isal_zlib.crc32(kind))
        parts += (CHUNK_HEAD.pack(len(content), kind), content, CHECKSUM.pack(checksum))
    return b"".join(parts)


def _imencode(extension: str, image: ByteArray, *options: int) -> bytes:
    is_done, data = cv2.imencode(extension, image, options)
    if not is_done:
        raise ValueError(f"{extension}: OpenCV failed to encode the image")
    return data.tobytes()
