"""A JSON body to a checked input: strict JSON, no field twice, base64 without leniency."""

from __future__ import annotations

import json
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Never

import msgspec
import numpy as np
import pybase64

from app.service.crop import CropInput
from app.service.landmarks import LandmarksInput
from app.service.options import LANDMARK_OPTION_NAMES, OPTION_NAMES, CropOptions
from app.web.problems import ProblemError
from app.web.schemas import CropBody, LandmarksBody, Point, PointList, RegionLandmarks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

_BODY = msgspec.json.Decoder(CropBody)
_LANDMARKS_BODY = msgspec.json.Decoder(LandmarksBody)
_TEXT = msgspec.json.Decoder(str)
_POINTS = msgspec.json.Decoder(list[Point | PointList])
_REGIONS = msgspec.json.Decoder(RegionLandmarks)
_XY = attrgetter("x", "y")

_DEFAULTS = [(field.name, field.default) for field in msgspec.structs.fields(CropOptions)]
_CHOICES = {
    name: " or ".join(map(repr, schema["enum"]))
    for name, schema in msgspec.json.schema(CropOptions)["$defs"]["CropOptions"]["properties"].items()
    if "enum" in schema
}

FIELDS = ("image", "landmarks", "segmentation_map", *OPTION_NAMES)
LANDMARKS_FIELDS = ("image", *LANDMARK_OPTION_NAMES)
QUOTE = ord('"')
COLON, COMMA = ord(":"), ord(",")
DATA_URL_PREFIX_MAX = 128  # `data:image/png;charset=…;base64,` with room to spare
# A value as a Python object takes up to thirty times the room of its text. The most that can be of use, 64 regions of
# 1,024 indices each, are 65,536; base64 holds no commas.
MAX_COMMAS = 100_000
SHORT_PICTURE = 1024  # bytes; not worth cutting out


def parse_json(body: bytes) -> CropInput:
    """Read a JSON body.

    Raises:
        ProblemError: ``invalid_json``, ``field_missing``, ``field_unknown``, ``field_invalid``, ``field_duplicate`` or
            ``image_encoding``.
    """
    fields: CropBody = decode(_BODY, body, "body")
    _refuse_duplicates(body, fields)
    source = fields.segmentation_map
    return CropInput(
        image=decode_base64(fields.image, "image"),
        points=None if fields.landmarks is None else points_to_array(fields.landmarks),
        segmentation_map=None if isinstance(source, msgspec.UnsetType) else _decode_map(source),
        options=fields,
    )


def parse_landmarks_json(body: bytes) -> LandmarksInput:
    """Read the JSON body of a landmarks request.

    Raises:
        ProblemError: as `parse_json` does.
    """
    fields: LandmarksBody = decode(_LANDMARKS_BODY, body, "body", LANDMARKS_FIELDS)
    _refuse_duplicates_slowly(_cut_pictures(body, [fields.image]))
    return LandmarksInput(image=decode_base64(fields.image, "image"), options=fields)


def parse_points(text: bytes, field: str) -> npt.NDArray[np.float64]:
    """Read landmarks that came as a JSON text of their own."""
    points = decode(_POINTS, text, field)
    if _count_keys(points) != text.count(b":"):
        _refuse_duplicates_slowly(text)
    return points_to_array(points)


def parse_regions(text: bytes, field: str) -> RegionLandmarks:
    """Read an object of region name to landmark indices that came as a JSON text of its own."""
    regions: RegionLandmarks = decode(_REGIONS, text, field)
    if len(regions) != text.count(b":"):
        _refuse_duplicates_slowly(text)
    return regions


def decode(decoder: msgspec.json.Decoder[Any], text: bytes | msgspec.Raw, field: str, known: Sequence[str] = ()) -> Any:
    """Decode JSON into a structure, with its errors told as problems that echo nothing."""
    if _count_byte(text, COMMA) > MAX_COMMAS:
        raise ProblemError("field_invalid", f"{field}: expected at most {MAX_COMMAS} values, got more")
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise_field_problem(str(error), field, known or FIELDS)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ProblemError("invalid_json", f"{field}: expected JSON, {reason}") from None
    except RecursionError:
        raise ProblemError("invalid_json", f"{field}: expected JSON, got one nested too deeply") from None


def raise_field_problem(message: str, field: str, known: Sequence[str]) -> Never:
    """Tell msgspec's finding as a problem; its path holds only names of ours and positions."""
    if message.startswith("Object contains unknown field"):
        raise ProblemError("field_unknown", f"{field}: expected only {', '.join(known)}; got another") from None
    if message.startswith("Invalid enum value"):  # and here the value follows
        name = message.rpartition("`$.")[2].rstrip("`")
        raise ProblemError("field_invalid", f"{name}: expected {_CHOICES[name]}, got another text") from None
    code = "field_missing" if "missing required field" in message else "field_invalid"
    raise ProblemError(code, f"{field}: {message[0].lower()}{message[1:]}".replace("`", "'")) from None


