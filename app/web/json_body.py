"""A JSON body to a checked input: strict JSON, no field twice, base64 without leniency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pybase64

from app.service.crop import CropInput
from app.service.landmarks import LandmarksInput
from app.service.options import CropOptions
from app.web.json_text import (
    COLON,
    LANDMARKS_FIELDS,
    REGIONS_DECODER,
    count_byte,
    count_keys,
    decode,
    points_to_array,
    refuse_duplicates_slowly,
)
from app.web.problem_codes import ProblemError
from app.web.schemas import CropBody, LandmarksBody

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app.web.json_text import RegionLandmarks

_BODY = msgspec.json.Decoder(CropBody)
_LANDMARKS_BODY = msgspec.json.Decoder(LandmarksBody)
_TEXT = msgspec.json.Decoder(str)

_DEFAULTS = [(field.name, field.default) for field in msgspec.structs.fields(CropOptions)]
QUOTE = ord('"')
DATA_URL_PREFIX_MAX = 128  # `data:image/png;charset=…;base64,` with room to spare
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
    refuse_duplicates_slowly(_cut_pictures(body, [fields.image]))
    return LandmarksInput(image=decode_base64(fields.image, "image"), options=fields)


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
        regions: RegionLandmarks = decode(REGIONS_DECODER, raw, "segmentation_map")
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
        certain += 1 + count_keys(fields.landmarks)
    if count_byte(body, COLON) != certain:
        refuse_duplicates_slowly(_cut_pictures(body, pictures))


def _cut_pictures(body: bytes, pictures: Iterable[msgspec.Raw]) -> bytes:
    for picture in map(bytes, pictures):
        if picture[0] == QUOTE and len(picture) > SHORT_PICTURE:
            body = body.replace(picture, b'""')
    return body
