"""JSON in requests: the structures of bodies, and strict parsing of bodies, landmarks and segmentation maps.

The structures are msgspec structures, not pydantic models, because a body is mostly one long base64 string, and parsing
it is half the work of a request. The OpenAPI document is generated from the same structures.

The command line uses this module for its input files, so it imports no web framework.
"""

from __future__ import annotations

import codecs
import re
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import pybase64
from msgspec import Meta

from app.face.landmarks import look_normalized
from app.service.crop import CropInput
from app.service.landmarks import LandmarksInput
from app.service.options import LANDMARK_OPTION_NAMES, OPTION_NAMES, CropOptions, LandmarkOptions
from app.web.msgspec_errors import syntax_problem, validation_problem
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    JsonText = bytes | memoryview | msgspec.Raw

T = TypeVar("T")

FIELDS = ("image", "landmarks", "segmentation_map", *OPTION_NAMES)
LANDMARKS_FIELDS = ("image", *LANDMARK_OPTION_NAMES)

# A value takes up to thirty times the size of its text as a Python object. The largest useful number of values is
# 65,536: 64 regions of 1,024 indices. Base64 contains no commas.
MAX_COMMAS = 100_000
COMMA = ord(",")
QUOTE = ord('"')
DATA_URL_PREFIX_MAX = 128  # `data:image/png;charset=…;base64,` is far shorter

