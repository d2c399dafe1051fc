"""JPEG: the segments from the start of the image to its end, and the scans between them.

Facts from ITU-T T.81, annex B.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from app.codec.exif import UPRIGHT, read_orientation
from app.face.errors import ImageCorruptError, ImageFormatError, ImageTruncatedError
from app.face.frame import Size

SIGNATURE = b"\xff\xd8\xff"

_EOI, _SOS, _APP1 = 0xD9, 0xDA, 0xE1
_FRAMES_READ = frozenset({0xC0, 0xC1, 0xC2})
# Lossless, hierarchical and arithmetic-coded frames exist on paper; browsers show none of them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# DHT, DAC, DQT, DNL, DRI, APPn and COM.
_SEGMENTS = _FRAMES | {_SOS, 0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xFE} | frozenset(range(0xE0, 0xF0))

# A marker may have any number of 0xFF before it.
_MARKER = re.compile(rb"\xff++([^\xff])", re.DOTALL)
# In a scan, 0xFF 0x00 is a byte of data, 0xD0 to 0xD7 restart the decoder, and 0xFF is filling.
_MARKER_START, _DATA, _RESTART, _RESTART_MASK = 0xFF, 0x00, 0xD0, 0xF8
_SCAN_BLOCK = 65_536

# Empty comments cost four bytes each, so the size of the file alone does not bound the work. Metadata are split into
# segments of 64 KiB, of which a body has room for 256.
_MAX_SEGMENTS = 1_024
# Each scan of a progressive JPEG visits the whole image, and needs only a few bytes to do so. Encoders write about ten;
# more are read as far as scans times pixels stay within what a large photo with as many as encoders write takes.
_MAX_SCANS = 100
_MIN_MAX_SCANS = 16
_MAX_SCANNED_PIXELS = 400_000_000
_PRECISION_BITS = 8
_COMPONENT_COUNTS = {1, 3, 4}
_SAMPLING_FACTORS = range(1, 5)


class JpegHeader(NamedTuple):
    """What the frame header says: the size in pixels and the components' ids; and EXIF's orientation if before it."""

    size: Size
    components: frozenset[int]
    exif_orientation: int


def read_jpeg_header(view: memoryview) -> JpegHeader:
    """Read the segments up to the frame header.

    Raises:
        ImageTruncatedError: the file ends before the frame header does.
        ImageCorruptError: a segment is malformed, or there is no frame header.
        ImageFormatError: the frame is of a kind that is not read.
    """
    orientation: int | None = None
    for marker, start, end in _iter_segments(view):
        if marker in _FRAMES:
            size, components = _parse_frame(marker, view[start:end])
            return JpegHeader(size, components, orientation or UPRIGHT)
        if marker == _SOS:
            break
        if marker == _APP1:
            orientation = orientation or _find_orientation(view[start:end])
    raise ImageCorruptError("The JPEG has no frame header.")


def verify_jpeg(view: memoryview) -> int:
    """Prove that a JPEG is whole: one frame, a scan for each of its components, and the end of the image.

    A thumbnail's own end does not count, for it lies inside a segment. JPEG has no checksums, so that damage inside a
    scan can be seen in the pixels alone.

    Args:
        view: The file. Bytes after the end of the image are allowed: cameras put further pictures there.

    Returns:
        The EXIF orientation, 1 to 8.

    Raises:
        ImageTruncatedError: the file ends before the image does.
        ImageCorruptError: segments are malformed or out of order, a scan is empty, or a component has none.
        ImageFormatError: the frame is of a kind that is not read.
    """
    components: frozenset[int] | None = None
    scanned: set[int] = set()
    scans, max_scans = 0, _MAX_SCANS
    orientation: int | None = None
    for marker, start, end in _iter_segments(view):
        if marker in _FRAMES:
            if components is not None:
                raise ImageCorruptError("The JPEG has a second frame header.")
            size, components = _parse_frame(marker, view[start:end])
            max_scans = min(_MAX_SCANS, max(_MIN_MAX_SCANS, _MAX_SCANNED_PIXELS // (size.width * size.height)))
        elif marker == _SOS:
            scanned |= _parse_scan(view[start:end], components or frozenset())
            scans += 1
            if scans > max_scans:
                raise ImageCorruptError(f"expected at most {max_scans} scans in a JPEG of this size, got more")
        elif marker == _APP1:
            orientation = orientation or _find_orientation(view[start:end])
    if components is None or scanned != set(components):
        raise ImageCorruptError("The JPEG ends before each of its components had a scan.")
    return orientation or UPRIGHT


def _iter_segments(view: memoryview) -> Iterator[tuple[int, int, int]]:
    """Give each segment's marker and the span of its content, and pass over the scans, up to the end of the image."""
    if bytes(view[: len(SIGNATURE)]) != SIGNATURE[: len(view)]:
        raise ImageCorruptError("The JPEG does not begin with the start of an image.")
    position = 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.match(view, position)
        if found is None:
            if position < len(view) and view[position] != 0xFF:  # noqa: PLR2004 -- the byte that begins every marker
                raise ImageCorruptError(f"The JPEG has no marker at byte {position}.")
            raise ImageTruncatedError("The JPEG ends before the end of its image.")
        marker, start = view[found.start(1)], found.end() + 2
        if marker == _EOI:
            return
        if marker not in _SEGMENTS:
            raise ImageCorruptError(f"The JPEG has a marker at byte {position} that does not belong there.")
        length = int.from_bytes(view[found.end() : start])
        end = found.end() + length
        if start > len(view) or end > len(view):
            raise ImageTruncatedError(f"The JPEG ends inside the segment at byte {position}.")
        if end < start:
            raise ImageCorruptError(f"The JPEG's segment at byte {position} has an impossible length.")
        yield marker, start, end
        position = _find_scan_end(view, end) if marker == _SOS else end
    raise ImageCorruptError(f"The JPEG has more than {_MAX_SEGMENTS} segments.")


