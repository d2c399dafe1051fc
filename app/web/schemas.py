"""What a request's body holds: the structures that read it, check it and document it.

They are msgspec structures, not pydantic models: a body is mostly one long base64 string, and reading it is half the
work of a request. The OpenAPI document is made from these same structures (`openapi`), so the two cannot disagree.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from app.service.options import CropOptions, LandmarkOptions
from app.tasks.records import TaskStatus  # noqa: TC001 - msgspec reads the annotation
from app.web.json_text import Point, PointList  # noqa: TC001 - as above

IMAGE_TEXT = "PNG, JPEG or WebP, as base64 or as a data URL."
LANDMARKS_TEXT = (
    "478 points (468 of MediaPipe's face mesh, 10 of the irises), or the 468 alone, in MediaPipe's order. Left out, "
    "they are found in the photo."
)
MAP_TEXT = (
    "A label image (PNG or lossless WebP: grey or palette with one label a pixel, or one label a colour; any size, "
    "scaled to the photo), or an object of region name to landmark indices. Left out: the catalogue's regions."
)


class CropBody(CropOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The JSON body of a crop request. Pictures are left as they came (raw JSON) until they are decoded."""

    image: Annotated[msgspec.Raw, Meta(description=IMAGE_TEXT)]
    landmarks: Annotated[list[Point | PointList] | None, Meta(description=LANDMARKS_TEXT)] = None
    segmentation_map: Annotated[msgspec.Raw | msgspec.UnsetType, Meta(description=MAP_TEXT)] = msgspec.UNSET


