"""Parse multipart/form-data bodies: the same fields as in JSON, with images as files.

Bodies are split here, because python-multipart accepts only what browsers send: it refuses a preamble and folded
headers, and reads a boundary that blanks follow as content. RFC 2046 allows all of them, and mail libraries write them.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import pybase64
from python_multipart.multipart import parse_options_header

from app.service.crop import CropInput
from app.service.landmarks import LandmarksInput
from app.service.options import LANDMARK_OPTION_NAMES, OPTION_NAMES, CropOptions, LandmarkOptions
from app.web.json_body import FIELDS, LANDMARKS_FIELDS, parse_landmarks, parse_segmentation_map
from app.web.msgspec_errors import validation_problem
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T", bound=msgspec.Struct)

# Limits that no client reaches; browsers write two headers of some hundred bytes, and mail libraries about five.
MAX_BOUNDARIES: Final = 64
MAX_BOUNDARY_BYTES: Final = 256
MAX_HEAD_BYTES: Final = 8192
MAX_HEADERS: Final = 16

IMAGE: Final = "image"
_LINE_BREAK: Final = b"\r\n"
_AFTER_BOUNDARY: Final = re.compile(rb"(--)|[ \t]*\r\n")
_FOLD: Final = re.compile(rb"\r\n[ \t]+")

_TRANSFER_DECODERS: Final[Mapping[bytes, Callable[[bytes], bytes]]] = {
    b"base64": pybase64.b64decode,
    b"quoted-printable": binascii.a2b_qp,
    **dict.fromkeys((b"7bit", b"8bit", b"binary"), bytes),
}


def parse_multipart(body: bytes, content_type: str) -> CropInput:
    """Parse the multipart body of a crop request.

    Raises:
        ProblemError: ``invalid_multipart``, ``invalid_json``, ``field_missing``, ``field_unknown``, ``field_invalid``
            or ``field_duplicate``.
    """
    parts = _split_filled_parts(body, content_type, FIELDS)
    landmarks = parse_landmarks(parts.get("landmarks"))
    return CropInput(
        image=_require_image(parts),
        points=landmarks.points,
        are_points_normalized=landmarks.are_normalized,
        segmentation_map=parse_segmentation_map(parts.get("segmentation_map")),
        options=options_from_text({name: parts[name] for name in OPTION_NAMES if name in parts}, "body", CropOptions),
    )


def parse_landmarks_multipart(body: bytes, content_type: str) -> LandmarksInput:
    """Parse the multipart body of a landmarks request.

    Raises:
        ProblemError: see `parse_multipart`.
    """
    parts = _split_filled_parts(body, content_type, LANDMARKS_FIELDS)
    texts = {name: parts[name] for name in LANDMARK_OPTION_NAMES if name in parts}
    return LandmarksInput(image=_require_image(parts), options=options_from_text(texts, "body", LandmarkOptions))


def _require_image(parts: Mapping[str, bytes]) -> bytes:
    if IMAGE not in parts:
        raise ProblemError("field_missing", "image: expected a part with this name, got none")
    return parts[IMAGE]


def _split_filled_parts(body: bytes, content_type: str, known: Sequence[str]) -> dict[str, bytes]:
    """Split a body into its parts except for optional ones without content, which browsers send for empty inputs."""
    parts = split_parts(body, content_type, known)
    return {name: content for name, content in parts.items() if name == IMAGE or not _is_blank(content)}


def _is_blank(content: bytes) -> bool:
    return not content or content.isspace()


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
    """Split a body into its named parts; of an optional file without a name, the content is empty.

    A preamble, an epilogue, blanks after a boundary and folded headers are accepted as RFC 2046 defines them, and
    transfer encodings are decoded.

    Raises:
        ProblemError: ``invalid_multipart``, ``field_unknown`` or ``field_duplicate``.
    """
    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= MAX_BOUNDARY_BYTES:
        expected = f"a boundary of 1 to {MAX_BOUNDARY_BYTES} bytes"
        raise ProblemError("invalid_multipart", f"Content-Type: expected {expected}, got another length or none")
    parts: dict[str, bytes] = {}
    start: int | None = None
    for end, after, is_last in _find_delimiters(body, boundary):
        if start is not None:
            name, content = _read_part(body, start, end, known)
            if _is_blank(parts.get(name, b"")):
                parts[name] = content
            elif not _is_blank(content):
                raise ProblemError("field_duplicate", f"{name}: expected one part, got more")
        if is_last:
            return parts
        start = after
    received = "no boundary" if start is None else "a truncated body"
    expected = "parts separated by the boundary of the Content-Type, and a closing boundary"
    raise ProblemError("invalid_multipart", f"body: expected {expected}, got {received}")


def _find_delimiters(body: bytes, boundary: bytes) -> Iterator[tuple[int, int, bool]]:
    """Yield the start and end of each delimiter, which includes its line breaks, and whether it is the closing one."""
    delimiter = _LINE_BREAK + b"--" + boundary
    # The first delimiter may begin the body, without a line break before it.
    position = -len(_LINE_BREAK) if body.startswith(delimiter[len(_LINE_BREAK) :]) else body.find(delimiter)
    for _ in range(MAX_BOUNDARIES):
        if position == -1:
            return
        after = position + len(delimiter)
        if found := _AFTER_BOUNDARY.match(body, after):
            after = found.end()
            yield position, after, found[1] is not None
        position = body.find(delimiter, after)
    if position != -1:
        raise ProblemError("invalid_multipart", f"body: expected at most {MAX_BOUNDARIES} boundaries, got more")


def _read_part(body: bytes, start: int, end: int, known: Sequence[str]) -> tuple[str, bytes]:
    """Return the name and the content of the part between two delimiters."""
    if body.startswith(_LINE_BREAK, start):
        headers, content_start = {}, start + len(_LINE_BREAK)
    else:
        # A part without content may end with its headers, so that the empty line after them begins the delimiter.
        head_end = body.find(2 * _LINE_BREAK, start, min(end + len(_LINE_BREAK), start + MAX_HEAD_BYTES))
        if head_end == -1:
            expected = f"headers of at most {MAX_HEAD_BYTES} bytes and an empty line in each part"
            raise ProblemError("invalid_multipart", f"body: expected {expected}, got others")
        headers, content_start = _read_headers(body[start:head_end]), head_end + 2 * len(_LINE_BREAK)
    _, options = parse_options_header(headers.get(b"content-disposition"))
    name = options.get(b"name", b"").decode("utf-8", "replace")
    if name not in known:
        raise ProblemError("field_unknown", f"body: expected only {', '.join(known)}; got a part with an unknown name")
    if name != IMAGE and options.get(b"filename") == b"":
        return name, b""
    return name, _decode_content(body[content_start:end], headers.get(b"content-transfer-encoding", b"binary"))


def _read_headers(head: bytes) -> dict[bytes, bytes]:
    lines = _FOLD.sub(b" ", head).split(_LINE_BREAK)
    headers = {}
    for line in lines[: MAX_HEADERS + 1]:
        name, colon, value = line.partition(b":")
        if not colon or len(lines) > MAX_HEADERS:
            detail = f"body: expected at most {MAX_HEADERS} headers per part, each a name and a value; got others"
            raise ProblemError("invalid_multipart", detail)
        headers[name.strip().lower()] = value.strip()
    return headers


def _decode_content(content: bytes, encoding: bytes) -> bytes:
    """Decode the transfer encoding of a part, which RFC 7578 deprecates but libraries for mail use."""
    decode = _TRANSFER_DECODERS.get(encoding.lower())
    try:
        if decode is not None:
            return decode(content)
    except ValueError:
        pass
    expected = ", ".join(name.decode() for name in _TRANSFER_DECODERS)
    detail = f"Content-Transfer-Encoding: expected one of {expected} with matching content, got something else"
    raise ProblemError("invalid_multipart", detail)
