"""ICC profiles of image files, which define the colour space of their pixels.

Pixels are not converted. A profile is passed on with them, so that viewers show the colours of the original. AVIF, HEIC
and PNG may declare a colour space by numbers of ITU-T H.273 instead, and PNG also by an exponent and chromaticities.
JPEG cannot store these, so they become a profile.

References: ICC.1 (profiles), ITU-T T.872 (JPEG), the PNG specification (colour chunks), RFC 9649 (WebP), ITU-T H.273
(numbers).
"""

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
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
_CICP_BYTES = 4
_CHRM, _GAMA = struct.Struct(">8I"), struct.Struct(">I")
_PNG_UNIT = 100_000
# Like libpng, take colours that are this close to those of sRGB as them: chromaticities, and the ratio of exponents.
_MAX_CHROMATICITY_ERROR, _MAX_EXPONENT_ERROR = 0.01, 0.05
_SRGB_EXPONENT = 2.2
# Of a white that the eye could adapt to; that of incandescent light is 0.34.
_MIN_WHITE_RESPONSE = 0.1
_EXPONENTS = (0.1, 10.0)
"""Range of the exponents in `gAMA` chunks that are used; others would turn the image black or white."""

Chromaticities: TypeAlias = tuple[tuple[float, float], ...]
"""``(x, y)`` of red, green, blue and white."""

_D65, _WHITE_OF_DCI = (0.3127, 0.3290), (0.314, 0.351)
# Chromaticities of red, green, blue and white, by the number of colour primaries in H.273.
_BT709 = 1
_PRIMARIES: Final[dict[int, Chromaticities]] = {
    _BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65),
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060), _D65),  # BT.470 BG
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),  # BT.601
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),  # SMPTE 240M
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),  # BT.2020
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _WHITE_OF_DCI),  # DCI P3
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),  # Display P3
}
# Parameters of a parametric curve in ICC.1, by the number of transfer characteristics in H.273: the exponent alone, or
# all of a curve with a linear part.
_SRGB_CURVE: Final = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_CURVES: Final[dict[int, tuple[float, ...]]] = {4: (2.2,), 5: (2.8,), 8: (1.0,)}
_HDR_CURVES: Final = {16, 18}  # PQ and HLG, which need tone mapping instead of a profile
_D50_XYZ: Final = np.array([0.9642, 1.0, 0.8249])
# The Bradford matrix, by which ICC profiles adapt colours to their white, D50.
_BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


class IccProfile(NamedTuple):
    """A profile and the colour space of the pixels that it is for."""

    data: bytes
    space: Literal["rgb", "grey"]


def read_icc_profile(data: bytes | memoryview, info: ImageInfo) -> IccProfile | None:
    """Return the profile of an image, or None if it has none that fits the decoded pixels.

    Colours that a file names without a profile are described by one, unless they are those of sRGB.
    A malformed profile counts as none, as in viewers. So does the profile of a CMYK image, which is decoded to RGB.
    """
    view = memoryview(data)
    is_grey, named = False, b""
    try:
        match info.format:
            case "jpeg":
                is_grey = len(jpeg.read_jpeg_header(view).components) == 1
                profile = _join_segments(jpeg.iter_icc_segments(view, JPEG_SEGMENT_START))
            case "png":
                is_grey = png.read_png_header(view).colour_type in {png.GREY, png.GREY_ALPHA}
                named, profile = _read_png_colours(view, is_grey=is_grey)
            case "webp":
                profile = bytes(webp.find_chunk(view, b"ICCP"))
            case "avif" | "heic":
                header = isobmff.read_header(view)
                is_grey, profile = header.is_grey, header.profile
                if not profile:
                    named = make_rgb_profile(_BT709 if is_grey else header.primaries, header.transfer)
    except ImageError:
        return None
    if named:
        return IccProfile(named, "rgb")
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


def _read_png_colours(view: memoryview, *, is_grey: bool) -> tuple[bytes, bytes]:
    """Return a profile for the colours that a PNG names, and the profile that it contains; one of them is empty.

    The chunks take precedence in this order: `cICP`, `iCCP`, `sRGB`, then `gAMA` and `cHRM`.
    """
    numbers = bytes(png.find_chunk(view, b"cICP"))
    if len(numbers) == _CICP_BYTES and (named := make_rgb_profile(_BT709 if is_grey else numbers[0], numbers[1])):
        return named, b""
    profile = _inflate(png.find_chunk(view, b"iCCP"))
    if numbers or profile or png.find_chunk(view, b"sRGB"):
        return b"", profile
    # Of a grey image, only the white matters, and viewers adapt it.
    chromaticities = None if is_grey else _read_chromaticities(png.find_chunk(view, b"cHRM"))
    exponent = _read_exponent(png.find_chunk(view, b"gAMA"))
    if chromaticities is None and exponent is None:
        return b"", b""
    curve = _SRGB_CURVE if exponent is None else (exponent,)
    return _make_profile(chromaticities or _PRIMARIES[_BT709], curve, "PNG colours"), b""


