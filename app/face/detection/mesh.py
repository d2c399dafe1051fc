"""Face mesh and irises: a square region of interest (ROI) around a face to landmarks.

The scales of the squares, and the points that define their roll, are those of MediaPipe's graphs ``face_landmark`` and
``iris_landmark`` (Google, Apache-2.0). Points are on the continuous plane of the image: pixel (0, 0) covers 0 to 1.
"""

import math
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from app.face.detection.blazeface import sigmoid
from app.face.detection.model import Model
from app.face.frame import ByteArray
from app.face.landmarks import (
    LEFT_EYE_OUTER_CORNER,
    MESH_POINTS,
    MESH_POINTS_WITH_IRISES,
    RIGHT_EYE_OUTER_CORNER,
    FloatArray,
)
from app.face.regions import REGIONS

MESH_SIDE: Final = 192
IRIS_SIDE: Final = 64
IRIS_POINTS: Final = 5
RIGHT_EYE_INNER_CORNER: Final = 133
LEFT_EYE_INNER_CORNER: Final = 362

_FACE_SCALE: Final = 1.5
_EYE_SCALE: Final = 2.3
_MESH_OUTPUT: Final = "conv2d_21"
_PRESENCE_OUTPUT: Final = "conv2d_31"
_IRIS_OUTPUT: Final = "output_iris"
_MIRRORED_IRIS: Final = [0, 3, 2, 1, 4]
_EYE_CONTOURS: Final = {spec.name: list(spec.landmarks) for spec in REGIONS if spec.name in {"right_eye", "left_eye"}}

# Above this factor, shrinking by sampling turns fine detail into noise.
_MAX_SAMPLING_FACTOR: Final = 2.0


