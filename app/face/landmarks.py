"""Face-mesh landmarks as an array: validation, and measurements of the face.

Landmarks are those of MediaPipe's Face Mesh: 468 points of the mesh, plus 10 of the irises if they were detected.
Sides are the subject's: the right eye, with outer corner 33, is on the left of the image.
"""

import math
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from app.face.errors import (
    FaceIndexError,
    LandmarkCountError,
    LandmarkDegenerateError,
    LandmarkNotFiniteError,
    LandmarkRangeError,
    LandmarkShapeError,
)
from app.face.frame import Size

FloatArray = npt.NDArray[np.float32]
"""Coordinates ``(N, 2)`` in pixels, ``x`` to the right and ``y`` down."""

DepthArray = npt.NDArray[np.float32]
"""Depths ``(N,)`` of points in pixels, on the scale of ``x``, negative towards the camera.

As in MediaPipe, the origin is near the centre of the head, so that only differences are meaningful."""

MESH_POINTS: Final = 468
MESH_POINTS_WITH_IRISES: Final = 478

RIGHT_EYE_OUTER_CORNER: Final = 33
LEFT_EYE_OUTER_CORNER: Final = 263
_FOREHEAD, _CHIN = 10, 152

MIN_INTEROCULAR_PX: Final = 1.0
"""Minimum distance between the eyes; below it, the angle of their axis is meaningless."""

NORMALIZED_RANGE: Final = (-1.0, 2.0)
"""Range of normalized coordinates: a face may be outside the image by its side at most. In pixels, no usable face fits
into it, because the outer eye corners would be about a pixel apart."""

MAX_FACES: Final = 32
"""Maximum number of candidates for faces that are examined, and of faces that have a result each. Bounds the cost of an
image that was made so that everything in it looks like a face."""

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


def points_to_landmarks_px(
    points: npt.ArrayLike, *, image_size: Size, is_normalized: bool = False, margin: float = 0.25
) -> FloatArray:
    """Validate the points of a request and convert them to contiguous ``(N, 2)`` pixels of the image.

    The points are ``(N, 2)`` or ``(N, 3)`` numbers, ``N`` 468 or 478, in pixels or, if they are normalized, fractions
    of the width and height. Depths are dropped. The margin is how far a point may be outside the image, as a fraction
    of the width (``x``) and height (``y``).

    Raises:
        LandmarkShapeError: the points are not rows of two or three numbers.
        LandmarkCountError: there are neither 468 nor 478 of them.
        LandmarkNotFiniteError: a coordinate is NaN or infinite, or too large for single precision.
        LandmarkRangeError: a point is farther outside the image than ``margin``.

    Example:
        >>> points = np.full((468, 2), 0.5)
        >>> points_to_landmarks_px(points, image_size=Size(640, 480), is_normalized=True)[0].tolist()
        [320.0, 240.0]
    """
    points_px = _to_float_rows(points)[:, :2]
    if is_normalized:
        # A huge fraction may overflow here; it is then reported like any other value that is not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            points_px = points_px * image_size
    outside = np.multiply(image_size, margin)
    # These comparisons also prove that valid points are finite, because both limits are.
    in_range = (points_px >= -outside) & (points_px <= outside + image_size)
    if not in_range.all():
        _raise_out_of_range(points_px, in_range, margin)
    return np.ascontiguousarray(points_px, dtype=np.float32)


def look_normalized(points: npt.NDArray[np.float64]) -> bool:
    """Return whether all coordinates ``(…, 2)`` are within `NORMALIZED_RANGE`, so that they cannot be pixels.

    Example:
        >>> look_normalized(np.array([[0.4, 0.3], [1.02, -0.1]])), look_normalized(np.array([[223.4, 140.9]]))
        (True, False)
    """
    low, high = NORMALIZED_RANGE
    # A comparison with NaN is false.
    return points.size > 0 and bool(((points[..., :2] >= low) & (points[..., :2] <= high)).all())


def select_faces(points: npt.NDArray[np.float64], index: int | Literal["all"]) -> list[npt.NDArray[np.float64]]:
    """Return the points ``(N, 2)`` of one face, or those of each face, in the order in which they were sent.

    Points that are not ``(F, N, 2)`` are those of one face, regardless of the index.

    Raises:
        FaceIndexError: there are not that many faces.
        LandmarkCountError: all faces are selected, and there are more than ``MAX_FACES``.
    """
    if points.ndim != 3:  # noqa: PLR2004 - faces, points, coordinates
        return [points]
    if index != "all":
        if index >= len(points):
            raise FaceIndexError(f"face: expected an index below {len(points)}, the number of faces sent, got {index}")
        return [points[index]]
    if len(points) > MAX_FACES:
        raise LandmarkCountError(
            f"landmarks: expected at most {MAX_FACES} faces for face=all, got {len(points)}; send fewer, or select one"
        )
    return list(points)


