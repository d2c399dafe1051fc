"""PNG: the header and the chunks with their checksums.

Facts from the PNG specification, third edition (W3C, 2025).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from isal import isal_zlib

from app.codec.exif import UPRIGHT, read_orientation
from app.face.errors import ImageCorruptError, ImageTruncatedError
from app.face.frame import Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6

_BIT_DEPTHS = {
    GREY: {1, 2, 4, 8, 16},
    COLOUR: {8, 16},
    PALETTE: {1, 2, 4, 8},
    GREY_ALPHA: {8, 16},
    COLOUR_ALPHA: {8, 16},
}
CHUNK_HEAD = struct.Struct(">I4s")
CHECKSUM = struct.Struct(">I")
IHDR = struct.Struct(">IIBBBBB")
_IHDR_END = len(SIGNATURE) + CHUNK_HEAD.size + IHDR.size + CHECKSUM.size
_MAX_LENGTH = 2**31 - 1
_MAX_PALETTE_BYTES = 3 * 256
# Chunks may be empty, so the size of the file alone does not bound the work. libpng writes 8 KiB of pixels in a chunk,
# and no encoder less than 1 KiB.
_BASE_CHUNKS = 1_024
_BYTES_PER_CHUNK = 1_024


class PngHeader(NamedTuple):
    """What IHDR says: the size in pixels, bits a sample, colour type, and whether rows come in seven passes."""

    size: Size
    bit_depth: int
    colour_type: int
    is_interlaced: bool


def read_png_header(view: memoryview) -> PngHeader:
    """Read and check the signature and IHDR.

    Raises:
        ImageTruncatedError: the file ends before IHDR does.
        ImageCorruptError: the signature, the checksum or a value of IHDR is wrong.
    """
    if bytes(view[: len(SIGNATURE)]) != SIGNATURE[: len(view)]:
        raise ImageCorruptError("The PNG's signature is wrong.")
    if len(view) < _IHDR_END:
        raise ImageTruncatedError("The PNG ends inside its header.")
    if CHUNK_HEAD.unpack_from(view, len(SIGNATURE)) != (IHDR.size, b"IHDR"):
        raise ImageCorruptError("The PNG does not begin with a header chunk.")
    checked_end = _IHDR_END - CHECKSUM.size
    if isal_zlib.crc32(view[len(SIGNATURE) + 4 : checked_end]) != CHECKSUM.unpack_from(view, checked_end)[0]:
        raise ImageCorruptError("The checksum of the PNG's header is wrong.")
    fields = IHDR.unpack_from(view, checked_end - IHDR.size)
    width, height, bit_depth, colour_type, compression, row_filter, interlace = fields
    if not (0 < width <= _MAX_LENGTH and 0 < height <= _MAX_LENGTH):
        raise ImageCorruptError("The PNG's header gives an impossible size.")
    if bit_depth not in _BIT_DEPTHS.get(colour_type, ()) or compression or row_filter or interlace > 1:
        raise ImageCorruptError("The PNG's header gives an impossible bit depth, colour type or method.")
    return PngHeader(Size(width, height), bit_depth, colour_type, bool(interlace))


def verify_png(view: memoryview) -> int:
    """Prove that a PNG is whole: every chunk's checksum, the order of the chunks that matter, and IEND.

    Args:
        view: The file. Bytes after IEND are allowed.

    Returns:
        The EXIF orientation, 1 to 8.

    Raises:
        ImageTruncatedError: the file ends before IEND does.
        ImageCorruptError: a checksum is wrong, or chunks are missing, unknown or out of order.
    """
    header = read_png_header(view)
    orientation: int | None = None
    has_palette = False
    data_runs = data_bytes = 0
    previous = b""
    for kind, start, end in iter_chunks(view):
        if kind == b"IDAT":
            data_runs += previous != b"IDAT"
            data_bytes += end - start
        elif kind == b"PLTE":
            _check_palette(end - start, is_first=not has_palette and not data_runs)
            has_palette = True
        elif kind == b"eXIf":
            orientation = orientation or read_orientation(view[start:end])
        else:
            _check_other_chunk(kind, is_first=not previous, is_empty=start == end)
        previous = kind
    if data_runs != 1 or not data_bytes:
        raise ImageCorruptError("The PNG's image data is missing or in pieces.")
    if header.colour_type == PALETTE and not has_palette:
        raise ImageCorruptError("The PNG has no palette.")
    return orientation or UPRIGHT


def iter_chunks(view: memoryview, *, is_checked: bool = True) -> Iterator[tuple[bytes, int, int]]:
    """Give each chunk's kind and the span of its content, up to and with IEND.

    Raises:
        ImageTruncatedError: the file ends before IEND does.
        ImageCorruptError: a length is impossible, there are too many chunks, or, if checked, a checksum is wrong.
    """
    position = len(SIGNATURE)
    limit = _BASE_CHUNKS + len(view) // _BYTES_PER_CHUNK
    for _ in range(limit):
        start = position + CHUNK_HEAD.size
        if start > len(view):
            raise ImageTruncatedError("The PNG ends before its last chunk.")
        length, kind = CHUNK_HEAD.unpack_from(view, position)
        end = start + length
        if length > _MAX_LENGTH:
            raise ImageCorruptError(f"The PNG's chunk at byte {position} has an impossible length.")
        if end + CHECKSUM.size > len(view):
            raise ImageTruncatedError(f"The PNG ends inside the chunk at byte {position}.")
        if is_checked and isal_zlib.crc32(view[position + 4 : end]) != CHECKSUM.unpack_from(view, end)[0]:
            raise ImageCorruptError(f"The checksum of the PNG's chunk at byte {position} is wrong.")
        yield kind, start, end
        if kind == b"IEND":
            return
        position = end + CHECKSUM.size
    raise ImageCorruptError(f"expected at most {limit} chunks in a PNG of this size, got more")


def _check_palette(length: int, *, is_first: bool) -> None:
    if not is_first or length % 3 or not 0 < length <= _MAX_PALETTE_BYTES:
        raise ImageCorruptError("The PNG's palette has an impossible length or stands in the wrong place.")


def _check_other_chunk(kind: bytes, *, is_first: bool, is_empty: bool) -> None:
    """Check any other chunk. A capital first letter marks what a decoder must understand."""
    match kind:
        case b"IHDR":
            is_allowed = is_first
        case b"IEND":
            is_allowed = is_empty
        case _:
            is_allowed = kind.isalpha() and kind[:1].islower()
    if not is_allowed:
        raise ImageCorruptError("The PNG has a critical chunk that is unknown, repeated or malformed.")
