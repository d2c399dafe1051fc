"""An image to the landmarks of faces.

Two detectors locate candidates in an overview of the image, at several scales. The mesh model runs on an upright square
around each candidate, then again on the square that its own mesh defines, and confirms the candidate or not. A face is
refined at a finer scale of the image if the overview has too few pixels for it. The iris model adds the irises. The
models are MediaPipe's (Google, Apache-2.0), run by LiteRT.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

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
    Scan,
    merge_detections,
    non_max_suppression,
    translate_detection,
)
from app.face.detection.mesh import MESH_SIDE, FaceMesh, SquareRoi, make_mesh_roi, make_roi
from app.face.detection.model_files import FULL_RANGE_FILE, IRIS_FILE, MESH_FILE, SHORT_RANGE_FILE
from app.face.errors import FaceIndexError, NoFaceError
from app.face.frame import ByteArray
from app.face.image_pyramid import OVERVIEW_SIDE, ImagePyramid, Level, make_closeup, make_overview
from app.face.landmarks import MAX_FACES, DepthArray, FloatArray, compute_bbox
from app.face.pipeline import OnStep

MIN_PRESENCE: Final = 0.8
"""Minimum confidence of the mesh model that there is a face; below it, the detection was a false positive.

Higher than MediaPipe's 0.5, because many candidates are checked. On the 93 photos of the benchmark, it rejects
one of two false positives and one rotated face."""

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

_HINT_REACH: Final = 0.75
"""Hints at most this far from the centre of a detected face belong to it, as a fraction of its width and height."""

_Points = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class DetectedFace:
    """Landmarks of one face, and the boxes of all faces."""

    landmarks_px: FloatArray  # `(478, 2)` in pixels of the image
    presence: float  # confidence of the mesh model that there is a face, 0 to 1
    index: int  # of this face in `faces`
    faces: tuple[Detection, ...]  # largest first
    depths_px: DepthArray | None = None  # `(478,)`
    are_all_examined: bool = True  # whether no candidate was left out because of ``MAX_FACES``


class _Tile(NamedTuple):
    """A square part of an image, in pixels."""

    left: int
    top: int
    side: int


class _Face(NamedTuple):
    """A candidate that the mesh model confirmed, in pixels of the image."""

    detection: Detection  # with the box of the mesh
    mesh_px: npt.NDArray[np.float64]  # `(468, 3)`
    presence: float


@dataclass(slots=True)
class _Search:
    """Faces found so far in an overview that is searched after a rotation by quarter turns."""

    overview: Level
    quarter_turns: int
    confirmed: list[Detection] = field(default_factory=list)  # in pixels of the rotated overview
    faces: list[_Face] = field(default_factory=list)  # the same ones, in pixels of the image
    are_all_examined: bool = True  # see `DetectedFace`

    def undo_rotation(self, candidate: Detection) -> Detection:
        """Transform a detection in the rotated overview to the overview."""
        height, width = self.overview.pixels.shape[:2]
        if self.quarter_turns % 2:
            width, height = height, width
        return undo_rotation(candidate, width, height, self.quarter_turns)


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
        face: int | Literal["all"] = 0,
        quarter_turns: int = 0,
        *,
        is_mirrored: bool = False,
    ) -> tuple[DetectedFace, ...]:
        """Detect the landmarks of one face, or of up to ``MAX_FACES``. Index 0 is the largest face.

        The steps are ``detect``, ``mesh`` and ``iris``. Faces are detected in an overview of the image. It is flipped
        horizontally if the image is mirrored, and then rotated by clockwise quarter turns, which make it upright. The
        result refers to the image as passed.

        Raises:
            NoFaceError: no face was detected.
            FaceIndexError: fewer faces were detected.
        """
        pyramid = _open(image, is_mirrored=is_mirrored)
        search = self._find_faces(pyramid, on_step, quarter_turns)
        count = len(search.faces)
        if face != "all" and face >= count:
            raise FaceIndexError(
                f"face: expected 0 to {count - 1}, because {count} faces were detected, got a larger index"
            )
        return self._complete(pyramid, search, range(count) if face == "all" else [face], on_step)

    def _find_faces(self, pyramid: ImagePyramid, on_step: OnStep, quarter_turns: int) -> _Search:
        """Return the faces that the mesh model confirms in the overview of an image, each once, largest first.

        The overview is searched as a whole, then in tiles, the larger ones first, while there are hints at faces that
        have not been found.
        """
        level = pyramid.get_level(max(pyramid.size) / OVERVIEW_SIDE)
        with on_step("detect"):
            overview = make_overview(level)
            rotated = cv2.rotate(overview.pixels, _ROTATIONS[quarter_turns]) if quarter_turns else overview.pixels
            pixels = np.ascontiguousarray(rotated, np.uint8)
            hints, detections = self._full.scan(pixels)
            candidates = merge_detections(self._short.detect(pixels) + detections)
        search = _Search(overview, quarter_turns)
        self._confirm_faces(search, candidates, on_step)
        for ratio in _TILE_RATIOS:
            tiles = _choose_tiles(pixels, ratio, hints, search.confirmed)
            if not tiles:
                break
            with on_step("detect"):
                hints, detections = self._scan_tiles(pixels, tiles)
                candidates = [one for one in merge_detections(detections) if not _overlaps(one, search.confirmed)]
            self._confirm_faces(search, candidates, on_step)
        if not search.faces:
            raise NoFaceError("image: expected a face, got none; send landmarks if the image has a face")
        search.faces = _sort_faces(search.faces)
        return search

    def _scan_tiles(self, image_bgr: ByteArray, tiles: Sequence[_Tile]) -> Scan:
        """Detect faces that are too small at the scale of the whole image."""
        detections: list[Detection] = []
        hints = [np.empty((0, 2))]
        for left, top, side in tiles:
            scan = self._full.scan(image_bgr[top : top + side, left : left + side])
            hints.append(np.add(scan.hints, (left, top)))
            detections += [translate_detection(one, left, top) for one in scan.detections]
        return Scan(np.concatenate(hints), detections)

    def _confirm_faces(self, search: _Search, candidates: Sequence[Detection], on_step: OnStep) -> None:
        """Add the candidates that the mesh model confirms to the faces that were found."""
        checked = candidates[: MAX_FACES - len(search.faces)]
        search.are_all_examined &= len(checked) == len(candidates)
        if not checked:
            return
        with on_step("mesh"):
            for candidate in checked:
                overview, upright = search.overview, search.undo_rotation(candidate)
                mesh_px, presence = self._find_mesh(overview.pixels, upright)
                if presence >= MIN_PRESENCE:
                    mesh_px = _move_mesh(mesh_px, overview.to_image, overview.reduction)
                    detection = move_detection(upright, overview.to_image)._replace(box=compute_bbox(mesh_px[:, :2]))
                    search.confirmed.append(candidate)
                    search.faces.append(_Face(detection, mesh_px, presence))

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
        self, pyramid: ImagePyramid, search: _Search, indices: Sequence[int], on_step: OnStep
    ) -> tuple[DetectedFace, ...]:
        """Refine the meshes of some faces, add their irises, and undo the mirroring of the image."""
        overview, faces = search.overview, search.faces
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
            DetectedFace(landmarks_px, faces[index].presence, index, boxes, depths_px, search.are_all_examined)
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


def _sort_faces(faces: Sequence[_Face]) -> list[_Face]:
    """Return each face once, largest first; several candidates may lead to the same mesh."""
    ordered = sorted(faces, key=lambda face: -face.presence)
    kept = non_max_suppression([face.detection.box for face in ordered], [face.presence for face in ordered])
    return sorted((ordered[index] for index in kept), key=lambda face: -face.detection.box[2] * face.detection.box[3])


def _choose_tiles(
    image_bgr: ByteArray, ratio: float, hints: npt.NDArray[np.float64], confirmed: Sequence[Detection]
) -> list[_Tile]:
    """Return the tiles of one scale that may show a face which has not been found.

    At the coarser scale, these are all tiles if there is any hint outside of the confirmed faces, or if there are none:
    a face may leave no trace at the scale of the whole image. At the finer scale, they are the tiles with such a hint.
    """
    height, width = image_bgr.shape[:2]
    side = round(ratio * max(height, width))
    if side < _MIN_TILE_SCALE * FULL_RANGE.side:
        return []
    for detection in confirmed:
        x, y, w, h = detection.box
        reach = np.array([w, h]) * _HINT_REACH
        hints = hints[(np.abs(hints - (x + w / 2, y + h / 2)) > reach).any(axis=1)]
    tiles = [_Tile(left, top, side) for top in _tile_starts(height, side) for left in _tile_starts(width, side)]
    if ratio == _TILE_RATIOS[0]:
        return tiles if len(hints) or not confirmed else []
    return [tile for tile in tiles if ((hints >= tile[:2]) & (hints < np.add(tile[:2], side))).all(axis=1).any()]


def _overlaps(detection: Detection, others: Sequence[Detection]) -> bool:
    kept = non_max_suppression([detection.box, *(other.box for other in others)], [0.5, *(1.0 for _ in others)])
    return 0 not in kept


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
