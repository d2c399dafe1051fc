"""Wire format of a task: a header in MessagePack, followed by the raw images.

::

    4 bytes     length of the header, big-endian
    header      options, record and image sizes
    image       bytes of the file
    label map   bytes of the file, if there is one

The message holds a request that was validated (`CheckedInput`), so that a worker does not validate it again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from app.codec.sniff import ImageInfo
from app.face.frame import Size
from app.observability import rich_logging
from app.service.crop import CheckedInput
from app.service.options import CropOptions  # noqa: TC001 - msgspec reads the annotation at run time
from app.tasks.records import Record

if TYPE_CHECKING:
    from app.face.landmarks import FloatArray

VERSION: Final = 4
_LENGTH: Final = struct.Struct(">I")
_POINT_BYTES: Final = 8
_DEPTH_BYTES: Final = 4


class MessageError(Exception):
    """The bytes are not a task."""


class NewerTaskError(Exception):
    """The task was written by a later version, whose workers can process it."""


class _Version(msgspec.Struct, frozen=True):
    version: Annotated[int, Meta(ge=1)]


class _Image(msgspec.Struct, frozen=True, array_like=True):
    size: Annotated[int, Meta(ge=0)]
    width: int
    height: int
    format: str
    exif_orientation: int


class _Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    version: int
    record: bytes
    revision: int
    photo: _Image  # named as in version 2 of the format
    landmarks: bytes | None
    depths: bytes | None = None
    options: CropOptions
    label_map: _Image | None = None
    regions: list[tuple[str, list[int]]] | None = None
    are_units_guessed: bool = False
    request_id: str | None = None
    trace_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A decoded task."""

    record: Record  # record at the time of the submission
    revision: int  # revision of that record
    checked: CheckedInput  # validated input; the images are views of the message
    request_id: str | None  # id of the request that submitted the task
    trace_id: str | None  # id of the trace of that request


_VERSION = msgspec.msgpack.Decoder(_Version)
_DECODER = msgspec.msgpack.Decoder(_Header)
_RECORD = msgspec.json.Decoder(Record)


def encode_task(record: Record, revision: int, checked: CheckedInput) -> bytes:
    """Encode a task, with the ids of the current request."""
    regions = checked.region_landmarks
    header = _Header(
        version=VERSION,
        record=msgspec.json.encode(record),
        revision=revision,
        photo=_describe(checked.image, checked.image_info),
        landmarks=None if checked.landmarks_px is None else checked.landmarks_px.tobytes(),
        depths=None if checked.depths_px is None else checked.depths_px.tobytes(),
        options=checked.options,
        label_map=None
        if checked.label_image is None or checked.label_info is None
        else _describe(checked.label_image, checked.label_info),
        regions=None if regions is None else [(name, list(indices)) for name, indices in regions.items()],
        are_units_guessed=checked.are_units_guessed,
        request_id=rich_logging.request_id.get(),
        trace_id=rich_logging.trace_id.get(),
    )
    packed = msgspec.msgpack.encode(header)
    return b"".join((_LENGTH.pack(len(packed)), packed, checked.image, checked.label_image or b""))


def decode_task(data: bytes) -> Task:
    """Decode a task.

    Raises:
        MessageError: the bytes are not a complete task.
        NewerTaskError: the task was written by a later version.
    """
    view = memoryview(data)
    try:
        (length,) = _LENGTH.unpack_from(view)
        packed = view[_LENGTH.size : _LENGTH.size + length]
        # First and separately, because the rest of a later version may have an unknown form.
        if (version := _VERSION.decode(packed).version) > VERSION:
            raise NewerTaskError(f"task: expected version {VERSION} or earlier, got version {version}")
        header = _DECODER.decode(packed)
        record = _RECORD.decode(header.record)
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MessageError("task: expected a header in MessagePack, got other bytes") from error
    image = _LENGTH.size + length
    label_map = image + header.photo.size
    end = label_map + (header.label_map.size if header.label_map else 0)
    points, rest = divmod(len(header.landmarks or b""), _POINT_BYTES)
    has_other_depths = header.depths is not None and len(header.depths) != points * _DEPTH_BYTES
    if end != len(view) or rest or has_other_depths:
        raise MessageError(f"task: expected {end} bytes, got {len(view)}")
    checked = CheckedInput(
        image=view[image:label_map],
        image_info=_info(header.photo),
        landmarks_px=_landmarks(header.landmarks),
        depths_px=None if header.depths is None else np.frombuffer(header.depths, np.float32),
        label_image=view[label_map:end] if header.label_map else None,
        label_info=_info(header.label_map) if header.label_map else None,
        region_landmarks=None if header.regions is None else dict(header.regions),
        options=header.options,
        are_units_guessed=header.are_units_guessed,
    )
    return Task(
        record=record,
        revision=header.revision,
        checked=checked,
        request_id=header.request_id,
        trace_id=header.trace_id,
    )


def _landmarks(data: bytes | None) -> FloatArray | None:
    return None if data is None else np.frombuffer(data, np.float32).reshape(-1, 2)


def _describe(data: bytes | memoryview, info: ImageInfo) -> _Image:
    return _Image(len(data), *info.size, info.format, info.exif_orientation)


def _info(image: _Image) -> ImageInfo:
    return ImageInfo(
        format=image.format,  # type: ignore[arg-type]  # `_describe` took it from an ImageInfo
        size=Size(image.width, image.height),
        exif_orientation=image.exif_orientation,
    )
