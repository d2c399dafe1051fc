"""Face mesh and irises: an upright square around a face to landmarks.

Scales of the squares, and which points turn them, are those of MediaPipe's graphs ``face_landmark`` and
``iris_landmark`` (Google, Apache-2.0). Points are on the continuous plane of the picture: its pixel (0, 0) covers 0
to 1.
"""

import math
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from app.face.blazeface import logits_to_confidence, read_net, run_net
from app.face.landmarks import (
    LEFT_EYE_OUTER_CORNER,
    MESH_POINTS,
    MESH_POINTS_WITH_IRISES,
    RIGHT_EYE_OUTER_CORNER,
    FloatArray,
)

ByteArray = npt.NDArray[np.uint8]

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

# Shrunk more than this by sampling alone, fine detail turns into noise.
_MAX_SAMPLED_SHRINK: Final = 2.0


class Square(NamedTuple):
    """A square of the picture, possibly turned, possibly reaching beyond its edges.

    Attributes:
        x: The middle, in pixels.
        y: The middle, in pixels.
        side: Width and height in pixels.
        roll_deg: How far its top is turned clockwise.
    """

    x: float
    y: float
    side: float
    roll_deg: float

    def to_picture(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Take points ``(N, 2)`` from 0..1 of the square to pixels of the picture."""
        turn = np.exp(1j * math.radians(self.roll_deg)) * self.side
        offsets = np.ascontiguousarray(points, np.float64).view(np.complex128)[:, 0] - (0.5 + 0.5j)
        moved: npt.NDArray[np.float64] = (offsets * turn + complex(self.x, self.y)).view(np.float64)
        return moved.reshape(-1, 2)


def square_around(
    points: npt.NDArray[np.floating], start: npt.NDArray[np.floating], end: npt.NDArray[np.floating], scale: float
) -> Square:
    """Put a square around points, level with a line.

    Args:
        points: ``(N, 2)`` points in pixels.
        start: Left end of the line, for an upright subject.
        end: Its right end.
        scale: The square's side by the longer side of the box around the points, in the square's own direction.

    Returns:
        The square.
    """
    across, down = (np.asarray(end, np.float64) - np.asarray(start, np.float64)).tolist()
    roll = math.atan2(down, across)
    turn = complex(math.cos(roll), math.sin(roll))
    levelled = (np.ascontiguousarray(points, np.float64).view(np.complex128)[:, 0] / turn).view(np.float64)
    low, high = levelled.reshape(-1, 2).min(axis=0), levelled.reshape(-1, 2).max(axis=0)
    middle = complex(*((low + high) / 2).tolist()) * turn
    return Square(middle.real, middle.imag, scale * float((high - low).max()), math.degrees(roll))


def square_around_mesh(landmarks_px: npt.NDArray[np.floating]) -> Square:
    """Put a square around a face of which the mesh is known, for a better look at it."""
    corners = landmarks_px[RIGHT_EYE_OUTER_CORNER], landmarks_px[LEFT_EYE_OUTER_CORNER]
    return square_around(landmarks_px[:MESH_POINTS], *corners, _FACE_SCALE)


def cut_square(image: ByteArray, square: Square, size: int) -> ByteArray:
    """Cut a square out of a picture, level; beyond its edges the picture goes on as it ends.

    Args:
        image: ``(H, W, 3)`` picture.
        square: What to cut out.
        size: Side of the result in pixels.

    Returns:
        ``(size, size, 3)`` picture.
    """
    corners = square.to_picture(np.array([[0, 0], [1, 0], [0, 1]], np.float64))
    shrink = square.side / size
    if shrink > _MAX_SAMPLED_SHRINK:
        image, corners = _shrink_around(image, square, corners, int(shrink))
    # Both ends in indices of pixels, whose middles are at a half.
    ends = np.array([[0, 0], [size, 0], [0, size]], np.float32) - np.float32(0.5)
    transform = cv2.getAffineTransform((corners - 0.5).astype(np.float32), ends)
    cut = cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return cut.astype(np.uint8, copy=False)


def _shrink_around(
    image: ByteArray, square: Square, corners: npt.NDArray[np.float64], factor: int
) -> tuple[ByteArray, npt.NDArray[np.float64]]:
    """Average the part of a picture around a square over blocks of pixels."""
    height, width = image.shape[:2]
    reach = square.side * math.sqrt(0.5) + factor
    left, top = (max(0, int(middle - reach)) for middle in (square.x, square.y))
    right, bottom = min(width, math.ceil(square.x + reach)), min(height, math.ceil(square.y + reach))
    if right - left < factor or bottom - top < factor:
        return image, corners
    # Whole blocks only, so that every block is as wide as the others; cv2 averages those fast.
    right, bottom = right - (right - left) % factor, bottom - (bottom - top) % factor
    size = (right - left) // factor, (bottom - top) // factor
    part = cv2.resize(image[top:bottom, left:right], size, interpolation=cv2.INTER_AREA)
    return part.astype(np.uint8, copy=False), (corners - (left, top)) / factor


class FaceMesh:
    """The mesh model and the iris model, ready to run; not for several threads at a time.

    Args:
        mesh_model: Path of the mesh model.
        iris_model: Path of the iris model.
    """

    def __init__(self, mesh_model: str, iris_model: str) -> None:
        self._mesh = read_net(mesh_model)
        self._iris = read_net(iris_model)

    def find_mesh(self, image_bgr: ByteArray, square: Square) -> tuple[npt.NDArray[np.float64], float]:
        """Find the mesh of the face in a square.

        Args:
            image_bgr: ``(H, W, 3)`` picture.
            square: Around the face, with room, and turned as it is.

        Returns:
            ``(468, 2)`` points in pixels of the picture, and how sure it is that there is a face, 0 to 1.
        """
        blob = cv2.dnn.blobFromImage(cut_square(image_bgr, square, MESH_SIDE), 1 / 255, swapRB=True)
        self._mesh.setInput(blob)
        points, logit = run_net(self._mesh, [_MESH_OUTPUT, _PRESENCE_OUTPUT])
        levelled = points.reshape(MESH_POINTS, 3)[:, :2] / MESH_SIDE
        return square.to_picture(levelled), logits_to_confidence(logit).item()

    def find_irises(self, image_bgr: ByteArray, mesh_px: npt.NDArray[np.float64]) -> FloatArray:
        """Add the irises to a mesh.

        Args:
            image_bgr: ``(H, W, 3)`` picture.
            mesh_px: ``(468, 2)`` points in pixels of the picture.

        Returns:
            ``(478, 2)`` points: the mesh, then middle, right, top, left and bottom of each iris, the right eye first.
        """
        landmarks_px = np.empty((MESH_POINTS_WITH_IRISES, 2), np.float32)
        landmarks_px[:MESH_POINTS] = mesh_px
        eyes = (RIGHT_EYE_OUTER_CORNER, RIGHT_EYE_INNER_CORNER), (LEFT_EYE_INNER_CORNER, LEFT_EYE_OUTER_CORNER)
        for place, (start, end) in enumerate(eyes):
            square = square_around(mesh_px[[start, end]], mesh_px[start], mesh_px[end], _EYE_SCALE)
            first = MESH_POINTS + IRIS_POINTS * place
            landmarks_px[first : first + IRIS_POINTS] = self._find_iris(image_bgr, square, is_mirrored=place == 1)
        return landmarks_px

    def _find_iris(self, image_bgr: ByteArray, square: Square, *, is_mirrored: bool) -> npt.NDArray[np.float64]:
        """Find one iris; the model knows right eyes only, so that a left one is shown to it in a mirror."""
        eye = cut_square(image_bgr, square, IRIS_SIDE)
        if is_mirrored:
            eye = np.ascontiguousarray(eye[:, ::-1])
        self._iris.setInput(cv2.dnn.blobFromImage(eye, 1 / 255, swapRB=True))
        points = run_net(self._iris, [_IRIS_OUTPUT])[0].reshape(IRIS_POINTS, 3)[:, :2] / IRIS_SIDE
        if is_mirrored:
            # Right and left are those of the picture for both eyes: what was mirrored changes places.
            points = points[_MIRRORED_IRIS]
            points[:, 0] = 1 - points[:, 0]
        return square.to_picture(points)
