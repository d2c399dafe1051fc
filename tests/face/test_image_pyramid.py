"""Images at several scales: which levels are decoded, and where their pixels are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.frame import Size
from app.face.image_pyramid import (
    OVERVIEW_SIDE,
    ImagePyramid,
    Level,
    blend_on_grey,
    make_closeup,
    make_overview,
    shrink,
)


def make_pyramid(size: Size, decoded: list[int]) -> ImagePyramid:
    def decode(reduction: int) -> np.ndarray:
        decoded.append(reduction)
        return np.zeros((-(-size.height // reduction), -(-size.width // reduction), 3), np.uint8)

    return ImagePyramid(size, decode, (1, 2, 4, 8))


@pytest.mark.parametrize(
    ("wanted", "levels", "decoded"),
    [
        ([0.3], [1], [1]),
        ([1.9], [1], [1]),
        ([2 - 1e-9], [2], [2]),
        ([7.9], [4], [4]),
        ([100], [8], [8]),
        ([1, 8], [1, 1], [1]),
        ([8, 1, 4], [8, 1, 1], [8, 1]),
        ([8, 2, 4, 8], [8, 2, 2, 8], [8, 2]),
    ],
)
def test_levels_are_decoded_once_and_reused(wanted: list[float], levels: list[int], decoded: list[int]) -> None:
    calls: list[int] = []
    pyramid = make_pyramid(Size(101, 67), calls)
    assert [pyramid.get_level(reduction).reduction for reduction in wanted] == levels
    assert calls == decoded


@given(
    width=st.integers(1, 3 * OVERVIEW_SIDE), height=st.integers(1, 3 * OVERVIEW_SIDE), channels=st.sampled_from([3, 4])
)
def test_overview_is_bgr_of_bounded_size(width: int, height: int, channels: int) -> None:
    image = np.zeros((height, width, channels), np.uint8)
    overview = make_overview(ImagePyramid.from_pixels(image).get_level(1))
    assert overview.pixels.shape[2] == 3
    longest = max(overview.pixels.shape[:2])
    assert longest == max(width, height) or OVERVIEW_SIDE <= longest < 2 * OVERVIEW_SIDE
    assert all(
        0 <= side - reduced * overview.reduction < overview.reduction
        for side, reduced in zip((height, width), overview.pixels.shape[:2], strict=True)
    )


@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize("centre", [(0, 0), (110, 70), (150.5, 100.2), (-9, 999)])
def test_closeup_of_transparent_pixels_is_where_they_are(centre: tuple[float, float], reduction: int) -> None:
    """Each pixel of the image contains its coordinates, divided by two."""
    rows, columns = np.mgrid[: 200 // reduction, : 300 // reduction] * reduction
    pixels = np.stack([columns // 2, rows // 2, 0 * rows, 0 * rows + 255], axis=2).astype(np.uint8)
    closeup = make_closeup(Level(pixels, reduction), *centre, reach=30, max_reduction=4)
    assert closeup.pixels.shape[2] == 3
    assert closeup.reduction <= 4
    middle = np.array([[closeup.pixels.shape[1] // 2, closeup.pixels.shape[0] // 2]])
    blue, green, _ = closeup.pixels[middle[0, 1], middle[0, 0]]
    found = closeup.to_image(middle)[0]
    assert np.abs(found - (2.0 * blue, 2.0 * green)).max() <= 2 + closeup.reduction
    assert np.allclose(closeup.from_image(closeup.to_image(middle)), middle)


def test_shrink_averages_whole_blocks() -> None:
    pixels = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
    expected = pixels[:6, :4].reshape(3, 2, 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrink(pixels, 2) - expected).max() <= 0.5


def test_blending_needs_no_copy_of_an_opaque_format() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert blend_on_grey(pixels) is pixels
