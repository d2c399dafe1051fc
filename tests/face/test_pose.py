"""Yaw and pitch of a mesh that is rotated, scaled and moved; `test_regions_landmarks.py` tests them on an image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.frame import Size
from app.face.landmarks import compute_roll_deg, compute_yaw_pitch_deg, points_to_depths_px
from benchmarks import variants

SIZE = Size(512, 512)
turns = st.floats(-80, 80)


def make_mesh() -> np.ndarray:
    """Return a frontal face: the sample's points symmetrized, on an ellipsoid, with a nose."""
    x, y = variants.read_sample().landmarks_px[:468].T.astype(np.float64)
    x -= x.mean()
    pairs = [(33, 263), (133, 362), (61, 291), (234, 454), (127, 356), (93, 323)]
    for right, left in pairs:
        half, height = (x[left] - x[right]) / 2, (y[left] + y[right]) / 2
        x[right], x[left], y[right], y[left] = -half, half, height, height
    for one, upper in ((10, True), (109, True), (338, True), (152, False), (148, False), (377, False)):
        x[one], y[one] = 0, y.min() if upper else y.max()
    y -= (y.min() + y.max()) / 2
    return np.column_stack((x, y, (x / 46) ** 2 * 40 + (y / 60) ** 2 * 10))


MESH = make_mesh()


def rotate(roll_deg: float, yaw_deg: float, pitch_deg: float) -> np.ndarray:
    """Rotate the mesh: right-handed about the image's x (right), y (down) and z (away from the camera)."""
    rotations = [
        cv2.Rodrigues(np.radians(degrees) * np.array(axis, np.float64))[0]
        for degrees, axis in ((roll_deg, (0, 0, 1)), (-yaw_deg, (0, 1, 0)), (-pitch_deg, (1, 0, 0)))
    ]
    return MESH @ (rotations[0] @ rotations[1] @ rotations[2]).T


@given(st.floats(-180, 180), turns, turns, st.floats(0.1, 50), st.floats(-900, 900))
def test_yaw_and_pitch_are_those_of_the_rotation(
    roll_deg: float, yaw_deg: float, pitch_deg: float, scale: float, shift: float
) -> None:
    points = (scale * rotate(roll_deg, yaw_deg, pitch_deg) + shift).astype(np.float32)
    found = compute_yaw_pitch_deg(points[:, :2], points[:, 2])
    assert found == pytest.approx((yaw_deg, pitch_deg), abs=0.1)


@given(st.floats(-180, 180), turns, turns)
def test_pose_in_a_mirrored_image_is_that_of_the_mirrored_face(
    roll_deg: float, yaw_deg: float, pitch_deg: float
) -> None:
    points = (rotate(roll_deg, yaw_deg, pitch_deg) * (-1, 1, 1)).astype(np.float32)
    found = compute_yaw_pitch_deg(points[:, :2], points[:, 2])
    assert found == pytest.approx((-yaw_deg, pitch_deg), abs=0.1)


@given(st.floats(-170, 170), st.floats(-60, 60))
def test_roll_is_that_of_the_eye_axis(roll_deg: float, yaw_deg: float) -> None:
    points = rotate(roll_deg, yaw_deg, 0.0).astype(np.float32)
    assert compute_roll_deg(points[:, :2]) == pytest.approx(roll_deg, abs=0.1)


@given(turns, turns)
def test_a_mirrored_face_is_turned_to_the_other_side(yaw_deg: float, pitch_deg: float) -> None:
    points = rotate(0.0, yaw_deg, pitch_deg) * (-1, 1, 1)
    for right, left in ((33, 263), (133, 362), (61, 291), (234, 454), (127, 356), (93, 323)):
        points[[right, left]] = points[[left, right]]
    found = compute_yaw_pitch_deg(points[:, :2].astype(np.float32), points[:, 2].astype(np.float32))
    assert found == pytest.approx((-yaw_deg, pitch_deg), abs=0.1)


def test_signs_are_those_of_the_nose() -> None:
    """The tip of a nose in front of the face moves to the side that the face is turned to."""
    nose = np.array([[0.0, 0.0, -50.0]])
    for yaw_deg, pitch_deg in ((30, 0), (0, 30), (-20, 10)):
        rotated = np.vstack((rotate(0, yaw_deg, pitch_deg), nose))
        axis = cv2.Rodrigues(np.radians(-yaw_deg) * np.array([0.0, 1, 0]))[0] @ (
            cv2.Rodrigues(np.radians(-pitch_deg) * np.array([1.0, 0, 0]))[0] @ nose[0]
        )
        yaw, pitch = compute_yaw_pitch_deg(rotated[:468, :2].astype(np.float32), rotated[:468, 2].astype(np.float32))
        assert np.sign(axis[0]) == np.sign(round(yaw))
        assert np.sign(-axis[1]) == np.sign(round(pitch))


@given(st.floats(-9, 9), st.sampled_from([33, 263, 61, 234, 10, 152]))
def test_one_inaccurate_point_changes_little(noise: float, index: int) -> None:
    points = MESH.copy()
    points[index] += noise
    yaw, pitch = compute_yaw_pitch_deg(points[:, :2].astype(np.float32), points[:, 2].astype(np.float32))
    assert max(abs(yaw), abs(pitch)) <= 3


@pytest.mark.parametrize("points", [np.zeros((468, 3)), np.ones((468, 3)), np.full((468, 3), 1e30)])
def test_degenerate_points_have_a_finite_pose(points: np.ndarray) -> None:
    assert np.isfinite(compute_yaw_pitch_deg(points[:, :2].astype(np.float32), points[:, 2].astype(np.float32))).all()


def with_depths(depths: object) -> np.ndarray:
    return np.column_stack((MESH[:, :2] + 250, np.broadcast_to(depths, 468)))


@pytest.mark.parametrize(
    ("depths", "is_kept"),
    [
        (MESH[:, 2], True),
        (MESH[:, 2] - 1000, True),
        (0.0, False),
        (7.5, False),
        (MESH[:, 2] / 512, False),  # normalized, with the other coordinates in pixels
        (MESH[:, 2] * 512, False),
        (np.nan, False),
        (np.inf, False),
        (np.where(np.arange(468) == 5, 1e300, MESH[:, 2]), False),
        (np.where(np.arange(468) == 5, np.nan, MESH[:, 2]), False),
    ],
)
@pytest.mark.parametrize("is_normalized", [False, True])
def test_only_meaningful_depths_are_kept(depths: np.ndarray, is_kept: bool, is_normalized: bool) -> None:
    points = with_depths(depths)
    landmarks_px = points[:, :2].astype(np.float32)
    with np.errstate(over="ignore"):
        sent = points / 512 if is_normalized else points
    found = points_to_depths_px(sent, landmarks_px, image_size=SIZE, is_normalized=is_normalized)
    assert (found is not None) == is_kept
    if found is not None:
        assert found.dtype == np.float32
        assert found == pytest.approx(np.asarray(depths), rel=1e-5)


def test_points_without_depths_have_none() -> None:
    points = MESH[:, :2] + 250
    assert points_to_depths_px(points, points.astype(np.float32), image_size=SIZE) is None


def test_normalized_depths_are_on_the_scale_of_x() -> None:
    points = with_depths(MESH[:, 2]) / (1024, 512, 1024)
    landmarks_px = (points[:, :2] * (1024, 512)).astype(np.float32)
    found = points_to_depths_px(points, landmarks_px, image_size=Size(1024, 512), is_normalized=True)
    assert found == pytest.approx(MESH[:, 2], rel=1e-4, abs=1e-3)
