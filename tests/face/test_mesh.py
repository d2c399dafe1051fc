"""The squares that faces and eyes are cut out in; the models themselves are tested in test_detect.py."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.mesh import Square, cut_square, square_around

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])


@given(st.floats(-500, 500), st.floats(-500, 500), st.floats(1, 900), st.floats(-180, 180))
def test_a_square_is_one(x: float, y: float, side: float, roll_deg: float) -> None:
    a, b, c, d, middle = Square(x, y, side, roll_deg).to_picture(CORNERS)
    assert np.allclose(middle, (x, y))
    assert np.allclose([np.linalg.norm(b - a), np.linalg.norm(c - a), np.linalg.norm(d - b)], side)
    down = np.degrees(np.arctan2(*(b - a)[::-1]))
    assert np.isclose(np.cos(np.radians(down - roll_deg)), 1)


@given(st.integers(0, 999), st.floats(-180, 180), st.floats(1, 3))
def test_a_square_around_points_holds_them(seed: int, roll_deg: float, scale: float) -> None:
    points = np.random.default_rng(seed).uniform(0, 300, (50, 2))
    across = np.array([np.cos(np.radians(roll_deg)), np.sin(np.radians(roll_deg))])
    square = square_around(points, points[0], points[0] + 20 * across, scale)
    start, right, down = square.to_picture(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    axes = np.stack([right - start, down - start]) / square.side**2
    inside = (points - start) @ axes.T
    assert inside.min() > -1e-6
    assert inside.max() < 1 + 1e-6
    # In one direction the points reach over the share of the square that the scale leaves them.
    assert np.ptp(inside, axis=0).max() == pytest.approx(1 / scale)


@pytest.mark.parametrize("side", [40.0, 300.0, 900.0])
@pytest.mark.parametrize("roll_deg", [0.0, 30.0, -120.0])
def test_what_is_cut_out_is_where_points_are(side: float, roll_deg: float) -> None:
    square = Square(500.0, 480.0, side, roll_deg)
    wanted = np.array([[0.25, 0.25], [0.75, 0.5], [0.5, 0.8]])
    image = np.zeros((1000, 1000, 3), np.uint8)
    for x, y in square.to_picture(wanted):
        cv2.circle(
            image, (round(16 * (x - 0.5)), round(16 * (y - 0.5))), round(16 * side / 16), (255,) * 3, -1, shift=4
        )
    cut = cut_square(image, square, 192)
    _, _, _, middles = cv2.connectedComponentsWithStats((cut[:, :, 0] > 127).view(np.uint8))
    distances = np.linalg.norm((middles[1:, None] + 0.5) / 192 - wanted, axis=2)
    assert distances.shape == (3, 3)
    assert distances.min(axis=1).max() < 0.01


@pytest.mark.parametrize("square", [Square(-900, -900, 2000, 10), Square(3, 2, 0.5, 0), Square(2, 2, 5000, 45)])
@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (1, 3000)])
def test_squares_beyond_the_picture_go_on_as_it_ends(square: Square, shape: tuple[int, int]) -> None:
    cut = cut_square(np.full((*shape, 3), 77, np.uint8), square, 64)
    assert cut.shape == (64, 64, 3)
    assert (cut == 77).all()
