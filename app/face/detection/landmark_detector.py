"""An image to the landmarks of a face.

A detector locates the faces. The mesh model runs on an upright square around one of them, then again on the square that
its own mesh defines. The iris model adds the irises. The models are MediaPipe's (Google, Apache-2.0), run by OpenCV.
"""

from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from app.face.detection.blazeface import (
    FULL_RANGE,
    LEFT_EYE_KEYPOINT,
    RIGHT_EYE_KEYPOINT,
    SHORT_RANGE,
    Detection,
    FaceDetector,
    non_max_suppression,
    translate_detection,
)
from app.face.detection.mesh import FaceMesh, SquareRoi, crop_roi, make_mesh_roi, make_roi
from app.face.detection.model_files import FULL_RANGE_FILE, IRIS_FILE, MESH_FILE, SHORT_RANGE_FILE
from app.face.errors import FaceIndexError, NoFaceError
from app.face.frame import ByteArray
from app.face.landmarks import DepthArray, FloatArray, compute_bbox
from app.face.pipeline import OnStep

MIN_PRESENCE: Final = 0.5
"""Minimum confidence of the mesh model that there is a face; below it, the detection was a false positive."""

# Clockwise, by the number of quarter turns. Copying an array rotated by numpy takes three times as long.
_ROTATIONS: Final = {1: cv2.ROTATE_90_CLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_COUNTERCLOCKWISE}

_SMALL_RATIO: Final = 0.15
"""A face narrower than this fraction of the longer side is only a dozen pixels wide for the short-range model."""

_FACE_SCALE: Final = 1.5
_REFINEMENT_SCALE: Final = 3.0
_REFINEMENT_SIDE: Final = 256

_MIN_REFINED_CONFIDENCE: Final = 0.6
"""Higher than for the first detection, because each of many refinements may be a false positive."""

_MAX_REFINEMENTS: Final = 32
"""Bounds the cost of an image that was made so that everything in it looks like a face."""

MAX_FACES: Final = 32
"""Maximum number of faces whose landmarks are detected in one image. Each takes as long as a small request."""

_TILE_RATIO: Final = 0.55
"""Side of a tile, as a fraction of the longer side of the image. Neighbouring tiles overlap by a tenth of the longer
side, which is more than the width of the faces that only tiles reveal."""


@dataclass(frozen=True, slots=True, eq=False)
class DetectedFace:
    """Landmarks of one face, and the boxes of all faces."""

    landmarks_px: FloatArray  # `(478, 2)` in pixels of the image
    presence: float  # confidence of the mesh model that there is a face, 0 to 1
    index: int  # of this face in `faces`
    faces: tuple[Detection, ...]  # largest first
    depths_px: DepthArray | None = None  # `(478,)`


