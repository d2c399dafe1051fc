"""The use case that stops halfway: a photo in, the landmarks of a face out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from app.codec.decode import decode_image_with_alpha
from app.face.contours import COORDINATE_DECIMALS
from app.face.frame import Frame
from app.face.landmarks import compute_bbox, compute_interocular_px, compute_roll_deg
from app.observability.recording import image_step
from app.service.serialization import detection_document, face_document, image_document, image_warnings

if TYPE_CHECKING:
    from app.codec.sniff import ImageInfo
    from app.face.detection.landmark_detector import DetectedFace
    from app.service.crop import CropService
    from app.service.detector_pool import DetectorPool
    from app.service.options import LandmarkOptions

# A hundredth of a pixel of a photo 10,000 pixels wide.
_NORMALIZED_DECIMALS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarksInput:
    """A request as it came, in whichever wire format.

    Attributes:
        image: the file's bytes.
        options: checked by their structure.
    """

    image: bytes
    options: LandmarkOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarksResult:
    """What was found, with what is known of the photo and how long the work took."""

    image: ImageInfo
    found: DetectedFace
    options: LandmarkOptions
    processing_time_ms: float


def find_landmarks(service: CropService, finders: DetectorPool, request: LandmarksInput) -> LandmarksResult:
    """Find the landmarks of a face.

    Args:
        service: checks the photo.
        finders: finds the face.
        request: the photo, and which face.

    Raises:
        InputError: the input is at fault, or the models are not there; the subclass says which.
    """
    start = time.perf_counter()
    finders.require()
    info = service.check_image(request.image)
    with image_step("decode"):
        photo = decode_image_with_alpha(request.image, info)
    found = finders.find(photo, image_step, request.options.face, info.exif_orientation)
    elapsed_ms = 1000 * (time.perf_counter() - start)
    return LandmarksResult(image=info, found=found, options=request.options, processing_time_ms=elapsed_ms)


def landmarks_to_json(result: LandmarksResult) -> bytes:
    """Write a result; landmarks are in the units that were asked for, all else is in pixels."""
    exact_px = result.found.landmarks_px
    landmarks_px = np.round(exact_px, COORDINATE_DECIMALS)
    landmarks: Any = landmarks_px
    if result.options.landmark_units == "normalized":
        landmarks = np.round(exact_px / np.array(result.image.size, np.float64), _NORMALIZED_DECIMALS)
    document = {
        "landmarks": landmarks,
        "detection": detection_document(result.found, Frame(result.image.size)),
        "face": face_document(compute_roll_deg(exact_px), compute_interocular_px(exact_px), compute_bbox(landmarks_px)),
        "image": image_document(result.image),
        "warnings": image_warnings(result.image),
        "processing_time_ms": round(result.processing_time_ms, 3),
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
