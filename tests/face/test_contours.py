import itertools
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.face.contours import (
    Polygon,
    has_few_points,
    measure_rings,
    trace_labels,
)
from app.face.errors import LabelMapComplexityError
from app.face.simplification import simplify_rings

Labels = npt.NDArray[np.uint8]
Ring = npt.NDArray[np.float32]

label_maps = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 3))
tenths = st.integers(-3000, 30000).map(lambda value: value / 10)
float_rings = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(2)), elements=tenths.map(np.float32))
pixel_rings = hnp.arrays(np.float32, st.tuples(st.integers(1, 60), st.just(2)), elements=st.integers(0, 12))
rings = st.one_of(float_rings, pixel_rings)


def simplify(ring: Ring, tolerance_px: float) -> Ring:
    return simplify_rings([ring], tolerance_px)[0]


def trace_all(labels: Labels) -> dict[int, list[Polygon]]:
    return trace_labels(labels, np.unique(labels[labels > 0]).tolist())


def draw(*rows: str) -> Labels:
    """Return a label map from rows of digits; a dot is background."""
    return np.array([[int(cell.replace(".", "0")) for cell in row] for row in rows], np.uint8)


@given(label_maps)
def test_filling_traced_contours_restores_the_labels(geometry: Any, labels: Labels) -> None:
    filled = np.zeros_like(labels)
    for label_id, polygons in trace_all(labels).items():
        for polygon in polygons:
            area = geometry.fill(labels.shape, polygon)
            assert not filled[area].any()
            filled[area] = label_id
    assert (filled == labels).all()


@given(label_maps)
def test_polygons_match_connected_areas_and_holes_match_gaps(labels: Labels) -> None:
    for label_id, polygons in trace_all(labels).items():
        mask = np.pad((labels == label_id).astype(np.uint8), 1)
        areas = cv2.connectedComponents(mask, connectivity=8)[0] - 1
        gaps = cv2.connectedComponents(1 - mask, connectivity=4)[0] - 2
        assert len(polygons) == areas
        assert sum(len(polygon.holes) for polygon in polygons) == gaps


NESTED = draw(
    "1111111.22",
    "1.....1.2.",
    "1.333.1.22",
    "1.3.3.1...",
    "1.333.1.1.",
    "1.....1...",
    "1111111...",
)


def test_holes_keep_their_parents_and_islands_are_separate_polygons() -> None:
    polygons = trace_all(NESTED)[1]
    by_corner = {tuple(polygon.outer.min(axis=0).tolist()): polygon for polygon in polygons}
    assert sorted(by_corner) == [(0, 0), (8, 4)]
    (hole,) = by_corner[0, 0].holes
    assert (*hole.min(axis=0), *hole.max(axis=0)) == (0, 0, 6, 6)
    assert by_corner[8, 4].holes == ()
    (island,) = trace_all(NESTED)[3]
    assert sorted(island.outer.tolist()) == [[2, 2], [2, 4], [4, 2], [4, 4]]
    assert len(island.holes) == 1


def test_island_in_a_hole_is_a_separate_polygon_of_the_label() -> None:
    labels = draw("1111111", "1.....1", "1.111.1", "1.1.1.1", "1.111.1", "1.....1", "1111111")
    polygons = trace_all(labels)[1]
    assert sorted(polygon.outer.max() for polygon in polygons) == [4, 6]
    assert [len(polygon.holes) for polygon in polygons] == [1, 1]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3], {1: 2, 2: 1, 3: 1}),
        ([3, 1], {3: 1, 1: 2}),
        ([2, 9], {2: 1, 9: 0}),
        ([], {}),
    ],
)
def test_requested_labels_are_traced_in_order(ids: list[int], expected: dict[int, int]) -> None:
    traced = trace_labels(NESTED, ids)
    assert [(label_id, len(polygons)) for label_id, polygons in traced.items()] == list(expected.items())


def test_coordinates_refer_to_the_label_map() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[30:, 50:] = 7
    (polygon,) = trace_all(labels)[7]
    assert sorted(polygon.outer.tolist()) == [[50, 30], [50, 39], [59, 30], [59, 39]]
    assert polygon.outer.dtype == np.float32
    assert polygon.holes == ()


