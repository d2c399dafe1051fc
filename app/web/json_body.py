"""JSON in requests: the structures of bodies, and strict parsing of bodies, landmarks and segmentation maps.

The structures are msgspec structures, not pydantic models, because a body is mostly one long base64 string, and parsing
it is half the work of a request. The OpenAPI document is generated from the same structures.

The command line uses this module for its input files, so it imports no web framework.
"""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import numpy as np
import pybase64
from msgspec import Meta

from app.service.crop import CropInput
from app.service.landmarks import LandmarksInput
from app.service.options import LANDMARK_OPTION_NAMES, OPTION_NAMES, CropOptions, LandmarkOptions
from app.web.msgspec_errors import syntax_problem, validation_problem
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

T = TypeVar("T")

FIELDS = ("image", "landmarks", "segmentation_map", *OPTION_NAMES)
LANDMARKS_FIELDS = ("image", *LANDMARK_OPTION_NAMES)

# A value takes up to thirty times the size of its text as a Python object. The largest useful number of values is
# 65,536: 64 regions of 1,024 indices. Base64 contains no commas.
MAX_COMMAS = 100_000
COMMA = ord(",")
QUOTE = ord('"')
DATA_URL_PREFIX_MAX = 128  # `data:image/png;charset=…;base64,` is far shorter

IMAGE_TEXT = "PNG, JPEG or WebP image, as base64 or as a data URL."
LANDMARKS_TEXT = (
    "478 points in the order of MediaPipe: 468 of the face mesh and 10 of the irises. The 10 may be omitted. Without "
    "landmarks, the service detects them in the image."
)
MAP_TEXT = (
    "A label map, or an object of region name to landmark indices. A label map is a PNG or lossless WebP image with "
    "one grey value, palette index or colour per label; it is scaled to the image. Default: the catalogue's regions."
)


class Point(msgspec.Struct):
    """A landmark in the form of MediaPipe; other members are ignored."""

    x: Annotated[float, Meta(description="Horizontal coordinate; increases to the right.")]
    y: Annotated[float, Meta(description="Vertical coordinate; increases downwards.")]
    z: Annotated[
        float | msgspec.UnsetType | None,
        Meta(description="Depth, on the scale of x and negative towards the camera; optional."),
    ] = msgspec.UNSET


PointList = Annotated[list[float], Meta(min_length=2, max_length=3)]
RegionLandmarks = dict[str, list[int]]


