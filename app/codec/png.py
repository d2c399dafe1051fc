"""PNG files: header, chunks with their checksums, and a minimal copy that is safe to decode.

Reference: the PNG specification, third edition (W3C, 2025).
"""

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from isal import isal_zlib

from app.codec.decoding_policy import require_decoding
from app.codec.exif import read_orientation
from app.face.errors import ImageCorruptError, ImageTruncatedError
from app.face.frame import NORMAL_ORIENTATION, Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
DAMAGED = b""
"""Type that `iter_chunks` yields for a chunk that decoders ignore because of its checksum."""

CHUNK_HEAD = struct.Struct(">I4s")
CHECKSUM = struct.Struct(">I")
IHDR = struct.Struct(">IIBBBBB")

_BIT_DEPTHS = {
    GREY: {1, 2, 4, 8, 16},
    COLOUR: {8, 16},
    PALETTE: {1, 2, 4, 8},
    GREY_ALPHA: {8, 16},
    COLOUR_ALPHA: {8, 16},
}
CHANNELS = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}
# x and y of the first pixel, and the steps between pixels, for each pass of an interlaced image.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_IHDR_END = len(SIGNATURE) + CHUNK_HEAD.size + IHDR.size + CHECKSUM.size
_MAX_LENGTH = 2**31 - 1
_MAX_PALETTE = 256
_GREY_BYTES = 2

# Chunks may be empty, so the file size alone does not bound the work. libpng writes chunks of 8 KiB of pixels, and no
# encoder writes less than 1 KiB.
_BASE_CHUNKS = 1_024
_BYTES_PER_CHUNK = 1_024

# The maximum expansion of deflate.
_MAX_DEFLATE_RATIO = 1032
# libpng inflates the data after the last row and discards it: a file of 16 MiB would keep it busy for half a minute.
# This much surplus costs no more than decoding an image, so it is allowed.
_MAX_SURPLUS_BYTES = 64 * 1024 * 1024
# Above this size, inflating the data twice costs less than copying it, which touches much new memory.
_MAX_COPIED_BYTES = 64 * 1024 * 1024
# The inflater copies its remaining input each time the output is full, so it gets the input in small pieces.
_PIECE_BYTES = 8 * 1024
_ZLIB_HEAD = b"\x78\x01"
_BLOCK_HEAD = struct.Struct("<BHH")
_MAX_BLOCK_BYTES = 65_535


class PngHeader(NamedTuple):
    """The IHDR fields: size in pixels, bits per sample, colour type, and whether rows are interlaced."""

    size: Size
    bit_depth: int
    colour_type: int
    is_interlaced: bool


def read_png_header(view: memoryview) -> PngHeader:
    """Read and check the signature and IHDR.

    Raises:
        ImageTruncatedError: the file ends inside IHDR.
        ImageCorruptError: the signature, the checksum or a field of IHDR is wrong.
    """
    if bytes(view[: len(SIGNATURE)]) != SIGNATURE[: len(view)]:
        raise ImageCorruptError("expected a PNG signature, got other bytes")
    if len(view) < _IHDR_END:
        raise ImageTruncatedError("expected a complete PNG, got end of file in the header")
    if CHUNK_HEAD.unpack_from(view, len(SIGNATURE)) != (IHDR.size, b"IHDR"):
        raise ImageCorruptError("expected IHDR as the first PNG chunk, got another chunk")
    checked_end = _IHDR_END - CHECKSUM.size
    if isal_zlib.crc32(view[len(SIGNATURE) + 4 : checked_end]) != CHECKSUM.unpack_from(view, checked_end)[0]:
        raise ImageCorruptError("expected a correct PNG header checksum, got a wrong one")
    fields = IHDR.unpack_from(view, checked_end - IHDR.size)
    width, height, bit_depth, colour_type, compression, row_filter, interlace = fields
    if not (0 < width <= _MAX_LENGTH and 0 < height <= _MAX_LENGTH):
        raise ImageCorruptError("expected a valid PNG size, got one that is 0 or out of range")
    if bit_depth not in _BIT_DEPTHS.get(colour_type, ()) or compression or row_filter or interlace > 1:
        raise ImageCorruptError("expected a valid PNG bit depth, colour type and method, got an invalid combination")
    return PngHeader(Size(width, height), bit_depth, colour_type, bool(interlace))