def test_all_255_labels_are_traced() -> None:
    labels = np.repeat(np.arange(256, dtype=np.uint8), 12).reshape(-1, 4)
    traced = trace_all(labels)
    assert list(traced) == list(range(1, 256))
    assert all(traced[label_id][0].outer[:, 1].min() == 3 * label_id for label_id in traced)


def test_background_has_no_labels() -> None:
    assert trace_all(np.zeros((3, 3), np.uint8)) == {}


@given(rings, st.floats(0.01, 50))
@example(np.array([[0, 0], [10, 0], [10, 10], [0, 10]], np.float32), 0.5)
@example(np.array([[0, 0], [4, 0], [8, 0], [4, 0]], np.float32), 0.5)
def test_simplified_ring_is_within_the_tolerance(geometry: Any, ring: Ring, tolerance_px: float) -> None:
    simplified = simplify(ring, tolerance_px)
    assert 1 <= len(simplified) <= len(ring)
    for point in ring:
        assert geometry.distance_to_ring(point, simplified) <= tolerance_px * (1 + 1e-9) + 1e-9


@given(rings, st.floats(0.01, 50))
def test_simplified_ring_is_an_ordered_subset(ring: Ring, tolerance_px: float) -> None:
    remaining = iter(ring.tolist())
    simplified = simplify(ring, tolerance_px)
    assert all(point in remaining for point in simplified.tolist())
    assert simplified[0].tolist() == ring[0].tolist()


@given(st.lists(rings, min_size=1, max_size=5), st.floats(0.01, 50))
def test_simplifying_rings_together_or_alone_is_equivalent(some: list[Ring], tolerance_px: float) -> None:
    together = simplify_rings(some, tolerance_px)
    for ring, simplified in zip(some, together, strict=True):
        np.testing.assert_array_equal(simplified, simplify(ring, tolerance_px))


@given(rings)
def test_zero_tolerance_returns_the_ring(ring: Ring) -> None:
    assert simplify(ring, 0) is ring


def test_tolerance_holds_if_opencv_exceeds_it(geometry: Any) -> None:
    corners = [(26, 10), (19, 11), (9, 10), (-10, 4), (-27, -2), (-27, -8), (-17, -10), (-5, -7), (13, -6), (25, 2)]
    ring = np.array(corners, np.float32)

    def farthest(simplified: npt.NDArray[Any]) -> float:
        return max(0.0, *(geometry.distance_to_ring(point, simplified) for point in ring))

    assert farthest(cv2.approxPolyDP(ring, 3, closed=True)[:, 0]) > 3.5
    assert farthest(simplify(ring, 3)) <= 3
    assert len(simplify(ring, 3)) < len(ring)


def test_circle_is_simplified() -> None:
    angles = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    circle = (100 * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)
    # On a circle of radius 100, a chord of 11.5 degrees is 0.5 from its arc, so 32 chords suffice.
    assert 31 <= len(simplify(circle, 0.5)) <= 64


@given(rings)
def test_area_matches_independent_formulas(geometry: Any, ring: Ring) -> None:
    area_px = geometry.area_px(Polygon(ring))
    assert area_px == pytest.approx(abs(geometry.signed_area(ring)), abs=1e-6)
    # OpenCV also computes in double precision, but from coordinates rounded to single precision.
    assert area_px == pytest.approx(cv2.contourArea(ring), abs=0.5, rel=1e-4)


@given(rings, rings)
def test_holes_are_subtracted(geometry: Any, outer: Ring, hole: Ring) -> None:
    expected = geometry.area_px(Polygon(outer)) - geometry.area_px(Polygon(hole))
    assert geometry.area_px(Polygon(outer, (hole,))) == pytest.approx(expected)


@given(st.lists(rings, min_size=1, max_size=6))
def test_boxes_match_each_ring(some: list[Ring]) -> None:
    _, boxes = measure_rings(some)
    for ring, box in zip(some, boxes.tolist(), strict=True):
        assert box == np.round([*ring.min(axis=0).astype(float), *ring.max(axis=0).astype(float)], 1).tolist()


