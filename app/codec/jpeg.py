"""JPEG files: the segments from the start to the end of the image, and the scans between them.

Reference: ITU-T T.81, annex B.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from app.codec.decoding_policy import require_decoding
from app.codec.exif import read_orientation
from app.face.errors import ImageCorruptError, ImageFormatError, ImageTruncatedError
from app.face.frame import NORMAL_ORIENTATION, Size

SIGNATURE = b"\xff\xd8\xff"

_EOI, _SOS, _APP1, _APP2 = 0xD9, 0xDA, 0xE1, 0xE2
_PROGRESSIVE = 0xC2
_SUPPORTED_FRAMES = frozenset({0xC0, 0xC1, _PROGRESSIVE})
# Frames include lossless, hierarchical and arithmetic-coded ones, which no browser displays.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# DNL, APPn and COM. Their content does not matter to libjpeg, which accepts any length of them.
_IGNORED_SEGMENTS = {0xDC, 0xFE} | frozenset(range(0xE0, 0xF0))
# DHT, DAC, DQT and DRI.
_SEGMENTS = _FRAMES | {_SOS, 0xC4, 0xCC, 0xDB, 0xDD} | _IGNORED_SEGMENTS

# As libjpeg does, skip fill bytes (0xFF) and any other bytes before a marker, and markers without a segment: TEM (0x01)
# and RST0 to RST7 (0xD0 to 0xD7).
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
# In a scan, 0xFF 0x00 is a data byte, 0xD0 to 0xD7 are restart markers, and 0xFF is a fill byte.
_MARKER_START, _DATA, _NO_SEGMENT, _RESTART, _RESTART_MASK = 0xFF, 0x00, 0x01, 0xD0, 0xF8
_SEARCHED_BLOCK = 65_536
# Lower ones are reserved. libjpeg decodes what precedes one in a scan, and continues at the next restart marker.
_LOWEST_MARKER = 0xC0
_MAX_RESERVED_MARKERS = 16

# An empty comment is four bytes, so the file size alone does not bound the work. Metadata are split into segments of
# 64 KiB, of which a body has room for 256.
_MAX_SEGMENTS = 1_024
# Each scan of a progressive JPEG visits the whole image but may be only a few bytes. Encoders write about ten scans.
# More are accepted while scans times pixels does not exceed the cost of a large image with a usual number of scans.
_MAX_SCANS = 100
_MIN_MAX_SCANS = 16
_MAX_SCANNED_PIXELS = 400_000_000
_PRECISION_BITS = 8
_COMPONENT_COUNTS = {1, 3, 4}
_SAMPLING_FACTORS = range(1, 5)
# libjpeg reads up to eight bytes ahead of the bits that it decodes. A series of ones is not a Huffman code, so these
# bytes cannot complete a truncated scan.
_LOOKAHEAD = b"\xff\x00" * 8


class JpegHeader(NamedTuple):
    """Size in pixels and component ids of the frame header, and the EXIF orientation if it precedes the frame."""

    size: Size
    components: frozenset[int]
    exif_orientation: int


def read_jpeg_header(view: memoryview) -> JpegHeader:
    """Read the segments up to the frame header.

    Raises:
        ImageTruncatedError: the file ends before the end of the frame header.
        ImageCorruptError: a segment is malformed, or there is no frame header.
        ImageFormatError: the frame type is not supported.
    """
    orientation: int | None = None
    for marker, start, end in _iter_segments(view):
        if marker in _FRAMES:
            size, components = _parse_frame(marker, view[start:end])
            return JpegHeader(size, components, orientation or NORMAL_ORIENTATION)
        if marker == _SOS:
            break
        if marker == _APP1:
            orientation = orientation or _find_orientation(view[start:end])
    raise ImageCorruptError("expected a JPEG frame header, got none")


def iter_icc_segments(view: memoryview, start_of_content: bytes) -> Iterator[memoryview]:
    """Yield the content of the APP2 segments before the first scan that start with these bytes, without them.

    Raises:
        ImageError: see `verify_jpeg`.
    """
    for marker, start, end in _iter_segments(view):
        if marker == _SOS:
            return
        if marker == _APP2 and view[start : start + len(start_of_content)] == start_of_content:
            yield view[start + len(start_of_content) : end]


def verify_jpeg(view: memoryview) -> int:
    """Verify that a JPEG is complete: one frame, a scan for each of its components, and the end of the image.

    The end marker of a thumbnail is ignored, because it is inside a segment. Bytes after the end of the image are
    allowed, because cameras append further images. Phones also append data in place of the end marker. libjpeg returns
    the pixels of a sequential JPEG once its scan is decoded, so such a file is decoded to find out whether the scan is
    complete. JPEG has no checksums, so damage inside a scan shows only in the pixels. Return the EXIF orientation,
    1 to 8.

    Raises:
        ImageTruncatedError: the file ends before the end of the image.
        ImageCorruptError: segments are malformed or out of order, a scan is empty, or a component has none.
        ImageFormatError: the frame type is not supported.
    """
    summary = _Summary()
    try:
        for marker, start, end in _iter_segments(view):
            summary.add(marker, view[start:end], end)
    except (ImageCorruptError, ImageFormatError, ImageTruncatedError):
        if not (summary.is_in_one_scan and _is_scan_complete(view, summary.scan_start)):
            raise
    if summary.components is None or summary.scanned != summary.components:
        raise ImageCorruptError("expected a scan for each component of the JPEG, got fewer")
    return summary.orientation or NORMAL_ORIENTATION


class _Summary:
    """Summary of the segments of a JPEG; checks their order and number."""

    def __init__(self) -> None:
        self.orientation: int | None = None
        self.components: frozenset[int] | None = None
        self.scanned: frozenset[int] = frozenset()
        self.scan_start = 0  # of the data of the last scan
        self._is_progressive = False
        self._scans, self._max_scans = 0, _MAX_SCANS

    @property
    def is_in_one_scan(self) -> bool:
        """Whether a single scan, which has been found, contains all pixels."""
        return self._scans == 1 and self.scanned == self.components and not self._is_progressive

    def add(self, marker: int, content: memoryview, end: int) -> None:
        """Add a segment, whose content ends at a position of the file."""
        if marker in _FRAMES:
            if self.components is not None:
                raise ImageCorruptError("expected one JPEG frame header, got a second one")
            size, self.components = _parse_frame(marker, content)
            self._is_progressive = marker == _PROGRESSIVE
            most = _MAX_SCANNED_PIXELS // (size.width * size.height)
            self._max_scans = min(_MAX_SCANS, max(_MIN_MAX_SCANS, most))
        elif marker == _SOS:
            scanned = _parse_scan(content, self.components or frozenset())
            if self._scans == self._max_scans:
                raise ImageCorruptError(f"expected at most {self._max_scans} scans in a JPEG of this size, got more")
            self.scanned, self.scan_start = self.scanned | scanned, end
            self._scans += 1
        elif marker == _APP1:
            self.orientation = self.orientation or _find_orientation(content)


def _iter_segments(view: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, start and end of the content of each segment up to the end of the image, skipping scan data."""
    if bytes(view[: len(SIGNATURE)]) != SIGNATURE[: len(view)]:
        raise ImageCorruptError("expected a JPEG signature, got other bytes")
    position = 2
    for _ in range(_MAX_SEGMENTS):
        at = position if _MARKER.match(view, position) else _find_marker(view, position, _NO_SEGMENT)
        if at is None:
            if bytes(view[position:]).strip(b"\xff"):
                raise ImageCorruptError(f"expected a JPEG marker after byte {position}, got other data")
            raise ImageTruncatedError("expected a complete JPEG, got end of file before the end of the image")
        marker, start = view[at + 1], at + 4
        if marker == _EOI:
            return
        if marker not in _SEGMENTS:
            raise ImageCorruptError(f"expected a JPEG segment at byte {at}, got an invalid marker")
        end = at + 2 + int.from_bytes(view[at + 2 : start])
        if start > len(view) or end > len(view):
            raise ImageTruncatedError(f"expected a complete JPEG, got end of file in the segment at byte {at}")
        if end < start and marker not in _IGNORED_SEGMENTS:
            raise ImageCorruptError(f"expected a JPEG segment of valid length at byte {at}, got an invalid length")
        yield marker, start, max(start, end)
        position = _find_scan_end(view, end) if marker == _SOS else max(start, end)
    raise ImageCorruptError(f"expected at most {_MAX_SEGMENTS} segments in a JPEG, got more")


