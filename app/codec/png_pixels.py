"""PNG: a copy that is safe to decode, with nothing in it but what its pixels need."""

import struct
from collections.abc import Iterator, Sequence

from isal import isal_zlib

from app.codec.png import (
    CHECKSUM,
    CHUNK_HEAD,
    COLOUR,
    COLOUR_ALPHA,
    GREY,
    GREY_ALPHA,
    IHDR,
    PALETTE,
    SIGNATURE,
    PngHeader,
    iter_chunks,
    read_png_header,
)
from app.face.errors import ImageCorruptError

_CHANNELS = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}
# x and y of the first pixel, and the steps between pixels, of each pass of an interlaced picture.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

# Deflate cannot expand further than this.
_MAX_DEFLATE_RATIO = 1032
# libpng inflates what follows the last row, only to throw it away: 16 MiB of file would keep it busy for half a minute.
# This much costs no more than a photo does, and so it may try.
_MAX_SURPLUS_BYTES = 64 * 1024 * 1024
# The inflater copies what is left of its input each time that its output is full, so that its input comes in pieces.
_PIECE_BYTES = 8 * 1024
_ZLIB_HEAD = b"\x78\x01"
_BLOCK_HEAD = struct.Struct("<BHH")
_MAX_BLOCK_BYTES = 65_535
_MAX_PALETTE = 256


def strip_png(view: memoryview, *, as_grey: bool = False, is_alpha_kept: bool = False) -> bytearray:
    """Copy a PNG without anything that its pixels do not need.

    What is left out cannot harm: compressed text and profiles that libpng would inflate, orientation, transparency of
    a palette, frames of an animation, and image data after the last row where there could be too much of it.

    Args:
        view: The file. Its checksums are not looked at: they were when its structure was verified.
        as_grey: Call a palette's indices grey values, so that decoding gives the indices.
        is_alpha_kept: Keep the transparency of a palette.

    Returns:
        The bytes of the smaller PNG.

    Raises:
        ImageTruncatedError: the file ends before IEND does.
        ImageCorruptError: the image data does not inflate, or inflates to less than the header announces.
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
        elif header.colour_type == PALETTE and (
            kind == b"PLTE" or (kind == b"tRNS" and is_alpha_kept and end - start <= _MAX_PALETTE)
        ):
            _append_chunk(stripped, kind, view[start:end])
    raw_bytes = _count_raw_bytes(header)
    if sum(map(len, data)) * _MAX_DEFLATE_RATIO <= raw_bytes + _MAX_SURPLUS_BYTES:
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
    """Append image data inflated up to its last row, as deflate's stored blocks with a chunk for each.

    Inflating here instead of in libpng is what makes it possible to stop. The decoder then has only to copy, so that
    both together cost little more than the decoder alone would.
    """
    checksum = isal_zlib.adler32(b"")
    _append_chunk(target, b"IDAT", _ZLIB_HEAD)
    for block in _iter_inflated(data, raw_bytes):
        checksum = isal_zlib.adler32(block, checksum)
        _append_chunk(target, b"IDAT", _BLOCK_HEAD.pack(0, len(block), len(block) ^ 0xFFFF), block)
    _append_chunk(target, b"IDAT", _BLOCK_HEAD.pack(1, 0, 0xFFFF), CHECKSUM.pack(checksum))


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
                except isal_zlib.error:  # type: ignore[misc]  # the stub says instance where it is a class
                    raise ImageCorruptError("The PNG's image data does not inflate.") from None
                if not block:
                    break
                missing -= len(block)
                yield block
                # Even without input left, the inflater may hold back a part of its output.
                piece = inflater.unconsumed_tail
            if not missing:
                return
    raise ImageCorruptError("The PNG's image data inflates to less than its header announces.")


def _count_raw_bytes(header: PngHeader) -> int:
    """Count the bytes that the image data inflates to: in each pass, one byte of filter and the samples of each row."""
    bits = _CHANNELS[header.colour_type] * header.bit_depth
    passes = _ADAM7 if header.is_interlaced else ((0, 0, 1, 1),)
    total = 0
    for x, y, step_x, step_y in passes:
        columns = len(range(x, header.size.width, step_x))
        rows = len(range(y, header.size.height, step_y))
        total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return total