def _to_float_rows(points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        rows = np.asarray(points)
    except (ValueError, OverflowError) as error:
        raise LandmarkShapeError(
            "landmarks: expected rows of 2 or 3 numbers, got rows of different lengths or huge numbers"
        ) from error
    # A cast would silently convert text, booleans and objects to numbers.
    if rows.dtype.kind not in "iuf":
        raise LandmarkShapeError("landmarks: expected rows of 2 or 3 numbers, got other values")
    # An empty list has no second axis; its length is reported below.
    if rows.shape != (0,) and (rows.ndim != 2 or rows.shape[1] not in (2, 3)):  # noqa: PLR2004 - (x, y) or (x, y, z)
        shape = " x ".join(str(length) for length in rows.shape)
        raise LandmarkShapeError(f"landmarks: expected shape N x 2 or N x 3, got {shape or 'a single number'}")
    if len(rows) not in (MESH_POINTS, MESH_POINTS_WITH_IRISES):
        raise LandmarkCountError(
            f"landmarks: expected {MESH_POINTS} or {MESH_POINTS_WITH_IRISES} points, got {len(rows)}"
        )
    return rows.astype(np.float64, copy=False)


def _raise_out_of_range(points_px: npt.NDArray[np.float64], in_range: npt.NDArray[np.bool_], margin: float) -> None:
    # Landmarks are stored in single precision, which overflows long before double precision does.
    not_finite = np.flatnonzero(~(np.abs(points_px) <= _FLOAT32_MAX).all(axis=1))
    if len(not_finite):
        raise LandmarkNotFiniteError(
            f"landmarks: expected finite numbers, got NaN, infinite or huge values at {len(not_finite)} points, "
            f"first at index {not_finite[0]}"
        )
    outside = np.flatnonzero(~in_range.all(axis=1))
    raise LandmarkRangeError(
        f"landmarks: expected points at most {margin:.0%} of the image size outside the image, got {len(outside)} "
        f"farther out, first at index {outside[0]}"
    )


def compute_interocular_px(landmarks_px: FloatArray) -> float:
    """Compute the distance between the outer eye corners, in pixels."""
    return math.hypot(*_compute_eye_axis(landmarks_px))


def compute_roll_deg(landmarks_px: FloatArray) -> float:
    """Compute the roll of the head in the image plane.

    Roll is the angle of the line through the outer eye corners, because facial expression moves them least. In an image
    that is stored mirrored, the subject's right eye is at the right of an upright face.

    Returns:
        Degrees in ``(-180, 180]``, positive clockwise in the image; 0 for a level, upright subject.

    Raises:
        LandmarkDegenerateError: the corners are less than one pixel apart.

    Example:
        >>> landmarks_px = np.zeros((478, 2), np.float32)
        >>> landmarks_px[RIGHT_EYE_OUTER_CORNER], landmarks_px[LEFT_EYE_OUTER_CORNER] = (100, 100), (200, 200)
        >>> compute_roll_deg(landmarks_px)
        45.0
    """
    across, down = _compute_eye_axis(landmarks_px)
    if math.hypot(across, down) < MIN_INTEROCULAR_PX:
        raise LandmarkDegenerateError(
            f"landmarks: expected outer eye corners ({RIGHT_EYE_OUTER_CORNER} and {LEFT_EYE_OUTER_CORNER}) at least "
            "1 pixel apart, got less"
        )
    chin_across, chin_down = (landmarks_px[_CHIN] - landmarks_px[_FOREHEAD]).tolist()
    if across * chin_down < down * chin_across:  # the face is mirrored
        across, down = -across, -down
    # A difference of -0.0 would return -180 degrees, which is outside the documented range.
    return math.degrees(math.atan2(down + 0.0, across))


def _compute_eye_axis(landmarks_px: FloatArray) -> tuple[float, float]:
    right_x, right_y = landmarks_px[RIGHT_EYE_OUTER_CORNER].tolist()
    left_x, left_y = landmarks_px[LEFT_EYE_OUTER_CORNER].tolist()
    return left_x - right_x, left_y - right_y


def compute_bbox(points: npt.NDArray[np.floating]) -> tuple[float, float, float, float]:
    """Compute the axis-aligned bounding box ``(x, y, width, height)`` of at least one point.

    Example:
        >>> compute_bbox(np.array([[3.0, 8.0], [5.0, 2.0]]))
        (3.0, 2.0, 2.0, 6.0)
    """
    # Reducing two long rows is several times as fast as reducing many rows of two.
    columns = np.ascontiguousarray(points.T)
    left, top = columns.min(axis=1).tolist()
    right, bottom = columns.max(axis=1).tolist()
    return left, top, right - left, bottom - top