def _read_chromaticities(content: memoryview) -> Chromaticities | None:
    """Return the content of a `cHRM` chunk; None if it is malformed or that of sRGB."""
    if len(content) != _CHRM.size:
        return None
    values = [value / _PNG_UNIT for value in _CHRM.unpack(content)]
    white, *corners = zip(values[::2], values[1::2], strict=True)
    points = (*corners, white)
    if all(
        abs(a - b) <= _MAX_CHROMATICITY_ERROR
        for pair in zip(points, _PRIMARIES[_BT709], strict=True)
        for a, b in zip(*pair, strict=True)
    ):
        return None
    if any(x + y > 1 or y == 0 for x, y in points):
        return None
    columns, white_xyz = np.column_stack([_to_xyz(*corner) for corner in corners]), _to_xyz(*white)
    if abs(np.linalg.det(columns)) < _MAX_CHROMATICITY_ERROR or (_BRADFORD @ white_xyz).min() < _MIN_WHITE_RESPONSE:
        return None
    # White must be a mixture of the primaries.
    return points if np.linalg.solve(columns, white_xyz).min() > 0 else None


def _read_exponent(content: memoryview) -> float | None:
    """Return the exponent of a `gAMA` chunk, from samples to light; None if it is malformed or about that of sRGB."""
    encoding = _GAMA.unpack(content)[0] / _PNG_UNIT if len(content) == _GAMA.size else 0.0
    exponent = 1 / encoding if encoding else 0.0
    low, high = _EXPONENTS
    if not low <= exponent <= high or abs(exponent / _SRGB_EXPONENT - 1) <= _MAX_EXPONENT_ERROR:
        return None
    return exponent


def make_rgb_profile(primaries: int, transfer: int) -> bytes:
    """Return a profile for colours of H.273, or no bytes for those of sRGB, and for unknown ones and HDR.

    Args:
        primaries: number of the colour primaries.
        transfer: number of the transfer characteristics. Other numbers than those of a plain exponent count as that of
            sRGB, because viewers show images with the curves of videos, such as BT.709, in the same way.
    """
    curve = _CURVES.get(transfer, _SRGB_CURVE)
    if primaries not in _PRIMARIES or transfer in _HDR_CURVES or (primaries == _BT709 and curve is _SRGB_CURVE):
        return b""
    return _make_profile(_PRIMARIES[primaries], curve, f"H.273 colours {primaries}/{transfer}")


@lru_cache(maxsize=64)
def _make_profile(chromaticities: Chromaticities, curve: tuple[float, ...], name: str) -> bytes:
    """Return a profile for RGB with these chromaticities and this parametric curve."""
    *corners, white = [_to_xyz(*point) for point in chromaticities]
    columns = np.column_stack(corners)
    adaptation = _make_adaptation(white)
    colorants = adaptation @ (columns * np.linalg.solve(columns, white))
    curve_tag = b"para" + struct.pack(">IHH", 0, 3 if len(curve) > 1 else 0, 0) + _to_fixed(*curve)
    tags = {
        b"desc": _make_text_tag(name),
        b"cprt": _make_text_tag("No copyright"),
        b"wtpt": _make_xyz_tag(_D50_XYZ),
        b"chad": b"sf32\0\0\0\0" + _to_fixed(*adaptation.ravel()),
        b"rXYZ": _make_xyz_tag(colorants[:, 0]),
        b"gXYZ": _make_xyz_tag(colorants[:, 1]),
        b"bXYZ": _make_xyz_tag(colorants[:, 2]),
        b"rTRC": curve_tag,
        b"gTRC": curve_tag,
        b"bTRC": curve_tag,
    }
    return _join_tags(tags)


def _to_xyz(x: float, y: float) -> npt.NDArray[np.float64]:
    """Return the XYZ colour of a chromaticity, with a luminance of 1."""
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _make_adaptation(white: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the ``(3, 3)`` matrix that adapts colours from a white to D50, both in XYZ."""
    gains = (_BRADFORD @ _D50_XYZ) / (_BRADFORD @ white)
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD)


def _to_fixed(*values: float) -> bytes:
    """Return numbers as s15Fixed16Number."""
    return struct.pack(f">{len(values)}i", *(round(value * 65_536) for value in values))


def _make_xyz_tag(xyz: npt.NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + _to_fixed(*xyz)


def _make_text_tag(text: str) -> bytes:
    content = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">III2s2sII", 0, 1, 12, b"en", b"US", len(content), 28) + content


def _join_tags(tags: dict[bytes, bytes]) -> bytes:
    """Return a display profile of version 4 for RGB with these tags. Equal tags are written once."""
    table, data = b"", b""
    start = _HEADER_BYTES + 4 + 12 * len(tags)
    offsets: dict[bytes, int] = {}
    for name, content in tags.items():
        if content not in offsets:
            offsets[content] = start + len(data)
            data += content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", offsets[content], len(content))
    size = start + len(data)
    date = struct.pack(">6H", 2020, 1, 1, 0, 0, 0)
    header = struct.pack(">I4sI", size, bytes(4), 0x04300000) + b"mntrRGB XYZ " + date + _MAGIC + bytes(28)
    header += _to_fixed(*_D50_XYZ)
    return header.ljust(_HEADER_BYTES, b"\0") + struct.pack(">I", len(tags)) + table + data