def verify_png(view: memoryview) -> int:
    """Verify that a PNG is complete: the checksum and order of the chunks that libpng does not ignore, and IEND.

    libpng ignores other chunks with a wrong checksum, the palette of a PNG that is not a palette PNG, image data that
    continues after another chunk, and bytes after the head of IEND. Return the EXIF orientation, 1 to 8.

    Raises:
        ImageTruncatedError: the file ends before IEND.
        ImageCorruptError: a checksum is wrong, or chunks are missing, unknown or out of order.
    """
    header = read_png_header(view)
    orientation: int | None = None
    has_palette = False
    data: list[memoryview] = []
    previous = b""
    is_continued = False
    for kind, start, end in iter_chunks(view):
        if kind == b"IDAT":
            is_continued |= bool(data) and previous != b"IDAT"
            if not is_continued:
                data.append(view[start:end])
        elif kind == b"PLTE":
            if header.colour_type == PALETTE and not data:
                _check_palette(end - start, is_first=not has_palette)
                has_palette = True
        elif kind == b"eXIf":
            orientation = orientation or read_orientation(view[start:end])
        else:
            _check_other_chunk(kind, is_first=not previous)
        previous = kind
    if not any(data):
        raise ImageCorruptError("expected PNG image data, got none")
    if is_continued:
        require_decoding(len(view))
        deque(_iter_inflated(data, _count_raw_bytes(header)), maxlen=0)
    if header.colour_type == PALETTE and not has_palette:
        raise ImageCorruptError("expected a palette in a palette PNG, got none")
    return orientation or NORMAL_ORIENTATION


