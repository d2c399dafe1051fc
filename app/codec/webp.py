"""WebP: the RIFF container and the headers of the two bitstreams inside it.

Facts from RFC 9649 (container, lossless) and RFC 6386 (lossy).
"""

import struct
from collections.abc import Iterator

from app.codec.exif import UPRIGHT, read_orientation
from app.face.errors import ImageCorruptError, ImageFormatError, ImageTruncatedError
from app.face.frame import Size

RIFF, WEBP = b"RIFF", b"WEBP"

_LOSSY, _LOSSLESS, _EXTENDED = b"VP8 ", b"VP8L", b"VP8X"
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
    """Read the size in pixels from the first chunk.

    Raises:
        ImageTruncatedError: the file ends before the header does.
        ImageCorruptError: the header is malformed.
        ImageFormatError: the file is an animation.
    """
    if bytes(view[:4]) != RIFF[: len(view)] or bytes(view[8:12]) != WEBP[: max(0, len(view) - 8)]:
        raise ImageCorruptError("The WebP's signature is wrong.")
    if len(view) < _FIRST_CHUNK + _CHUNK_HEAD.size:
        raise ImageTruncatedError("The WebP ends inside its header.")
    kind, length = _CHUNK_HEAD.unpack_from(view, _FIRST_CHUNK)
    return _read_size(view, kind, _FIRST_CHUNK + _CHUNK_HEAD.size, length)


def verify_webp(view: memoryview) -> int:
    """Prove that a WebP is whole: the container fits in the file, the chunks fill it, and they hold one image.

    WebP has no checksums, so that damage inside the image can be seen in the pixels alone.

    Args:
        view: The file. Bytes after the container are allowed.

    Returns:
        The EXIF orientation, 1 to 8.

    Raises:
        ImageTruncatedError: the file ends before the container does.
        ImageCorruptError: chunks do not fit, the image is missing or repeated, or its size is not the header's.
        ImageFormatError: the file is an animation.
    """
    size = read_webp_size(view)
    orientation: int | None = None
    images = 0
    for kind, start, length in _iter_chunks(view):
        if kind in {_LOSSY, _LOSSLESS}:
            images += 1
            if _read_size(view, kind, start, length) != size:
                raise ImageCorruptError("The WebP's image is not of the size that its header gives.")
        elif kind == b"EXIF":
            orientation = orientation or read_orientation(view[start : start + length])
    if images != 1:
        raise ImageCorruptError("The WebP holds no image, or more than one.")
    return orientation or UPRIGHT


def is_lossless_webp(view: memoryview) -> bool:
    """Tell whether a WebP's image is stored without loss.

    Raises:
        ImageTruncatedError: the file ends before the container does.
        ImageCorruptError: chunks do not fit in the container.
    """
    return any(kind == _LOSSLESS for kind, _, _ in _iter_chunks(view))


def _iter_chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Give each chunk's kind, the start of its content and its length."""
    if len(view) < _FIRST_CHUNK:
        raise ImageTruncatedError("The WebP ends inside its header.")
    container_end = 8 + int.from_bytes(view[4:8], "little")
    if container_end > len(view):
        raise ImageTruncatedError("The WebP ends before its container does.")
    position = _FIRST_CHUNK
    for _ in range(_MAX_CHUNKS):
        start = position + _CHUNK_HEAD.size
        if start > container_end:
            raise ImageCorruptError("The WebP's container ends inside a chunk.")
        kind, length = _CHUNK_HEAD.unpack_from(view, position)
        if start + length > container_end:
            raise ImageCorruptError("The WebP's container ends inside a chunk.")
        yield kind, start, length
        # Chunks of odd length are padded. Some writers leave the last one's padding out of the container.
        position = start + length + length % 2
        if position >= container_end:
            return
    raise ImageCorruptError(f"The WebP has more than {_MAX_CHUNKS} chunks.")


def _read_size(view: memoryview, kind: bytes, start: int, length: int) -> Size:
    """Read the size in pixels from the chunk whose content begins at ``start``."""
    if kind not in _HEADER_BYTES or length < _HEADER_BYTES[kind]:
        raise ImageCorruptError("The WebP begins with an unknown chunk, or its image is too short for a header.")
    header = bytes(view[start : start + _HEADER_BYTES[kind]])
    if len(header) < _HEADER_BYTES[kind]:
        raise ImageTruncatedError("The WebP ends inside its header.")
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
        raise ImageCorruptError("The WebP's image does not begin with a key frame that has a size.")
    if partition_bytes > length - len(header):
        raise ImageCorruptError("The first part of the WebP's image is longer than the image.")
    return Size(width, height)


def _parse_lossless(header: bytes) -> Size:
    (bits,) = struct.unpack_from("<I", header, 1)
    # Above both sides stand a bit that hints at alpha and three bits of version, which is 0.
    if header[0] != _LOSSLESS_SIGNATURE or bits >> (2 * _SIDE_BITS + 1):
        raise ImageCorruptError("The header of the WebP's lossless image is wrong.")
    return Size(width=(bits & _SIDE_MASK) + 1, height=(bits >> _SIDE_BITS & _SIDE_MASK) + 1)


def _parse_extended(header: bytes, length: int) -> Size:
    if length != len(header):
        raise ImageCorruptError("The WebP's extended header has an impossible length.")
    if header[0] & _ANIMATION_FLAG:
        raise ImageFormatError("Animated WebP is not read: send a still image.")
    return Size(width=int.from_bytes(header[4:7], "little") + 1, height=int.from_bytes(header[7:10], "little") + 1)
