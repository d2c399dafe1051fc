"""PNG images of results, from a result of this process or from the JSON document of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import cv2
import msgspec
import numpy as np
import pybase64
from msgspec import Meta

from app.codec.encode import encode_flat_png, encode_image, encode_label_png
from app.codec.icc import read_icc_profile
from app.codec.sniff import sniff_image
from app.face.contours import COORDINATE_DECIMALS, Polygon
from app.face.frame import ByteArray, Size
from app.face.regions import CUSTOM_REGION, Region
from app.face.rendering.raster import render_image, render_label_mask
from app.face.rendering.svg import read_background
from app.service.crop import check_output_size, convert_points

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
    colour: Annotated[str, Meta(pattern="^#[0-9a-f]{6}$")]
    area_px: float
    bbox: tuple[float, float, float, float]
    contours: list[list[tuple[float, float]]]
    holes: list[_HoleDocument]


class _Point(msgspec.Struct):
    x: float
    y: float


class _RegionsDocument(msgspec.Struct):
    """The part of a result document that the label mask is rendered from."""

    regions: list[_RegionDocument]
    output: _SizeDocument


class _Document(_RegionsDocument):
    """The part of a result document that the PNG is rendered from."""

    svg: str
    landmarks: list[_Point | tuple[float, float]] | None
    image: _SizeDocument


_DOCUMENT = msgspec.json.Decoder(_Document)
_REGIONS_DOCUMENT = msgspec.json.Decoder(_RegionsDocument)


def result_to_png(result: CropResult, options: CropOptions, limits: ImageLimits) -> bytes:
    """Render a result as a PNG of the size of the output frame, with a transparent background.

    Raises:
        ImageTooLargeError: the frame has more pixels than an image may have.
    """
    face = result.face
    return _render(face.frame.size, face.regions, face.landmarks_px, face.svg, options, limits)


def json_to_png(
    document: bytes,
    points: npt.NDArray[np.float64] | None,
    options: CropOptions,
    limits: ImageLimits,
    *,
    are_points_normalized: bool = False,
) -> bytes:
    """Render the JSON document that a service returned, to the same image as `result_to_png`.

    The points are the landmarks of the request, as in `CropInput`; None if they were detected. The option `face` is the
    index of the face in them.

    Raises:
        ImageTooLargeError: the frame has more pixels than an image may have.
        msgspec.DecodeError: the document is not a result.
    """
    result = _DOCUMENT.decode(document)
    landmarks_px: FloatArray | None = None
    if result.landmarks is not None:
        pairs = [(point.x, point.y) if isinstance(point, _Point) else point for point in result.landmarks]
        landmarks_px = np.array(pairs, np.float32)
    elif points is not None:
        size = Size(result.image.width, result.image.height)
        (face, *_), _ = convert_points(points, options, size, limits, are_normalized=are_points_normalized)
        landmarks_px = np.round(face.landmarks_px, COORDINATE_DECIMALS)
    size = Size(result.output.width, result.output.height)
    regions = [_to_region(region) for region in result.regions]
    return _render(size, regions, landmarks_px, pybase64.b64decode(result.svg), options, limits)


def result_to_mask(result: CropResult, limits: ImageLimits) -> bytes:
    """Render the label mask of a result: a grey PNG of the output frame with the ids of the regions, 0 elsewhere.

    Raises:
        ImageTooLargeError: the frame has more pixels than an image may have.
        LabelMapComplexityError: filling the contours would take too long.
    """
    return _render_mask(result.face.frame.size, result.face.regions, limits)


def json_to_mask(document: bytes | msgspec.Raw, limits: ImageLimits) -> bytes:
    """Render the label mask of a result document; see `result_to_mask`.

    Raises:
        ImageTooLargeError: the frame has more pixels than an image may have.
        LabelMapComplexityError: filling the contours would take too long.
        msgspec.DecodeError: the document is not a result.
    """
    result = _REGIONS_DOCUMENT.decode(document)
    size = Size(result.output.width, result.output.height)
    return _render_mask(size, [_to_region(region) for region in result.regions], limits)


def _render_mask(size: Size, regions: Sequence[Region], limits: ImageLimits) -> bytes:
    check_output_size("mask", size, limits)
    names = {region.label_id: region.name for region in regions}
    return encode_label_png(render_label_mask(size, regions), names)


def _to_region(document: _RegionDocument) -> Region:
    # Grouped in one pass, because there may be thousands of contours and holes.
    holes: dict[int, list[FloatArray]] = {}
    for hole in document.holes:
        holes.setdefault(hole.parent, []).append(np.array(hole.contour, np.float32))
    polygons = tuple(
        Polygon(np.array(contour, np.float32), tuple(holes.get(position, ())))
        for position, contour in enumerate(document.contours)
    )
    area_px, bbox = document.area_px, document.bbox
    return Region(document.id, document.name, document.colour, polygons, area_px, bbox, CUSTOM_REGION)


def _render(
    size: Size,
    regions: Sequence[Region],
    landmarks_px: FloatArray | None,
    svg: bytes,
    options: CropOptions,
    limits: ImageLimits,
) -> bytes:
    check_output_size("png", size, limits)
    background = read_background(svg)
    file = b"" if background is None else pybase64.b64decode(background.base64)
    image = render_image(
        size=size,
        regions=regions,
        landmarks_px=landmarks_px,
        style=options.style(),
        background=_decode(file) if file else None,
    )
    if not file:
        return encode_flat_png(image)
    profile = read_icc_profile(file, sniff_image(file, max_pixels=limits.max_image_pixels))
    # The regions are coloured even if the image is grey.
    return encode_image(image, profile if profile is not None and profile.space == "rgb" else None).data


def _decode(file: bytes) -> ByteArray:
    """Decode a background that this service encoded, with its alpha channel."""
    image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("background: expected an image, got other data")
    if image.ndim < 3:  # noqa: PLR2004 - a grey image has two dimensions
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return image.astype(np.uint8, copy=False)
