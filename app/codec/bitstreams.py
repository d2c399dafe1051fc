"""Headers of AV1 and HEVC images, read without decoding them.

References: the AV1 bitstream specification, ITU-T H.265 (7.3), ISO/IEC 14496-15 (hvcC).
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from app.face.errors import ImageCorruptError
from app.face.frame import Size

MAX_UNITS: Final = 16_384
HVCC_BYTES: Final = 23  # of an HEVC configuration (`hvcC`), before its parameter sets
_MAX_HEADER_BYTES = 512
_AV1_SEQUENCE, _AV1_FRAME_HEADER, _AV1_FRAME = 1, 3, 6
_HEVC_LAST_SLICE, _HEVC_SPS, _HEVC_444 = 31, 33, 3
_NOT_PADDING = re.compile(rb"[^\0]")  # decoders skip zeros after a frame


class CodedHeaders(NamedTuple):
    """Summary of the headers inside a coded image."""

    sizes: list[Size]
    frames: int
    units: int  # OBUs or NAL units
    visible_sizes: list[Size]  # without the padding to whole blocks


class _Bits:
    """Bits of a short header, the highest bit of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ImageCorruptError("expected a complete image header, got a shorter one")
        return self._value >> self._left & (1 << count) - 1

    def take_exponential(self) -> int:
        """Return a number in the Exp-Golomb code of H.265 and AV1."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def scan_av1(data: memoryview) -> CodedHeaders:
    """Scan the OBUs of an AV1 image; the sizes are the maximum frame sizes in its sequence headers."""
    sizes: list[Size] = []
    position = frames = units = 0
    while position < len(data):
        following = _NOT_PADDING.search(data, position)
        if following is None:
            break
        position = following.start()
        head = data[position]
        units += 1
        if head & 0x80 or units > MAX_UNITS:
            raise ImageCorruptError("expected an AV1 image, got other data")
        kind = head >> 3 & 15
        position += 2 if head & 4 else 1
        length, position = _read_leb128(data, position) if head & 2 else (len(data) - position, position)
        if position + length > len(data):
            raise ImageCorruptError("expected a complete AV1 image, got the end of its data")
        if kind == _AV1_SEQUENCE:
            sizes.append(_parse_av1_sequence(bytes(data[position : position + min(length, _MAX_HEADER_BYTES)])))
        frames += kind in {_AV1_FRAME_HEADER, _AV1_FRAME}
        position += length
    return CodedHeaders(sizes, frames, units, sizes)


def _read_leb128(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 56, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the highest bit means that another byte follows
            return value, position
    raise ImageCorruptError("expected a valid length in an AV1 image, got an invalid one")


def _parse_av1_sequence(data: bytes) -> Size:
    """Return the maximum frame size of a sequence header; see section 5.5 of the AV1 specification."""
    bits = _Bits(data)
    bits.take(4)
    if bits.take(1):  # reduced_still_picture_header
        bits.take(5)
    else:
        delay_bits = 0
        if bits.take(1):  # timing_info_present_flag
            bits.take(64)
            if bits.take(1):
                bits.take_exponential()
            if bits.take(1):  # decoder_model_info_present_flag
                delay_bits = bits.take(5) + 1
                bits.take(42)
        has_display_delay = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:  # noqa: PLR2004 - higher levels have a tier
                bits.take(1)
            if delay_bits and bits.take(1):
                bits.take(2 * delay_bits + 1)
            if has_display_delay and bits.take(1):
                bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return Size(bits.take(width_bits) + 1, bits.take(height_bits) + 1)


def scan_hevc(config: memoryview, data: memoryview) -> CodedHeaders:
    """Scan the NAL units of an HEVC image; the sizes are those in sequence parameter sets."""
    length_bytes = (config[21] & 3) + 1
    sizes: list[tuple[Size, Size]] = []
    pictures = units = 0
    for unit in _iter_nal_units(config, data, length_bytes):
        units += 1
        if units > MAX_UNITS:
            raise ImageCorruptError(f"expected at most {MAX_UNITS} NAL units in an HEVC image, got more")
        if len(unit) < 3:  # noqa: PLR2004 - the head of a unit, and some content
            continue
        kind = unit[0] >> 1 & 63
        if kind == _HEVC_SPS:
            sizes.append(_parse_hevc_sequence(bytes(unit[2:_MAX_HEADER_BYTES]).replace(b"\0\0\3", b"\0\0")))
        pictures += kind <= _HEVC_LAST_SLICE and unit[2] >> 7
    return CodedHeaders([size for size, _ in sizes], pictures, units, [size for _, size in sizes])


def _iter_nal_units(config: memoryview, data: memoryview, length_bytes: int) -> Iterator[memoryview]:
    """Yield the NAL units of a configuration and of the data of an image."""
    position = HVCC_BYTES
    for _ in range(config[22]):
        count, position = int.from_bytes(config[position + 1 : position + 3]), position + 3
        for _ in range(count):
            if position >= len(config):
                raise ImageCorruptError("expected a complete HEVC configuration, got a shorter one")
            length = int.from_bytes(config[position : position + 2])
            yield config[position + 2 : position + 2 + length]
            position += 2 + length
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + length_bytes])
        position += length_bytes
        if position + length > len(data):
            raise ImageCorruptError("expected a complete HEVC image, got the end of its data")
        yield data[position : position + length]
        position += length


def _parse_hevc_sequence(data: bytes) -> tuple[Size, Size]:
    """Return the coded and visible sizes of pictures from a sequence parameter set (ITU-T H.265, section 7.3.2.2)."""
    bits = _Bits(data)
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 88 + 8)
    has_profile_and_level = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for has_profile, has_level in has_profile_and_level:
        bits.take(88 * has_profile + 8 * has_level)
    bits.take_exponential()
    chroma = bits.take_exponential()
    if chroma == _HEVC_444:
        bits.take(1)
    width, height = bits.take_exponential(), bits.take_exponential()
    left = right = top = bottom = 0
    if bits.take(1):  # conformance_window_flag
        left, right, top, bottom = (bits.take_exponential() for _ in range(4))
    step_x, step_y = 1 + (chroma in {1, 2}), 1 + (chroma == 1)
    visible = Size(max(0, width - step_x * (left + right)), max(0, height - step_y * (top + bottom)))
    return Size(width, height), visible
