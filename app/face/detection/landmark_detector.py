"""An image to the landmarks of faces.

Two detectors locate candidates in an overview of the image, at several scales. The mesh model runs on an upright square
around each candidate, then again on the square that its own mesh defines, and confirms the candidate or not. A face is
refined at a finer scale of the image if the overview has too few pixels for it. The iris model adds the irises. The
models are MediaPipe's (Google, Apache-2.0), run by LiteRT.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    translate_detection,
)
from app.face.detection.mesh import MESH_SIDE, FaceMesh, SquareRoi, make_mesh_roi, make_roi
from app.face.detection.model_files import FULL_RANGE_FILE, IRIS_FILE, MESH_FILE, SHORT_RANGE_FILE
from app.face.errors import FaceIndexError, NoFaceError
from app.face.frame import ByteArray
from app.face.image_pyramid import OVERVIEW_SIDE, ImagePyramid, Level, make_closeup, make_overview
from app.face.landmarks import DepthArray, FloatArray, compute_bbox
from app.face.pipeline import OnStep

MIN_PRESENCE: Final = 0.8
"""Minimum confidence of the mesh model that there is a face; below it, the detection was a false positive.

Higher than MediaPipe's 0.5, because many candidates are checked. On the 93 photos of the benchmark, it rejects
one of two false positives and one rotated face."""

MAX_FACES: Final = 32
"""Maximum number of candidates that are checked, and so of faces. Bounds the cost of an image that was made so that
everything in it looks like a face."""

# Clockwise, by the number of quarter turns. Copying an array rotated by numpy takes three times as long.
_ROTATIONS: Final = {1: cv2.ROTATE_90_CLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_COUNTERCLOCKWISE}

_MIN_ROI_SIDE: Final = MESH_SIDE
"""Minimum side of the square around a face at the scale at which the image is decoded, in pixels. Below it, the input
of the mesh model would be enlarged."""

_FACE_SCALE: Final = 1.5

_MAX_MESH_PASSES: Final = 4
_SETTLED_DEG: Final = 5.0

_TILE_RATIOS: Final = (1 / 1.8, 1 / 2.6)
"""Sides of the tiles, as fractions of the longer side of the image: two and three tiles along it that overlap by a
fifth. On 41 photos of the benchmark, more levels find no more frontal faces of 30 px."""

_MIN_TILE_SCALE: Final = 1.5
"""Smaller tiles, relative to the input of the model, show little more than the larger scale does."""

_LARGE_RATIO: Final = 0.2
"""An image with a face wider than this fraction of the longer side is not searched for small ones. On the 93 photos of
the benchmark, 0.2 loses no frontal face of 30 px, 0.15 loses two of 162 and saves a quarter of the time."""

_Points = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class DetectedFace:
    """Landmarks of one face, and the boxes of all faces."""

    landmarks_px: FloatArray  # `(478, 2)` in pixels of the image
    presence: float  # confidence of the mesh model that there is a face, 0 to 1
    index: int  # of this face in `faces`
    faces: tuple[Detection, ...]  # largest first
    depths_px: DepthArray | None = None  # `(478,)`


class _Face(NamedTuple):
    """A candidate that the mesh model confirmed, in pixels of the image."""

    detection: Detection  # with the box of the mesh
    mesh_px: npt.NDArray[np.float64]  # `(468, 3)`
    presence: float


class LandmarkDetector:
    """Detector of faces and their landmarks, with the models in a folder. Not thread-safe."""

    def __init__(self, folder: str) -> None:
        self._short = FaceDetector(f"{folder}/{SHORT_RANGE_FILE}", SHORT_RANGE)
        self._full = FaceDetector(f"{folder}/{FULL_RANGE_FILE}", FULL_RANGE)
        self._mesh = FaceMesh(f"{folder}/{MESH_FILE}", f"{folder}/{IRIS_FILE}")

    def detect(
        self,
        image: ImagePyramid | ByteArray,
        on_step: OnStep,
        index: int = 0,
        quarter_turns: int = 0,
        *,
        is_mirrored: bool = False,
    ) -> DetectedFace:
        """Detect the landmarks of one face in the steps ``detect``, ``mesh`` and ``iris``. Index 0 is the largest face.

        Faces are detected in an overview of the image. It is flipped horizontally if the image is mirrored, and then
        rotated by clockwise quarter turns, which make it upright. The result refers to the image as passed.

        Raises:
            NoFaceError: no face was detected.
            FaceIndexError: fewer faces were detected.
        """
        pyramid = _open(image, is_mirrored=is_mirrored)
        overview, faces = self._find_faces(pyramid, on_step, quarter_turns)
        if index >= len(faces):
            raise FaceIndexError(
                f"face: expected 0 to {len(faces) - 1}, because {len(faces)} faces were detected, got a larger index"
            )
        return self._complete(pyramid, overview, faces, [index], on_step)[0]

    def detect_all(
        self, image: ImagePyramid | ByteArray, on_step: OnStep, quarter_turns: int = 0, *, is_mirrored: bool = False
    ) -> tuple[DetectedFace, ...]:
        """Detect the landmarks of all faces, largest first, but not of more than ``MAX_FACES``; see `detect`.

        Raises:
            NoFaceError: no face was detected.
        """
        pyramid = _open(image, is_mirrored=is_mirrored)
        overview, faces = self._find_faces(pyramid, on_step, quarter_turns)
        return self._complete(pyramid, overview, faces, range(len(faces)), on_step)

    def _find_faces(self, pyramid: ImagePyramid, on_step: OnStep, quarter_turns: int) -> tuple[Level, list[_Face]]:
        """Return the overview and the faces that the mesh model confirms in it, each once, largest first."""
        level = pyramid.get_level(max(pyramid.size) / OVERVIEW_SIDE)
        with on_step("detect"):
            overview = make_overview(level)
            pixels = cv2.rotate(overview.pixels, _ROTATIONS[quarter_turns]) if quarter_turns else overview.pixels
            height, width = pixels.shape[:2]
            candidates = [
                undo_rotation(one, width, height, quarter_turns)
                for one in self._detect_faces(np.ascontiguousarray(pixels, np.uint8))
            ]
        found: list[_Face] = []
        if candidates:
            with on_step("mesh"):
                found = self._confirm_faces(overview, candidates)
        if not found:
            raise NoFaceError("image: expected a face, got none; send landmarks if the image has a face")
        return overview, found

    def _detect_faces(self, image_bgr: ByteArray) -> list[Detection]:
        """Detect candidates at all scales, by descending confidence."""
        longest = max(image_bgr.shape[:2])
        detections = self._short.detect(image_bgr) + self._full.detect(image_bgr)
        if max((detection.box[2] for detection in detections), default=0.0) < _LARGE_RATIO * longest:
            for side in (round(ratio * longest) for ratio in _TILE_RATIOS):
                if side >= _MIN_TILE_SCALE * FULL_RANGE.side:
                    detections += self._detect_in_tiles(image_bgr, side)
        return merge_detections(detections)[:MAX_FACES]

    def _detect_in_tiles(self, image_bgr: ByteArray, side: int) -> list[Detection]:
        """Detect faces that are too small at the scale of the whole image, in overlapping squares."""
        height, width = image_bgr.shape[:2]
        detections: list[Detection] = []
        for top in _tile_starts(height, side):
            for left in _tile_starts(width, side):
                tile = image_bgr[top : top + side, left : left + side]
                detections += [translate_detection(one, left, top) for one in self._full.detect(tile)]
        return detections

    def _confirm_faces(self, overview: Level, candidates: list[Detection]) -> list[_Face]:
        found = []
        for candidate in candidates:
            mesh_px, presence = self._find_mesh(overview.pixels, candidate)
            if presence >= MIN_PRESENCE:
                mesh_px = _move_mesh(mesh_px, overview.to_image, overview.reduction)
                moved = move_detection(candidate, overview.to_image)
                found.append(_Face(moved._replace(box=compute_bbox(mesh_px[:, :2])), mesh_px, presence))
        found.sort(key=lambda face: -face.presence)
        # Several candidates may lead to the same mesh.
        kept = non_max_suppression([face.detection.box for face in found], [face.presence for face in found])
        return sorted((found[index] for index in kept), key=lambda face: -face.detection.box[2] * face.detection.box[3])

    def _find_mesh(self, image_bgr: ByteArray, detection: Detection) -> tuple[npt.NDArray[np.float64], float]:
        """Find the mesh from a detection, then again from the mesh itself until its roll settles."""
        roi = _make_detection_roi(detection)
        mesh_px, presence = self._mesh.find_mesh(image_bgr, roi)
        for _ in range(_MAX_MESH_PASSES - 1):
            if presence < MIN_PRESENCE:
                break
            previous, roi = roi, make_mesh_roi(mesh_px)
            mesh_px, presence = self._mesh.find_mesh(image_bgr, roi)
            if abs(roi.roll_deg - previous.roll_deg) < _SETTLED_DEG:
                break
        return mesh_px, presence

    def _complete(
        self, pyramid: ImagePyramid, overview: Level, faces: list[_Face], indices: Sequence[int], on_step: OnStep
    ) -> tuple[DetectedFace, ...]:
        """Refine the meshes of some faces, add their irises, and undo the mirroring of the image."""
        rois = [make_mesh_roi(faces[index].mesh_px) for index in indices]
        smallest = min(roi.side for roi in rois)
        # Decoded before the steps, and only once for all faces.
        level = pyramid.get_level(smallest / _MIN_ROI_SIDE)
        with on_step("iris"):
            completed = []
            for index, roi in zip(indices, rois, strict=True):
                closeup, passes = overview, 0
                if level.reduction < overview.reduction and roi.side < _MIN_ROI_SIDE * overview.reduction:
                    closeup = make_closeup(level, roi.x, roi.y, roi.side, roi.side / _MIN_ROI_SIDE)
                    # Twice, because the square around a mesh varies with the scale at which the mesh was found.
                    passes = 2
                mesh_px = _move_mesh(faces[index].mesh_px, closeup.from_image, 1 / closeup.reduction)
                for _ in range(passes):
                    mesh_px, _ = self._mesh.find_mesh(closeup.pixels, make_mesh_roi(mesh_px))
                found = self._mesh.find_irises(closeup.pixels, mesh_px)
                landmarks = _move_mesh(found, closeup.to_image, closeup.reduction)
                landmarks_px = pyramid.undo_flip(landmarks[:, :2]).astype(np.float32)
                completed.append((index, landmarks_px, landmarks[:, 2].astype(np.float32)))
        boxes = tuple(move_detection(face.detection, pyramid.undo_flip) for face in faces)
        return tuple(
            DetectedFace(landmarks_px, faces[index].presence, index, boxes, depths_px)
            for index, landmarks_px, depths_px in completed
        )


def _open(image: ImagePyramid | ByteArray, *, is_mirrored: bool) -> ImagePyramid:
    pyramid = image if isinstance(image, ImagePyramid) else ImagePyramid.from_pixels(image)
    return pyramid.flip() if is_mirrored else pyramid


def undo_rotation(detection: Detection, width: int, height: int, quarter_turns: int) -> Detection:
    """Transform a detection from an image of this size, rotated by clockwise quarter turns, back to the original."""

    def rotate_back(points: _Points) -> npt.NDArray[np.float64]:
        x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
        columns = {0: (x, y), 1: (y, width - x), 2: (width - x, height - y), 3: (height - y, x)}[quarter_turns]
        return np.stack(columns, axis=1)

    return move_detection(detection, rotate_back)


def move_detection(detection: Detection, move: Callable[[_Points], npt.NDArray[np.float64]]) -> Detection:
    """Apply a transform of points to a detection. Rotations must be by quarter turns."""
    x, y, width, height = detection.box
    corners = move(np.array([[x, y], [x + width, y + height]]))
    keypoints = move(detection.keypoints).astype(np.float32)
    return Detection(compute_bbox(corners), keypoints, detection.confidence)


def _move_mesh(
    mesh_px: _Points, move: Callable[[_Points], npt.NDArray[np.float64]], scale: float
) -> npt.NDArray[np.float64]:
    """Apply a transform of points with this scale to a mesh ``(N, 3)``."""
    return np.column_stack((move(mesh_px[:, :2]), scale * mesh_px[:, 2]))


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
