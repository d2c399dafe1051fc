"""Frames: what they hold, the way there and back, and the photo drawn in them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.frame import (
    IDENTITY_TRANSFORM,
    Frame,
    Framing,
    Size,
    drop_full_alpha,
    invert_transform,
    make_frame,
    transform_points,
    warp_photo,
)
from app.face.landmarks import compute_roll_deg

if TYPE_CHECKING:
    import numpy.typing as npt

PHOTO = Size(200, 120)
FACE = np.array([[50.0, 40.0], [90.0, 70.0], [60.0, 80.0]])
ROUNDING = 1e-5


@st.composite
def framings(draw: st.DrawFn) -> Framing:
    return Framing(
        is_upright=draw(st.booleans()),
        is_cropped=draw(st.booleans()),
        margin=draw(st.floats(0, 4)),
        longer_side=draw(st.none() | st.integers(16, 4096)),
    )


sizes = st.builds(Size, st.integers(1, 6000), st.integers(1, 6000))
rolls = st.floats(-180, 180)


def test_the_photos_frame_is_the_identity_and_cannot_be_changed() -> None:
    frame = make_frame(PHOTO, FACE, 17.0, Framing())
    assert (frame.size, frame.is_photo) == (PHOTO, True)
    assert frame.transform is frame.inverse is IDENTITY_TRANSFORM
    with pytest.raises(ValueError, match="read-only"):
        IDENTITY_TRANSFORM[0, 0] = 2


@given(sizes, rolls, framings(), st.integers(0, 999))
def test_points_come_back(photo: Size, roll_deg: float, framing: Framing, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-0.25, 1.25, (478, 2)) * photo
    frame = make_frame(photo, points, roll_deg, framing)
    there = transform_points(points, frame.transform)
    assert np.abs(transform_points(there, frame.inverse) - points).max() < ROUNDING * max(photo)
    again = transform_points(transform_points(points, frame.inverse), frame.transform)
    assert np.abs(again - points).max() < ROUNDING * max(photo)


@given(sizes, rolls, framings(), st.integers(0, 999))
def test_a_frame_holds_what_it_is_for(photo: Size, roll_deg: float, framing: Framing, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-0.25, 1.25, (478, 2)) * photo
    frame = make_frame(photo, points, roll_deg, framing)
    corners = np.array([[0, 0], [photo.width, 0], [0, photo.height], photo], np.float64)
    held = transform_points(points if framing.is_cropped else corners, frame.transform)
    assert held.min() >= -ROUNDING * max(frame.size)
    assert (held <= np.array(frame.size) + ROUNDING * max(frame.size)).all()
    if framing.longer_side:
        assert max(frame.size) == framing.longer_side


@given(rolls, st.booleans(), st.none() | st.integers(16, 4096))
def test_upright_faces_are_level(roll_deg: float, is_cropped: bool, longer_side: int | None) -> None:
    landmarks_px = np.random.default_rng(1).uniform(0, 500, (478, 2))
    reach = 100 * np.array([math.cos(math.radians(roll_deg)), math.sin(math.radians(roll_deg))])
    landmarks_px[33], landmarks_px[263] = 250 - reach, 250 + reach
    framing = Framing(is_upright=True, is_cropped=is_cropped, longer_side=longer_side)
    frame = make_frame(Size(500, 500), landmarks_px, roll_deg, framing)
    moved = transform_points(landmarks_px, frame.transform).astype(np.float32)
    assert abs(compute_roll_deg(moved)) < 0.5


def test_without_turning_or_scaling_pixels_keep_their_grid() -> None:
    photo = np.random.default_rng(3).integers(0, 256, (120, 200, 3), np.uint8)
    frame = make_frame(PHOTO, FACE, 30.0, Framing(is_cropped=True, margin=0.3))
    left, top = (-frame.transform[:, 2]).astype(int)
    width, height = frame.size
    assert np.array_equal(warp_photo(photo, frame), photo[top : top + height, left : left + width])


@pytest.mark.parametrize("roll_deg", [0.0, 25.0, -90.0, 180.0])
@pytest.mark.parametrize("longer_side", [None, 90, 700])
def test_what_is_drawn_is_where_points_go(roll_deg: float, longer_side: int | None) -> None:
    photo = np.zeros((120, 200, 3), np.uint8)
    points = np.array([[40.5, 30.5], [150.5, 90.5], [100.5, 60.5]])
    for x, y in points:
        cv2.circle(photo, (int(x), int(y)), 5, (255, 255, 255), -1)
    frame = make_frame(PHOTO, points, roll_deg, Framing(is_upright=True, longer_side=longer_side))
    drawn = warp_photo(photo, frame)
    _, _, _, middles = cv2.connectedComponentsWithStats((drawn[:, :, 0] > 127).view(np.uint8))
    expected = transform_points(points, frame.transform)
    # A component's middle is told in indices of pixels, which are half a pixel less than points.
    distances = np.linalg.norm(middles[1:, None] + 0.5 - expected, axis=2)
    assert distances.shape == (3, 3)
    assert distances.min(axis=1).max() < 0.5
    assert sorted(distances.argmin(axis=1).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("framing", "roll_deg", "channels"),
    [
        (Framing(longer_side=100), 0.0, 3),
        (Framing(longer_side=333), 0.0, 3),
        (Framing(is_cropped=True), 0.0, 3),
        (Framing(is_cropped=True, is_upright=True), 20.0, 3),
        (Framing(is_cropped=True, is_upright=True, longer_side=17), 20.0, 3),
        (Framing(is_upright=True), 20.0, 4),
        (Framing(is_upright=True), 90.0, 3),
        (Framing(is_cropped=True, margin=4.0), 0.0, 4),
    ],
)
def test_opacity_is_there_only_where_there_is_no_photo(framing: Framing, roll_deg: float, channels: int) -> None:
    photo = np.full((120, 200, 3), 200, np.uint8)
    frame = make_frame(PHOTO, FACE, roll_deg, framing)
    drawn = warp_photo(photo, frame)
    assert drawn.shape == (frame.size.height, frame.size.width, channels)
    assert (drawn[:, :, :3] == 200).all(), "the photo's colour goes on to where it ends"
    if channels == 4:
        shares = drawn[:, :, 3].mean() / 255 * frame.size.width * frame.size.height
        scale = abs(float(np.linalg.det(frame.transform[:, :2])))
        assert shares == pytest.approx(200 * 120 * scale, rel=0.02)


def test_transparency_is_kept_and_a_full_one_dropped() -> None:
    photo = np.full((120, 200, 4), 255, np.uint8)
    frame = make_frame(PHOTO, FACE, 0.0, Framing(longer_side=100))
    assert warp_photo(photo, frame).shape == (60, 100, 3)
    assert warp_photo(photo, Frame(PHOTO)).shape == (120, 200, 3)
    photo[:, :100, 3] = 0
    drawn = warp_photo(photo, frame)
    assert drawn.shape == (60, 100, 4)
    assert (drawn[:, :49, 3].max(), drawn[:, 51:, 3].min()) == (0, 255)
    assert drop_full_alpha(photo) is photo


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("longer_side", [16, 64])
def test_photos_of_a_pixel_or_a_line_are_drawn(size: tuple[int, int], longer_side: int) -> None:
    height, width = size
    points: npt.NDArray[np.float64] = np.array([[0.0, 0.0], [width, height]])
    frame = make_frame(Size(width, height), points, 10.0, Framing(is_upright=True, longer_side=longer_side))
    drawn = warp_photo(np.full((height, width, 3), 9, np.uint8), frame)
    assert drawn.shape[:2] == (frame.size.height, frame.size.width)


def test_inverse_of_the_inverse() -> None:
    transform = np.array([[2.0, 1.0, 7.0], [-1.0, 3.0, 5.0]])
    assert np.allclose(invert_transform(invert_transform(transform)), transform)
