"""BlazeFace without its models: anchors, letterboxing and non-maximum suppression."""

from __future__ import annotations

import numpy as np
import pytest

from app.face.detection.blazeface import (
    FULL_RANGE,
    SHORT_RANGE,
    Detection,
    compute_iou,
    letterbox,
    make_anchors,
    merge_detections,
    non_max_suppression,
    translate_detection,
    weighted_non_max_suppression,
)


@pytest.mark.parametrize(
    ("grids", "count", "first", "last"),
    [
        (SHORT_RANGE.grids, 896, 1 / 32, 15 / 16),
        (FULL_RANGE.grids, 2304, 1 / 96, 95 / 96),
    ],
)
def test_anchors_are_cell_centres(grids: tuple[tuple[int, int], ...], count: int, first: float, last: float) -> None:
    anchors = make_anchors(grids)
    assert anchors.shape == (count, 2)
    assert anchors[0].tolist() == [first, first]
    assert anchors[-1] == pytest.approx([last, last])
    assert anchors[grids[0][1]].tolist() == [3 * first, first], "row by row"


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
def test_letterbox_centres_the_image(shape: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    square, scale, left, top = letterbox(np.full((*shape, 3), 255, np.uint8), 128)
    x, y, width, height = box
    expected = np.zeros((128, 128, 3), np.uint8)
    expected[y : y + height, x : x + width] = 255
    assert np.array_equal(square, expected)
    assert (scale, left, top) == (128 / max(shape), x, y)


def candidate(x: float, y: float, side: float) -> np.ndarray:
    """Return centre, size and six keypoints, each at the centre."""
    return np.array([[x, y], [side, side], *[[x, y]] * 6], np.float64)


def test_overlapping_candidates_are_merged_by_weight() -> None:
    points = np.stack([candidate(10, 10, 8), candidate(100, 100, 8), candidate(11, 10, 8)])
    merged = weighted_non_max_suppression(points, np.array([0.9, 0.6, 0.3]))
    assert [found.confidence for found in merged] == [0.9, 0.6]
    assert merged[0].box == pytest.approx((10.25 - 4, 6, 8, 8))
    assert merged[0].keypoints[0].tolist() == [10.25, 10]
    assert merged[1].box == (96, 96, 8, 8)


def test_boxes_without_area_are_dropped() -> None:
    assert weighted_non_max_suppression(np.stack([candidate(5, 5, 0), candidate(9, 9, -2)]), np.array([0.9, 0.8])) == []
    assert weighted_non_max_suppression(np.empty((0, 8, 2)), np.empty(0)) == []


@pytest.mark.parametrize(
    ("other", "overlap"),
    [((10, 10, 4), 1), ((12, 10, 4), 1 / 3), ((14, 10, 4), 0), ((10, 10, 2), 0.25), ((50, 50, 4), 0), ((10, 10, 0), 0)],
)
def test_iou_is_intersection_over_union(other: tuple[float, float, float], overlap: float) -> None:
    assert compute_iou(candidate(10, 10, 4), candidate(*other)[None]) == pytest.approx([overlap])


def test_non_max_suppression_keeps_the_highest_confidence() -> None:
    def found(x: float, confidence: float) -> Detection:
        return Detection((x, 0.0, 10.0, 10.0), np.zeros((6, 2), np.float32), confidence)

    moved = translate_detection(found(0.0, 0.7), 3.0, 4.0)
    assert (moved.box, moved.keypoints[5].tolist()) == ((3.0, 4.0, 10.0, 10.0), [3.0, 4.0])
    kept = non_max_suppression([found(x, 1).box for x in (0, 1, 30)], [0.7, 0.9, 0.8])
    assert kept == [1, 2]
    assert non_max_suppression([], []) == []


def test_detections_of_several_models_are_merged() -> None:
    def found(x: float, confidence: float) -> Detection:
        return Detection((x, 0.0, 10.0, 10.0), np.full((6, 2), x, np.float32), confidence)

    merged = merge_detections([found(0, 0.25), found(1, 0.75), found(30, 0.5)])
    assert [one.confidence for one in merged] == [0.75, 0.5]
    assert merged[0].box == pytest.approx((0.75, 0, 10, 10))
    assert merged[0].keypoints[0].tolist() == [0.75, 0.75]
    assert merge_detections([]) == []
