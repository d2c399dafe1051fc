"""Frames: their content, transforms and warped images."""

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
    drop_opaque_alpha,
    invert_transform,
    make_frame,
    transform_points,
    warp_image,
)
from app.face.landmarks import compute_roll_deg

if TYPE_CHECKING:
    import numpy.typing as npt

IMAGE_SIZE = Size(200, 120)
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


def test_default_frame_is_the_read_only_identity() -> None:
    frame = make_frame(IMAGE_SIZE, FACE, 17.0, Framing())
    assert (frame.size, frame.is_identity) == (IMAGE_SIZE, True)
    assert frame.transform is frame.inverse is IDENTITY_TRANSFORM
    with pytest.raises(ValueError, match="read-only"):
        IDENTITY_TRANSFORM[0, 0] = 2


@given(sizes, rolls, framings(), st.integers(0, 999))
def test_transform_and_inverse_cancel(image: Size, roll_deg: float, framing: Framing, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-0.25, 1.25, (478, 2)) * image
    frame = make_frame(image, points, roll_deg, framing)
    there = transform_points(points, frame.transform)
    assert np.abs(transform_points(there, frame.inverse) - points).max() < ROUNDING * max(image)
    again = transform_points(transform_points(points, frame.inverse), frame.transform)
    assert np.abs(again - points).max() < ROUNDING * max(image)


@given(sizes, rolls, framings(), st.integers(0, 999))
def test_frame_contains_the_image_or_the_landmarks(image: Size, roll_deg: float, framing: Framing, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-0.25, 1.25, (478, 2)) * image
    frame = make_frame(image, points, roll_deg, framing)
    corners = np.array([[0, 0], [image.width, 0], [0, image.height], image], np.float64)
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
    landmarks_px[10], landmarks_px[152] = 250 - reach[::-1] * (-1, 1), 250 + reach[::-1] * (-1, 1)  # forehead, chin
    framing = Framing(is_upright=True, is_cropped=is_cropped, longer_side=longer_side)
    frame = make_frame(Size(500, 500), landmarks_px, roll_deg, framing)
    moved = transform_points(landmarks_px, frame.transform).astype(np.float32)
    assert abs(compute_roll_deg(moved)) < 0.5


def test_cropping_alone_keeps_the_pixel_grid() -> None:
    image = np.random.default_rng(3).integers(0, 256, (120, 200, 3), np.uint8)
    frame = make_frame(IMAGE_SIZE, FACE, 30.0, Framing(is_cropped=True, margin=0.3))
    left, top = (-frame.transform[:, 2]).astype(int)
    width, height = frame.size
    assert np.array_equal(warp_image(image, frame), image[top : top + height, left : left + width])


@pytest.mark.parametrize("roll_deg", [0.0, 25.0, -90.0, 180.0])
@pytest.mark.parametrize("longer_side", [None, 90, 700])
def test_warped_pixels_match_transformed_points(roll_deg: float, longer_side: int | None) -> None:
    image = np.zeros((120, 200, 3), np.uint8)
    points = np.array([[40.5, 30.5], [150.5, 90.5], [100.5, 60.5]])
    for x, y in points:
        cv2.circle(image, (int(x), int(y)), 5, (255, 255, 255), -1)
    frame = make_frame(IMAGE_SIZE, points, roll_deg, Framing(is_upright=True, longer_side=longer_side))
    drawn = warp_image(image, frame)
    _, _, _, centres = cv2.connectedComponentsWithStats((drawn[:, :, 0] > 127).view(np.uint8))
    expected = transform_points(points, frame.transform)
    # Component centres are pixel indices, half a pixel less than points.
    distances = np.linalg.norm(centres[1:, None] + 0.5 - expected, axis=2)
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
def test_only_pixels_outside_the_image_are_transparent(framing: Framing, roll_deg: float, channels: int) -> None:
    image = np.full((120, 200, 3), 200, np.uint8)
    frame = make_frame(IMAGE_SIZE, FACE, roll_deg, framing)
    drawn = warp_image(image, frame)
    assert drawn.shape == (frame.size.height, frame.size.width, channels)
    assert (drawn[:, :, :3] == 200).all(), "edge colours are replicated"
    if channels == 4:
        shares = drawn[:, :, 3].mean() / 255 * frame.size.width * frame.size.height
        scale = abs(float(np.linalg.det(frame.transform[:, :2])))
        assert shares == pytest.approx(200 * 120 * scale, rel=0.02)


def test_alpha_is_kept_unless_opaque() -> None:
    image = np.full((120, 200, 4), 255, np.uint8)
    frame = make_frame(IMAGE_SIZE, FACE, 0.0, Framing(longer_side=100))
    assert warp_image(image, frame).shape == (60, 100, 3)
    assert warp_image(image, Frame(IMAGE_SIZE)).shape == (120, 200, 3)
    image[:, :100, 3] = 0
    drawn = warp_image(image, frame)
    assert drawn.shape == (60, 100, 4)
    assert (drawn[:, :49, 3].max(), drawn[:, 51:, 3].min()) == (0, 255)
    assert drop_opaque_alpha(image) is image


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("longer_side", [16, 64])
def test_images_of_one_pixel_or_line_are_warped(size: tuple[int, int], longer_side: int) -> None:
    height, width = size
    points: npt.NDArray[np.float64] = np.array([[0.0, 0.0], [width, height]])
    frame = make_frame(Size(width, height), points, 10.0, Framing(is_upright=True, longer_side=longer_side))
    drawn = warp_image(np.full((height, width, 3), 9, np.uint8), frame)
    assert drawn.shape[:2] == (frame.size.height, frame.size.width)


def test_inverse_of_the_inverse_is_the_transform() -> None:
    transform = np.array([[2.0, 1.0, 7.0], [-1.0, 3.0, 5.0]])
    assert np.allclose(invert_transform(invert_transform(transform)), transform)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("roll_deg", [0.0, 30.0])
def test_frame_of_a_reduced_image_shows_the_same(reduction: int, roll_deg: float) -> None:
    """Blobs of the image and of its reduction are at the same place of the output."""
    size = Size(643, 485)
    xs, ys = np.meshgrid(np.arange(size.width) + 0.5, np.arange(size.height) + 0.5)
    full = np.zeros((size.height, size.width, 3), np.float64)
    for channel, (x, y) in enumerate([(200, 150), (420, 220), (300, 380)]):
        full[:, :, channel] = 255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 2 / 20**2)
    height, width = -(-size.height // reduction), -(-size.width // reduction)
    padded = np.pad(full, ((0, height * reduction - size.height), (0, width * reduction - size.width), (0, 0)), "edge")
    reduced = padded.reshape(height, reduction, width, reduction, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    face = np.array([[150.0, 120.0], [450.0, 400.0]])
    framing = Framing(is_upright=True, is_cropped=True, longer_side=50)
    frame = make_frame(size, face, roll_deg, framing)
    assert frame.scale <= 1 / reduction
    one, other = (
        warp_image(image, shown).astype(float)
        for image, shown in ((full.round().astype(np.uint8), frame), (reduced, frame.reduce(reduction)))
    )
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 2
    for channel in range(3):
        weights = one[:, :, channel], other[:, :, channel]
        centres = [
            np.array([(grid * weight).sum() / weight.sum() for grid in np.indices(weight.shape)]) for weight in weights
        ]
        assert np.abs(centres[0] - centres[1]).max() < 0.1
