from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.errors import LabelMapComplexityError, RegionCountError, RegionError, RegionIndexError, RegionNameError
from app.face.label_map import image_to_label_map
from app.face.outlines import (
    MAX_REGION_LANDMARKS,
    MAX_REGIONS,
    MAX_TOTAL_REGIONS,
    Outline,
    check_total,
    measure_outlines,
    outline_catalogue,
    outline_labels,
    outline_landmarks,
)
from app.face.regions import CATALOGUE, PALETTE

Ring = npt.NDArray[np.float32]

VALID: AbstractContextManager[Any] = nullcontext()
MESH = np.stack([np.arange(478) % 23, np.arange(478) // 23], axis=1).astype(np.float32)


def ring_of(*points: tuple[float, float]) -> Ring:
    return np.array(points, np.float32)


SQUARE = ring_of((0, 0), (4, 0), (4, 4), (0, 4))
HOLE = ring_of((1, 1), (3, 1), (3, 3), (1, 3))
FAR = ring_of((10, 10), (12, 10), (12, 13))
LINE = ring_of((0, 0), (4, 4), (8, 8))
DOT = ring_of((5, 5))


def outline(*polygons: tuple[Ring, ...], name: str = "mole") -> Outline:
    return Outline(3, name, "#123456", polygons)


@pytest.mark.parametrize(
    ("polygons", "area_px", "bbox", "holes"),
    [
        pytest.param([(SQUARE,)], 16.0, (0, 0, 4, 4), [0], id="a square"),
        pytest.param([(SQUARE, HOLE)], 12.0, (0, 0, 4, 4), [1], id="a square with a hole"),
        pytest.param([(SQUARE, HOLE), (FAR,)], 15.0, (0, 0, 12, 13), [1, 0], id="two parts"),
        pytest.param([(DOT,), (FAR,), (LINE,)], 3.0, (10, 10, 2, 3), [0], id="parts without area are dropped"),
        pytest.param([(SQUARE, LINE, DOT)], 16.0, (0, 0, 4, 4), [0], id="holes without area are dropped"),
        pytest.param([(SQUARE, SQUARE), (FAR,)], 3.0, (10, 10, 2, 3), [0], id="a part that is all hole is dropped"),
        pytest.param([(SQUARE / 10,)], 0.16, (0, 0, 0.4, 0.4), [0], id="a small square"),
        pytest.param([(ring_of((0, 0), (0.1, 0), (0, 0.1)),)], 0.005, (0, 0, 0.1, 0.1), [0], id="the smallest"),
    ],
)
def test_regions_are_measured(
    polygons: list[tuple[Ring, ...]], area_px: float, bbox: tuple[float, ...], holes: list[int]
) -> None:
    (region,), omitted = measure_outlines([outline(*polygons)], 0)
    assert not omitted
    assert (region.label_id, region.name, region.colour, region.kind) == (3, "mole", "#123456", "custom")
    assert (region.area_px, region.bbox) == (area_px, bbox)
    assert [len(polygon.holes) for polygon in region.polygons] == holes


@pytest.mark.parametrize(
    ("polygons", "simplify_px", "reason"),
    [
        pytest.param([], 0, "too_few_points", id="nothing"),
        pytest.param([(DOT,)], 0, "too_few_points", id="a point"),
        pytest.param([(ring_of((1, 1), (2, 2), (1, 1), (2, 2)),)], 0, "too_few_points", id="there and back"),
        pytest.param([(LINE,)], 0, "zero_area", id="a line"),
        pytest.param([(DOT,), (LINE,)], 0, "zero_area", id="a point and a line"),
        pytest.param([(SQUARE, SQUARE)], 0, "zero_area", id="all hole"),
        pytest.param([(ring_of((0, 0), (2, 2), (2, 0), (0, 2)),)], 0, "zero_area", id="two halves that cancel"),
        pytest.param([(SQUARE,)], 50, "too_few_points", id="simplified away"),
    ],
)
def test_regions_without_area_are_omitted_with_a_reason(
    polygons: list[tuple[Ring, ...]], simplify_px: float, reason: str
) -> None:
    kept = outline((FAR * 100,), name="nose")
    regions, omitted = measure_outlines([outline(*polygons), kept], simplify_px)
    assert [region.kind for region in regions] == ["nose"]
    assert [(region.label_id, region.name, region.reason) for region in omitted] == [(3, "mole", reason)]


def test_no_outlines_make_no_regions() -> None:
    assert measure_outlines([], 0.5) == ((), ())


tenths = st.integers(0, 500).map(lambda value: value / 10)
corners = st.lists(st.tuples(tenths, tenths), min_size=1, max_size=12)


@given(st.lists(st.lists(st.lists(corners, min_size=1, max_size=3), max_size=3), max_size=4), st.sampled_from([0, 0.5]))
def test_measures_match_the_returned_polygons(geometry: Any, shapes: list[list[list[Any]]], simplify_px: float) -> None:
    outlines = [outline(*[tuple(ring_of(*ring) for ring in polygon) for polygon in shape]) for shape in shapes]
    regions, omitted = measure_outlines(outlines, simplify_px)
    assert len(regions) + len(omitted) == len(outlines)
    for region in regions:
        assert region.area_px == pytest.approx(sum(geometry.area_px(polygon) for polygon in region.polygons))
        assert region.area_px >= 0.005
        points = np.concatenate([polygon.outer for polygon in region.polygons])
        x, y, width, height = region.bbox
        assert (x, y) == pytest.approx(points.min(axis=0), abs=1e-5)
        assert (x + width, y + height) == pytest.approx(points.max(axis=0), abs=1e-5)


def test_catalogue_outlines_keep_its_order(landmarks_px: Ring) -> None:
    outlines = outline_catalogue(landmarks_px)
    assert [item.name for item in outlines] == [spec.name for spec in CATALOGUE]
    for item, spec in zip(outlines, CATALOGUE, strict=True):
        ((ring,),) = item.polygons
        assert (ring == landmarks_px[list(spec.landmarks)]).all()


def test_label_outlines_have_names(label_image: npt.NDArray[np.uint8]) -> None:
    outlines = outline_labels(image_to_label_map(label_image))
    assert [item.label_id for item in outlines] == list(range(1, 11))
    skin = next(item for item in outlines if item.name == "skin")
    # One outer contour, with holes for two eyebrows, two eyes, the nose and the mouth.
    assert [len(polygon) for polygon in skin.polygons] == [7]


@pytest.mark.parametrize(
    ("regions", "expectation"),
    [
        pytest.param({"mole": [1, 2, 24]}, VALID, id="one"),
        pytest.param({"a b_c-d.e:f 1": (1, 2, 24)}, VALID, id="every character allowed"),
        pytest.param({"Wange_écran_щека_頬": [1, 2, 24]}, VALID, id="letters of other scripts"),
        pytest.param({"x" * 64: [0, 1, 477]}, VALID, id="64 characters, first and last landmark"),
        pytest.param({"mole": [1, 2, 24] * 341}, VALID, id="1023 landmarks"),
        pytest.param({f"r{i}": [1, 2, 24] for i in range(MAX_REGIONS)}, VALID, id="64 regions"),
        pytest.param({}, pytest.raises(RegionCountError, match=r"1 to 64 regions, got 0$"), id="none"),
        pytest.param(
            {f"r{i}": [1, 2, 3] for i in range(65)}, pytest.raises(RegionCountError, match=r"got 65$"), id="65 regions"
        ),
        pytest.param({"": [1, 2, 3]}, pytest.raises(RegionNameError, match="region 1,"), id="no name"),
        pytest.param({"x" * 65: [1, 2, 3]}, pytest.raises(RegionNameError), id="65 characters"),
        pytest.param({"  ": [1, 2, 3]}, pytest.raises(RegionNameError), id="blank"),
        pytest.param(
            {"a": [1, 2, 3], "<b>": [1, 2, 3]}, pytest.raises(RegionNameError, match="region 2,"), id="markup"
        ),
        pytest.param({"a\n": [1, 2, 3]}, pytest.raises(RegionNameError), id="a line feed"),
        pytest.param({"a\tb": [1, 2, 3]}, pytest.raises(RegionNameError), id="a tab"),
        pytest.param({"a\x00": [1, 2, 3]}, pytest.raises(RegionNameError), id="a nul"),
        pytest.param({"a\ud800": [1, 2, 3]}, pytest.raises(RegionNameError), id="half a surrogate pair"),
        pytest.param({"a/b": [1, 2, 3]}, pytest.raises(RegionNameError), id="a slash"),
        pytest.param({"mole": []}, pytest.raises(RegionIndexError, match=r"got 0$"), id="no landmarks"),
        pytest.param({"mole": [1, 2]}, pytest.raises(RegionIndexError, match=r"3 to 1024 .* got 2$"), id="two"),
        pytest.param({"mole": [1] * (MAX_REGION_LANDMARKS + 1)}, pytest.raises(RegionIndexError), id="1025"),
        pytest.param({"mole": [1, 2, 478]}, pytest.raises(RegionIndexError, match=r"0 to 477 "), id="after the last"),
        pytest.param({"mole": [1, 2, -1]}, pytest.raises(RegionIndexError), id="negative"),
        pytest.param({"mole": [1, 2, 10**30]}, pytest.raises(RegionIndexError), id="huge"),
        pytest.param({"mole": [1, 2, 3.0]}, pytest.raises(RegionIndexError), id="a float"),
        pytest.param({"mole": [1, 2, True]}, pytest.raises(RegionIndexError), id="a boolean"),
        pytest.param({"mole": [1, 2, "3"]}, pytest.raises(RegionIndexError), id="text"),
        pytest.param({"mole": [1, 2, None]}, pytest.raises(RegionIndexError), id="null"),
    ],
)
def test_custom_regions_are_accepted_or_rejected(regions: Any, expectation: AbstractContextManager[Any]) -> None:
    with expectation:
        outlines = outline_landmarks(regions, MESH)
        assert [item.name for item in outlines] == list(regions)
        assert [item.label_id for item in outlines] == list(range(1, len(regions) + 1))
        for item, indices in zip(outlines, regions.values(), strict=True):
            ((ring,),) = item.polygons
            assert (ring == MESH[list(indices)]).all()


def test_iris_landmarks_are_rejected_for_a_mesh_without_irises() -> None:
    with pytest.raises(RegionIndexError, match=r"0 to 467 "):
        outline_landmarks({"iris": [468, 469, 470]}, MESH[:468])


@given(st.text(max_size=70), st.lists(st.integers(-2, 500), max_size=6))
def test_messages_contain_no_request_text(text: str, indices: list[int]) -> None:
    for regions in ({f"§{text}": [1, 2, 24]}, {"ж": [*indices, 99999]}, {"ж": [1, 2]}):
        with pytest.raises(RegionError) as caught:
            outline_landmarks(regions, MESH)
        message = str(caught.value)
        assert message.isascii()
        assert "99999" not in message


def test_custom_regions_cycle_through_the_palette() -> None:
    outlines = outline_landmarks({f"r{i}": [1, 2, 24] for i in range(len(PALETTE) + 1)}, MESH)
    assert [item.colour for item in outlines] == [*PALETTE, PALETTE[0]]


@pytest.mark.parametrize(
    ("rings", "points", "faces", "is_label_map", "expected"),
    [
        (1, 4, 1, False, nullcontext()),
        (MAX_TOTAL_REGIONS, 4, 1, False, nullcontext()),
        (MAX_TOTAL_REGIONS // 32, 4, 32, False, nullcontext()),
        (MAX_TOTAL_REGIONS // 32 + 1, 4, 32, False, pytest.raises(RegionCountError, match="512 regions for all 32")),
        (64, 1024, 3, False, nullcontext()),
        (64, 1024, 4, False, pytest.raises(RegionCountError, match="200000 contour points for all 4")),
        (64, 1024, 4, True, pytest.raises(LabelMapComplexityError, match="200000 contour points for all 4")),
    ],
)
def test_results_for_several_faces_are_limited_together(
    rings: int, points: int, faces: int, is_label_map: bool, expected: AbstractContextManager[object]
) -> None:
    ring = np.zeros((points, 2), np.float32)
    outlines = [Outline(number, "name", "#000000", [[ring]]) for number in range(rings)]
    with expected:
        check_total(outlines, faces, is_label_map=is_label_map)
