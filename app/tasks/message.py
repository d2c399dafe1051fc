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
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from app.codec.sniff import ImageInfo
from app.face.frame import Size
from app.observability import rich_logging
from app.service.crop import CheckedInput, SentFace
from app.service.options import CropOptions  # noqa: TC001 - msgspec reads the annotation at run time
from app.tasks.records import Record

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


class _Face(msgspec.Struct, frozen=True, array_like=True):
    landmarks: bytes
    depths: bytes | None


class _Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    version: int
    record: bytes
    revision: int
    photo: _Image  # named as in version 2 of the format
    landmarks: bytes | None  # of the first face
    depths: bytes | None = None
    other_faces: list[_Face] = []
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
    faces = [_Face(*face.to_bytes()) for face in checked.faces or ()]
    header = _Header(
        version=VERSION,
        record=msgspec.json.encode(record),
        revision=revision,
        photo=_describe(checked.image, checked.image_info),
        landmarks=faces[0].landmarks if faces else None,
        depths=faces[0].depths if faces else None,
        other_faces=faces[1:],
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
    if end != len(view):
        raise MessageError(f"task: expected {end} bytes, got {len(view)}")
    faces = None
    if header.landmarks is not None:
        faces = tuple(map(_sent_face, [_Face(header.landmarks, header.depths), *header.other_faces]))
    checked = CheckedInput(
        image=view[image:label_map],
        image_info=_info(header.photo),
        faces=faces,
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


def _sent_face(face: _Face) -> SentFace:
    points, rest = divmod(len(face.landmarks), _POINT_BYTES)
    if rest or (face.depths is not None and len(face.depths) != points * _DEPTH_BYTES):
        raise MessageError(f"task: expected whole landmarks and as many depths, got {len(face.landmarks)} bytes")
    landmarks_px = np.frombuffer(face.landmarks, np.float32).reshape(-1, 2)
    return SentFace(landmarks_px, None if face.depths is None else np.frombuffer(face.depths, np.float32))


def _describe(data: bytes | memoryview, info: ImageInfo) -> _Image:
    return _Image(len(data), *info.size, info.format, info.exif_orientation)


def _info(image: _Image) -> ImageInfo:
    return ImageInfo(
        format=image.format,  # type: ignore[arg-type]  # `_describe` took it from an ImageInfo
        size=Size(image.width, image.height),
        exif_orientation=image.exif_orientation,
    )
