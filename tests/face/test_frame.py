import numpy as np
import pytest

from app.face.frame import IDENTITY_TRANSFORM, Size


def test_identity_transform_leaves_points_where_they_are() -> None:
    point = np.array([3.5, -2.0, 1.0])
    assert (IDENTITY_TRANSFORM @ point).tolist() == [3.5, -2.0]


def test_identity_transform_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        IDENTITY_TRANSFORM[0, 2] = 1.0


def test_size_is_width_then_height() -> None:
    size = Size(640, 480)
    assert (size.width, size.height) == tuple(size) == (640, 480)
