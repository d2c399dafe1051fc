"""The face mesh as an array: reading points, and what the mesh alone says of the face.

Landmarks are those of MediaPipe's Face Mesh: 468 points of the mesh, and 10 more where the irises were refined.
Sides are the subject's: the right eye, with its outer corner 33, is at the left of the picture.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from app.face.errors import (
    LandmarkCountError,
    LandmarkDegenerateError,
    LandmarkNotFiniteError,
    LandmarkRangeError,
    LandmarkShapeError,
)
from app.face.frame import Size

FloatArray = npt.NDArray[np.float32]
"""Coordinates ``(N, 2)`` in pixels, ``x`` to the right and ``y`` down."""

MESH_POINTS: Final = 468
MESH_POINTS_WITH_IRISES: Final = 478

RIGHT_EYE_OUTER_CORNER: Final = 33
LEFT_EYE_OUTER_CORNER: Final = 263

MIN_INTEROCULAR_PX: Final = 1.0
"""Below this the direction between the eyes is noise."""

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


def points_to_landmarks_px(
    points: npt.ArrayLike, *, frame: Size, is_normalized: bool = False, margin: float = 0.25
) -> FloatArray:
    """Check the points that a caller sent and put them into pixels of the photo.

    Args:
        points: ``(N, 2)`` or ``(N, 3)`` numbers, ``N`` 468 or 478; a third column (depth) is dropped.
        frame: Size of the photo in pixels.
        is_normalized: The points are fractions of the photo's width and height instead of pixels.
        margin: How far a point may lie outside the photo, as a fraction of its width (for ``x``) and height (``y``).

    Returns:
        ``(N, 2)`` float32 array in pixels, contiguous.

    Raises:
        LandmarkShapeError: The points are not rows of two or three numbers.
        LandmarkCountError: There are neither 468 nor 478 of them.
        LandmarkNotFiniteError: A coordinate is NaN or infinite, or too large for single precision.
        LandmarkRangeError: A point lies further outside the photo than ``margin`` allows.

    Example:
        >>> points = np.full((468, 2), 0.5)
        >>> points_to_landmarks_px(points, frame=Size(640, 480), is_normalized=True)[0].tolist()
        [320.0, 240.0]
    """
    points_px = _to_float_rows(points)[:, :2]
    if is_normalized:
        # A huge fraction may overflow here; it is then reported like any other value that is not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            points_px = points_px * frame
    outside = np.multiply(frame, margin)
    # One comparison each way settles the good case: what lies between two finite limits is finite too.
    in_range = (points_px >= -outside) & (points_px <= outside + frame)
    if not in_range.all():
        _raise_out_of_range(points_px, in_range, margin)
    return np.ascontiguousarray(points_px, dtype=np.float32)


def _to_float_rows(points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        rows = np.asarray(points)
    except (ValueError, OverflowError) as error:
        raise LandmarkShapeError("landmarks must be rows of two or three numbers, all of one length") from error
    # Text, booleans and objects would be turned into numbers silently by a cast.
    if rows.dtype.kind not in "iuf":
        raise LandmarkShapeError("landmarks must be rows of two or three numbers, all of one length")
    # An empty list has no second axis to complain of; what is wrong with it is the count.
    if rows.shape != (0,) and (rows.ndim != 2 or rows.shape[1] not in (2, 3)):  # noqa: PLR2004 - (x, y) or (x, y, z)
        shape = " x ".join(str(length) for length in rows.shape)
        raise LandmarkShapeError(f"landmarks must have shape N x 2 or N x 3, not {shape or 'that of a single number'}")
    if len(rows) not in (MESH_POINTS, MESH_POINTS_WITH_IRISES):
        raise LandmarkCountError(f"there must be {MESH_POINTS} or {MESH_POINTS_WITH_IRISES} landmarks, not {len(rows)}")
    return rows.astype(np.float64, copy=False)


def _raise_out_of_range(points_px: npt.NDArray[np.float64], in_range: npt.NDArray[np.bool_], margin: float) -> None:
    # Single precision overflows long before double does, and the landmarks are kept in single precision.
    not_finite = np.flatnonzero(~(np.abs(points_px) <= _FLOAT32_MAX).all(axis=1))
    if len(not_finite):
        raise LandmarkNotFiniteError(
            f"landmark {not_finite[0]} is not a finite number; landmarks with this fault: {len(not_finite)}"
        )
    outside = np.flatnonzero(~in_range.all(axis=1))
    raise LandmarkRangeError(
        f"landmark {outside[0]} lies more than {margin:.0%} of the picture's size outside the picture; "
        f"landmarks with this fault: {len(outside)}"
    )


def compute_interocular_px(landmarks_px: FloatArray) -> float:
    """Compute the distance between the outer corners of the eyes.

    Args:
        landmarks_px: ``(468, 2)`` or ``(478, 2)`` array in pixels.

    Returns:
        Distance in pixels.
    """
    return math.hypot(*_compute_eye_axis(landmarks_px))


def compute_roll_deg(landmarks_px: FloatArray) -> float:
    """Compute how far the head is tilted in the plane of the picture.

    The tilt is that of the line through the outer corners of the eyes, which expression moves least.

    Args:
        landmarks_px: ``(468, 2)`` or ``(478, 2)`` array in pixels.

    Returns:
        Degrees in ``(-180, 180]``, positive clockwise as seen in the picture; 0 for a level, upright subject.

    Raises:
        LandmarkDegenerateError: The corners are less than one pixel apart.

    Example:
        >>> landmarks_px = np.zeros((478, 2), np.float32)
        >>> landmarks_px[RIGHT_EYE_OUTER_CORNER], landmarks_px[LEFT_EYE_OUTER_CORNER] = (100, 100), (200, 200)
        >>> compute_roll_deg(landmarks_px)
        45.0
    """
    across, down = _compute_eye_axis(landmarks_px)
    if math.hypot(across, down) < MIN_INTEROCULAR_PX:
        raise LandmarkDegenerateError(
            f"the outer corners of the eyes (landmarks {RIGHT_EYE_OUTER_CORNER} and {LEFT_EYE_OUTER_CORNER}) "
            "are less than one pixel apart; landmarks in 0..1 are normalized, which landmark_units has to say"
        )
    # A difference of -0.0 would give -180 degrees, which the range leaves to +180.
    return math.degrees(math.atan2(down + 0.0, across))


def _compute_eye_axis(landmarks_px: FloatArray) -> tuple[float, float]:
    right_x, right_y = landmarks_px[RIGHT_EYE_OUTER_CORNER].tolist()
    left_x, left_y = landmarks_px[LEFT_EYE_OUTER_CORNER].tolist()
    return left_x - right_x, left_y - right_y


def compute_bbox(points: npt.NDArray[np.floating]) -> tuple[float, float, float, float]:
    """Compute the upright box around points.

    Args:
        points: ``(N, 2)`` array, ``N`` at least 1.

    Returns:
        ``(x, y, width, height)`` in the unit of the points.

    Example:
        >>> compute_bbox(np.array([[3.0, 8.0], [5.0, 2.0]]))
        (3.0, 2.0, 2.0, 6.0)
    """
    # Reducing two long rows is several times faster than reducing many rows of two.
    columns = np.ascontiguousarray(points.T)
    left, top = columns.min(axis=1).tolist()
    right, bottom = columns.max(axis=1).tolist()
    return left, top, right - left, bottom - top
