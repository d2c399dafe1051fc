"""A checked request to a result: the steps, in order, each reported by its name."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from app.face.contours import COORDINATE_DECIMALS
from app.face.frame import Frame, Size, transform_points
from app.face.label_map import LabelMap, image_to_label_map, scale_labels
from app.face.landmarks import FloatArray, compute_bbox, compute_interocular_px, compute_roll_deg
from app.face.outlines import (
    Outline,
    check_regions,
    measure_outlines,
    outline_catalogue,
    outline_labels,
    outline_landmarks,
)
from app.face.overlay import OverlayStyle, Picture, render_svg
from app.face.regions import OmittedRegion, Region

__all__ = ["FaceRequest", "FaceResult", "OmittedRegion", "OnStep", "Region", "check_face", "no_step", "process_face"]

OnStep = Callable[[str], AbstractContextManager[None]]
"""Called with a step's name; the step runs inside the context that is returned."""

_NOTHING: Final = nullcontext()
_DEFAULT_STYLE: Final = OverlayStyle()


def no_step(_name: str) -> AbstractContextManager[None]:
    """Report nothing."""
    return _NOTHING


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FaceRequest:
    """What is asked about one face.

    Attributes:
        frame: Size of the photo in pixels.
        landmarks_px: ``(468, 2)`` or ``(478, 2)`` points in pixels of the photo.
        label_image: Decoded label image of any size, ``(H, W)`` or ``(H, W, 3)`` BGR. It goes before
            ``region_landmarks``.
        region_landmarks: Ring of landmark indices by the caller's name for the region. With neither this nor
            ``label_image`` the regions are those of the catalogue.
        simplify_px: How far a contour may be from the one it simplifies, in pixels of the output frame; 0 keeps every
            point.
        style: How the overlay looks.
        output: The frame that the result is in; None for that of the photo.
        background: The photo in that frame, as a file, to be put under the regions.
    """

    frame: Size
    landmarks_px: FloatArray
    label_image: npt.NDArray[np.uint8] | None = None
    region_landmarks: Mapping[str, Sequence[int]] | None = None
    simplify_px: float = 0.5
    style: OverlayStyle = _DEFAULT_STYLE
    output: Frame | None = None
    background: Picture | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FaceResult:
    """What was found on one face, all of it in the output frame.

    Attributes:
        frame: The output frame.
        landmarks_px: ``(N, 2)`` landmarks, rounded.
        regions: The regions, in drawing order.
        omitted: Regions that were asked for and have no area on this face.
        svg: The overlay, UTF-8.
        roll_deg: Tilt of the head, positive clockwise.
        interocular_px: Distance between the outer corners of the eyes.
        bbox: ``(x, y, width, height)`` of the landmarks in pixels.
    """

    frame: Frame
    landmarks_px: FloatArray
    regions: tuple[Region, ...]
    omitted: tuple[OmittedRegion, ...]
    svg: bytes
    roll_deg: float
    interocular_px: float
    bbox: tuple[float, float, float, float]


def check_face(landmarks_px: FloatArray, region_landmarks: Mapping[str, Sequence[int]] | None) -> None:
    """Refuse what `process_face` would refuse without a look at any pixel.

    Args:
        landmarks_px: ``(468, 2)`` or ``(478, 2)`` points in pixels of the photo.
        region_landmarks: Ring of landmark indices by the caller's name for the region.

    Raises:
        LandmarkDegenerateError: The landmarks do not span a face.
        RegionError: The caller's regions cannot be used.
    """
    compute_roll_deg(landmarks_px)
    if region_landmarks is not None:
        check_regions(region_landmarks, len(landmarks_px))


def process_face(request: FaceRequest, on_step: OnStep = no_step) -> FaceResult:
    """Find the regions of a face and draw them.

    Args:
        request: The photo's size, the landmarks and what to do with them.
        on_step: Told of each step: ``segmentation`` (where there is a label image), ``contours``, ``svg``.

    Returns:
        Regions, overlay and the measures of the face.

    Raises:
        LandmarkDegenerateError: The landmarks do not span a face.
        LabelMapError: The label image cannot be used.
        RegionError: The caller's regions cannot be used.
    """
    frame = request.output or Frame(request.frame)
    exact_px = request.landmarks_px if frame.is_photo else _move(request.landmarks_px, frame)
    roll_deg = compute_roll_deg(exact_px)
    landmarks_px = np.round(exact_px, COORDINATE_DECIMALS)
    label_map = None
    if request.label_image is not None:
        with on_step("segmentation"):
            label_map = image_to_label_map(request.label_image)
            label_map = replace(label_map, labels=scale_labels(label_map.labels, request.frame))
    with on_step("contours"):
        outlines = _find_outlines(label_map, request.region_landmarks, landmarks_px, frame)
        regions, omitted = measure_outlines(outlines, request.simplify_px)
    with on_step("svg"):
        svg = render_svg(
            frame=frame.size,
            regions=regions,
            landmarks_px=landmarks_px,
            style=request.style,
            background=request.background,
        )
    return FaceResult(
        frame=frame,
        landmarks_px=landmarks_px,
        regions=regions,
        omitted=omitted,
        svg=svg,
        roll_deg=roll_deg,
        interocular_px=compute_interocular_px(exact_px),
        bbox=_compute_face_box(landmarks_px),
    )


def _find_outlines(
    label_map: LabelMap | None,
    region_landmarks: Mapping[str, Sequence[int]] | None,
    landmarks_px: FloatArray,
    frame: Frame,
) -> list[Outline]:
    """Outline what is asked for, in the output frame; a label map is one of the photo."""
    if label_map is not None:
        outlines = outline_labels(label_map)
        return outlines if frame.is_photo else [_move_outline(outline, frame) for outline in outlines]
    if region_landmarks is not None:
        return outline_landmarks(region_landmarks, landmarks_px)
    return outline_catalogue(landmarks_px)


def _move(points: FloatArray, frame: Frame) -> FloatArray:
    return transform_points(points, frame.transform).astype(np.float32)


def _move_outline(outline: Outline, frame: Frame) -> Outline:
    polygons = [[np.round(_move(ring, frame), COORDINATE_DECIMALS) for ring in polygon] for polygon in outline.polygons]
    return outline._replace(polygons=polygons)


def _compute_face_box(landmarks_px: FloatArray) -> tuple[float, float, float, float]:
    x, y, width, height = [round(value, COORDINATE_DECIMALS) for value in compute_bbox(landmarks_px)]
    return x, y, width, height
