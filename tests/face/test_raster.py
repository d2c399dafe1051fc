"""Pictures show what the overlay shows, as another renderer draws it."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import resvg_py
from hypothesis import example, given
from hypothesis import strategies as st

from app.face.contours import Polygon
from app.face.frame import Size
from app.face.outline_strokes import cut_dashes
from app.face.overlay import OverlayStyle, Picture, read_background, read_colours, render_svg
from app.face.pipeline import FaceResult, process_face
from app.face.raster import render_picture
from app.face.regions import Region

if TYPE_CHECKING:
    from types import ModuleType

GOLDEN = Path(__file__).parents[1] / "golden" / "regenerate.py"
CASES = ["catalogue", "catalogue_labels", "custom_regions", "label_map", "upright_cropped", "upright_label_map"]
PLAIN = OverlayStyle(stroke_width=0.0, region_opacity=1.0)
SQUARE = np.array([[10, 10], [40, 10], [40, 40.5], [10, 40]], np.float32)
HOLE = np.array([[20, 20], [30, 20], [30, 30], [20, 30]], np.float32)


@pytest.fixture(scope="module")
def golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("regenerate", GOLDEN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solve(golden: ModuleType, name: str, style: OverlayStyle | None = None) -> tuple[FaceResult, OverlayStyle]:
    request = golden.CASES[name]()
    style = style or replace(request.style, show_labels=False)  # fonts differ between renderers
    return process_face(replace(request, style=style)), style


def draw(result: FaceResult, style: OverlayStyle, regions: Any = None, background: Any = None) -> np.ndarray:
    picture = render_picture(
        frame=result.frame.size,
        regions=result.regions if regions is None else regions,
        landmarks_px=result.landmarks_px,
        style=style,
        background=background,
    )
    assert picture.dtype == np.uint8
    return picture.astype(np.float64)


def rasterize(svg: bytes) -> np.ndarray:
    png = resvg_py.svg_to_bytes(svg_string=svg.decode(), skip_system_fonts=True)
    picture = cv2.imdecode(np.frombuffer(bytes(png), np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return picture.astype(np.float64)


def on_grey(picture: np.ndarray) -> np.ndarray:
    alpha = picture[..., 3:] / 255
    return picture[..., :3] * alpha + 128 * (1 - alpha)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference where either shows anything, as a share of the whole range."""
    visible = (one[..., 3] > 0) | (other[..., 3] > 0)
    assert visible.mean() > 0.001
    return float(np.abs(on_grey(one) - on_grey(other))[visible].mean() / 255)


@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_what_another_renderer_makes_of_the_overlay(golden: ModuleType, name: str) -> None:
    result, style = solve(golden, name)
    assert difference(draw(result, style), rasterize(result.svg)) < 0.02


def overlap(one: np.ndarray, other: np.ndarray, opacity: int) -> float:
    """Intersection over union of what is more opaque."""
    ours, theirs = one[..., 3] > opacity, other[..., 3] > opacity
    return float((ours & theirs).sum() / (ours | theirs).sum())


@pytest.mark.parametrize("name", CASES)
def test_what_is_covered_is_what_is_covered_there(golden: ModuleType, name: str) -> None:
    result, style = solve(golden, name)
    assert overlap(draw(result, style), rasterize(result.svg), 80) > 0.97


@pytest.mark.parametrize("labels", [False, True])
def test_each_region_covers_what_it_covers_there(golden: ModuleType, *, labels: bool) -> None:
    # Large enough for an edge pixel more or less to say little: the sample's eyes have 80 pixels in all.
    frame = golden._frame(is_upright=True, is_cropped=True, longer_side=800)
    label_image = golden._load_labels() if labels else None
    result = process_face(replace(golden.CASES["catalogue"](), output=frame, label_image=label_image))
    for region in result.regions:
        alone = render_svg(frame=frame.size, regions=[region], landmarks_px=None, style=PLAIN)
        assert overlap(draw(result, PLAIN, [region]), rasterize(alone), 127) > 0.97, region.name


@pytest.mark.parametrize("width", [0.3, 0.77, 1.0, 1.5, 3.0, 8.0])
def test_outlines_are_as_strong_as_there(golden: ModuleType, width: float) -> None:
    result, style = solve(golden, "upright_cropped", OverlayStyle(region_opacity=0.0, stroke_width=width))
    ours, theirs = draw(result, style)[..., 3].sum(), rasterize(result.svg)[..., 3].sum()
    assert 0.85 < ours / theirs < 1.18


def region(*polygons: Polygon, colour: str = "#ff8000") -> Region:
    return Region(6, "nose", colour, polygons or (Polygon(SQUARE),), 900.0, (10.0, 10.0, 30.0, 30.5), "nose")


def picture_of(*regions: Region, style: OverlayStyle = PLAIN, background: Any = None) -> np.ndarray:
    return render_picture(
        frame=Size(64, 48), regions=regions, landmarks_px=SQUARE, style=style, background=background
    ).astype(int)


