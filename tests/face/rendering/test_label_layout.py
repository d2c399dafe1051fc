from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.contours import Polygon
from app.face.frame import Size
from app.face.outlines import measure_outlines, outline_catalogue
from app.face.regions import Region
from app.face.rendering.label_layout import FONT_SIZE_RATIO, PlacedLabel, layout_labels

FRAME = Size(1000, 800)
LETTER = 0.6 * FONT_SIZE_RATIO * 1000


def box(name: str, x: float, y: float, width: float, height: float, *, hole: bool = False) -> Region:
    def rectangle(inset: float) -> npt.NDArray[np.float32]:
        left, top = x + inset * width, y + inset * height
        right, bottom = x + (1 - inset) * width, y + (1 - inset) * height
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)

    holes = (rectangle(0.2),) if hole else ()
    return Region(1, name, "#123456", (Polygon(rectangle(0), holes),), width * height, (x, y, width, height), "custom")


def by_name(labels: list[PlacedLabel]) -> dict[str, PlacedLabel]:
    return {label.region.name: label for label in labels}


def extent(label: PlacedLabel, font_size: float) -> tuple[float, float]:
    width = len(label.region.name) * 0.6 * font_size
    left = {"start": label.x, "middle": label.x - width / 2, "end": label.x - width}[label.text_anchor]
    return left, left + width


def test_label_is_inside_a_region_if_it_fits() -> None:
    _, (label,) = layout_labels(FRAME, [box("nose", 100, 200, 300, 100)])
    assert label.text_anchor == "middle"
    assert label.target is None
    assert 100 + 2 * LETTER < label.x < 400 - 2 * LETTER
    assert 220 < label.y < 280


@pytest.mark.parametrize(
    ("region", "is_inside"),
    [
        pytest.param(box("nose", 100, 200, 4.4 * LETTER, 60), True, id="just wide enough"),
        pytest.param(box("nose", 100, 200, 3.5 * LETTER, 60), False, id="too narrow"),
        pytest.param(box("nose", 100, 200, 300, 15), False, id="too low"),
        pytest.param(box("nose", 100, 200, 200, 60, hole=True), False, id="hollow"),
    ],
)
def test_label_is_outside_a_region_if_it_does_not_fit(region: Region, is_inside: bool) -> None:
    _, (label,) = layout_labels(FRAME, [region])
    assert (label.target is None) is is_inside


def test_columns_keep_side_and_order_of_the_regions() -> None:
    regions = [
        box(f"{side}{row}", x, 100 + 40 * row, 10, 10) for row in range(4) for side, x in (("l", 100), ("r", 500))
    ]
    _, labels = layout_labels(FRAME, regions)
    assert len(labels) == 8
    for side, text_anchor in (("l", "end"), ("r", "start")):
        column = [label for name, label in by_name(labels).items() if name.startswith(side)]
        assert {label.text_anchor for label in column} == {text_anchor}
        assert [label.y for label in column] == sorted(label.y for label in column)


def test_leader_ends_at_a_visible_part() -> None:
    large, small = box("face", 100, 100, 40, 40), box("nose", 100, 100, 30, 40)
    target = by_name(layout_labels(FRAME, [large, small])[1])["face"].target
    assert target is not None
    assert 130 <= target[0] <= 140


def test_leader_of_a_hidden_region_ends_at_its_outline() -> None:
    target = by_name(layout_labels(FRAME, [box("below", 100, 100, 40, 40), box("above", 100, 100, 40, 40)])[1])["below"]
    assert target.target == (100, 100)


def test_no_regions_have_no_labels() -> None:
    assert layout_labels(FRAME, []) == (0.0, [])


def test_labels_of_a_frame_filling_face_stay_inside_the_frame() -> None:
    regions = [box(name, x, 100, 12, 12) for name, x in (("right_eyebrow", 2), ("left_eyebrow", 986))]
    font_size, labels = layout_labels(FRAME, regions)
    for label in labels:
        left, right = extent(label, font_size)
        assert 0 <= left < right <= FRAME.width


boxes = st.tuples(st.integers(0, 900), st.integers(0, 700), st.integers(1, 100), st.integers(1, 100))


@given(st.lists(boxes, min_size=1, max_size=70))
def test_labels_do_not_overlap_and_leaders_end_in_their_region(
    some: list[tuple[int, int, int, int]],
) -> None:
    regions = [box(f"region {number}", *corners) for number, corners in enumerate(some)]
    font_size, labels = layout_labels(FRAME, regions)
    assert sorted(label.region.name for label in labels) == sorted(region.name for region in regions)
    for text_anchor in ("start", "end"):
        ys = [label.y for label in labels if label.text_anchor == text_anchor]
        assert all(lower - upper >= font_size for upper, lower in pairwise(ys))
        assert all(font_size / 2 <= y <= FRAME.height - font_size / 2 for y in ys)
    cell = 1000 / 250
    for label in labels:
        x, y, width, height = label.region.bbox
        to_x, to_y = label.target or (label.x, label.y)
        assert x - cell <= to_x <= x + width + cell
        assert y - cell <= to_y <= y + height + cell


def test_labels_of_the_sample_are_on_the_correct_sides(landmarks_px: npt.NDArray[np.float32], frame: Size) -> None:
    regions, _ = measure_outlines(outline_catalogue(landmarks_px), 0.5)
    by_region = by_name(layout_labels(frame, regions)[1])
    assert {"forehead", "chin"} == {name for name, label in by_region.items() if label.target is None}
    for name, label in by_region.items():
        if name.startswith("right_"):
            assert label.text_anchor == "end"
        if name.startswith("left_"):
            assert label.text_anchor == "start"