def _is_scan_complete(view: memoryview, start: int) -> bool:
    """Return whether the data of the only scan, from ``start`` to a marker or the end of the file, are complete.

    libjpeg replaces data that a marker cuts off, but OpenCV returns no image if the file ends before the data do. An
    eighth of the scale saves most of the time.
    """
    require_decoding(len(view))
    file: bytes | memoryview
    try:
        file = bytes(view[: _find_scan_end(view, start)]) + _LOOKAHEAD
    except ImageCorruptError:
        return False
    except ImageTruncatedError:
        file = view
    try:
        return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_REDUCED_COLOR_8) is not None
    except cv2.error:
        return False


def _find_scan_end(view: memoryview, start: int) -> int:
    """Return the position of the marker after the scan data that starts at ``start``."""
    end = _find_marker(view, start, _DATA)
    for _ in range(_MAX_RESERVED_MARKERS):
        if end is None or view[end + 1] >= _LOWEST_MARKER:
            break
        following = _find_marker(view, end + 2, _LOWEST_MARKER - 1, is_restart_found=True)
        if following is None or view[following + 1] & _RESTART_MASK != _RESTART:
            break
        end = _find_marker(view, following + 2, _DATA)
    if end is None:
        raise ImageTruncatedError("expected a complete JPEG, got end of file in the image data")
    if end == start:
        raise ImageCorruptError("expected data in each JPEG scan, got an empty scan")
    return end


