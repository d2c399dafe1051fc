"""Response documents, from which the OpenAPI document is generated."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from app.tasks.records import TaskStatus  # noqa: TC001 - msgspec reads the annotation

Coordinate = Annotated[list[float], Meta(min_length=2, max_length=2, description="x and y, in pixels.")]


class Landmark(msgspec.Struct):
    """A landmark with its depth."""

    x: float
    y: float
    z: Annotated[
        float,
        Meta(
            description="Depth, on the scale of x and negative towards the camera. Only differences are meaningful, "
            "because the origin is near the centre of the head."
        ),
    ]


Ring = Annotated[list[Coordinate], Meta(min_length=3, description="Closed polygon; the first point is not repeated.")]
Box = Annotated[list[float], Meta(min_length=4, max_length=4, description="x, y, width and height, in pixels.")]
Affine = Annotated[
    list[Annotated[list[float], Meta(min_length=3, max_length=3)]],
    Meta(min_length=2, max_length=2, description="2×3 matrix."),
]
Confidence = Annotated[float, Meta(ge=0, le=1)]


class Hole(msgspec.Struct):
    """A hole in a region."""

    parent: Annotated[int, Meta(ge=0, description="Index of the contour that contains the hole.")]
    contour: Ring


class RegionResponse(msgspec.Struct):
    """A region of the face."""

    id: Annotated[int, Meta(ge=1, description="Label id.")]
    name: str
    colour: Annotated[str, Meta(pattern="^#[0-9a-f]{6}$", description="Colour of the region in the SVG.")]
    area_px: Annotated[float, Meta(gt=0, description="Area of the contours minus their holes, in square pixels.")]
    bbox: Box
    contours: Annotated[list[Ring], Meta(min_length=1)]
    holes: list[Hole]


class OmittedRegion(msgspec.Struct):
    """A region without an area."""

    id: Annotated[int, Meta(ge=1, description="Label id.")]
    name: str
    reason: str


class ImageInfo(msgspec.Struct):
    """Properties of the image."""

    width: Annotated[int, Meta(ge=1, description="As stored, or as displayed with `orientation=displayed`.")]
    height: Annotated[int, Meta(ge=1)]
    format: str
    exif_orientation: Annotated[
        int, Meta(ge=1, le=8, description="As in the file; 1 if viewers show the pixels as they are stored.")
    ]


class FaceMeasurements(msgspec.Struct, kw_only=True):
    """Measurements of the face, in the coordinates of the result."""

    roll_deg: Annotated[float, Meta(description="Angle of the line between the outer eye corners; positive clockwise.")]
    yaw_deg: Annotated[
        float | msgspec.UnsetType,
        Meta(description="Positive if the face is turned towards the image's right. Present if the depth is known."),
    ] = msgspec.UNSET
    pitch_deg: Annotated[
        float | msgspec.UnsetType,
        Meta(description="Positive if the face is turned up. Present if the depth is known."),
    ] = msgspec.UNSET
    interocular_px: Annotated[float, Meta(gt=0, description="Distance between the outer eye corners.")]
    bbox: Box


class DetectedFace(msgspec.Struct):
    """A detected face."""

    bbox: Box
    confidence: Confidence


class DetectionResponse(msgspec.Struct):
    """Faces detected in an image that was sent without landmarks."""

    confidence: Annotated[Confidence, Meta(description="Confidence of the detector in the selected face.")]
    presence: Annotated[Confidence, Meta(description="Confidence of the mesh model that its input shows a face.")]
    face: Annotated[int, Meta(ge=0, description="Index of the selected face in `faces`.")]
    faces: Annotated[list[DetectedFace], Meta(min_length=1, description="All faces, the largest first.")]


class ImageSize(msgspec.Struct):
    """Width and height in pixels."""

    width: Annotated[int, Meta(ge=1)]
    height: Annotated[int, Meta(ge=1)]


class Warning(msgspec.Struct):  # noqa: A001 - the name in the OpenAPI document
    """A property of the result that the caller might not expect."""

    code: str
    message: str


class CropResponse(msgspec.Struct):
    """Result of a crop request."""

    svg: Annotated[str, Meta(description="SVG overlay, as base64.", extra_json_schema={"contentEncoding": "base64"})]
    mask_contours: Annotated[dict[str, Ring], Meta(description="Largest outer contour of each region, by label id.")]
    regions: list[RegionResponse]
    regions_detected: Annotated[int, Meta(ge=0)]
    omitted: Annotated[list[OmittedRegion], Meta(description="Regions with fewer than 3 points or without an area.")]
    image: ImageInfo
    face: FaceMeasurements
    landmarks: Annotated[
        list[Landmark | Coordinate] | None,
        Meta(
            description="In coordinates of the result: objects if the depth is known, otherwise pairs. Null if "
            "landmarks were sent and the result is not transformed."
        ),
    ]
    detection: Annotated[DetectionResponse | None, Meta(description="Null if landmarks were sent.")]
    output: Annotated[ImageSize, Meta(description="Size of the result frame, to which all coordinates refer.")]
    transform: Annotated[Affine, Meta(description="From coordinates of the image to those of the result.")]
    inverse_transform: Annotated[Affine, Meta(description="From coordinates of the result to those of the image.")]
    warnings: list[Warning]
    processing_time_ms: Annotated[float, Meta(ge=0)]


class LandmarksResponse(msgspec.Struct):
    """Landmarks of a face."""

    landmarks: Annotated[
        list[Landmark], Meta(min_length=478, max_length=478, description="In the units of `landmark_units`.")
    ]
    detection: DetectionResponse
    face: FaceMeasurements
    image: ImageInfo
    warnings: list[Warning]
    processing_time_ms: Annotated[float, Meta(ge=0)]


class ProblemDocument(msgspec.Struct, omit_defaults=True):
    """Problem details (RFC 9457)."""

    type: Annotated[str, Meta(description="URN that ends with the code.")]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    code: Annotated[str, Meta(description="Stable, machine-readable code.")]
    detail: Annotated[str, Meta(description="The field, the expected value and the received value.")]
    request_id: str
    trace_id: Annotated[str, Meta(description="Id of the trace, if the request or the service has one.")] = ""


TASK_ID_PATTERN = "^[0-9a-f]{32}$"
Time = Annotated[str, Meta(description="RFC 3339, in UTC.", extra_json_schema={"format": "date-time"})]


class TaskErrorResponse(msgspec.Struct):
    """The error of a failed task."""

    code: Annotated[str, Meta(description="Stable code: that of a problem document, or one that occurs only in tasks.")]
    title: str
    detail: str


class TaskResponse(msgspec.Struct):
    """Status and result of a task."""

    task_id: Annotated[str, Meta(pattern=TASK_ID_PATTERN)]
    status: TaskStatus
    progress: Annotated[float, Meta(ge=0, le=1, description="Completed fraction of the work.")]
    attempts: Annotated[int, Meta(ge=0, description="Number of attempts that have started.")]
    result: Annotated[
        CropResponse | list[CropResponse] | None,
        Meta(description="Present if the status is SUCCESS. An array, one result per face, if `face` was `all`."),
    ]
    error: Annotated[TaskErrorResponse | None, Meta(description="Present if the status is FAILURE.")]
    submitted_at: Time
    started_at: Time | None
    completed_at: Time | None
    processing_time_ms: Annotated[float, Meta(ge=0)] | None


class VersionResponse(msgspec.Struct):
    """Versions of the service and of Python."""

    version: str
    python: str
