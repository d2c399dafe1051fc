"""A photo to the landmarks of a face in it.

A face is found by a detector, looked at through the mesh model in an upright square, looked at again in the square
that its mesh gives, and completed by the irises. The models are MediaPipe's (Google, Apache-2.0), read by cv2.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from app.face.blazeface import (
    FULL_RANGE,
    LEFT_EYE_KEYPOINT,
    RIGHT_EYE_KEYPOINT,
    SHORT_RANGE,
    Detection,
    FaceDetector,
    drop_doubles,
    move_detection,
)
from app.face.errors import FaceIndexError, NoFaceError
from app.face.landmarks import FloatArray, compute_bbox
from app.face.mesh import FaceMesh, Square, cut_square, square_around, square_around_mesh

ByteArray = npt.NDArray[np.uint8]
OnStep = Callable[[str], AbstractContextManager[None]]

MIN_PRESENCE: Final = 0.5
"""Where the mesh model is less sure than this that it was shown a face, the detector was wrong."""

# Clockwise, by the number of quarter turns. Copying an array that numpy has turned takes three times as long.
_ROTATIONS: Final = {1: cv2.ROTATE_90_CLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_COUNTERCLOCKWISE}

_SMALL_RATIO: Final = 0.15
"""A face narrower than this share of the photo's longer side is only a dozen pixels to the short range detector."""

_FACE_SCALE: Final = 1.5
_CLOSER_SCALE: Final = 3.0
_CLOSER_SIDE: Final = 256

_MIN_CLOSER_CONFIDENCE: Final = 0.6
"""More than is asked for at first: so many looks at parts of a photo have as many chances to err."""

_MAX_CLOSER_LOOKS: Final = 32
"""A picture may be made so that everything in it looks like a face: what it costs stays bounded."""

_TILE_RATIO: Final = 0.55
"""Side of a tile by the photo's longer side. Two in a row overlap by a tenth of it: the faces that only tiles show are
narrower than that."""


@dataclass(frozen=True, slots=True)
class FaceModels:
    """Paths of the models.

    Attributes:
        short_range: BlazeFace for near faces.
        full_range: BlazeFace for small faces, dense and cut before its last reshaping (``tools/models.py``).
        mesh: The mesh of 468 points.
        iris: The iris of a right eye.
    """

    short_range: str
    full_range: str
    mesh: str
    iris: str


@dataclass(frozen=True, slots=True)
class FaceBox:
    """A face that the detector found.

    Attributes:
        box: ``(x, y, width, height)`` in pixels.
        confidence: Of the detector, 0 to 1.
    """

    box: tuple[float, float, float, float]
    confidence: float


@dataclass(frozen=True, slots=True, eq=False)
class FoundFace:
    """The landmarks of one face, and what else was found.

    Attributes:
        landmarks_px: ``(478, 2)`` points in pixels of the photo.
        presence: How sure the mesh model is of a face, 0 to 1.
        index: Which of ``faces`` it is.
        faces: All faces, the largest first.
    """

    landmarks_px: FloatArray
    presence: float
    index: int
    faces: tuple[FaceBox, ...]


