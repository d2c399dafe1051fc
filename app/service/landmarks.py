"""Landmark requests: detection of the landmarks of a face in an image."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from app.face.contours import COORDINATE_DECIMALS
from app.face.frame import Frame, orient_size
from app.face.landmarks import compute_bbox, compute_interocular_px, compute_roll_deg, compute_yaw_pitch_deg
from app.observability.recording import image_step
from app.service.crop import choose_orientation, find_faces, open_image
from app.service.serialization import (
    detection_to_dict,
    detection_warnings,
    face_to_dict,
    image_to_dict,
    image_warnings,
    landmarks_to_json,
    pose_warnings,
)

if TYPE_CHECKING:
    from app.codec.sniff import ImageInfo
    from app.face.detection.landmark_detector import DetectedFace
    from app.service.crop import CropService
    from app.service.options import LandmarkOptions

# A hundredth of a pixel if the image is 10,000 pixels wide.
_NORMALIZED_DECIMALS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarksInput:
    """A request as received, independent of its wire format."""

    image: bytes
    options: LandmarkOptions


def find_landmarks(service: CropService, request: LandmarksInput) -> bytes:
    """Find the landmarks of a face, and return the JSON document, or those of all faces as an array of documents.

    Landmarks are in the requested units and everything else in pixels.

    Raises:
        InputError: the input is invalid, or the models are missing; the subclass identifies the problem.
    """
    start = time.perf_counter()
    service.detectors.require_models()
    info = service.check_image(request.image)
    image = open_image(request.image, info, image_step)
    faces = find_faces(service.detectors, image, info, request.options, image_step)
    elapsed_ms = 1000 * (time.perf_counter() - start)
    with image_step("document"):
        documents = [_face_to_dict(face, info, request.options) for face in faces]
        for document in documents:
            document["processing_time_ms"] = round(elapsed_ms, 3)
        return orjson.dumps(
            documents if request.options.face == "all" else documents[0], option=orjson.OPT_SERIALIZE_NUMPY
        )


def _face_to_dict(detected: DetectedFace, info: ImageInfo, options: LandmarkOptions) -> dict[str, Any]:
    exact_px, depths_px = detected.landmarks_px, detected.depths_px
    orientation = choose_orientation(info, options)
    size = orient_size(info.size, orientation)
    landmarks_px = np.round(exact_px, COORDINATE_DECIMALS)
    landmarks = landmarks_to_json(landmarks_px, depths_px)
    if options.landmark_units == "normalized":
        depths = None if depths_px is None else depths_px / np.float64(size.width)
        landmarks = landmarks_to_json(exact_px / np.array(size, np.float64), depths, _NORMALIZED_DECIMALS)
    pose = None if depths_px is None else compute_yaw_pitch_deg(exact_px, depths_px)
    return {
        "landmarks": landmarks,
        "detection": detection_to_dict(detected, Frame(size)),
        "face": face_to_dict(
            compute_roll_deg(exact_px), compute_interocular_px(exact_px), compute_bbox(landmarks_px), pose
        ),
        "image": image_to_dict(info, orientation),
        "warnings": [*image_warnings(info, orientation), *detection_warnings(detected), *pose_warnings(pose)],
    }