IMAGE_TEXT = "PNG, JPEG, WebP, AVIF or HEIC image, as base64 or as a data URL."
LANDMARKS_TEXT = (
    "478 points in the order of MediaPipe: 468 of the face mesh and 10 of the irises. The 10 may be omitted. A result "
    "of MediaPipe itself is also accepted: it is normalized regardless of `landmark_units`, and `face` selects one or "
    "all of its faces. Without landmarks, the service detects them in the image."
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
Points = list[Point | PointList]
RegionLandmarks = dict[str, list[int]]


class CropRequest(CropOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """JSON body of a crop request."""

    # Images stay raw JSON, because a copy as a string would double their memory.
    image: Annotated[msgspec.Raw, Meta(description=IMAGE_TEXT)]
    landmarks: Annotated[msgspec.Raw | msgspec.UnsetType, Meta(description=LANDMARKS_TEXT)] = msgspec.UNSET
    segmentation_map: Annotated[msgspec.Raw | msgspec.UnsetType, Meta(description=MAP_TEXT)] = msgspec.UNSET


class LandmarksRequest(LandmarkOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """JSON body of a landmarks request."""

    image: Annotated[msgspec.Raw, Meta(description=IMAGE_TEXT)]


class LandmarkResult(msgspec.Struct):
    """Result of MediaPipe in JavaScript or Python, with one of these members; each is a face or a list of faces."""

    faceLandmarks: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # noqa: N815 - names of MediaPipe
    face_landmarks: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    multiFaceLandmarks: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # noqa: N815
    multi_face_landmarks: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    landmark: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class SentLandmarks(NamedTuple):
    """Landmarks of a request."""

    # ``(N, 2)``, or ``(F, N, 2)`` for a result with several faces; None if there are none. With depths, the last axis
    # is 3.
    points: npt.NDArray[np.float64] | None = None
    are_normalized: bool = False  # whether their form shows that they are normalized


_CROP_REQUEST = msgspec.json.Decoder(CropRequest)
_LANDMARKS_REQUEST = msgspec.json.Decoder(LandmarksRequest)
_POINTS = msgspec.json.Decoder(Points | None)
_FACES = msgspec.json.Decoder(list[msgspec.Raw])
_RESULT = msgspec.json.Decoder(LandmarkResult)
_REGIONS = msgspec.json.Decoder(RegionLandmarks)
_STRING = msgspec.json.Decoder(str)
_X, _Y, _Z = attrgetter("x"), attrgetter("y"), attrgetter("z")

# An object in a list of points is a face in the form of protocol buffers if its first member is the list of its points.
_LIST_OF_FACES: Final = re.compile(rb'\s*\[\s*(\[\s*[\[{]|\{\s*"landmark")')
_OBJECT: Final = re.compile(rb"\s*\{")


def parse_json(body: bytes) -> CropInput:
    """Parse the JSON body of a crop request.

    Raises:
        ProblemError: ``invalid_json``, ``field_missing``, ``field_unknown``, ``field_invalid`` or ``image_encoding``.
    """
    fields = _decode(_CROP_REQUEST, _to_utf8(body), "body", FIELDS)
    landmarks = parse_landmarks(None if isinstance(fields.landmarks, msgspec.UnsetType) else fields.landmarks)
    return CropInput(
        image=decode_base64(fields.image, "image"),
        points=landmarks.points,
        are_points_normalized=landmarks.are_normalized,
        segmentation_map=_decode_map(fields.segmentation_map),
        options=fields,
    )


def parse_landmarks_json(body: bytes) -> LandmarksInput:
    """Parse the JSON body of a landmarks request.

    Raises:
        ProblemError: see `parse_json`.
    """
    fields = _decode(_LANDMARKS_REQUEST, _to_utf8(body), "body", LANDMARKS_FIELDS)
    return LandmarksInput(image=decode_base64(fields.image, "image"), options=fields)


def parse_landmarks(content: bytes | msgspec.Raw | None) -> SentLandmarks:
    """Parse landmarks from a JSON text that contains nothing else: a list of points, or a result of MediaPipe.

    A result is normalized by definition. A list of faces without a name is one if its coordinates are.

    Raises:
        ProblemError: see `parse_json`.
    """
    if content is None:
        return SentLandmarks()
    text = _to_utf8(content) if isinstance(content, bytes) else content
    if _OBJECT.match(text):
        name, faces = _find_faces(_decode(_RESULT, text, "landmarks"))
        return SentLandmarks(_parse_faces(faces, name), are_normalized=True)
    if _LIST_OF_FACES.match(text):
        array = _parse_faces(text, "landmarks")
        return SentLandmarks(array, look_normalized(array))
    points = _decode(_POINTS, text, "landmarks")
    return SentLandmarks(None if points is None else _points_to_array(points))


def _find_faces(result: LandmarkResult) -> tuple[str, msgspec.Raw]:
    for name in LandmarkResult.__struct_fields__:
        faces: msgspec.Raw | msgspec.UnsetType = getattr(result, name)
        if not (isinstance(faces, msgspec.UnsetType) or bytes(faces) == b"null"):
            return f"landmarks.{name}", faces
    raise ProblemError("field_invalid", "landmarks: expected a list of points or a result of MediaPipe, got neither")


def _parse_faces(text: JsonText, field: str) -> npt.NDArray[np.float64]:
    """Parse one face, or a list of faces, to ``(N, 2)`` or ``(F, N, 2)``."""
    if not _LIST_OF_FACES.match(text):
        return _parse_face(text, field)
    texts = _decode(_FACES, text, field)
    faces = [_parse_face(face, f"{field}[{index}]") for index, face in enumerate(texts)]
    if len({len(face) for face in faces}) > 1:
        raise ProblemError("field_invalid", f"{field}: expected faces with the same number of points, got others")
    width = min(face.shape[1] for face in faces)  # without depths if a face has none
    return np.stack([face[:, :width] for face in faces])


def _parse_face(text: JsonText, field: str) -> npt.NDArray[np.float64]:
    if _OBJECT.match(text):
        face = _decode(_RESULT, text, field).landmark
        text = text if isinstance(face, msgspec.UnsetType) else face
    return _points_to_array(_decode(_POINTS, text, field) or [])


def parse_segmentation_map(content: bytes | None) -> bytes | RegionLandmarks | None:
    """Return a segmentation map from a file or form part: an image unchanged, or a parsed object.

    Raises:
        ProblemError: the content is JSON, but not an object of region name to landmark indices.
    """
    if content is None:
        return None
    # An object starts with a brace, and no image format does.
    text = _to_utf8(content)
    return _decode(_REGIONS, text, "segmentation_map") if _OBJECT.match(text) else content


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


def _to_utf8(text: bytes) -> bytes | memoryview:
    """Return a text without its byte-order mark, which some editors and shells write, in UTF-8."""
    if text.startswith(codecs.BOM_UTF8):
        return memoryview(text)[len(codecs.BOM_UTF8) :]
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return text.decode("utf-16", "replace").encode()
    return text


def _decode(decoder: msgspec.json.Decoder[T], text: JsonText, field: str, known: Sequence[str] = ()) -> T:
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

    The array is ``(N, 3)`` if every point has a depth and they are not all the same, as a placeholder is; otherwise
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