@given(rings, st.integers(0, 39))
def test_area_is_independent_of_start_and_direction(geometry: Any, ring: Ring, start: int) -> None:
    area_px = geometry.area_px(Polygon(ring))
    assert geometry.area_px(Polygon(np.roll(ring, start, axis=0))) == pytest.approx(area_px, abs=1e-6)
    assert geometry.area_px(Polygon(ring[::-1])) == pytest.approx(area_px, abs=1e-6)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[1, 1]], True),
        ([[1, 1], [2, 2]], True),
        ([[1, 1], [2, 2], [1, 1], [2, 2]], True),
        ([[1, 1], [2, 2], [3, 3]], False),
        ([[0, 0], [1, 0], [0, 1]], False),
    ],
)
def test_distinct_points_are_counted(points: list[list[int]], expected: bool) -> None:
    assert has_few_points(np.array(points, np.float32)) is expected


@given(pixel_rings)
def test_ring_with_few_points_has_no_area(geometry: Any, ring: Ring) -> None:
    assume(has_few_points(ring))
    assert geometry.area_px(Polygon(ring)) == 0


@pytest.mark.parametrize(
    ("count", "expectation"),
    [(100, nullcontext()), (255, pytest.raises(LabelMapComplexityError, match="at most 240000000 pixels"))],
)
def test_scattered_labels_are_rejected(count: int, expectation: Any) -> None:
    labels = np.zeros((1200, 1200), np.uint8)
    labels[0, :count] = labels[-1, -count:] = np.arange(1, count + 1)  # each in two corners
    with expectation:
        assert len(trace_all(labels)) == count


def test_too_many_contours_are_rejected() -> None:
    labels = np.zeros((401, 401), np.uint8)
    labels[1::2, 1::2] = 1
    with pytest.raises(LabelMapComplexityError, match="expected at most 16384 contours in all labels, got 40000"):
        trace_all(labels)


def test_too_many_contour_points_are_rejected() -> None:
    labels = np.zeros((50_000, 60), np.uint8)
    for left, label_id in ((4, 1), (34, 2)):
        labels[:, left : left + 20] = label_id
        labels[::2, [left, left + 1, left + 2, left + 17, left + 18, left + 19]] = 0
    with pytest.raises(LabelMapComplexityError, match="expected at most 200000 contour points"):
        trace_all(labels)


def zigzag(count: int) -> Ring:
    """Return a ring in which each point is farther from the next chord than its predecessor."""
    heights = np.where(np.arange(count) % 2, 5.0, 250.0) + np.linspace(0, 50, count)
    return np.column_stack((heights, np.arange(count))).astype(np.float32)


def spiral(count: int) -> Ring:
    angles = np.linspace(0, 200 * np.pi, count // 2)
    there = np.column_stack((np.cos(angles), np.sin(angles))) * (100 + angles)[:, None]
    back = np.column_stack((np.cos(angles), np.sin(angles))) * (101.5 + angles)[:, None]
    return np.concatenate((there, back[::-1])).astype(np.float32)


@pytest.mark.parametrize("make", [zigzag, spiral])
@pytest.mark.parametrize("tolerance_px", [0.5, 3.0])
def test_simplification_time_is_n_log_n(make: Callable[[int], Ring], tolerance_px: float) -> None:
    def cost(count: int) -> float:
        ring = make(count)
        times = []
        for _ in range(5):
            start = time.thread_time()
            simplify(ring, tolerance_px)
            times.append(time.thread_time() - start)
        return min(times)

    # Sixteen times the points: a quadratic method would take 256 times as long.
    assert cost(131_072) < 64 * max(cost(8_192), 1e-3)


@pytest.mark.parametrize("make", [zigzag, spiral])
@pytest.mark.parametrize("tolerance_px", [0.5, 2.0, 40.0])
def test_long_ring_is_within_the_tolerance(make: Callable[[int], Ring], tolerance_px: float) -> None:
    ring = make(12_000)
    simplified = simplify(ring, tolerance_px)
    index = {tuple(point): position for position, point in enumerate(ring.tolist())}
    positions = [index[tuple(point)] for point in simplified.tolist()]
    assert positions == sorted(positions)
    assert positions[0] == 0
    numbers = ring.astype(np.float64).view(np.complex128)[:, 0]
    for first, last in itertools.pairwise([*positions, len(ring)]):
        chord = numbers[last % len(ring)] - numbers[first]
        ratios = (numbers[first:last] - numbers[first]) / chord
        assert np.abs((ratios - np.clip(ratios.real, 0, 1)) * chord).max() <= tolerance_px * (1 + 1e-9)


def test_long_ring_close_to_a_line_keeps_fewer_than_three_points() -> None:
    assert len(simplify(zigzag(30_000), 1000.0)) < 3