def test_a_hole_stays_empty_and_an_edge_is_as_opaque_as_it_is_covered() -> None:
    picture = picture_of(region(Polygon(SQUARE, (HOLE,))))
    assert picture[15, 15].tolist() == [0, 128, 255, 255]
    assert picture[25, 25].tolist() == picture[5, 5].tolist() == [0, 0, 0, 0]
    assert abs(int(picture[40, 38, 3]) - 255 * 0.5) < 40


@pytest.mark.parametrize("opacity", [0.0, 0.2, 1.0])
def test_opacity_is_that_of_the_style(opacity: float) -> None:
    pixel = picture_of(region(), style=OverlayStyle(region_opacity=opacity, stroke_width=0.0))[20, 20]
    # Colours are kept to 8 bits with their opacity, so that the fainter they are the coarser they get.
    assert pixel[3] == round(255 * opacity)
    assert not opacity or (abs(pixel[:3] - [0, 128, 255]) <= 0.5 / opacity).all()


def test_the_photo_is_under_the_regions() -> None:
    photo = np.full((48, 64, 3), 100, np.uint8)
    opaque = picture_of(region(), style=OverlayStyle(region_opacity=0.5, stroke_width=0.0), background=photo)
    assert opaque[2, 2].tolist() == [100, 100, 100, 255]
    assert opaque[20, 20].tolist() == [50, 114, 178, 255]
    clear = np.dstack((photo, np.full((48, 64), 51, np.uint8)))
    pixel = picture_of(style=PLAIN, background=clear)[2, 2]
    assert (abs(pixel - [100, 100, 100, 51]) <= 2).all()


def test_names_and_landmarks_are_drawn_on_request() -> None:
    plain = picture_of(region())
    dots = picture_of(region(), style=replace(PLAIN, show_landmarks=True))
    named = picture_of(region(), style=replace(PLAIN, show_labels=True))
    assert (dots[9:12, 9:12] != plain[9:12, 9:12]).any()
    changed = named != plain
    assert changed.any()
    whole = render_picture(
        frame=Size(400, 300), regions=[region()], landmarks_px=None, style=replace(PLAIN, show_labels=True)
    )
    white = (whole[..., :3].min(axis=2) > 120) & (whole[..., 3] == 255)
    assert white.sum() > 10  # letters


def test_names_of_other_scripts_and_with_markup_do_no_harm() -> None:
    for name in ("нос", "鼻", "a\x00<b>", "x" * 64):
        named = replace(region(), name=name)
        assert picture_of(named, style=replace(PLAIN, show_labels=True)).shape == (48, 64, 4)


corners = st.tuples(st.integers(-3000, 9000), st.integers(-3000, 9000))


@given(st.lists(corners, min_size=3, max_size=30), st.sampled_from([0.0, 0.05, 0.9, 5.0, 64.0]))
@example([(100, 100)] * 3, 5.0)
def test_any_outline_is_drawn_around_its_box_and_nowhere_else(points: list[tuple[int, int]], width: float) -> None:
    ring = np.array(points, np.float32) / 10
    low, high = ring.min(axis=0), ring.max(axis=0)
    box = (float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
    one = Region(1, "x", "#102030", (Polygon(ring),), 1.0, box, "nose")
    painted = np.argwhere(picture_of(one, style=OverlayStyle(stroke_width=width))[..., 3])[:, ::-1]
    room = width / 2 + 1
    assert (painted > low - room - 1).all()
    assert (painted < high + room).all()


@given(st.lists(corners, min_size=3, max_size=20, unique=True), st.floats(0.5, 500), st.floats(0.5, 500))
def test_dashes_lie_on_the_ring_and_have_their_length(points: list[tuple[int, int]], dash: float, gap: float) -> None:
    ring = np.array(points, np.float32)
    closed = np.vstack((ring, ring[:1])).astype(float)
    around = np.hypot(*np.diff(closed, axis=0).T).sum()
    lines = cut_dashes(ring, dash, gap, 0.0) if around / (dash + gap) < 2000 else []
    lengths = [np.hypot(*np.diff(line, axis=0).T).sum() for line in lines]
    assert lengths[:-1] == pytest.approx([dash] * (len(lines) - 1), rel=1e-6, abs=1e-3)
    assert all(length <= dash + 1e-3 for length in lengths)


def test_what_an_overlay_was_drawn_with_can_be_read_from_it() -> None:
    regions = [replace(region(), name='x" fill="#000000'), region(colour="#00ff00")]
    background = Picture("aGVsbG8=", "image/png")
    svg = render_svg(frame=Size(9, 9), regions=regions, landmarks_px=None, style=PLAIN, background=background)
    assert read_colours(svg) == ["#ff8000", "#00ff00"]
    assert read_background(svg) == background
    assert read_background(render_svg(frame=Size(9, 9), regions=regions, landmarks_px=None, style=PLAIN)) is None
