"""Use of the service as a library: regions and landmarks of faces in images, without a server.

The package `facial_service` exports everything here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import cv2
import msgspec
import numpy as np
import orjson

from app.face.errors import InputError
from app.service.crop import CropInput, CropResult, CropResults, CropService, ImageLimits
from app.service.options import OPTION_NAMES, CropOptions
from app.service.png_export import result_to_mask, result_to_png
from app.service.serialization import result_to_json, result_warnings
from app.web.json_body import parse_landmarks
from app.web.msgspec_errors import validation_problem
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from app.face.regions import OmittedRegion, Region

    Image = bytes | str | Path
    """Content of an image file, or its path."""

    SegmentationMap = bytes | Mapping[str, Sequence[int]]
    """Content of a label map, or landmark indices by the name of a region."""

    Landmarks = npt.NDArray[Any] | Sequence[Any] | Mapping[str, Any] | object
    """Points of a face: an array or rows of x, y and optionally z, objects with these attributes or keys, or a result
    of MediaPipe, whose classes are not imported."""

__all__ = ["ArgumentError", "FaceRegions", "InputError", "find_regions"]

_RESULT_NAMES = ("face_landmarks", "multi_face_landmarks")  # attributes of MediaPipe's results


class ArgumentError(ValueError):
    """An argument has an invalid type or value; not raised for the content of files and points."""


@dataclass(frozen=True, eq=False)
class FaceRegions:
    """The regions of one face, as the service returns them.

    All coordinates are pixels of the result: those of the image, unless the options `upright`, `crop` or `output_size`
    transform it.
    """

    _result: CropResult
    _limits: ImageLimits

    def __repr__(self) -> str:
        return f"<FaceRegions: {len(self.regions)} regions, {self.size[0]} x {self.size[1]} pixels>"

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions in drawing order: each has `label_id`, `name`, `colour`, `area_px`, `bbox` and `polygons`."""
        return self._result.face.regions

    @property
    def omitted(self) -> tuple[OmittedRegion, ...]:
        """Regions without an area on this face."""
        return self._result.face.omitted

    def __getitem__(self, name: str) -> Region:
        """Return a region by name.

        Raises:
            KeyError: the face does not have the region.
        """
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Region]:
        return {region.name: region for region in self.regions}

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the result."""
        width, height = self._result.face.frame.size
        return width, height

    @property
    def landmarks(self) -> npt.NDArray[np.float32]:
        """The landmarks, ``(478, 2)``, or ``(468, 2)`` if those of the irises were not passed."""
        return self._result.face.landmarks_px

    @property
    def depths(self) -> npt.NDArray[np.float32] | None:
        """Depths of the landmarks, ``(478,)``, negative towards the camera; None if they are unknown."""
        return self._result.face.depths_px

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """The box of the landmarks: x, y, width and height."""
        return self._result.face.bbox

    @property
    def roll_deg(self) -> float:
        """Angle of the line between the outer eye corners, in degrees; positive clockwise."""
        return self._result.face.roll_deg

    @property
    def yaw_pitch_deg(self) -> tuple[float, float] | None:
        """Yaw and pitch in degrees; positive to the image's right, and up. None if the depths are unknown."""
        return self._result.face.yaw_pitch_deg

    @property
    def interocular_px(self) -> float:
        """Distance between the outer eye corners."""
        return self._result.face.interocular_px

    @property
    def confidence(self) -> float | None:
        """Confidence of the detector, 0 to 1; None if the landmarks were passed."""
        detected = self._result.detected
        return None if detected is None else detected.faces[detected.index].confidence

    @property
    def transform(self) -> npt.NDArray[np.float64]:
        """The 2 x 3 matrix from coordinates of the image to those of the result."""
        return self._result.face.frame.transform

    @property
    def warnings(self) -> dict[str, str]:
        """Properties of the result that the caller might not expect: messages by code."""
        return {warning["code"]: warning["message"] for warning in result_warnings(self._result)}

    @property
    def svg(self) -> bytes:
        """The overlay."""
        return self._result.svg

    def to_json(self) -> bytes:
        """Return the document that the HTTP API returns."""
        return result_to_json(self._result)

    def to_png(self) -> bytes:
        """Render the overlay as a PNG.

        Raises:
            InputError: it would have too many pixels.
        """
        return result_to_png(self._result, self._limits)

    def to_mask(self) -> npt.NDArray[np.uint8]:
        """Return the label mask, ``(height, width)``: label ids of the regions, and 0 elsewhere.

        Raises:
            InputError: it would have too many pixels.
        """
        png = np.frombuffer(result_to_mask(self._result, self._limits), np.uint8)
        return np.asarray(cv2.imdecode(png, cv2.IMREAD_GRAYSCALE), np.uint8)


