"""ICC profiles of image files, which give the colours of their pixels a meaning.

Pixels are not converted. A profile is passed on with them, so that viewers show the colours of the original.

References: ICC.1 (profile header), ITU-T T.872 (JPEG), the PNG specification (iCCP), RFC 9649 (WebP).
"""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from isal import isal_zlib

from app.codec import isobmff, jpeg, png, webp
from app.codec.sniff import ImageInfo
from app.face.errors import ImageError

MAX_PROFILE_BYTES: Final = 1 << 20
"""Larger profiles are ignored. Those of displays and cameras have 0.5 to 10 kB, and only printers' are larger."""

JPEG_SEGMENT_START: Final = b"ICC_PROFILE\0"

_HEADER_BYTES = 128
_SPACE, _MAGIC_SPAN, _MAGIC = slice(16, 20), slice(36, 40), b"acsp"
_MAX_NAME = 80
_DEFLATE = b"\0"


class IccProfile(NamedTuple):
    """A profile and the colour space of the pixels that it is for."""

    data: bytes
    space: Literal["rgb", "grey"]


def read_icc_profile(data: bytes | memoryview, info: ImageInfo) -> IccProfile | None:
    """Return the profile of an image, or None if it has none that fits the decoded pixels.

    A malformed profile counts as none, as in viewers. So does the profile of a CMYK image, which is decoded to RGB.
    """
    view = memoryview(data)
    is_grey = False
    try:
        match info.format:
            case "jpeg":
                is_grey = len(jpeg.read_jpeg_header(view).components) == 1
                profile = _join_segments(jpeg.iter_icc_segments(view, JPEG_SEGMENT_START))
            case "png":
                is_grey = png.read_png_header(view).colour_type in {png.GREY, png.GREY_ALPHA}
                profile = _inflate(png.find_chunk(view, b"iCCP"))
            case "webp":
                profile = bytes(webp.find_chunk(view, b"ICCP"))
            case "avif" | "heic":
                header = isobmff.read_header(view)
                is_grey, profile = header.is_grey, header.profile
    except ImageError:
        return None
    size = int.from_bytes(profile[:4])
    if not _HEADER_BYTES <= size <= min(len(profile), MAX_PROFILE_BYTES) or profile[_MAGIC_SPAN] != _MAGIC:
        return None
    # Viewers ignore a profile for other pixels than those of the file.
    if profile[_SPACE] != (b"GRAY" if is_grey else b"RGB "):
        return None
    return IccProfile(profile[:size], "grey" if is_grey else "rgb")


def _join_segments(segments: Iterable[memoryview]) -> bytes:
    """Join the parts of a profile, each with its number and the number of parts in its first two bytes."""
    parts: dict[int, memoryview] = {}
    count = 0
    for segment in segments:
        if len(segment) > 2:  # noqa: PLR2004 - the two numbers
            count = segment[1]
            parts.setdefault(segment[0], segment[2:])
    if count == 0 or set(parts) != set(range(1, count + 1)):
        return b""
    return b"".join(parts[number] for number in range(1, count + 1))


def _inflate(content: memoryview) -> bytes:
    """Return the profile in an iCCP chunk: a name, the compression method, and a zlib stream."""
    name, separator, _ = bytes(content[: _MAX_NAME + 1]).partition(b"\0")
    stream = content[len(name) + 2 :]
    if not separator or content[len(name) + 1 : len(name) + 2] != _DEFLATE:
        return b""
    try:
        return bytes(isal_zlib.decompressobj().decompress(stream, MAX_PROFILE_BYTES))
    except isal_zlib.error:  # type: ignore[misc]  # the stub declares an instance instead of a class
        return b""