def _find_scan_end(view: memoryview, start: int) -> int:
    """Find the marker that ends a scan's data, which begins at ``start``."""
    # Array operations take the same time for any data; a regular expression takes ten times as long on fill bytes.
    data = np.frombuffer(view, np.uint8)
    for position in range(start, len(data) - 1, _SCAN_BLOCK):
        block = data[position : position + _SCAN_BLOCK + 1]
        following = block[1:]
        is_end = (block[:-1] == _MARKER_START) & (following != _DATA) & (following != _MARKER_START)
        is_end &= following & _RESTART_MASK != _RESTART
        end = int(is_end.argmax())
        if is_end[end]:
            if position + end == start:
                raise ImageCorruptError("A scan of the JPEG has no data.")
            return position + end
    raise ImageTruncatedError("The JPEG ends inside its image data.")


def _parse_frame(marker: int, content: memoryview) -> tuple[Size, frozenset[int]]:
    """Read a frame header: the size in pixels and the ids of the components."""
    if marker not in _FRAMES_READ:
        raise ImageFormatError("The JPEG is lossless, hierarchical or arithmetic-coded, which is not read.")
    if len(content) < 6 or len(content) != 6 + 3 * content[5]:  # noqa: PLR2004 -- T.81, table B.2
        raise ImageCorruptError("The JPEG's frame header has an impossible length.")
    if content[0] != _PRECISION_BITS:
        raise ImageFormatError("The JPEG has other than 8 bits a sample, which is not read.")
    size = Size(width=int.from_bytes(content[3:5]), height=int.from_bytes(content[1:3]))
    sampling = [factor for both in content[7::3] for factor in divmod(both, 16)]
    if 0 in size or content[5] not in _COMPONENT_COUNTS or any(each not in _SAMPLING_FACTORS for each in sampling):
        raise ImageCorruptError("The JPEG's frame header gives an impossible size or impossible components.")
    return size, frozenset(content[6::3])


def _parse_scan(content: memoryview, components: frozenset[int]) -> frozenset[int]:
    """Read a scan header: the ids of the components that it holds, all of them of the frame."""
    if not content or len(content) != 4 + 2 * content[0]:
        raise ImageCorruptError("A scan header of the JPEG has an impossible length.")
    scanned = frozenset(content[1:-3:2])
    if not scanned or not scanned <= components:
        raise ImageCorruptError("A scan of the JPEG is of no component that its frame has.")
    return scanned


def _find_orientation(content: memoryview) -> int | None:
    """Read the orientation from an APP1 segment, or nothing if it holds something other than EXIF."""
    return read_orientation(content) if bytes(content[:5]) == b"Exif\0" else None
