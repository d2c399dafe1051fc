"""Landmark requests: detection of the landmarks of a face in an image."""

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
from app.service.serialization import detection_to_dict, face_to_dict, image_to_dict, image_warnings

if TYPE_CHECKING:
    from app.codec.sniff import ImageInfo
    from app.face.detection.landmark_detector import DetectedFace
    from app.service.crop import CropService
    from app.service.detector_pool import DetectorPool
    from app.service.options import LandmarkOptions

# A hundredth of a pixel if the image is 10,000 pixels wide.
_NORMALIZED_DECIMALS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarksInput:
    """A request as received, independent of its wire format.

    Attributes:
        image: bytes of the image file.
        options: validated options.
    """

    image: bytes
    options: LandmarkOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarksResult:
    """Result of a landmarks request.

    Attributes:
        image: information from the header of the image.
        detected: the landmarks.
        options: options of the request.
        processing_time_ms: duration of the processing.
    """

    image: ImageInfo
    detected: DetectedFace
    options: LandmarkOptions
    processing_time_ms: float


def find_landmarks(service: CropService, detectors: DetectorPool, request: LandmarksInput) -> LandmarksResult:
    """Find the landmarks of a face.

    Args:
        service: service that checks the image.
        detectors: detectors of landmarks.
        request: the image and the options.

    Raises:
        InputError: the input is invalid, or the models are missing; the subclass identifies the problem.
    """
    start = time.perf_counter()
    detectors.require_models()
    info = service.check_image(request.image)
    with image_step("decode"):
        image = decode_image_with_alpha(request.image, info)
    detected = detectors.detect(image, image_step, request.options.face, info.exif_orientation)
    elapsed_ms = 1000 * (time.perf_counter() - start)
    return LandmarksResult(image=info, detected=detected, options=request.options, processing_time_ms=elapsed_ms)


def landmarks_to_json(result: LandmarksResult) -> bytes:
    """Serialize a result as JSON, with landmarks in the requested units and everything else in pixels."""
    exact_px = result.detected.landmarks_px
    landmarks_px = np.round(exact_px, COORDINATE_DECIMALS)
    landmarks: Any = landmarks_px
    if result.options.landmark_units == "normalized":
        landmarks = np.round(exact_px / np.array(result.image.size, np.float64), _NORMALIZED_DECIMALS)
    document = {
        "landmarks": landmarks,
        "detection": detection_to_dict(result.detected, Frame(result.image.size)),
        "face": face_to_dict(compute_roll_deg(exact_px), compute_interocular_px(exact_px), compute_bbox(landmarks_px)),
        "image": image_to_dict(result.image),
        "warnings": image_warnings(result.image),
        "processing_time_ms": round(result.processing_time_ms, 3),
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
