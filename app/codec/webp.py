"""WebP files: the RIFF container and the headers of the two bitstream formats inside it.

References: RFC 9649 (container, lossless) and RFC 6386 (lossy).
"""

import struct
from collections.abc import Iterator

from app.codec.exif import read_orientation
from app.face.errors import ImageCorruptError, ImageFormatError, ImageTruncatedError
from app.face.frame import NORMAL_ORIENTATION, Size

RIFF, WEBP = b"RIFF", b"WEBP"

_LOSSY, _LOSSLESS, _EXTENDED = b"VP8 ", b"VP8L", b"VP8X"
_IMAGES = {_LOSSY, _LOSSLESS}
_CHUNK_HEAD = struct.Struct("<4sI")
_FIRST_CHUNK = 12
_HEADER_BYTES = {_LOSSY: 10, _LOSSLESS: 5, _EXTENDED: 10}
_ANIMATION_FLAG = 0x02
_KEY_FRAME_START = b"\x9d\x01\x2a"
_LOSSLESS_SIGNATURE = 0x2F
_SIDE_BITS = 14
_SIDE_MASK = (1 << _SIDE_BITS) - 1
_MAX_CHUNKS = 1_024


def read_webp_size(view: memoryview) -> Size:
    """Return the size in pixels from the first chunk.

    Raises:
        ImageTruncatedError: the file ends inside the header.
        ImageCorruptError: the header is malformed.
        ImageFormatError: the file is an animation.
    """
    if bytes(view[:4]) != RIFF[: len(view)] or bytes(view[8:12]) != WEBP[: max(0, len(view) - 8)]:
        raise ImageCorruptError("expected a WebP signature, got other bytes")
    if len(view) < _FIRST_CHUNK + _CHUNK_HEAD.size:
        raise ImageTruncatedError("expected a complete WebP, got end of file in the header")
    kind, length = _CHUNK_HEAD.unpack_from(view, _FIRST_CHUNK)
    return _read_size(view, kind, _FIRST_CHUNK + _CHUNK_HEAD.size, length)


def verify_webp(view: memoryview) -> int:
    """Verify that a WebP is complete: the container fits in the file, and an image in the container.

    Like libwebp, ignore what follows the image, except for its EXIF orientation. WebP has no checksums, so damage
    inside the image shows only in the pixels. Return the EXIF orientation, 1 to 8.

    Raises:
        ImageTruncatedError: the file ends before the end of the container.
        ImageCorruptError: chunks do not fit, or the image is missing or not of the size in the header.
        ImageFormatError: the file is an animation.
    """
    size = read_webp_size(view)
    orientation: int | None = None
    has_image = False
    try:
        for kind, start, length in _iter_chunks(view):
            if kind == b"EXIF":
                orientation = orientation or read_orientation(view[start : start + length])
            elif kind in _IMAGES and not has_image:
                _check_same_size(size, _read_size(view, kind, start, length))
                has_image = True
    except ImageCorruptError:
        if not has_image:
            raise
    if not has_image:
        raise ImageCorruptError("expected an image in the WebP, got none")
    return orientation or NORMAL_ORIENTATION


def find_chunk(view: memoryview, kind: bytes) -> memoryview:
    """Return the content of the first chunk of a type before the image, or nothing.

    Raises:
        ImageTruncatedError: the file ends before the end of the container.
        ImageCorruptError: chunks up to the image do not fit in the container.
    """
    for found, start, length in _iter_chunks(view):
        if found == kind:
            return view[start : start + length]
        if found in _IMAGES:
            break
    return view[:0]


def _check_same_size(header: Size, image: Size) -> None:
    if image != header:
        raise ImageCorruptError("expected a WebP image of the size in the header, got another size")


def is_lossless_webp(view: memoryview) -> bool:
    """Return whether the image of a WebP uses lossless compression.

    Raises:
        ImageTruncatedError: the file ends before the end of the container.
        ImageCorruptError: chunks up to the image do not fit in the container.
    """
    return next((kind for kind, _, _ in _iter_chunks(view) if kind in _IMAGES), None) == _LOSSLESS


def _iter_chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each chunk, and the start and length of its content."""
    if len(view) < _FIRST_CHUNK:
        raise ImageTruncatedError("expected a complete WebP, got end of file in the header")
    container_end = 8 + int.from_bytes(view[4:8], "little")
    if container_end > len(view):
        raise ImageTruncatedError("expected a complete WebP, got end of file in the container")
    position = _FIRST_CHUNK
    for _ in range(_MAX_CHUNKS):
        start = position + _CHUNK_HEAD.size
        if start > container_end:
            raise ImageCorruptError("expected a complete WebP chunk, got the end of the container")
        kind, length = _CHUNK_HEAD.unpack_from(view, position)
        if start + length > container_end:
            raise ImageCorruptError("expected a complete WebP chunk, got the end of the container")
        yield kind, start, length
        # Chunks of odd length are padded. Some encoders do not count the padding of the last one in the container.
        position = start + length + length % 2
        if position >= container_end:
            return
    raise ImageCorruptError(f"expected at most {_MAX_CHUNKS} chunks in a WebP, got more")


def _read_size(view: memoryview, kind: bytes, start: int, length: int) -> Size:
    """Return the size in pixels from the chunk whose content starts at ``start``."""
    if kind not in _HEADER_BYTES or length < _HEADER_BYTES[kind]:
        raise ImageCorruptError("expected a WebP image or extended header, got an unknown or too short chunk")
    header = bytes(view[start : start + _HEADER_BYTES[kind]])
    if len(header) < _HEADER_BYTES[kind]:
        raise ImageTruncatedError("expected a complete WebP, got end of file in the header")
    if kind == _LOSSY:
        return _parse_lossy(header, length)
    if kind == _LOSSLESS:
        return _parse_lossless(header)
    return _parse_extended(header, length)


def _parse_lossy(header: bytes, length: int) -> Size:
    tag = int.from_bytes(header[:3], "little")
    is_key_frame, is_shown, partition_bytes = not tag & 1, tag >> 4 & 1, tag >> 5
    width, height = (side & _SIDE_MASK for side in struct.unpack_from("<HH", header, 6))
    if not (is_key_frame and is_shown and header[3:6] == _KEY_FRAME_START and width and height):
        raise ImageCorruptError("expected a WebP key frame with a size, got another frame")
    if partition_bytes > length - len(header):
        raise ImageCorruptError("expected a first partition within the WebP image, got a longer one")
    return Size(width, height)


def _parse_lossless(header: bytes) -> Size:
    (bits,) = struct.unpack_from("<I", header, 1)
    # The bits above width and height are an alpha hint and a 3-bit version, which must be 0.
    if header[0] != _LOSSLESS_SIGNATURE or bits >> (2 * _SIDE_BITS + 1):
        raise ImageCorruptError("expected a valid lossless WebP header, got an invalid one")
    return Size(width=(bits & _SIDE_MASK) + 1, height=(bits >> _SIDE_BITS & _SIDE_MASK) + 1)


def _parse_extended(header: bytes, length: int) -> Size:
    if length != len(header):
        raise ImageCorruptError("expected an extended WebP header of valid length, got an invalid length")
    if header[0] & _ANIMATION_FLAG:
        raise ImageFormatError("expected a still WebP, got an animation")
    return Size(width=int.from_bytes(header[4:7], "little") + 1, height=int.from_bytes(header[7:10], "little") + 1)
