"""An image to the landmarks of a face.

A detector locates the faces. The mesh model runs on an upright square around one of them, then again on the square that
its own mesh defines. The iris model adds the irises. The models are MediaPipe's (Google, Apache-2.0), run by LiteRT.
"""

import math
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

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
    merge_detections,
    non_max_suppression,
    scale_detection,
    translate_detection,
)
from app.face.detection.mesh import FaceMesh, SquareRoi, make_mesh_roi, make_roi
from app.face.detection.model_files import FULL_RANGE_FILE, IRIS_FILE, MESH_FILE, SHORT_RANGE_FILE
from app.face.errors import FaceIndexError, NoFaceError
from app.face.frame import ByteArray
from app.face.landmarks import FloatArray, compute_bbox
from app.face.pipeline import OnStep

MIN_PRESENCE: Final = 0.8
"""Minimum confidence of the mesh model that there is a face; below it, the detection was a false positive.

Higher than MediaPipe's 0.5, because many candidates are checked. On the 93 photos of the benchmark, it rejects
one of two false positives and one rotated face."""

# Clockwise, by the number of quarter turns. Copying an array rotated by numpy takes three times as long.
_ROTATIONS: Final = {1: cv2.ROTATE_90_CLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_COUNTERCLOCKWISE}

_FACE_SCALE: Final = 1.5

_MAX_CANDIDATES: Final = 32
"""Bounds the cost of an image that was made so that everything in it looks like a face."""

_TILE_RATIOS: Final = (1 / 1.8, 1 / 2.6)
"""Sides of the tiles, as fractions of the longer side of the image: two and three tiles along it that overlap by a
fifth. On 41 photos of the benchmark, more levels find no more frontal faces of 30 px."""

_LARGE_RATIO: Final = 0.3
"""An image with a face wider than this fraction of the longer side is not searched for small ones. On 43 photos of
the benchmark, 0.2 loses no frontal face of 30 px, and 0.15 loses two of 121."""

_DETECTION_SIDE: Final = 1000
"""Images are shrunk to about twice the resolution of the smallest tiles before detection, all tiles at once."""


@dataclass(frozen=True, slots=True, eq=False)
class DetectedFace:
    """Landmarks of one face, and the boxes of all faces."""

    landmarks_px: FloatArray  # `(478, 2)` in pixels of the image
    presence: float  # confidence of the mesh model that there is a face, 0 to 1
    index: int  # of this face in `faces`
    faces: tuple[Detection, ...]  # largest first


