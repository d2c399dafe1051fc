"""Square ROIs of faces and eyes; `test_landmark_detector.py` tests the models."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.detection.mesh import SquareRoi, crop_roi, make_roi

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])


@given(st.floats(-500, 500), st.floats(-500, 500), st.floats(1, 900), st.floats(-180, 180))
def test_square_roi_is_a_rotated_square(x: float, y: float, side: float, roll_deg: float) -> None:
    a, b, c, d, centre = SquareRoi(x, y, side, roll_deg).to_image(CORNERS)
    assert np.allclose(centre, (x, y))
    assert np.allclose([np.linalg.norm(b - a), np.linalg.norm(c - a), np.linalg.norm(d - b)], side)
    down = np.degrees(np.arctan2(*(b - a)[::-1]))
    assert np.isclose(np.cos(np.radians(down - roll_deg)), 1)


@given(st.integers(0, 999), st.floats(-180, 180), st.floats(1, 3))
def test_roi_contains_its_points(seed: int, roll_deg: float, scale: float) -> None:
    points = np.random.default_rng(seed).uniform(0, 300, (50, 2))
    across = np.array([np.cos(np.radians(roll_deg)), np.sin(np.radians(roll_deg))])
    roi = make_roi(points, points[0], points[0] + 20 * across, scale)
    start, right, down = roi.to_image(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    axes = np.stack([right - start, down - start]) / roi.side**2
    inside = (points - start) @ axes.T
    assert inside.min() > -1e-6
    assert inside.max() < 1 + 1e-6
    # In one direction, the points span exactly the side of the roi divided by the scale.
    assert np.ptp(inside, axis=0).max() == pytest.approx(1 / scale)


@pytest.mark.parametrize("side", [40.0, 300.0, 900.0])
@pytest.mark.parametrize("roll_deg", [0.0, 30.0, -120.0])
def test_crop_matches_transformed_points(side: float, roll_deg: float) -> None:
    roi = SquareRoi(500.0, 480.0, side, roll_deg)
    wanted = np.array([[0.25, 0.25], [0.75, 0.5], [0.5, 0.8]])
    image = np.zeros((1000, 1000, 3), np.uint8)
    for x, y in roi.to_image(wanted):
        cv2.circle(
            image, (round(16 * (x - 0.5)), round(16 * (y - 0.5))), round(16 * side / 16), (255,) * 3, -1, shift=4
        )
    crop = crop_roi(image, roi, 192)
    _, _, _, centres = cv2.connectedComponentsWithStats((crop[:, :, 0] > 127).view(np.uint8))
    distances = np.linalg.norm((centres[1:, None] + 0.5) / 192 - wanted, axis=2)
    assert distances.shape == (3, 3)
    assert distances.min(axis=1).max() < 0.01


@pytest.mark.parametrize("roi", [SquareRoi(-900, -900, 2000, 10), SquareRoi(3, 2, 0.5, 0), SquareRoi(2, 2, 5000, 45)])
@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (1, 3000)])
def test_crop_replicates_edge_pixels(roi: SquareRoi, shape: tuple[int, int]) -> None:
    crop = crop_roi(np.full((*shape, 3), 77, np.uint8), roi, 64)
    assert crop.shape == (64, 64, 3)
    assert (crop == 77).all()
