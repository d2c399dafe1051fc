"""Frames: the pixel rectangles that coordinates refer to, and the transforms between them."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Transform = npt.NDArray[np.float64]
"""Affine map ``(2, 3)`` from the photo's pixels to the output frame's, as ``cv2.warpAffine`` takes it."""


class Size(NamedTuple):
    """Width and height of a picture or frame in pixels."""

    width: int
    height: int


def _make_identity() -> Transform:
    identity = np.eye(2, 3, dtype=np.float64)
    # Every result shares this one array, so that nobody may write to it.
    identity.flags.writeable = False
    return identity


IDENTITY_TRANSFORM: Transform = _make_identity()
"""The transform of a result whose frame is the photo itself. Read-only."""