def iter_chunks(view: memoryview, *, is_checked: bool = True) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, start and end of the content of each chunk, up to and including IEND.

    The type of a chunk with a wrong checksum is ``DAMAGED`` if libpng ignores such a chunk. The checksums of
    image data are checked only with ``is_checked``.

    Raises:
        ImageTruncatedError: the file ends before IEND.
        ImageCorruptError: a length is invalid, there are too many chunks, or a checksum is wrong.
    """
    is_palette_used = read_png_header(view).colour_type == PALETTE
    position = len(SIGNATURE)
    limit = _BASE_CHUNKS + len(view) // _BYTES_PER_CHUNK
    for _ in range(limit):
        start = position + CHUNK_HEAD.size
        if start > len(view):
            raise ImageTruncatedError("expected a complete PNG, got end of file before the last chunk")
        length, kind = CHUNK_HEAD.unpack_from(view, position)
        end = start + length
        if length > _MAX_LENGTH:
            raise ImageCorruptError(f"expected a PNG chunk of valid length at byte {position}, got {length}")
        if end + CHECKSUM.size > len(view):
            raise ImageTruncatedError(f"expected a complete PNG, got end of file in the chunk at byte {position}")
        is_skipped = kind == b"IEND" or (kind == b"IDAT" and not is_checked)
        if not is_skipped and isal_zlib.crc32(view[position + 4 : end]) != CHECKSUM.unpack_from(view, end)[0]:
            if not (kind[:1].islower() or (kind == b"PLTE" and not is_palette_used)):
                raise ImageCorruptError(
                    f"expected a correct checksum of the PNG chunk at byte {position}, got a wrong one"
                )
            kind = DAMAGED
        yield kind, start, end
        if kind == b"IEND":
            return
        position = end + CHECKSUM.size
    raise ImageCorruptError(f"expected at most {limit} chunks in a PNG of this size, got more")


def _check_palette(length: int, *, is_first: bool) -> None:
    if not is_first or length % 3 or not 0 < length <= 3 * _MAX_PALETTE:
        raise ImageCorruptError("expected one valid PNG palette before the image data, got a misplaced or invalid one")


def _check_other_chunk(kind: bytes, *, is_first: bool) -> None:
    """Check a chunk of any other type. A capital first letter marks a critical chunk."""
    match kind:
        case b"IHDR":
            is_allowed = is_first
        case b"IEND" | b"":
            is_allowed = True
        case _:
            is_allowed = kind.isalpha() and kind[:1].islower()
    if not is_allowed:
        raise ImageCorruptError("expected known critical PNG chunks, got one that is unknown, repeated or malformed")


def find_chunk(view: memoryview, kind: bytes) -> memoryview:
    """Return the content of the first chunk of a type before the image data, or nothing.

    Raises:
        ImageTruncatedError: the file ends before the image data.
        ImageCorruptError: a chunk before the image data is invalid.
    """
    for found, start, end in iter_chunks(view, is_checked=False):
        if found == kind:
            return view[start:end]
        if found == b"IDAT":
            break
    return view[:0]


def read_transparent_grey(view: memoryview) -> int | None:
    """Return the transparent grey value (tRNS) in the bit depth of the file, or None. OpenCV ignores it.

    Raises:
        ImageTruncatedError: the file ends before the image data.
        ImageCorruptError: a chunk before the image data is invalid.
    """
    header = read_png_header(view)
    content = find_chunk(view, b"tRNS") if header.colour_type == GREY else b""
    if len(content) != _GREY_BYTES:
        return None
    return int.from_bytes(content) & ((1 << header.bit_depth) - 1)


def strip_png(view: memoryview, *, as_grey: bool = False, is_alpha_kept: bool = False) -> bytearray:
    """Return a copy of a PNG with only the chunks that its pixels need. Checksums are not verified again.

    The copy omits what could be harmful: compressed text and profiles that libpng would inflate, orientation,
    transparency of colours unless it is kept, animation frames, and excessive image data after the last row. With
    ``as_grey``, palette indices are declared as grey values, so that decoding returns the indices.

    Raises:
        ImageTruncatedError: the file ends before IEND.
        ImageCorruptError: the image data does not inflate, or inflates to less than the header declares.
    """
    header = read_png_header(view)
    if as_grey:
        header = header._replace(colour_type=GREY)
    stripped = bytearray(SIGNATURE)
    fields = (*header.size, header.bit_depth, header.colour_type, 0, 0, header.is_interlaced)
    _append_chunk(stripped, b"IHDR", IHDR.pack(*fields))
    data: list[memoryview] = []
    for kind, start, end in iter_chunks(view, is_checked=False):
        if kind == b"IDAT":
            data.append(view[start:end])
        elif data:
            break
        elif (kind == b"PLTE" and header.colour_type == PALETTE) or (
            # A longer chunk is invalid.
            kind == b"tRNS" and is_alpha_kept and header.colour_type != GREY and end - start <= _MAX_PALETTE
        ):
            _append_chunk(stripped, kind, view[start:end])
    raw_bytes = _count_raw_bytes(header)
    is_bounded = sum(map(len, data)) * _MAX_DEFLATE_RATIO <= raw_bytes + _MAX_SURPLUS_BYTES
    if is_bounded or (raw_bytes > _MAX_COPIED_BYTES and _inflates_to(data, raw_bytes)):
        _append_chunk(stripped, b"IDAT", *data)
    else:
        _append_stored(stripped, data, raw_bytes)
    _append_chunk(stripped, b"IEND")
    return stripped


def _append_chunk(target: bytearray, kind: bytes, *contents: bytes | memoryview) -> None:
    target += CHUNK_HEAD.pack(sum(map(len, contents)), kind)
    checksum = isal_zlib.crc32(kind)
    for content in contents:
        target += content
        checksum = isal_zlib.crc32(content, checksum)
    target += CHECKSUM.pack(checksum)


def _append_stored(target: bytearray, data: Sequence[memoryview], raw_bytes: int) -> None:
    """Append image data, inflated up to its last row, as stored deflate blocks with one chunk each.

    Only our own inflater can stop after the last row. libpng then just copies, so the total cost is hardly higher.
    """
    checksum = isal_zlib.adler32(b"")
    _append_chunk(target, b"IDAT", _ZLIB_HEAD)
    for block in _iter_inflated(data, raw_bytes):
        checksum = isal_zlib.adler32(block, checksum)
        _append_chunk(target, b"IDAT", _BLOCK_HEAD.pack(0, len(block), len(block) ^ 0xFFFF), block)
    _append_chunk(target, b"IDAT", _BLOCK_HEAD.pack(1, 0, 0xFFFF), CHECKSUM.pack(checksum))


def _inflates_to(data: Sequence[memoryview], raw_bytes: int) -> bool:
    """Return whether image data is a complete zlib stream of this many bytes."""
    inflater = isal_zlib.decompressobj()
    count = 0
    for chunk in data:
        for start in range(0, len(chunk), _PIECE_BYTES):
            piece: memoryview | bytes = chunk[start : start + _PIECE_BYTES]
            while not inflater.eof:
                try:
                    block = inflater.decompress(piece, _MAX_BLOCK_BYTES)
                except isal_zlib.error:  # type: ignore[misc]  # the stub declares an instance instead of a class
                    return False
                if not block:
                    break
                count += len(block)
                if count > raw_bytes:
                    return False
                piece = inflater.unconsumed_tail
    return inflater.eof and count == raw_bytes


def _iter_inflated(data: Sequence[memoryview], raw_bytes: int) -> Iterator[bytes]:
    """Inflate exactly ``raw_bytes``, in blocks."""
    inflater = isal_zlib.decompressobj()
    missing = raw_bytes
    for chunk in data:
        for start in range(0, len(chunk), _PIECE_BYTES):
            piece: memoryview | bytes = chunk[start : start + _PIECE_BYTES]
            while missing and not inflater.eof:
                try:
                    block = inflater.decompress(piece, min(missing, _MAX_BLOCK_BYTES))
                except isal_zlib.error:  # type: ignore[misc]  # the stub declares an instance instead of a class
                    raise ImageCorruptError("expected PNG image data that inflates, got invalid data") from None
                if not block:
                    break
                missing -= len(block)
                yield block
                # The inflater may hold back output even if it has no input left.
                piece = inflater.unconsumed_tail
            if not missing:
                return
    raise ImageCorruptError("expected as much PNG image data as the header declares, got less")


def _count_raw_bytes(header: PngHeader) -> int:
    """Count the bytes of the inflated image data: in each pass, a filter byte and the samples of each row."""
    bits = CHANNELS[header.colour_type] * header.bit_depth
    passes = _ADAM7 if header.is_interlaced else ((0, 0, 1, 1),)
    total = 0
    for x, y, step_x, step_y in passes:
        columns = len(range(x, header.size.width, step_x))
        rows = len(range(y, header.size.height, step_y))
        total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return total