# The types of the options are those of `CropOptions`, which a test compares with these signatures.
@overload
def find_regions(
    image: Image,
    landmarks: Landmarks | None = None,
    segmentation_map: SegmentationMap | None = None,
    *,
    face: Literal["all"],
    landmark_units: Literal["pixels", "normalized"] = ...,
    show_labels: bool = ...,
    show_landmarks: bool = ...,
    region_opacity: float = ...,
    stroke_width: float | None = ...,
    simplify: float = ...,
    verify: Literal["structure", "pixels"] = ...,
    upright: bool = ...,
    crop: Literal["none", "face"] = ...,
    margin: float = ...,
    output_size: int | None = ...,
    background: Literal["none", "image"] = ...,
    orientation: Literal["stored", "displayed"] = ...,
) -> list[FaceRegions]: ...


@overload
def find_regions(
    image: Image,
    landmarks: Landmarks | None = None,
    segmentation_map: SegmentationMap | None = None,
    *,
    face: int = ...,
    landmark_units: Literal["pixels", "normalized"] = ...,
    show_labels: bool = ...,
    show_landmarks: bool = ...,
    region_opacity: float = ...,
    stroke_width: float | None = ...,
    simplify: float = ...,
    verify: Literal["structure", "pixels"] = ...,
    upright: bool = ...,
    crop: Literal["none", "face"] = ...,
    margin: float = ...,
    output_size: int | None = ...,
    background: Literal["none", "image"] = ...,
    orientation: Literal["stored", "displayed"] = ...,
) -> FaceRegions: ...


