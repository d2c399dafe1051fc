"""The steps from a validated request to its result; each step is reported by name."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from app.face.contours import COORDINATE_DECIMALS
from app.face.frame import ByteArray, Frame, Size, transform_points
from app.face.label_map import LabelMap, image_to_label_map, scale_labels
from app.face.landmarks import (
    DepthArray,
    FloatArray,
    compute_bbox,
    compute_interocular_px,
    compute_roll_deg,
    compute_yaw_pitch_deg,
)
from app.face.outlines import (
    Outline,
    check_total,
    measure_outlines,
    outline_catalogue,
    outline_labels,
    outline_landmarks,
)
from app.face.regions import OmittedRegion, Region
from app.face.rendering.svg import EmbeddedImage, OverlayStyle, render_svg

OnStep = Callable[[str], AbstractContextManager[None]]
"""Called with the name of a step; the step runs inside the returned context manager."""

_NULL_CONTEXT: Final = nullcontext()
_DEFAULT_STYLE: Final = OverlayStyle()


def no_step(_name: str) -> AbstractContextManager[None]:
    """Ignore a step."""
    return _NULL_CONTEXT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FaceRequest:
    """A request for the regions of one face."""

    image_size: Size
    landmarks_px: FloatArray  # `(468, 2)` or `(478, 2)` in pixels of the image
    depths_px: DepthArray | None = None  # of the landmarks; None if they are unknown
    # Of any size, `(H, W)` or `(H, W, 3)` BGR; takes precedence over `region_landmarks`.
    label_image: ByteArray | None = None
    # Ring of landmark indices by custom region name. Without this and `label_image`, the result has the catalogue
    # regions.
    region_landmarks: Mapping[str, Sequence[int]] | None = None
    simplify_px: float = 0.5  # maximum distance between a contour and its simplified form; 0 keeps every point
    style: OverlayStyle = _DEFAULT_STYLE
    output: Frame | None = None  # None for the frame of the image
    background: EmbeddedImage | None = None  # in the output frame, below the regions


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FaceResult:
    """The regions and measures of one face, in the output frame."""

    frame: Frame
    landmarks_px: FloatArray  # rounded
    regions: tuple[Region, ...]  # in drawing order
    omitted: tuple[OmittedRegion, ...]  # requested regions without area on this face
    svg: bytes
    roll_deg: float  # positive clockwise
    interocular_px: float  # distance between the outer eye corners
    bbox: tuple[float, float, float, float]  # `(x, y, width, height)` of the landmarks
    label_colours: Mapping[int, str] = field(default_factory=dict)  # by label id, if the label map has colours
    # None if the depths are unknown:
    depths_px: DepthArray | None = None  # rounded
    yaw_pitch_deg: tuple[float, float] | None = None  # see `compute_yaw_pitch_deg`


def process_faces(requests: Sequence[FaceRequest], on_step: OnStep = no_step) -> list[FaceResult]:
    """Extract the regions of each of several faces in one image, and render them as an overlay for each.

    The requests have the same label map and the same custom regions. A label map describes the whole image, so
    every result contains all of its regions. It is traced once.

    The steps are ``segmentation`` (if there is a label map), ``contours`` and ``svg``.

    Raises:
        LandmarkDegenerateError: the landmarks do not form a face.
        LabelMapError: the label map cannot be used.
        RegionError: the custom regions cannot be used.
    """
    label_map = _read_label_image(requests[0], on_step)
    traced: list[Outline] | None = None
    results: list[FaceResult] = []
    for request in requests:
        frame = request.output or Frame(request.image_size)
        exact_px = request.landmarks_px if frame.is_identity else _to_frame(request.landmarks_px, frame)
        landmarks_px = np.round(exact_px, COORDINATE_DECIMALS)
        with on_step("contours"):
            if label_map is not None and traced is None:
                traced = outline_labels(label_map)
            outlines = _make_outlines(traced, request.region_landmarks, landmarks_px, frame)
            if not results:
                check_total(outlines, len(requests), is_label_map=label_map is not None)
            outlined = measure_outlines(outlines, request.simplify_px)
        result = _make_result(request, frame, exact_px, landmarks_px, outlined, on_step)
        if label_map is not None and label_map.has_colours:
            result = replace(result, label_colours=label_map.colours)
        results.append(result)
    return results


def _read_label_image(request: FaceRequest, on_step: OnStep) -> LabelMap | None:
    if request.label_image is None:
        return None
    with on_step("segmentation"):
        label_map = image_to_label_map(request.label_image)
        return replace(label_map, labels=scale_labels(label_map.labels, request.image_size))


def _make_result(
    request: FaceRequest,
    frame: Frame,
    exact_px: FloatArray,
    landmarks_px: FloatArray,
    outlined: tuple[tuple[Region, ...], tuple[OmittedRegion, ...]],
    on_step: OnStep,
) -> FaceResult:
    roll_deg = compute_roll_deg(exact_px)
    regions, omitted = outlined
    with on_step("svg"):
        svg = render_svg(
            size=frame.size,
            regions=regions,
            landmarks_px=landmarks_px,
            style=request.style,
            background=request.background,
        )
    depths_px = None if request.depths_px is None else request.depths_px * np.float32(frame.scale)
    x, y, width, height = (round(value, COORDINATE_DECIMALS) for value in compute_bbox(landmarks_px))
    return FaceResult(
        frame=frame,
        landmarks_px=landmarks_px,
        regions=regions,
        omitted=omitted,
        svg=svg,
        roll_deg=roll_deg,
        interocular_px=compute_interocular_px(exact_px),
        bbox=(x, y, width, height),
        depths_px=None if depths_px is None else np.round(depths_px, COORDINATE_DECIMALS),
        yaw_pitch_deg=None if depths_px is None else compute_yaw_pitch_deg(exact_px, depths_px),
    )


def _make_outlines(
    traced: list[Outline] | None,
    region_landmarks: Mapping[str, Sequence[int]] | None,
    landmarks_px: FloatArray,
    frame: Frame,
) -> list[Outline]:
    """Return the requested outlines in the output frame; those traced from a label map are in that of the image."""
    if traced is not None:
        return traced if frame.is_identity else [_outline_to_frame(outline, frame) for outline in traced]
    if region_landmarks is not None:
        return outline_landmarks(region_landmarks, landmarks_px)
    return outline_catalogue(landmarks_px)


def _to_frame(points: FloatArray, frame: Frame) -> FloatArray:
    return transform_points(points, frame.transform).astype(np.float32)


def _outline_to_frame(outline: Outline, frame: Frame) -> Outline:
    polygons = [
        [np.round(_to_frame(ring, frame), COORDINATE_DECIMALS) for ring in polygon] for polygon in outline.polygons
    ]
    return outline._replace(polygons=polygons)