def _find_marker(view: memoryview, start: int, highest_other: int, *, is_restart_found: bool = False) -> int | None:
    """Return the position of the first marker from ``start`` on.

    0xFF is a fill byte before another 0xFF, and no marker before a byte up to ``highest_other``. RST0 to RST7 are found
    only on request.
    """
    # Array operations take the same time for any data; a regular expression takes ten times as long on fill bytes.
    data = np.frombuffer(view, np.uint8)
    for position in range(start, len(data) - 1, _SEARCHED_BLOCK):
        block = data[position : position + _SEARCHED_BLOCK + 1]
        following = block[1:]
        is_marker = (block[:-1] == _MARKER_START) & (following > highest_other) & (following != _MARKER_START)
        if not is_restart_found:
            is_marker &= following & _RESTART_MASK != _RESTART
        first = int(is_marker.argmax())
        if is_marker[first]:
            return position + first
    return None


def _parse_frame(marker: int, content: memoryview) -> tuple[Size, frozenset[int]]:
    """Return the size in pixels and the component ids of a frame header."""
    if marker not in _SUPPORTED_FRAMES:
        raise ImageFormatError("expected a baseline or progressive JPEG, got another JPEG process")
    if len(content) < 6 or len(content) != 6 + 3 * content[5]:  # noqa: PLR2004 - T.81, table B.2
        raise ImageCorruptError("expected a JPEG frame header of valid length, got an invalid length")
    if content[0] != _PRECISION_BITS:
        raise ImageFormatError(f"expected a JPEG with {_PRECISION_BITS} bits per sample, got {content[0]}")
    size = Size(width=int.from_bytes(content[3:5]), height=int.from_bytes(content[1:3]))
    sampling = [factor for both in content[7::3] for factor in divmod(both, 16)]
    if 0 in size or content[5] not in _COMPONENT_COUNTS or any(each not in _SAMPLING_FACTORS for each in sampling):
        raise ImageCorruptError("expected a valid size and valid components in the JPEG frame header, got invalid ones")
    return size, frozenset(content[6::3])


def _parse_scan(content: memoryview, components: frozenset[int]) -> frozenset[int]:
    """Return the component ids of a scan header; all must be components of the frame."""
    if not content or len(content) != 4 + 2 * content[0]:
        raise ImageCorruptError("expected a JPEG scan header of valid length, got an invalid length")
    scanned = frozenset(content[1:-3:2])
    if not scanned or not scanned <= components:
        raise ImageCorruptError("expected scans of the components in the JPEG frame, got another component")
    return scanned


def _find_orientation(content: memoryview) -> int | None:
    """Return the orientation from an APP1 segment, or None if the segment is not EXIF."""
    return read_orientation(content) if bytes(content[:5]) == b"Exif\0" else None