class CropRequest(CropOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """JSON body of a crop request."""

    # Images stay raw JSON, because a copy as a string would double their memory.
    image: Annotated[msgspec.Raw, Meta(description=IMAGE_TEXT)]
    landmarks: Annotated[list[Point | PointList] | None, Meta(description=LANDMARKS_TEXT)] = None
    segmentation_map: Annotated[msgspec.Raw | msgspec.UnsetType, Meta(description=MAP_TEXT)] = msgspec.UNSET


class LandmarksRequest(LandmarkOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """JSON body of a landmarks request."""

    image: Annotated[msgspec.Raw, Meta(description=IMAGE_TEXT)]


_CROP_REQUEST = msgspec.json.Decoder(CropRequest)
_LANDMARKS_REQUEST = msgspec.json.Decoder(LandmarksRequest)
_POINTS = msgspec.json.Decoder(list[Point | PointList])
_REGIONS = msgspec.json.Decoder(RegionLandmarks)
_STRING = msgspec.json.Decoder(str)
_X, _Y, _Z = attrgetter("x"), attrgetter("y"), attrgetter("z")


def parse_json(body: bytes) -> CropInput:
    """Parse the JSON body of a crop request.

    Raises:
        ProblemError: ``invalid_json``, ``field_missing``, ``field_unknown``, ``field_invalid`` or ``image_encoding``.
    """
    fields = _decode(_CROP_REQUEST, body, "body", FIELDS)
    return CropInput(
        image=decode_base64(fields.image, "image"),
        points=None if fields.landmarks is None else _points_to_array(fields.landmarks),
        segmentation_map=_decode_map(fields.segmentation_map),
        options=fields,
    )


def parse_landmarks_json(body: bytes) -> LandmarksInput:
    """Parse the JSON body of a landmarks request.

    Raises:
        ProblemError: see `parse_json`.
    """
    fields = _decode(_LANDMARKS_REQUEST, body, "body", LANDMARKS_FIELDS)
    return LandmarksInput(image=decode_base64(fields.image, "image"), options=fields)


def parse_points(text: bytes) -> npt.NDArray[np.float64]:
    """Parse landmarks from a JSON text that contains nothing else.

    Raises:
        ProblemError: see `parse_json`.
    """
    return _points_to_array(_decode(_POINTS, text, "landmarks"))


def parse_segmentation_map(content: bytes | None) -> bytes | RegionLandmarks | None:
    """Return a segmentation map from a file or form part: an image unchanged, or a parsed object.

    Raises:
        ProblemError: the content is JSON, but not an object of region name to landmark indices.
    """
    if content is None:
        return None
    # An object starts with a brace, and no image format does.
    return _decode(_REGIONS, content, "segmentation_map") if content.lstrip()[:1] == b"{" else content


def decode_base64(raw: msgspec.Raw, field: str) -> bytes:
    """Decode a JSON string that contains base64 or a data URL.

    Raises:
        ProblemError: ``field_invalid`` if it is not a string; ``image_encoding`` if it is not valid base64.
    """
    view = memoryview(raw)
    if view[0] != QUOTE:
        raise ProblemError("field_invalid", f"{field}: expected a base64 string, got another type")
    text = _cut_data_url(view[1:-1], field)
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        # Some encoders escape slashes. Unescaping costs a copy, so it is only tried after a failure.
        if b"\\" not in bytes(text):
            raise _encoding_problem(field) from None
    try:
        unescaped = memoryview(_decode(_STRING, raw, field).encode())
        return pybase64.b64decode(_cut_data_url(unescaped, field), validate=True)
    except ValueError:
        raise _encoding_problem(field) from None


def _encoding_problem(field: str) -> ProblemError:
    detail = f"{field}: expected standard base64 with padding and without line breaks, got invalid base64"
    return ProblemError("image_encoding", detail)


def _cut_data_url(text: memoryview, field: str) -> memoryview:
    if bytes(text[:5]) != b"data:":
        return text
    prefix, comma, _ = bytes(text[:DATA_URL_PREFIX_MAX]).partition(b",")
    if not comma or not prefix.endswith(b";base64"):
        raise ProblemError("image_encoding", f"{field}: expected data:image/png;base64,…, got another form of data URL")
    return text[len(prefix) + 1 :]


def _decode_map(raw: msgspec.Raw | msgspec.UnsetType) -> bytes | RegionLandmarks | None:
    if isinstance(raw, msgspec.UnsetType):
        return None
    first = bytes(memoryview(raw)[:1])
    if first == b"n":
        return None
    if first == b"{":
        return _decode(_REGIONS, raw, "segmentation_map")
    if first != b'"':
        detail = "segmentation_map: expected a base64 string or an object, got another type"
        raise ProblemError("field_invalid", detail)
    return decode_base64(raw, "segmentation_map")


def _decode(decoder: msgspec.json.Decoder[T], text: bytes | msgspec.Raw, field: str, known: Sequence[str] = ()) -> T:
    # Three times as fast as `bytes.count`.
    if np.count_nonzero(np.frombuffer(text, np.uint8) == COMMA) > MAX_COMMAS:
        raise ProblemError("field_invalid", f"{field}: expected at most {MAX_COMMAS} values, got more")
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise validation_problem(error, field, known) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise syntax_problem(error, field) from None


def _points_to_array(points: list[Point | list[float]]) -> npt.NDArray[np.float64]:
    """Convert points, each an object or a list of two or three numbers.

    Returns:
        an array ``(N, 3)`` if every point has a depth and they are not all the same, as a placeholder is; otherwise
        ``(N, 2)``.
    """
    if set(map(type, points)) == {Point}:
        # Long columns are twice as fast to convert as many short rows.
        columns = [list(map(_X, points)), list(map(_Y, points))]
        depths = list(map(_Z, points))
        return np.array([*columns, depths] if _are_depths(depths) else columns, np.float64).T
    rows = [(point.x, point.y, point.z) if isinstance(point, Point) else point for point in points]
    width = 3 if _are_depths([row[2] if len(row) == 3 else None for row in rows]) else 2  # noqa: PLR2004 - (x, y, z)
    values = chain.from_iterable(row[:width] for row in rows)
    return np.fromiter(values, np.float64, width * len(rows)).reshape(-1, width)


def _are_depths(values: list[Any]) -> bool:
    return set(map(type, values)) == {float} and len(set(values)) > 1