def find_regions(  # noqa: PLR0913 - the options are keywords, so that editors and type checkers know them
    image: Image,
    landmarks: Landmarks | None = None,
    segmentation_map: SegmentationMap | None = None,
    *,
    face: int | Literal["all"] = 0,
    landmark_units: Literal["pixels", "normalized"] = "pixels",
    show_labels: bool = False,
    show_landmarks: bool = False,
    region_opacity: float = 0.35,
    stroke_width: float | None = None,
    simplify: float = 0.5,
    verify: Literal["structure", "pixels"] = "structure",
    upright: bool = False,
    crop: Literal["none", "face"] = "none",
    margin: float = 0.25,
    output_size: int | None = None,
    background: Literal["none", "image"] = "none",
    orientation: Literal["stored", "displayed"] = "stored",
) -> FaceRegions | list[FaceRegions]:
    """Find the regions of a face in an image, or of all faces with ``face="all"``.

    The result is that of `POST /api/v1/frontal/crop`, and so are the options, their defaults and their limits.

    Args:
        image: content or path of a PNG, JPEG, WebP, AVIF or HEIC file.
        landmarks: 478 or 468 points in the order of MediaPipe, or a result of MediaPipe. None to detect them.
        segmentation_map: content of a label map, or region names with landmark indices. None for the catalogue.
        face: index of the face, or ``all``.
        landmark_units: ``pixels`` of the image, or ``normalized`` to 0..1.
        show_labels: draw each region's name.
        show_landmarks: draw the landmarks.
        region_opacity: opacity of a region's fill, 0 to 1.
        stroke_width: width of outlines, in pixels.
        simplify: maximum deviation of simplified contours, in pixels.
        verify: ``structure`` verifies the file without decoding it, ``pixels`` also decodes it.
        upright: rotate the result so that the eyes are level.
        crop: crop the result to the ``face``.
        margin: margin around a cropped face, as a fraction of its size.
        output_size: longer side of the result, in pixels.
        background: embed the ``image`` below the regions.
        orientation: image that coordinates refer to: as ``stored``, or as ``displayed`` by its EXIF orientation.

    Raises:
        InputError: the image, the landmarks or the segmentation map are invalid; `code` is that of the HTTP API.
        ArgumentError: an argument has an invalid type or value.
        OSError: the file cannot be read.
    """
    options = _make_options(
        face=face,
        landmark_units=landmark_units,
        show_labels=show_labels,
        show_landmarks=show_landmarks,
        region_opacity=region_opacity,
        stroke_width=stroke_width,
        simplify=simplify,
        verify=verify,
        upright=upright,
        crop=crop,
        margin=margin,
        output_size=output_size,
        background=background,
        orientation=orientation,
    )
    points, are_normalized = _read_landmarks(landmarks)
    service = _service()
    result = service.process(
        CropInput(
            image=_read_image(image),
            points=points,
            are_points_normalized=are_normalized,
            segmentation_map=_check_map(segmentation_map),
            options=options,
        )
    )
    if isinstance(result, CropResults):
        return [FaceRegions(one, service.limits) for one in result.faces]
    return FaceRegions(result, service.limits)


@cache
def _service() -> CropService:
    """Return the service, whose detectors are loaded once and may be used by several threads."""
    return CropService(ImageLimits())


def _make_options(**values: Any) -> CropOptions:
    try:
        return msgspec.convert(values, CropOptions)
    except msgspec.ValidationError as error:
        raise ArgumentError(validation_problem(error, "options", OPTION_NAMES).detail) from None


def _read_image(image: object) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    raise ArgumentError(f"image: expected the content of a file or its path, got {type(image).__name__}")


def _check_map(source: Any) -> SegmentationMap | None:
    if source is None or isinstance(source, bytes):
        return source
    if isinstance(source, Mapping):
        return source
    expected = "the content of a label map, or an object"
    raise ArgumentError(f"segmentation_map: expected {expected}, got {type(source).__name__}")


def _read_landmarks(landmarks: Landmarks | None) -> tuple[npt.NDArray[np.float64] | None, bool]:
    """Return points, and whether their form shows that they are normalized."""
    if landmarks is None:
        return None, False
    if isinstance(landmarks, np.ndarray):
        if landmarks.dtype.kind not in "fiu":
            raise ArgumentError(f"landmarks: expected an array of numbers, got {landmarks.dtype.name}")
        return landmarks.astype(np.float64), False
    try:
        text = orjson.dumps(_to_document(landmarks), option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        expected = "points, or a result of MediaPipe"
        raise ArgumentError(f"landmarks: expected {expected}, got {type(landmarks).__name__}") from None
    try:
        sent = parse_landmarks(text)
    except ProblemError as error:
        raise ArgumentError(error.detail) from None
    return sent.points, sent.are_normalized


def _to_document(landmarks: Any) -> Any:
    """Convert objects of MediaPipe's Python package to the JSON form of the same result."""
    for name in _RESULT_NAMES:
        if (faces := getattr(landmarks, name, None)) is not None:
            return {name: [_to_document(face) for face in faces]}
    points = getattr(landmarks, "landmark", landmarks)
    if isinstance(points, dict):
        return points
    return [_point_to_document(point) for point in points]


def _point_to_document(point: Any) -> Any:
    if not hasattr(point, "x"):
        return point
    depth = getattr(point, "z", None)
    is_known = depth is not None and math.isfinite(depth)
    return {"x": point.x, "y": point.y, **({"z": depth} if is_known else {})}
