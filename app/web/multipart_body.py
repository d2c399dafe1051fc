"""Parse multipart/form-data bodies: the same fields as in JSON, with images as files.

This is also the adapter for python-multipart: the parser's callbacks and logger are used here only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.service.crop import CropInput
from app.service.landmarks import LandmarksInput
from app.service.options import LANDMARK_OPTION_NAMES, OPTION_NAMES, CropOptions, LandmarkOptions
from app.web.json_body import FIELDS, LANDMARKS_FIELDS, parse_points, parse_segmentation_map
from app.web.msgspec_errors import validation_problem
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from python_multipart.multipart import MultipartCallbacks

T = TypeVar("T", bound=msgspec.Struct)

# RFC 2046 forbids the boundary inside a part. The parser accepts one that does not end a line, and takes a microsecond
# for each.
MAX_BOUNDARIES = 64

# The parser logs bytes of each malformed body.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


def parse_multipart(body: bytes, content_type: str) -> CropInput:
    """Parse the multipart body of a crop request.

    Raises:
        ProblemError: ``invalid_multipart``, ``invalid_json``, ``field_missing``, ``field_unknown``, ``field_invalid``
            or ``field_duplicate``.
    """
    parts = split_parts(body, content_type, FIELDS)
    landmarks = parts.get("landmarks")
    return CropInput(
        image=_require_image(parts),
        points=None if landmarks is None else parse_points(landmarks),
        segmentation_map=parse_segmentation_map(parts.get("segmentation_map")),
        options=options_from_text({name: parts[name] for name in OPTION_NAMES if name in parts}, "body", CropOptions),
    )


def parse_landmarks_multipart(body: bytes, content_type: str) -> LandmarksInput:
    """Parse the multipart body of a landmarks request.

    Raises:
        ProblemError: see `parse_multipart`.
    """
    parts = split_parts(body, content_type, LANDMARKS_FIELDS)
    texts = {name: parts[name] for name in LANDMARK_OPTION_NAMES if name in parts}
    return LandmarksInput(image=_require_image(parts), options=options_from_text(texts, "body", LandmarkOptions))


def _require_image(parts: Mapping[str, bytes]) -> bytes:
    if "image" not in parts:
        raise ProblemError("field_missing", "image: expected a part with this name, got none")
    return parts["image"]


def options_from_text(texts: Mapping[str, bytes | str], source: str, kind: type[T]) -> T:
    """Parse options from form fields or query parameters.

    Raises:
        ProblemError: ``field_invalid``.
    """
    try:
        values = {name: value if isinstance(value, str) else value.decode() for name, value in texts.items()}
        return msgspec.convert(values, kind, strict=False)
    except UnicodeDecodeError:
        raise ProblemError("field_invalid", f"{source}: expected UTF-8, got another encoding") from None
    except msgspec.ValidationError as error:
        raise validation_problem(error, source, FIELDS) from None


def split_parts(body: bytes, content_type: str, known: Sequence[str] = FIELDS) -> dict[str, bytes]:
    """Split a body into its named parts.

    Raises:
        ProblemError: ``invalid_multipart``, ``field_unknown`` or ``field_duplicate``.
    """
    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise ProblemError("invalid_multipart", "Content-Type: expected a boundary, got none")
    if body.count(b"\r\n--" + boundary) > MAX_BOUNDARIES:
        raise ProblemError("invalid_multipart", f"body: expected at most {MAX_BOUNDARIES} boundaries, got more")
    collector = _PartCollector(known)
    try:
        parser = MultipartParser(boundary, collector.callbacks(), max_size=len(body) + 1)
        parser.write(body)
        parser.finalize()
    except FormParserError:
        detail = "body: expected parts separated by the boundary of the Content-Type, got malformed parts"
        raise ProblemError("invalid_multipart", detail) from None
    if not collector.is_ended:
        raise ProblemError("invalid_multipart", "body: expected a closing boundary, got a truncated body")
    return collector.parts


class _PartCollector:
    """Callbacks of the parser that collect the parts."""

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known
        self.parts: dict[str, bytes] = {}
        self.is_ended = False
        self._name = ""
        self._chunks: list[bytes] = []
        self._field, self._value = b"", b""

    def callbacks(self) -> MultipartCallbacks:
        """Return the methods by the parser's names for them."""
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
            detail = f"body: expected only {', '.join(self._known)}; got a part with an unknown name"
            raise ProblemError("field_unknown", detail)
        if self._name in self.parts:
            raise ProblemError("field_duplicate", f"{self._name}: expected one part, got more")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def _end_part(self) -> None:
        self.parts[self._name] = b"".join(self._chunks)

    def _end(self) -> None:
        self.is_ended = True