class FaceFinder:
    """Finds faces and their landmarks; not for several threads at a time.

    Args:
        models: Paths of the models.
    """

    def __init__(self, models: FaceModels) -> None:
        self._short = FaceDetector(models.short_range, SHORT_RANGE)
        self._full = FaceDetector(models.full_range, FULL_RANGE)
        self._mesh = FaceMesh(models.mesh, models.iris)

    def find(self, image_bgr: ByteArray, on_step: OnStep, index: int = 0, quarter_turns: int = 0) -> FoundFace:
        """Find the landmarks of one face.

        Args:
            image_bgr: ``(H, W, 3)`` photo.
            on_step: Told of each step: ``detect``, ``mesh``, ``iris``.
            index: Which face, counted from the largest.
            quarter_turns: How often to turn the photo clockwise before looking; what is found is in the photo as it
                was given.

        Returns:
            The landmarks, and boxes of all faces.

        Raises:
            NoFaceError: There is no face.
            FaceIndexError: There are faces, but not as many.
        """
        turned = image_bgr if quarter_turns == 0 else cv2.rotate(image_bgr, _ROTATIONS[quarter_turns])
        found = self._find(np.ascontiguousarray(turned, np.uint8), on_step, index)
        return turn_back(found, turned.shape[1], turned.shape[0], quarter_turns) if quarter_turns else found

    def _find(self, image_bgr: ByteArray, on_step: OnStep, index: int) -> FoundFace:
        with on_step("detect"):
            detections = self._detect(image_bgr)
        while detections:
            if index >= len(detections):
                raise FaceIndexError(f"face: expected 0 to {len(detections) - 1}, as many faces were found; got more")
            with on_step("mesh"):
                mesh_px, presence = self._find_mesh(image_bgr, detections[index])
            if presence >= MIN_PRESENCE:
                break
            # The detector took something else for a face; what follows it moves up.
            del detections[index]
        else:
            raise NoFaceError("image: expected a face, found none; send landmarks if there is one")
        with on_step("iris"):
            landmarks_px = self._mesh.find_irises(image_bgr, mesh_px)
        faces = tuple(FaceBox(found.box, found.confidence) for found in detections)
        return FoundFace(landmarks_px, presence, index, faces)

    def _detect(self, image_bgr: ByteArray) -> list[Detection]:
        """Find all faces, the largest first."""
        longest = max(image_bgr.shape[:2])
        detections = self._short.detect(image_bgr)
        if max((found.box[2] for found in detections), default=0.0) < _SMALL_RATIO * longest:
            # What the full range model sees of small faces is better in every respect.
            far = self._full.detect(image_bgr) or self._detect_in_tiles(image_bgr)
            closer = [self._look_closer(image_bgr, found) for found in far[:_MAX_CLOSER_LOOKS]]
            detections = drop_doubles([found for found in closer if found is not None]) or detections
        return sorted(detections, key=lambda found: found.box[2] * found.box[3], reverse=True)

    def _detect_in_tiles(self, image_bgr: ByteArray) -> list[Detection]:
        """Detect faces too small for the whole photo to be looked at at once."""
        height, width = image_bgr.shape[:2]
        side = round(_TILE_RATIO * max(height, width))
        if side < FULL_RANGE.side:
            return []  # the models have seen every pixel there is
        found: list[Detection] = []
        for top in _tile_starts(height, side):
            for left in _tile_starts(width, side):
                tile = image_bgr[top : top + side, left : left + side]
                found += [move_detection(one, left, top) for one in self._full.detect(tile)]
        return drop_doubles(found)

    def _find_mesh(self, image_bgr: ByteArray, detection: Detection) -> tuple[npt.NDArray[np.float64], float]:
        """Find the mesh from a detection, and once more from the mesh itself."""
        mesh_px, presence = self._mesh.find_mesh(image_bgr, _square_around_detection(detection))
        if presence < MIN_PRESENCE:
            return mesh_px, presence
        return self._mesh.find_mesh(image_bgr, square_around_mesh(mesh_px))

    def _look_closer(self, image_bgr: ByteArray, detection: Detection) -> Detection | None:
        """Detect a small face again where it fills a good part of the picture.

        Its eyes are better seen there; and what is no face there was none.
        """
        x, y, width, height = detection.box
        square = Square(x + width / 2, y + height / 2, _CLOSER_SCALE * max(width, height), 0.0)
        found = self._short.detect(cut_square(image_bgr, square, _CLOSER_SIDE))
        found = [one for one in found if one.confidence >= _MIN_CLOSER_CONFIDENCE]
        if not found:
            return None
        middle = _CLOSER_SIDE / 2

        def distance(one: Detection) -> float:
            return abs(one.box[0] + one.box[2] / 2 - middle) + abs(one.box[1] + one.box[3] / 2 - middle)

        nearest = min(found, key=distance)
        scale = square.side / _CLOSER_SIDE
        left, top = square.to_picture(np.array(nearest.box[:2])[None] / _CLOSER_SIDE)[0].tolist()
        keypoints = square.to_picture(nearest.keypoints / _CLOSER_SIDE).astype(np.float32)
        box = (left, top, nearest.box[2] * scale, nearest.box[3] * scale)
        return Detection(box, keypoints, nearest.confidence)


def turn_back(found: FoundFace, width: int, height: int, quarter_turns: int) -> FoundFace:
    """Take what was found in a turned photo back to the photo as it was.

    Args:
        found: On the plane of the turned photo.
        width: Of the turned photo, in pixels.
        height: Likewise.
        quarter_turns: How often it was turned clockwise.
    """

    def back(points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
        columns = {1: (y, width - x), 2: (width - x, height - y), 3: (height - y, x)}[quarter_turns]
        return np.stack(columns, axis=1)

    faces = []
    for face in found.faces:
        x, y, across, down = face.box
        faces.append(FaceBox(compute_bbox(back(np.array([[x, y], [x + across, y + down]]))), face.confidence))
    return replace(found, landmarks_px=back(found.landmarks_px).astype(np.float32), faces=tuple(faces))


def _tile_starts(length: int, side: int) -> tuple[int, ...]:
    return (0,) if length <= side else (0, length - side)


def _square_around_detection(detection: Detection) -> Square:
    x, y, width, height = detection.box
    corners: Sequence[tuple[float, float]] = (x, y), (x + width, y + height)
    eyes = detection.keypoints[[RIGHT_EYE_KEYPOINT, LEFT_EYE_KEYPOINT]]
    turned = square_around(np.array(corners), eyes[0], eyes[1], _FACE_SCALE)
    # The box itself is not turned with the face: only the direction of the square is.
    return Square(x + width / 2, y + height / 2, _FACE_SCALE * max(width, height), turned.roll_deg)
