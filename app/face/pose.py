"""Pose of a face: its yaw and pitch, from landmarks with depth.

The axes of the face are those of its mesh: from the subject's right to left, and from the forehead to the chin. Each is
the mean of several lines, so that neither facial expression nor one inaccurate point changes it much. In MediaPipe's
canonical face model, the first is exactly horizontal and the second vertical to within one degree.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from app.face.frame import Size
from app.face.landmarks import DepthArray, FloatArray, compute_bbox

MAX_FRONTAL_DEG: Final = 35.0
"""Maximum yaw and pitch of a face that counts as frontal."""

# Outer and inner eye corners, mouth corners, and three points of the face oval next to the ears; pairs of one index.
_RIGHT: Final = [33, 133, 61, 234, 127, 93]
_LEFT: Final = [263, 362, 291, 454, 356, 323]
_FOREHEAD: Final = [10, 109, 338]
_CHIN: Final = [152, 148, 377]

_MIN_DEPTH_RATIO: Final = 0.1
_MAX_DEPTH_RATIO: Final = 4.0
"""Range of the depths of a face relative to the longer side of its bounding box. A face is about as deep as it is wide,
so other ratios show depths in other units, or placeholders."""


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
        >>> landmarks_px[_LEFT] = (100, 0)
        >>> depths_px[_LEFT] = 100  # farther away than the right side
        >>> landmarks_px[_CHIN] = (0, 100)
        >>> compute_yaw_pitch_deg(landmarks_px, depths_px)
        (45.0, 0.0)
    """
    points = np.column_stack((landmarks_px, depths_px)).astype(np.float64)
    across = (points[_LEFT] - points[_RIGHT]).mean(axis=0)
    height = points[_CHIN].mean(axis=0) - points[_FOREHEAD].mean(axis=0)
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