class SquareRoi(NamedTuple):
    """A square region of interest, possibly rotated, possibly extending beyond the image."""

    x: float  # of the centre, in pixels
    y: float  # of the centre, in pixels
    side: float  # in pixels
    roll_deg: float  # positive clockwise

    def to_image(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Transform points ``(N, 2)`` from 0..1 of the square to pixels of the image."""
        rotation = np.exp(1j * math.radians(self.roll_deg)) * self.side
        offsets = np.ascontiguousarray(points, np.float64).view(np.complex128)[:, 0] - (0.5 + 0.5j)
        moved: npt.NDArray[np.float64] = (offsets * rotation + complex(self.x, self.y)).view(np.float64)
        return moved.reshape(-1, 2)


def make_roi(
    points: npt.NDArray[np.floating], start: npt.NDArray[np.floating], end: npt.NDArray[np.floating], scale: float
) -> SquareRoi:
    """Return a square around points, aligned with a line from left to right of an upright subject.

    Its side is ``scale`` times the longer side of the box around the points in the rotated frame.
    """
    across, down = (np.asarray(end, np.float64) - np.asarray(start, np.float64)).tolist()
    roll = math.atan2(down, across)
    rotation = complex(math.cos(roll), math.sin(roll))
    levelled = (np.ascontiguousarray(points, np.float64).view(np.complex128)[:, 0] / rotation).view(np.float64)
    low, high = levelled.reshape(-1, 2).min(axis=0), levelled.reshape(-1, 2).max(axis=0)
    centre = complex(*((low + high) / 2).tolist()) * rotation
    return SquareRoi(centre.real, centre.imag, scale * float((high - low).max()), math.degrees(roll))


def make_mesh_roi(landmarks_px: npt.NDArray[np.floating]) -> SquareRoi:
    """Return the square around a known mesh, which is more accurate than that of a detection."""
    points = landmarks_px[:MESH_POINTS, :2]
    return make_roi(points, points[RIGHT_EYE_OUTER_CORNER], points[LEFT_EYE_OUTER_CORNER], _FACE_SCALE)


def crop_roi(image: ByteArray, roi: SquareRoi, size: int) -> ByteArray:
    """Crop a square from an image and level it to ``(size, size, 3)``; edge pixels are replicated beyond the image."""
    corners = roi.to_image(np.array([[0, 0], [1, 0], [0, 1]], np.float64))
    shrink = roi.side / size
    if shrink > _MAX_SAMPLING_FACTOR:
        image, corners = _shrink_around(image, roi, corners, int(shrink))
    # OpenCV's coordinates are pixel indices, half a pixel less than points.
    ends = np.array([[0, 0], [size, 0], [0, size]], np.float32) - np.float32(0.5)
    transform = cv2.getAffineTransform((corners - 0.5).astype(np.float32), ends)
    crop = cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return crop.astype(np.uint8, copy=False)


def _shrink_around(
    image: ByteArray, roi: SquareRoi, corners: npt.NDArray[np.float64], factor: int
) -> tuple[ByteArray, npt.NDArray[np.float64]]:
    """Shrink the part of an image around a square by averaging blocks of pixels."""
    height, width = image.shape[:2]
    reach = roi.side * math.sqrt(0.5) + factor
    left, top = (max(0, int(centre - reach)) for centre in (roi.x, roi.y))
    right, bottom = min(width, math.ceil(roi.x + reach)), min(height, math.ceil(roi.y + reach))
    if right - left < factor or bottom - top < factor:
        return image, corners
    # Whole blocks only, because OpenCV averages blocks of equal size much faster.
    right, bottom = right - (right - left) % factor, bottom - (bottom - top) % factor
    size = (right - left) // factor, (bottom - top) // factor
    part = cv2.resize(image[top:bottom, left:right], size, interpolation=cv2.INTER_AREA)
    return part.astype(np.uint8, copy=False), (corners - (left, top)) / factor


class FaceMesh:
    """The mesh model and the iris model. Not thread-safe."""

    def __init__(self, mesh_model: str, iris_model: str) -> None:
        self._mesh = Model(mesh_model, (_MESH_OUTPUT, _PRESENCE_OUTPUT))
        self._iris = Model(iris_model, (_IRIS_OUTPUT,))

    def find_mesh(self, image_bgr: ByteArray, roi: SquareRoi) -> tuple[npt.NDArray[np.float64], float]:
        """Find the mesh of the face in a square around it with a margin, rotated with it.

        Returns:
            ``(468, 3)`` points in pixels of the image, with the depth on the scale of ``x`` and negative towards the
            camera, and the confidence that there is a face, 0 to 1.
        """
        points, logit = self._mesh.run(crop_roi(image_bgr, roi, MESH_SIDE))
        levelled = points.reshape(MESH_POINTS, 3) / MESH_SIDE
        return np.column_stack((roi.to_image(levelled[:, :2]), roi.side * levelled[:, 2])), sigmoid(logit).item()

    def find_irises(self, image_bgr: ByteArray, mesh_px: npt.NDArray[np.float64]) -> FloatArray:
        """Append the irises to a mesh: centre, right, top, left and bottom of each, right eye first.

        The iris model returns no depth. As in MediaPipe's ``LandmarksRefinementCalculator``, the depth of an iris is
        the mean of that of the contour of its eye.
        """
        landmarks_px = np.empty((MESH_POINTS_WITH_IRISES, 3), np.float32)
        landmarks_px[:MESH_POINTS] = mesh_px
        eyes = (
            (RIGHT_EYE_OUTER_CORNER, RIGHT_EYE_INNER_CORNER, _EYE_CONTOURS["right_eye"]),
            (LEFT_EYE_INNER_CORNER, LEFT_EYE_OUTER_CORNER, _EYE_CONTOURS["left_eye"]),
        )
        for position, (start, end, contour) in enumerate(eyes):
            corners = mesh_px[[start, end], :2]
            roi = make_roi(corners, corners[0], corners[1], _EYE_SCALE)
            iris = slice(MESH_POINTS + IRIS_POINTS * position, MESH_POINTS + IRIS_POINTS * (position + 1))
            landmarks_px[iris, :2] = self._find_iris(image_bgr, roi, is_mirrored=position == 1)
            landmarks_px[iris, 2] = mesh_px[contour, 2].mean()
        return landmarks_px

    def _find_iris(self, image_bgr: ByteArray, roi: SquareRoi, *, is_mirrored: bool) -> npt.NDArray[np.float64]:
        """Find one iris. The model supports only right eyes, so the crop of a left eye is mirrored."""
        eye = crop_roi(image_bgr, roi, IRIS_SIDE)
        if is_mirrored:
            eye = np.ascontiguousarray(eye[:, ::-1])
        points = self._iris.run(eye)[0].reshape(IRIS_POINTS, 3)[:, :2] / IRIS_SIDE
        if is_mirrored:
            # Right and left of an iris are those of the image for both eyes, so swap the mirrored points.
            points = points[_MIRRORED_IRIS]
            points[:, 0] = 1 - points[:, 0]
        return roi.to_image(points)