class _Face(NamedTuple):
    """A candidate that the mesh model confirmed."""

    detection: Detection
    mesh_px: npt.NDArray[np.float64]
    presence: float


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
        rotated = image_bgr if quarter_turns == 0 else cv2.rotate(image_bgr, _ROTATIONS[quarter_turns])
        face = self._detect_upright(np.ascontiguousarray(rotated, np.uint8), on_step, index)
        return undo_rotation(face, rotated.shape[1], rotated.shape[0], quarter_turns) if quarter_turns else face

    def _detect_upright(self, image_bgr: ByteArray, on_step: OnStep, index: int) -> DetectedFace:
        with on_step("detect"):
            candidates = self._detect_faces(image_bgr)
        faces: list[_Face] = []
        if candidates:
            with on_step("mesh"):
                faces = self._confirm_faces(image_bgr, candidates)
        if not faces:
            raise NoFaceError("image: expected a face, got none; send landmarks if the image has a face")
        if index >= len(faces):
            raise FaceIndexError(
                f"face: expected 0 to {len(faces) - 1}, because {len(faces)} faces were detected, got a larger index"
            )
        face = faces[index]
        with on_step("iris"):
            landmarks_px = self._mesh.find_irises(image_bgr, face.mesh_px)
        return DetectedFace(landmarks_px, face.presence, index, tuple(one.detection for one in faces))

    def _detect_faces(self, image_bgr: ByteArray) -> list[Detection]:
        """Detect candidates at all scales, by descending confidence."""
        factor = max(image_bgr.shape[:2]) // _DETECTION_SIDE
        if factor > 1:
            image_bgr = shrink(image_bgr, factor)
        height, width = image_bgr.shape[:2]
        longest = max(height, width)
        detections = self._short.detect(image_bgr) + self._full.detect(image_bgr)
        if max((detection.box[2] for detection in detections), default=0.0) < _LARGE_RATIO * longest:
            for side in (round(ratio * longest) for ratio in _TILE_RATIOS):
                # The models have already processed smaller images at full resolution.
                if side >= FULL_RANGE.side:
                    detections += self._detect_in_tiles(image_bgr, side)
        candidates = merge_detections(detections)[:_MAX_CANDIDATES]
        return [scale_detection(one, factor) for one in candidates] if factor > 1 else candidates

    def _detect_in_tiles(self, image_bgr: ByteArray, side: int) -> list[Detection]:
        """Detect faces that are too small at the scale of the whole image, in overlapping squares."""
        height, width = image_bgr.shape[:2]
        detections: list[Detection] = []
        for top in _tile_starts(height, side):
            for left in _tile_starts(width, side):
                tile = image_bgr[top : top + side, left : left + side]
                detections += [translate_detection(one, left, top) for one in self._full.detect(tile)]
        return detections

    def _confirm_faces(self, image_bgr: ByteArray, candidates: list[Detection]) -> list[_Face]:
        """Return the candidates that the mesh model confirms, each once, with the box of its mesh, largest first."""
        found = []
        for candidate in candidates:
            mesh_px, presence = self._find_mesh(image_bgr, candidate)
            if presence >= MIN_PRESENCE:
                found.append(_Face(candidate._replace(box=compute_bbox(mesh_px)), mesh_px, presence))
        found.sort(key=lambda face: -face.presence)
        # Several candidates may lead to the same mesh.
        kept = non_max_suppression([face.detection.box for face in found], [face.presence for face in found])
        return sorted((found[index] for index in kept), key=lambda face: -face.detection.box[2] * face.detection.box[3])

    def _find_mesh(self, image_bgr: ByteArray, detection: Detection) -> tuple[npt.NDArray[np.float64], float]:
        """Find the mesh from a detection, then again from the mesh itself."""
        mesh_px, presence = self._mesh.find_mesh(image_bgr, _make_detection_roi(detection))
        if presence < MIN_PRESENCE:
            return mesh_px, presence
        return self._mesh.find_mesh(image_bgr, make_mesh_roi(mesh_px))


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


def shrink(image: ByteArray, factor: int) -> ByteArray:
    """Shrink an image by averaging blocks of pixels; an incomplete block at the right or bottom edge is omitted.

    A side that is shorter than a block becomes one pixel.
    """
    height, width = (max(1, length // factor) for length in image.shape[:2])
    part = image[: height * factor, : width * factor]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _tile_starts(length: int, side: int) -> list[int]:
    """Return where tiles start so that neighbours overlap by at least a fifth of the side.

    Example:
        >>> _tile_starts(1000, 385), _tile_starts(100, 385)
        ([0, 308, 615], [0])
    """
    if length <= side:
        return [0]
    count = max(2, math.ceil((length - 0.2 * side) / (0.8 * side) - 0.01))
    return [round(position * (length - side) / (count - 1)) for position in range(count)]


def _make_detection_roi(detection: Detection) -> SquareRoi:
    x, y, width, height = detection.box
    eyes = detection.keypoints[[RIGHT_EYE_KEYPOINT, LEFT_EYE_KEYPOINT]]
    rotated = make_roi(np.array([(x, y), (x + width, y + height)]), eyes[0], eyes[1], _FACE_SCALE)
    # The box is not rotated with the face, so only the roll of this square is used.
    return SquareRoi(x + width / 2, y + height / 2, _FACE_SCALE * max(width, height), rotated.roll_deg)
