"""BlazeFace without its models: anchors, the square, and merging."""

from __future__ import annotations

import numpy as np
import pytest

from app.face.blazeface import (
    FULL_RANGE,
    SHORT_RANGE,
    Detection,
    compute_overlaps,
    drop_doubles,
    fit_square,
    make_anchors,
    merge_detections,
    move_detection,
)


@pytest.mark.parametrize(
    ("cells", "count", "first", "last"),
    [
        (SHORT_RANGE.cells, 896, 1 / 32, 15 / 16),
        (FULL_RANGE.cells, 2304, 1 / 96, 95 / 96),
    ],
)
def test_anchors_are_the_middles_of_cells(
    cells: tuple[tuple[int, int], ...], count: int, first: float, last: float
) -> None:
    anchors = make_anchors(cells)
    assert anchors.shape == (count, 2)
    assert anchors[0].tolist() == [first, first]
    assert anchors[-1] == pytest.approx([last, last])
    assert anchors[cells[0][1]].tolist() == [3 * first, first], "along a row first"


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((100, 200), (0, 32, 128, 64)),
        ((200, 100), (32, 0, 64, 128)),
        ((64, 64), (0, 0, 128, 128)),
        ((1, 5000), (0, 63, 128, 1)),
        ((1, 1), (0, 0, 128, 128)),
    ],
)
def test_a_picture_is_fitted_into_the_middle(shape: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    square, scale, left, top = fit_square(np.full((*shape, 3), 255, np.uint8), 128)
    x, y, width, height = box
    expected = np.zeros((128, 128, 3), np.uint8)
    expected[y : y + height, x : x + width] = 255
    assert np.array_equal(square, expected)
    assert (scale, left, top) == (128 / max(shape), x, y)


def candidate(x: float, y: float, side: float) -> np.ndarray:
    """Build middle, size and six keypoints, each at the middle."""
    return np.array([[x, y], [side, side], *[[x, y]] * 6], np.float64)


def test_what_overlaps_is_merged_by_weight() -> None:
    points = np.stack([candidate(10, 10, 8), candidate(100, 100, 8), candidate(11, 10, 8)])
    merged = merge_detections(points, np.array([0.9, 0.6, 0.3]))
    assert [found.confidence for found in merged] == [0.9, 0.6]
    assert merged[0].box == pytest.approx((10.25 - 4, 6, 8, 8))
    assert merged[0].keypoints[0].tolist() == [10.25, 10]
    assert merged[1].box == (96, 96, 8, 8)


def test_boxes_of_no_size_are_no_faces() -> None:
    assert merge_detections(np.stack([candidate(5, 5, 0), candidate(9, 9, -2)]), np.array([0.9, 0.8])) == []
    assert merge_detections(np.empty((0, 8, 2)), np.empty(0)) == []


@pytest.mark.parametrize(
    ("other", "overlap"),
    [((10, 10, 4), 1), ((12, 10, 4), 1 / 3), ((14, 10, 4), 0), ((10, 10, 2), 0.25), ((50, 50, 4), 0), ((10, 10, 0), 0)],
)
def test_overlap_is_common_area_by_all_area(other: tuple[float, float, float], overlap: float) -> None:
    assert compute_overlaps(candidate(10, 10, 4), candidate(*other)[None]) == pytest.approx([overlap])


def test_detections_of_several_parts_become_one_each() -> None:
    def found(x: float, confidence: float) -> Detection:
        return Detection((x, 0.0, 10.0, 10.0), np.zeros((6, 2), np.float32), confidence)

    moved = move_detection(found(0.0, 0.7), 3.0, 4.0)
    assert (moved.box, moved.keypoints[5].tolist()) == ((3.0, 4.0, 10.0, 10.0), [3.0, 4.0])
    kept = drop_doubles([found(0, 0.7), found(1, 0.9), found(30, 0.8)])
    assert [one.confidence for one in kept] == [0.9, 0.8]
    assert drop_doubles([]) == []