def points_to_array(points: list[Point | list[float]]) -> npt.NDArray[np.float64]:
    """Put points, each an object or a list of two or three numbers, into an ``(N, 2)`` array; a third is dropped."""
    pairs: Iterable[Sequence[float]]
    if set(map(type, points)) == {Point}:
        pairs = map(_XY, points)
    else:
        pairs = [(point.x, point.y) if isinstance(point, Point) else point[:2] for point in points]
    return np.fromiter(chain.from_iterable(pairs), np.float64, 2 * len(points)).reshape(-1, 2)


def decode_base64(raw: msgspec.Raw, field: str) -> bytes:
    """Decode a JSON string of base64, or of a data URL that holds some.

    Raises:
        ProblemError: ``field_invalid`` where it is no string; ``image_encoding`` where it is no base64.
    """
    view = memoryview(raw)
    if view[0] != QUOTE:
        raise ProblemError("field_invalid", f"{field}: expected a string of base64")
    text = _cut_data_url(view[1:-1], field)
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        # Some encoders write `\/` for `/`; what the string really holds is worth a second, slower look.
        if b"\\" not in bytes(text):
            raise _encoding_problem(field) from None
    try:
        unescaped = memoryview(decode(_TEXT, raw, field).encode())
        return pybase64.b64decode(_cut_data_url(unescaped, field), validate=True)
    except ValueError:
        raise _encoding_problem(field) from None


def _encoding_problem(field: str) -> ProblemError:
    return ProblemError("image_encoding", f"{field}: expected standard base64, with padding and without line breaks")


def _cut_data_url(text: memoryview, field: str) -> memoryview:
    if bytes(text[:5]) != b"data:":
        return text
    prefix, comma, _ = bytes(text[:DATA_URL_PREFIX_MAX]).partition(b",")
    if not comma or not prefix.endswith(b";base64"):
        raise ProblemError("image_encoding", f"{field}: expected a data URL of the form data:image/png;base64,…")
    return text[len(prefix) + 1 :]


def _decode_map(raw: msgspec.Raw) -> bytes | RegionLandmarks | None:
    first = bytes(memoryview(raw)[:1])
    if first == b"n":
        return None
    if first == b"{":
        regions: RegionLandmarks = decode(_REGIONS, raw, "segmentation_map")
        return regions
    if first != b'"':
        raise ProblemError("field_invalid", "segmentation_map: expected a string of base64, or an object")
    return decode_base64(raw, "segmentation_map")


def _refuse_duplicates(body: bytes, fields: CropBody) -> None:
    """Refuse a field that is given twice; which of the two was meant is not ours to guess.

    A colon follows every key, and base64 holds none. So as many colons as there are keys for certain prove that no
    key came twice. Where the numbers differ (an option at its default, members that were passed over, a name with a
    colon in it) the text is read again, slowly, without the pictures.
    """
    pictures = [picture for picture in (fields.image, fields.segmentation_map) if isinstance(picture, msgspec.Raw)]
    certain = len(pictures) + sum(getattr(fields, name) != default for name, default in _DEFAULTS)
    if fields.landmarks is not None:
        certain += 1 + _count_keys(fields.landmarks)
    if _count_byte(body, COLON) != certain:
        _refuse_duplicates_slowly(_cut_pictures(body, pictures))


def _cut_pictures(body: bytes, pictures: Iterable[msgspec.Raw]) -> bytes:
    for picture in map(bytes, pictures):
        if picture[0] == QUOTE and len(picture) > SHORT_PICTURE:
            body = body.replace(picture, b'""')
    return body


def _count_keys(points: list[Point | list[float]]) -> int:
    objects = points if set(map(type, points)) == {Point} else [point for point in points if type(point) is Point]
    depths = map(attrgetter("z"), objects)
    return 2 * len(objects) + sum(depth is not msgspec.UNSET for depth in depths)


def _refuse_duplicates_slowly(text: bytes) -> None:
    """Read a text that msgspec has read already; what it passed over, it has not looked at so closely."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ProblemError("field_duplicate", "expected each field once, got one twice in the same object")

    try:
        # Integers stay texts: Python refuses to convert those of more than 4,300 digits.
        json.loads(text, object_pairs_hook=check, parse_int=str)
    except RecursionError:
        raise ProblemError("invalid_json", "expected JSON, got one nested too deeply") from None
    except ValueError as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "malformed"
        raise ProblemError("invalid_json", f"expected JSON, {reason}") from None


def _count_byte(text: bytes | msgspec.Raw, byte: int) -> int:
    """Count a byte, three times as fast as ``bytes.count`` does."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == byte))