class LandmarksBody(LandmarkOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The JSON body of a landmarks request."""

    image: Annotated[msgspec.Raw, Meta(description=IMAGE_TEXT)]


Coordinate = Annotated[list[float], Meta(min_length=2, max_length=2, description="x and y, in pixels.")]
Ring = Annotated[list[Coordinate], Meta(min_length=3, description="Closed; the first point is not repeated.")]
Box = Annotated[list[float], Meta(min_length=4, max_length=4, description="x, y, width, height; in pixels.")]


Affine = Annotated[
    list[Annotated[list[float], Meta(min_length=3, max_length=3)]],
    Meta(min_length=2, max_length=2, description="2×3."),
]


class Hole(msgspec.Struct):
    """A hole in a region."""

    parent: Annotated[int, Meta(ge=0, description="Position of the contour that it is a hole of.")]
    contour: Ring


class RegionAnswer(msgspec.Struct):
    """One region of the face."""

    id: Annotated[int, Meta(ge=1, description="Label id.")]
    name: str
    colour: Annotated[str, Meta(pattern="^#[0-9a-f]{6}$", description="Colour of the region in the SVG.")]
    area_px: Annotated[float, Meta(gt=0, description="Area of the contours less their holes, in square pixels.")]
    bbox: Box
    contours: Annotated[list[Ring], Meta(min_length=1)]
    holes: list[Hole]


class OmittedAnswer(msgspec.Struct):
    """A region that has no area."""

    id: Annotated[int, Meta(ge=1, description="Label id.")]
    name: str
    reason: str


class ImageAnswer(msgspec.Struct):
    """What is known of the photo."""

    width: Annotated[int, Meta(ge=1)]
    height: Annotated[int, Meta(ge=1)]
    format: str
    exif_orientation: Annotated[int, Meta(ge=1, le=8, description="1: the pixels are stored upright.")]


class FaceAnswer(msgspec.Struct):
    """Measures of the face, in the result's frame."""

    roll_deg: Annotated[float, Meta(description="Tilt of the line through the outer eye corners; clockwise positive.")]
    interocular_px: Annotated[float, Meta(gt=0, description="Distance of the outer eye corners.")]
    bbox: Box


Confidence = Annotated[float, Meta(ge=0, le=1)]


class FaceBoxAnswer(msgspec.Struct):
    """A face that was found."""

    bbox: Box
    confidence: Confidence


class DetectionAnswer(msgspec.Struct):
    """What was found in a photo that came without landmarks."""

    confidence: Annotated[Confidence, Meta(description="How sure the detector is of this face.")]
    presence: Annotated[Confidence, Meta(description="How sure the mesh is that it was laid on a face.")]
    face: Annotated[int, Meta(ge=0, description="Which of `faces` it is.")]
    faces: Annotated[list[FaceBoxAnswer], Meta(min_length=1, description="All faces, the largest first.")]


class SizeAnswer(msgspec.Struct):
    """Width and height in pixels."""

    width: Annotated[int, Meta(ge=1)]
    height: Annotated[int, Meta(ge=1)]


class Warning(msgspec.Struct):  # noqa: A001 - the document's word for it
    """Something that the caller may not expect."""

    code: str
    message: str


class CropAnswer(msgspec.Struct):
    """The result of a crop request."""

    svg: Annotated[str, Meta(description="The overlay, as base64.", extra_json_schema={"contentEncoding": "base64"})]
    mask_contours: Annotated[dict[str, Ring], Meta(description="Each region's largest outer contour, by label id.")]
    regions: list[RegionAnswer]
    regions_detected: Annotated[int, Meta(ge=0)]
    omitted: Annotated[list[OmittedAnswer], Meta(description="Regions that came to fewer than 3 points or no area.")]
    image: ImageAnswer
    face: FaceAnswer
    landmarks: Annotated[
        list[Coordinate] | None,
        Meta(description="In the result's frame; null where they were sent and the frame is the photo's."),
    ]
    detection: Annotated[DetectionAnswer | None, Meta(description="Null where landmarks were sent.")]
    output: Annotated[SizeAnswer, Meta(description="The result's frame, which everything here is in.")]
    transform: Annotated[Affine, Meta(description="From the photo's plane to the result's.")]
    inverse_transform: Annotated[Affine, Meta(description="And back.")]
    warnings: list[Warning]
    processing_time_ms: Annotated[float, Meta(ge=0)]


class LandmarksAnswer(msgspec.Struct):
    """The landmarks of a face."""

    landmarks: Annotated[
        list[Coordinate], Meta(min_length=478, max_length=478, description="In the units that were asked for.")
    ]
    detection: DetectionAnswer
    face: FaceAnswer
    image: ImageAnswer
    warnings: list[Warning]
    processing_time_ms: Annotated[float, Meta(ge=0)]


class ProblemAnswer(msgspec.Struct):
    """What went wrong, after RFC 9457."""

    type: Annotated[str, Meta(description="A URN that ends in the code.")]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    code: Annotated[str, Meta(description="Stable; meant for programs.")]
    detail: Annotated[str, Meta(description="What was wrong, what was expected and what came.")]
    request_id: str


TASK_ID_PATTERN = "^[0-9a-f]{32}$"
Time = Annotated[str, Meta(description="RFC 3339, in UTC.", extra_json_schema={"format": "date-time"})]


class TaskFaultAnswer(msgspec.Struct):
    """Why a task has no result."""

    code: Annotated[str, Meta(description="Stable; as in a problem document, or a code that only tasks have.")]
    title: str
    detail: str


class TaskAnswer(msgspec.Struct):
    """What is known of a task."""

    task_id: Annotated[str, Meta(pattern=TASK_ID_PATTERN)]
    status: TaskStatus
    progress: Annotated[float, Meta(ge=0, le=1, description="How much of the work is done.")]
    attempts: Annotated[int, Meta(ge=0, description="How often work on it was begun.")]
    result: Annotated[CropAnswer | None, Meta(description="Where the status is SUCCESS.")]
    error: Annotated[TaskFaultAnswer | None, Meta(description="Where the status is FAILURE.")]
    submitted_at: Time
    started_at: Time | None
    completed_at: Time | None
    processing_time_ms: Annotated[float, Meta(ge=0)] | None


class WorkerHealth(msgspec.Struct):
    """One worker process as the instance knows it."""

    name: str
    pid: int
    state: str
    last_beat_s: Annotated[float, Meta(ge=0, description="Seconds since its last sign of life.")]


class HealthAnswer(msgspec.Struct):
    """Health of the instance."""

    live: bool
    ready: bool
    draining: bool
    workers: list[WorkerHealth]
    task_workers: Annotated[list[WorkerHealth], Meta(description="Those that the instance itself has for tasks.")]


class VersionAnswer(msgspec.Struct):
    """Versions."""

    version: str
    python: str
