"""Pixels to image files: PNG if the image has transparency, otherwise JPEG."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
from isal import isal_zlib

from app.codec.icc import JPEG_SEGMENT_START, IccProfile
from app.codec.png import CHANNELS, CHECKSUM, CHUNK_HEAD, COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, IHDR, SIGNATURE
from app.face.frame import BGRA_CHANNELS, ByteArray, Size

JPEG_QUALITY: Final = 90
"""Higher values enlarge the file quickly, without a visible difference under coloured regions."""

_APP2: Final = b"\xff\xe2"
_MAX_PROFILE_PART: Final = 65_519  # the longest segment, without its length, prefix and numbers
_JFIF_START: Final = 4  # position of its length, after the start marker and its own marker

_ISAL_LEVEL: Final = 1
_NO_FILTER: Final = 0
_SUB_FILTER: Final = 1
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


def encode_overlay_png(channels: Sequence[ByteArray], profile: IccProfile | None = None) -> bytes:
    """Encode the channels ``(H, W)`` of an image, in the order BGR or BGRA, as PNG."""
    order = [2, 1, 0, 3][: len(channels)]

    def read_rows(rows: slice) -> ByteArray:
        return np.asarray(cv2.merge([channels[channel][rows] for channel in order]), np.uint8)

    is_opaque = len(channels) < BGRA_CHANNELS
    # Flat colours compress better without a filter; an image that covers everything is a photo.
    row_filter = _SUB_FILTER if is_opaque else _NO_FILTER
    height, width = channels[0].shape
    return _write_png(Size(width, height), COLOUR if is_opaque else COLOUR_ALPHA, read_rows, row_filter, profile)


def _encode_png(image: ByteArray, profile: IccProfile | None) -> bytes:
    """Encode a BGRA image as PNG, grey with alpha if its profile is that of a grey image."""
    is_grey = profile is not None and profile.space == "grey"

    def read_rows(rows: slice) -> ByteArray:
        if is_grey:
            return image[rows, :, 2:]
        return cv2.cvtColor(np.ascontiguousarray(image[rows]), cv2.COLOR_BGRA2RGBA).astype(np.uint8, copy=False)

    height, width = image.shape[:2]
    return _write_png(Size(width, height), GREY_ALPHA if is_grey else COLOUR_ALPHA, read_rows, _SUB_FILTER, profile)


def encode_label_png(labels: ByteArray, names: Mapping[int, str]) -> bytes:
    """Encode label ids ``(H, W)`` as a grey PNG.

    The name of each id is the text of an iTXt chunk with the keyword ``label N``.
    """
    # No compression, language or translated keyword.
    texts = [(b"iTXt", b"label %d\0\0\0\0\0%b" % (label_id, name.encode())) for label_id, name in names.items()]
    height, width = labels.shape
    return _write_png(Size(width, height), GREY, lambda rows: labels[rows, :, None], _NO_FILTER, chunks=texts)


def _write_png(
    size: Size,
    colour_type: int,
    read_rows: Callable[[slice], ByteArray],
    row_filter: int,
    profile: IccProfile | None = None,
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Encode rows, which the function returns as ``(R, W, C)``, as PNG with ISA-L.

    libpng takes up to 3 s for 24 million noisy pixels. ISA-L compresses to the same size in a tenth of that. Rows are
    filtered and compressed in bands, so that memory never holds a second copy of a large image.
    """
    row_bytes = size.width * CHANNELS[colour_type]
    compressor = isal_zlib.compressobj(_ISAL_LEVEL)
    data: list[bytes] = []
    height = max(1, _BAND_BYTES // row_bytes)
    for top in range(0, size.height, height):
        band = read_rows(slice(top, top + height))
        pixels, channels = band.reshape(len(band), row_bytes), band.shape[2]
        filtered = np.empty((len(band), 1 + row_bytes), np.uint8)
        filtered[:, 0] = row_filter
        if row_filter == _NO_FILTER:
            filtered[:, 1:] = pixels
        else:
            filtered[:, 1 : 1 + channels] = pixels[:, :channels]
            np.subtract(pixels[:, channels:], pixels[:, :-channels], out=filtered[:, 1 + channels :])
        data.append(compressor.compress(filtered))
    data.append(compressor.flush())
    header = IHDR.pack(size.width, size.height, 8, colour_type, 0, 0, 0)
    profiles = [] if profile is None else [(b"iCCP", b"icc\0\0" + isal_zlib.compress(profile.data))]
    return _join_chunks([(b"IHDR", header), *profiles, *chunks, (b"IDAT", b"".join(data))])


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
