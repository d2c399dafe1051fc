"""A multipart/form-data body to a checked input: the same names as in JSON, pictures as files."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.service.crop import CropInput
from app.service.landmarks import LandmarksInput
from app.service.options import LANDMARK_OPTION_NAMES, OPTION_NAMES, CropOptions, LandmarkOptions
from app.web.json_text import FIELDS, LANDMARKS_FIELDS, parse_points, raise_field_problem, read_map
from app.web.problem_codes import ProblemError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from python_multipart.multipart import MultipartCallbacks

T = TypeVar("T", bound=msgspec.Struct)

# A part must not contain the boundary (RFC 2046). The parser accepts one that does not end a line, and takes a
# microsecond for each.
MAX_BOUNDARIES = 64

# It would log bytes of the body for each request that is refused.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


def parse_multipart(body: bytes, content_type: str) -> CropInput:
    """Read a multipart body.

    Raises:
        ProblemError: ``invalid_multipart``, ``field_missing``, ``field_unknown``, ``field_invalid`` or
            ``field_duplicate``.
    """
    parts = split_parts(body, content_type, FIELDS)
    landmarks = parts.get("landmarks")
    return CropInput(
        image=_require_image(parts),
        points=None if landmarks is None else parse_points(landmarks, "landmarks"),
        segmentation_map=read_map(parts.get("segmentation_map")),
        options=options_from_text({name: parts[name] for name in OPTION_NAMES if name in parts}, "body", CropOptions),
    )


def parse_landmarks_multipart(body: bytes, content_type: str) -> LandmarksInput:
    """Read the multipart body of a landmarks request.

    Raises:
        ProblemError: as `parse_multipart` does.
    """
    parts = split_parts(body, content_type, LANDMARKS_FIELDS)
    texts = {name: parts[name] for name in LANDMARK_OPTION_NAMES if name in parts}
    return LandmarksInput(image=_require_image(parts), options=options_from_text(texts, "body", LandmarkOptions))


def _require_image(parts: Mapping[str, bytes]) -> bytes:
    if "image" not in parts:
        raise ProblemError("field_missing", "image: expected a part of this name, got none")
    return parts["image"]


def options_from_text(texts: Mapping[str, bytes | str], source: str, kind: type[T]) -> T:
    """Read options whose values are texts: form fields or query parameters.

    Raises:
        ProblemError: ``field_invalid``.
    """
    try:
        values = {name: value if isinstance(value, str) else value.decode() for name, value in texts.items()}
        return msgspec.convert(values, kind, strict=False)
    except UnicodeDecodeError:
        raise ProblemError("field_invalid", f"{source}: expected UTF-8") from None
    except msgspec.ValidationError as error:
        raise_field_problem(str(error), source, FIELDS)


def split_parts(body: bytes, content_type: str, known: Sequence[str] = FIELDS) -> dict[str, bytes]:
    """Split a body into its named parts.

    Raises:
        ProblemError: ``invalid_multipart``, ``field_unknown`` or ``field_duplicate``.
    """
    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise ProblemError("invalid_multipart", "expected a boundary in the Content-Type")
    if body.count(b"\r\n--" + boundary) > MAX_BOUNDARIES:
        raise ProblemError("invalid_multipart", f"expected the boundary at most {MAX_BOUNDARIES} times, got more")
    collector = _Collector(known)
    try:
        parser = MultipartParser(boundary, collector.callbacks(), max_size=len(body) + 1)
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise ProblemError("invalid_multipart", "expected parts set off by the boundary of the Content-Type") from None
    if not collector.is_ended:
        raise ProblemError("invalid_multipart", "expected a closing boundary; the body ends before it")
    return collector.parts


class _Collector:
    """Takes the parser's events and keeps the parts."""

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known
        self.parts: dict[str, bytes] = {}
        self.is_ended = False
        self._name = ""
        self._chunks: list[bytes] = []
        self._field, self._value = b"", b""

    def callbacks(self) -> MultipartCallbacks:
        """Return the methods by the names that the parser knows."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._name, self._chunks = "", []
        self._field, self._value = b"", b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._name = parse_options_header(self._value)[1].get(b"name", b"").decode("utf-8", "replace")
        self._field, self._value = b"", b""

    def _headers_finished(self) -> None:
        if self._name not in self._known:
            names = ", ".join(self._known)
            raise ProblemError("field_unknown", f"body: expected only {names}; got a part of another name")
        if self._name in self.parts:
            raise ProblemError("field_duplicate", f"{self._name}: expected one part of this name, got two")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def _end_part(self) -> None:
        self.parts[self._name] = b"".join(self._chunks)

    def _end(self) -> None:
        self.is_ended = True
