"""PNG images of results, from a result of this process or from the JSON document of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import cv2
import msgspec
import numpy as np
import pybase64
from msgspec import Meta

from app.codec.decoding_policy import require_decoding
from app.codec.encode import encode_label_png, encode_overlay_png
from app.codec.icc import read_icc_profile
from app.codec.sniff import sniff_image
from app.face.contours import Polygon
from app.face.errors import ImageTooLargeError
from app.face.frame import BGRA_CHANNELS, ByteArray, Size
from app.face.regions import CUSTOM_REGION, Region
from app.face.rendering.raster import (
    OUTLINE_COST,
    Drawing,
    Layer,
    measure_drawing,
    render_grid,
    render_image,
    render_label_mask,
)
from app.face.rendering.svg import arrange_frames, read_background, read_style, split_overlay
from app.service.crop import CropResults, check_output_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.face.landmarks import FloatArray
    from app.service.crop import CropResult, ImageLimits


# Encoding, decoding and compressing a background takes most of the time. Images of 24 Mpx are common.
_BACKGROUND_SHARE: Final = 0.4

_BACKGROUND_BYTES: Final = 2 * BGRA_CHANNELS
"""Memory per pixel of a PNG with a background, which is decoded first."""

MAX_DRAWING_COST: Final = 260_000_000
"""Limit of `measure_drawing`. A face that fills a frame of 64 million pixels takes 213 million, or 0.6 s."""


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


class _Document(msgspec.Struct):
    """The part of a result document that the PNG is rendered from."""

    svg: str
    regions: list[_RegionDocument]
    output: _SizeDocument
    transform: list[list[float]]


class _RegionsDocument(msgspec.Struct):
    """The part of a result document that the label mask is rendered from."""

    regions: list[_RegionDocument]
    output: _SizeDocument


class _Face(NamedTuple):
    """What the PNG of one face is rendered from."""

    size: Size
    transform: list[list[float]]
    regions: Sequence[Region]
    svg: bytes


_DOCUMENTS = msgspec.json.Decoder(_Document | Annotated[list[_Document], Meta(min_length=1)])
_REGIONS_DOCUMENT = msgspec.json.Decoder(_RegionsDocument)


def result_to_png(result: CropResult | CropResults, limits: ImageLimits, *, is_request: bool = False) -> bytes:
    """Render the overlay of a result, or those of all faces, as a PNG that looks like the SVG.

    It is transparent unless the overlay has a background.

    Args:
        result: the result.
        limits: limits of the size.
        is_request: whether to limit the time, too, to that of a request.

    Raises:
        ImageTooLargeError: the image would have too many pixels, or drawing it would take too long.
    """
    results = result.faces if isinstance(result, CropResults) else (result,)
    faces = [
        _Face(found.face.frame.size, found.face.frame.transform.tolist(), found.face.regions, found.svg)
        for found in results
    ]
    return _render(faces, limits, is_request=is_request)


def json_to_png(document: bytes | msgspec.Raw, limits: ImageLimits, *, is_request: bool = False) -> bytes:
    """Render the JSON document of a result, or of the results of all faces, to the same image as `result_to_png`.

    Raises:
        ImageTooLargeError: the image would have too many pixels, or drawing it would take too long.
        msgspec.DecodeError: the document is not a result.
    """
    found = _DOCUMENTS.decode(document)
    faces = [
        _Face(
            Size(one.output.width, one.output.height),
            one.transform,
            [_to_region(region) for region in one.regions],
            pybase64.b64decode(one.svg),
        )
        for one in (found if isinstance(found, list) else [found])
    ]
    return _render(faces, limits, is_request=is_request)


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


def _render(faces: Sequence[_Face], limits: ImageLimits, *, is_request: bool) -> bytes:
    is_same_frame = all(face.transform == faces[0].transform for face in faces)
    size, corners = arrange_frames([face.size for face in faces], is_same_frame=is_same_frame)
    check_output_size("png", size, limits)
    drawings = [_make_drawing(faces)] if is_same_frame else [_make_drawing([face]) for face in faces]
    file = _read_file(faces[0].svg)
    if is_request:
        _limit_request(size, drawings, limits, has_background=bool(file))
    if is_same_frame:
        channels = render_image(drawings[0], _decode(file))
    else:
        images = (
            render_image(drawing, _decode(_read_file(face.svg))) for drawing, face in zip(drawings, faces, strict=True)
        )
        channels = render_grid(size, zip(corners, images, strict=True))
    profile = read_icc_profile(file, sniff_image(file, max_pixels=limits.max_image_pixels)) if file else None
    # Regions have colours also if the image is grey.
    return encode_overlay_png(channels, profile if profile is not None and profile.space == "rgb" else None)


def _limit_request(size: Size, drawings: Sequence[Drawing], limits: ImageLimits, *, has_background: bool) -> None:
    limit = int(limits.max_image_pixels * (_BACKGROUND_SHARE if has_background else 1))
    if size.width * size.height > limit:
        raise ImageTooLargeError(
            f"png: expected a result of at most {limit} pixels with a background, got {size.width} x {size.height}; "
            "set crop or output_size, or background=none"
        )
    # Drawing takes memory like decoding does, which is limited on the express thread.
    require_decoding(size.width * size.height * (_BACKGROUND_BYTES if has_background else BGRA_CHANNELS))
    cost, limit = sum(map(measure_drawing, drawings)), MAX_DRAWING_COST // (2 if has_background else 1)
    if cost > limit:
        raise ImageTooLargeError(
            f"png: expected regions of at most {limit} pixels in total, counting each pixel of an outline as "
            f"{OUTLINE_COST}, got {cost:.0f}; set output_size"
        )


def _make_drawing(faces: Sequence[_Face]) -> Drawing:
    """Return the overlays of faces in one frame."""
    overlays = [split_overlay(face.svg) for face in faces]
    layers = [
        # The overlays of all faces share the regions of a label map, which are drawn once.
        Layer(() if number and overlay.regions == overlays[0].regions else face.regions, read_style(overlay)[1])
        for number, (face, overlay) in enumerate(zip(faces, overlays, strict=True))
    ]
    return Drawing(faces[0].size, layers, read_style(overlays[0])[0])


def _read_file(svg: bytes) -> bytes:
    """Return the image file that an overlay embeds; empty if there is none."""
    background = read_background(svg)
    return b"" if background is None else pybase64.b64decode(background.base64)


def _decode(file: bytes) -> ByteArray | None:
    """Decode a background that this service encoded, with its alpha channel; None if the file is empty."""
    if not file:
        return None
    image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("background: expected an image, got other data")
    if image.ndim < 3:  # noqa: PLR2004 - a grey image has two dimensions
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return image.astype(np.uint8, copy=False)
