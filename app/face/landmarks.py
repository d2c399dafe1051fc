"""Face-mesh landmarks and their depths as arrays: validation, and size and pose of the face.

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

MAX_FRONTAL_DEG: Final = 35.0
"""Maximum yaw and pitch of a face that counts as frontal."""

# The axes of the face are those of its mesh: from the subject's right to left, and from the forehead to the chin. Each
# is the mean of several lines, so that neither facial expression nor one inaccurate point changes it much. In
# MediaPipe's canonical face model, the first is exactly horizontal and the second vertical to within one degree.
# Right and left points are pairs: outer and inner eye corners, mouth corners, and three points of the face oval next to
# the ears.
_RIGHT_POINTS: Final = [33, 133, 61, 234, 127, 93]
_LEFT_POINTS: Final = [263, 362, 291, 454, 356, 323]
_FOREHEAD_POINTS: Final = [10, 109, 338]
_CHIN_POINTS: Final = [152, 148, 377]

_MIN_DEPTH_RATIO: Final = 0.1
_MAX_DEPTH_RATIO: Final = 4.0
"""Range of the depths of a face relative to the longer side of its bounding box. A face is about as deep as it is wide,
so other ratios show depths in other units, or placeholders."""

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


def points_to_depths_px(
    points: npt.NDArray[np.floating], landmarks_px: FloatArray, *, image_size: Size, is_normalized: bool = False
) -> DepthArray | None:
    """Return the depths of the points of a request, or None if they have none that is meaningful.

    Callers often send a placeholder, or depths in another unit than the other coordinates. Neither is an error, because
    depths are optional. Normalized depths are on the scale of ``x``, as in MediaPipe.
    """
    if points.shape[1] == 2:  # noqa: PLR2004 - (x, y)
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        depths_px = (points[:, 2] * (image_size.width if is_normalized else 1)).astype(np.float32)
        extent = float(np.ptp(depths_px))
    longer_side = max(compute_bbox(landmarks_px)[2:])
    # The comparison also rejects depths that are not finite.
    return depths_px if _MIN_DEPTH_RATIO * longer_side <= extent <= _MAX_DEPTH_RATIO * longer_side else None


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


def compute_yaw_pitch_deg(landmarks_px: FloatArray, depths_px: DepthArray) -> tuple[float, float]:
    """Compute the yaw and pitch of a face, independently of its roll.

    The rotation of the face is decomposed into roll in the image plane, then yaw, then pitch, as in
    ``roll @ yaw @ pitch``. In an image that is stored mirrored, the face is that of the mirrored subject.

    Returns:
        Yaw in degrees, -90 to 90, positive if the face is turned towards the image's right (to the subject's left), and
        pitch in degrees, -180 to 180, positive if the face is turned up. Both are 0 for a face that looks into the
        camera.

    Example:
        >>> landmarks_px, depths_px = np.zeros((468, 2), np.float32), np.zeros(468, np.float32)
        >>> landmarks_px[_LEFT_POINTS] = (100, 0)
        >>> depths_px[_LEFT_POINTS] = 100  # farther away than the right side
        >>> landmarks_px[_CHIN_POINTS] = (0, 100)
        >>> compute_yaw_pitch_deg(landmarks_px, depths_px)
        (45.0, 0.0)
    """
    points = np.column_stack((landmarks_px, depths_px)).astype(np.float64)
    across = (points[_LEFT_POINTS] - points[_RIGHT_POINTS]).mean(axis=0)
    height = points[_CHIN_POINTS].mean(axis=0) - points[_FOREHEAD_POINTS].mean(axis=0)
    side = 1.0
    if across[0] * height[1] < across[1] * height[0]:  # the face is mirrored
        side = -1.0
        across[0], height[0] = -across[0], -height[0]
    x, y, z = across.tolist()
    roll, yaw = math.atan2(y, x), math.atan2(z, math.hypot(x, y))
    # The axes of a face with this roll and yaw, but without pitch.
    down = np.array([-math.sin(roll), math.cos(roll), 0.0])
    into = np.array([-math.sin(yaw) * math.cos(roll), -math.sin(yaw) * math.sin(roll), math.cos(yaw)])
    pitch = math.atan2(-float(height @ into), float(height @ down))
    # Adding 0.0 turns -0.0 into 0.0, which matters in responses.
    return side * math.degrees(yaw) + 0.0, math.degrees(pitch) + 0.0


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
