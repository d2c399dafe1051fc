"""JSON texts to points and regions: strict, no member twice, and every error told as a problem that echoes nothing.

Such a text is a part of a form, a value inside a JSON body, or a file that the command line reads.
"""

from __future__ import annotations

import json
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Never

import msgspec
import numpy as np
from msgspec import Meta

from app.service.options import LANDMARK_OPTION_NAMES, OPTION_NAMES, CropOptions
from app.web.problem_codes import ProblemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

FIELDS = ("image", "landmarks", "segmentation_map", *OPTION_NAMES)
LANDMARKS_FIELDS = ("image", *LANDMARK_OPTION_NAMES)
COLON, COMMA = ord(":"), ord(",")
# A value as a Python object takes up to thirty times the room of its text. The most that can be of use, 64 regions of
# 1,024 indices each, are 65,536; base64 holds no commas.
MAX_COMMAS = 100_000


class Point(msgspec.Struct):
    """A landmark as MediaPipe writes it; other members are passed over."""

    x: Annotated[float, Meta(description="To the right.")]
    y: Annotated[float, Meta(description="Down.")]
    z: Annotated[float | msgspec.UnsetType | None, Meta(description="Depth; not used.")] = msgspec.UNSET


PointList = Annotated[list[float], Meta(min_length=2, max_length=3)]
RegionLandmarks = dict[str, list[int]]

_POINTS = msgspec.json.Decoder(list[Point | PointList])
REGIONS_DECODER = msgspec.json.Decoder(RegionLandmarks)
_X, _Y = attrgetter("x"), attrgetter("y")
_CHOICES = {
    name: " or ".join(map(repr, schema["enum"]))
    for name, schema in msgspec.json.schema(CropOptions)["$defs"]["CropOptions"]["properties"].items()
    if "enum" in schema
}


def parse_points(text: bytes, field: str) -> npt.NDArray[np.float64]:
    """Read landmarks that came as a JSON text of their own."""
    points = decode(_POINTS, text, field)
    if count_keys(points) != text.count(b":"):
        refuse_duplicates_slowly(text)
    return points_to_array(points)


def parse_regions(text: bytes, field: str) -> RegionLandmarks:
    """Read an object of region name to landmark indices that came as a JSON text of its own."""
    regions: RegionLandmarks = decode(REGIONS_DECODER, text, field)
    if len(regions) != text.count(b":"):
        refuse_duplicates_slowly(text)
    return regions


def read_map(part: bytes | None) -> bytes | RegionLandmarks | None:
    """Tell the two forms of a segmentation map apart: a picture stays as it is, an object is read.

    Raises:
        ProblemError: it begins as an object, and is none of region names to landmark indices.
    """
    if part is None:
        return None
    # No picture format begins with a brace, and an object always does.
    return parse_regions(part, "segmentation_map") if part.lstrip()[:1] == b"{" else part


def decode(decoder: msgspec.json.Decoder[Any], text: bytes | msgspec.Raw, field: str, known: Sequence[str] = ()) -> Any:
    """Decode JSON into a structure, with its errors told as problems that echo nothing."""
    if count_byte(text, COMMA) > MAX_COMMAS:
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
    if set(map(type, points)) == {Point}:
        # Two long columns are put together twice as fast as many short rows.
        return np.array([list(map(_X, points)), list(map(_Y, points))], np.float64).T
    pairs = [(point.x, point.y) if isinstance(point, Point) else point[:2] for point in points]
    return np.fromiter(chain.from_iterable(pairs), np.float64, 2 * len(points)).reshape(-1, 2)


def count_keys(points: list[Point | list[float]]) -> int:
    """Count the members that the points of a text had for certain; lists have none."""
    objects = points if set(map(type, points)) == {Point} else [point for point in points if type(point) is Point]
    depths = list(map(attrgetter("z"), objects))
    return 3 * len(objects) - depths.count(msgspec.UNSET)


def refuse_duplicates_slowly(text: bytes) -> None:
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


def count_byte(text: bytes | msgspec.Raw, byte: int) -> int:
    """Count a byte, three times as fast as ``bytes.count`` does."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == byte))
