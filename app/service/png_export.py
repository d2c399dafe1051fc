"""A result as a picture: the overlay drawn as pixels, from a result of this process or from a document of another's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import msgspec
import numpy as np
import pybase64

from app.codec.encode import encode_flat_png, encode_image
from app.codec.sniff import MAX_SIDE_PX
from app.face.contours import COORDINATE_DECIMALS, Polygon
from app.face.errors import ImageTooLargeError
from app.face.frame import Size
from app.face.landmarks import points_to_landmarks_px
from app.face.regions import CUSTOM_REGION, Region
from app.face.rendering.raster import render_image
from app.face.rendering.svg import read_background, read_colours

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from app.face.landmarks import FloatArray
    from app.service.crop import CropResult, ImageLimits
    from app.service.options import CropOptions


class _SizeDocument(msgspec.Struct):
    width: int
    height: int


class _HoleDocument(msgspec.Struct):
    parent: int
    contour: list[tuple[float, float]]


class _RegionDocument(msgspec.Struct):
    id: int
    name: str
    area_px: float
    bbox: tuple[float, float, float, float]
    contours: list[list[tuple[float, float]]]
    holes: list[_HoleDocument]


class _Document(msgspec.Struct):
    """The part of a result document that a picture is drawn from."""

    svg: str
    regions: list[_RegionDocument]
    landmarks: list[tuple[float, float]] | None
    image: _SizeDocument
    output: _SizeDocument


_DOCUMENT = msgspec.json.Decoder(_Document)


def result_to_png(result: CropResult, options: CropOptions, limits: ImageLimits) -> bytes:
    """Draw a result.

    Args:
        result: what the service found.
        options: what it was asked for.
        limits: how large a picture may be.

    Returns:
        A PNG of the size of the result's frame, transparent where nothing is drawn.

    Raises:
        ImageTooLargeError: the frame has more pixels than a photo may have.
    """
    face = result.face
    return _draw(face.frame.size, face.regions, face.landmarks_px, face.svg, options, limits)


def json_to_png(
    document: bytes, points: npt.NDArray[np.float64] | None, options: CropOptions, limits: ImageLimits
) -> bytes:
    """Draw the document that a service answered; the picture is that of `result_to_png`.

    Args:
        document: as `app.service.serialization` writes it.
        points: the landmarks that were sent; None where they were found.
        options: what was asked for.
        limits: how large a picture may be.

    Returns:
        A PNG.

    Raises:
        ImageTooLargeError: the frame has more pixels than a photo may have.
        msgspec.DecodeError: it is no such document.
    """
    read = _DOCUMENT.decode(document)
    svg = pybase64.b64decode(read.svg)
    landmarks_px: FloatArray | None = None
    if read.landmarks is not None:
        landmarks_px = np.array(read.landmarks, np.float32)
    elif points is not None:
        frame = Size(read.image.width, read.image.height)
        is_normalized = options.landmark_units == "normalized"
        margin = limits.landmark_margin
        exact_px = points_to_landmarks_px(points, image_size=frame, is_normalized=is_normalized, margin=margin)
        landmarks_px = np.round(exact_px, COORDINATE_DECIMALS)
    regions = [_to_region(one, colour) for one, colour in zip(read.regions, read_colours(svg), strict=True)]
    return _draw(Size(read.output.width, read.output.height), regions, landmarks_px, svg, options, limits)


def _to_region(document: _RegionDocument, colour: str) -> Region:
    polygons = tuple(
        Polygon(
            np.array(contour, np.float32),
            tuple(np.array(hole.contour, np.float32) for hole in document.holes if hole.parent == position),
        )
        for position, contour in enumerate(document.contours)
    )
    return Region(document.id, document.name, colour, polygons, document.area_px, document.bbox, CUSTOM_REGION)


def _draw(
    frame: Size,
    regions: Sequence[Region],
    landmarks_px: FloatArray | None,
    svg: bytes,
    options: CropOptions,
    limits: ImageLimits,
) -> bytes:
    if frame.width * frame.height > limits.max_image_pixels or max(frame) > MAX_SIDE_PX:
        raise ImageTooLargeError(
            f"png: the result is {frame.width} x {frame.height}, and may have {limits.max_image_pixels} pixels; crop "
            "it, or set output_size"
        )
    background = read_background(svg)
    picture = render_image(
        size=frame,
        regions=regions,
        landmarks_px=landmarks_px,
        style=options.style(),
        background=None if background is None else _decode(background.base64),
    )
    return encode_flat_png(picture) if background is None else encode_image(picture).data


def _decode(base64: str) -> npt.NDArray[np.uint8]:
    """Decode a picture that was encoded by us, with its transparency."""
    picture = cv2.imdecode(np.frombuffer(pybase64.b64decode(base64), np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError("the overlay's background does not decode")
    return picture.astype(np.uint8, copy=False)