class LandmarkDetector:
    """Detector of faces and their landmarks, with the models in a folder. Not thread-safe."""

    def __init__(self, folder: str) -> None:
        self._short = FaceDetector(f"{folder}/{SHORT_RANGE_FILE}", SHORT_RANGE)
        self._full = FaceDetector(f"{folder}/{FULL_RANGE_FILE}", FULL_RANGE)
        self._mesh = FaceMesh(f"{folder}/{MESH_FILE}", f"{folder}/{IRIS_FILE}")

    def detect(self, image_bgr: ByteArray, on_step: OnStep, index: int = 0, quarter_turns: int = 0) -> DetectedFace:
        """Detect the landmarks of one face in the steps ``detect``, ``mesh`` and ``iris``. Index 0 is the largest face.

        The models get the image after clockwise quarter turns, which make it upright; the result refers to the image as
        passed.

        Raises:
            NoFaceError: no face was detected.
            FaceIndexError: fewer faces were detected.
        """
        rotated = _rotate(image_bgr, quarter_turns)
        face = self._detect_upright(rotated, on_step, index)
        return undo_rotation(face, rotated.shape[1], rotated.shape[0], quarter_turns) if quarter_turns else face

    def detect_all(self, image_bgr: ByteArray, on_step: OnStep, quarter_turns: int = 0) -> tuple[DetectedFace, ...]:
        """Detect the landmarks of all faces, largest first, but not of more than ``MAX_FACES``; see `detect`.

        Faces beyond this number are in `DetectedFace.faces` only.

        Raises:
            NoFaceError: no face was detected.
        """
        rotated = _rotate(image_bgr, quarter_turns)
        faces = self._detect_all_upright(rotated, on_step)
        if not quarter_turns:
            return faces
        return tuple(undo_rotation(face, rotated.shape[1], rotated.shape[0], quarter_turns) for face in faces)

    def _detect_all_upright(self, image_bgr: ByteArray, on_step: OnStep) -> tuple[DetectedFace, ...]:
        with on_step("detect"):
            detections = self._detect_faces(image_bgr)
        if not detections:
            raise _no_face()
        with on_step("mesh"):
            meshes = [(detection, *self._find_mesh(image_bgr, detection)) for detection in detections[:MAX_FACES]]
        confirmed = [one for one in meshes if one[2] >= MIN_PRESENCE]
        if not confirmed:
            raise _no_face()
        faces = (*[detection for detection, _, _ in confirmed], *detections[MAX_FACES:])
        with on_step("iris"):
            return tuple(
                self._add_irises(image_bgr, mesh_px, presence, index, faces)
                for index, (_, mesh_px, presence) in enumerate(confirmed)
            )

    def _detect_upright(self, image_bgr: ByteArray, on_step: OnStep, index: int) -> DetectedFace:
        with on_step("detect"):
            detections = self._detect_faces(image_bgr)
        while detections:
            if index >= len(detections):
                raise FaceIndexError(
                    f"face: expected 0 to {len(detections) - 1}, because {len(detections)} faces were detected, got "
                    "a larger index"
                )
            with on_step("mesh"):
                mesh_px, presence = self._find_mesh(image_bgr, detections[index])
            if presence >= MIN_PRESENCE:
                break
            # The detection was a false positive; the next one takes its place.
            del detections[index]
        else:
            raise _no_face()
        with on_step("iris"):
            return self._add_irises(image_bgr, mesh_px, presence, index, tuple(detections))

    def _add_irises(
        self,
        image_bgr: ByteArray,
        mesh_px: npt.NDArray[np.float64],
        presence: float,
        index: int,
        faces: tuple[Detection, ...],
    ) -> DetectedFace:
        landmarks_px = self._mesh.find_irises(image_bgr, mesh_px)
        return DetectedFace(landmarks_px[:, :2].copy(), presence, index, faces, landmarks_px[:, 2].copy())

    def _detect_faces(self, image_bgr: ByteArray) -> list[Detection]:
        """Detect all faces, largest first."""
        longest = max(image_bgr.shape[:2])
        detections = self._short.detect(image_bgr)
        if max((detection.box[2] for detection in detections), default=0.0) < _SMALL_RATIO * longest:
            # The full-range model is better in every respect for small faces.
            far = self._full.detect(image_bgr) or self._detect_in_tiles(image_bgr)
            refined = [self._refine(image_bgr, detection) for detection in far[:_MAX_REFINEMENTS]]
            detections = non_max_suppression([one for one in refined if one is not None]) or detections
        return sorted(detections, key=lambda detection: detection.box[2] * detection.box[3], reverse=True)

    def _detect_in_tiles(self, image_bgr: ByteArray) -> list[Detection]:
        """Detect faces that are too small at the scale of the whole image."""
        height, width = image_bgr.shape[:2]
        side = round(_TILE_RATIO * max(height, width))
        if side < FULL_RANGE.side:
            return []  # the models have already processed the image at full resolution
        detections: list[Detection] = []
        for top in _tile_starts(height, side):
            for left in _tile_starts(width, side):
                tile = image_bgr[top : top + side, left : left + side]
                detections += [translate_detection(one, left, top) for one in self._full.detect(tile)]
        return non_max_suppression(detections)

    def _find_mesh(self, image_bgr: ByteArray, detection: Detection) -> tuple[npt.NDArray[np.float64], float]:
        """Find the mesh from a detection, then again from the mesh itself."""
        mesh_px, presence = self._mesh.find_mesh(image_bgr, _make_detection_roi(detection))
        if presence < MIN_PRESENCE:
            return mesh_px, presence
        return self._mesh.find_mesh(image_bgr, make_mesh_roi(mesh_px))

    def _refine(self, image_bgr: ByteArray, detection: Detection) -> Detection | None:
        """Detect a small face again in an enlarged crop, which locates its eyes better and rejects false positives."""
        x, y, width, height = detection.box
        roi = SquareRoi(x + width / 2, y + height / 2, _REFINEMENT_SCALE * max(width, height), 0.0)
        candidates = self._short.detect(crop_roi(image_bgr, roi, _REFINEMENT_SIDE))
        candidates = [one for one in candidates if one.confidence >= _MIN_REFINED_CONFIDENCE]
        if not candidates:
            return None
        centre = _REFINEMENT_SIDE / 2

        def distance(one: Detection) -> float:
            return abs(one.box[0] + one.box[2] / 2 - centre) + abs(one.box[1] + one.box[3] / 2 - centre)

        nearest = min(candidates, key=distance)
        scale = roi.side / _REFINEMENT_SIDE
        left, top = roi.to_image(np.array(nearest.box[:2])[None] / _REFINEMENT_SIDE)[0].tolist()
        keypoints = roi.to_image(nearest.keypoints / _REFINEMENT_SIDE).astype(np.float32)
        box = (left, top, nearest.box[2] * scale, nearest.box[3] * scale)
        return Detection(box, keypoints, nearest.confidence)


def _no_face() -> NoFaceError:
    return NoFaceError("image: expected a face, got none; send landmarks if the image has a face")


def _rotate(image_bgr: ByteArray, quarter_turns: int) -> ByteArray:
    rotated = image_bgr if quarter_turns == 0 else cv2.rotate(image_bgr, _ROTATIONS[quarter_turns])
    return np.ascontiguousarray(rotated, np.uint8)


def undo_rotation(face: DetectedFace, width: int, height: int, quarter_turns: int) -> DetectedFace:
    """Transform a face from an image of this size, rotated by clockwise quarter turns, back to the original."""

    def rotate_back(points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
        columns = {1: (y, width - x), 2: (width - x, height - y), 3: (height - y, x)}[quarter_turns]
        return np.stack(columns, axis=1)

    faces = []
    for one in face.faces:
        x, y, across, down = one.box
        corners = np.array([[x, y], [x + across, y + down]])
        keypoints = rotate_back(one.keypoints).astype(np.float32)
        faces.append(Detection(compute_bbox(rotate_back(corners)), keypoints, one.confidence))
    return replace(face, landmarks_px=rotate_back(face.landmarks_px).astype(np.float32), faces=tuple(faces))


def _tile_starts(length: int, side: int) -> tuple[int, ...]:
    return (0,) if length <= side else (0, length - side)


def _make_detection_roi(detection: Detection) -> SquareRoi:
    x, y, width, height = detection.box
    eyes = detection.keypoints[[RIGHT_EYE_KEYPOINT, LEFT_EYE_KEYPOINT]]
    rotated = make_roi(np.array([(x, y), (x + width, y + height)]), eyes[0], eyes[1], _FACE_SCALE)
    # The box is not rotated with the face, so only the roll of this square is used.
    return SquareRoi(x + width / 2, y + height / 2, _FACE_SCALE * max(width, height), rotated.roll_deg)
