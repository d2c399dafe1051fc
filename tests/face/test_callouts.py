from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.callouts import FONT_SIZE_RATIO, Callout, place_callouts
from app.face.contours import Polygon
from app.face.frame import Size
from app.face.outlines import measure_outlines, outline_catalogue
from app.face.regions import Region

FRAME = Size(1000, 800)
LETTER = 0.6 * FONT_SIZE_RATIO * 1000


def box(name: str, x: float, y: float, width: float, height: float, *, hole: bool = False) -> Region:
    def rectangle(inset: float) -> npt.NDArray[np.float32]:
        left, top = x + inset * width, y + inset * height
        right, bottom = x + (1 - inset) * width, y + (1 - inset) * height
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)

    holes = (rectangle(0.2),) if hole else ()
    return Region(1, name, "#123456", (Polygon(rectangle(0), holes),), width * height, (x, y, width, height), "custom")


def by_name(callouts: list[Callout]) -> dict[str, Callout]:
    return {callout.region.name: callout for callout in callouts}


def extent(callout: Callout, font_size: float) -> tuple[float, float]:
    width = len(callout.region.name) * 0.6 * font_size
    left = {"start": callout.x, "middle": callout.x - width / 2, "end": callout.x - width}[callout.text_anchor]
    return left, left + width


def test_a_name_stands_in_a_region_that_has_room_for_it() -> None:
    _, (callout,) = place_callouts(FRAME, [box("nose", 100, 200, 300, 100)])
    assert callout.text_anchor == "middle"
    assert callout.target is None
    assert 100 + 2 * LETTER < callout.x < 400 - 2 * LETTER
    assert 220 < callout.y < 280


@pytest.mark.parametrize(
    ("region", "is_inside"),
    [
        pytest.param(box("nose", 100, 200, 4.4 * LETTER, 60), True, id="just wide enough"),
        pytest.param(box("nose", 100, 200, 3.5 * LETTER, 60), False, id="too narrow"),
        pytest.param(box("nose", 100, 200, 300, 15), False, id="too low"),
        pytest.param(box("nose", 100, 200, 200, 60, hole=True), False, id="hollow"),
    ],
)
def test_a_name_stands_beside_a_region_without_room(region: Region, is_inside: bool) -> None:
    _, (callout,) = place_callouts(FRAME, [region])
    assert (callout.target is None) is is_inside


def test_names_beside_regions_stand_on_their_side_and_in_their_order() -> None:
    regions = [
        box(f"{side}{row}", x, 100 + 40 * row, 10, 10) for row in range(4) for side, x in (("l", 100), ("r", 500))
    ]
    _, callouts = place_callouts(FRAME, regions)
    assert len(callouts) == 8
    for side, text_anchor in (("l", "end"), ("r", "start")):
        column = [callout for name, callout in by_name(callouts).items() if name.startswith(side)]
        assert {callout.text_anchor for callout in column} == {text_anchor}
        assert [callout.y for callout in column] == sorted(callout.y for callout in column)


def test_a_line_leads_to_a_part_that_nothing_hides() -> None:
    large, small = box("face", 100, 100, 40, 40), box("nose", 100, 100, 30, 40)
    target = by_name(place_callouts(FRAME, [large, small])[1])["face"].target
    assert target is not None
    assert 130 <= target[0] <= 140


def test_a_hidden_region_is_named_at_its_outline() -> None:
    target = by_name(place_callouts(FRAME, [box("below", 100, 100, 40, 40), box("above", 100, 100, 40, 40)])[1])[
        "below"
    ]
    assert target.target == (100, 100)


def test_nothing_to_name() -> None:
    assert place_callouts(FRAME, []) == (0.0, [])


def test_a_face_that_fills_the_picture_is_named_inside_it() -> None:
    regions = [box(name, x, 100, 12, 12) for name, x in (("right_eyebrow", 2), ("left_eyebrow", 986))]
    font_size, callouts = place_callouts(FRAME, regions)
    for callout in callouts:
        left, right = extent(callout, font_size)
        assert 0 <= left < right <= FRAME.width


boxes = st.tuples(st.integers(0, 900), st.integers(0, 700), st.integers(1, 100), st.integers(1, 100))


@given(st.lists(boxes, min_size=1, max_size=70))
def test_names_do_not_run_into_each_other_and_lines_end_in_their_region(
    some: list[tuple[int, int, int, int]],
) -> None:
    regions = [box(f"region {number}", *corners) for number, corners in enumerate(some)]
    font_size, callouts = place_callouts(FRAME, regions)
    assert sorted(callout.region.name for callout in callouts) == sorted(region.name for region in regions)
    for text_anchor in ("start", "end"):
        ys = [callout.y for callout in callouts if callout.text_anchor == text_anchor]
        assert all(lower - upper >= font_size for upper, lower in pairwise(ys))
        assert all(font_size / 2 <= y <= FRAME.height - font_size / 2 for y in ys)
    cell = 1000 / 250
    for callout in callouts:
        x, y, width, height = callout.region.bbox
        to_x, to_y = callout.target or (callout.x, callout.y)
        assert x - cell <= to_x <= x + width + cell
        assert y - cell <= to_y <= y + height + cell


def test_sample_is_named_on_the_right_sides(landmarks_px: npt.NDArray[np.float32], frame: Size) -> None:
    regions, _ = measure_outlines(outline_catalogue(landmarks_px), 0.5)
    named = by_name(place_callouts(frame, regions)[1])
    assert {"forehead", "chin"} == {name for name, callout in named.items() if callout.target is None}
    for name, callout in named.items():
        if name.startswith("right_"):
            assert callout.text_anchor == "end"
        if name.startswith("left_"):
            assert callout.text_anchor == "start"
