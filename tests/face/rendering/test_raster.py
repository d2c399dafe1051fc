"""Rendered images, compared with another renderer's output for the SVG overlay."""

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
from app.face.errors import LabelMapComplexityError
from app.face.frame import Size
from app.face.pipeline import FaceResult, process_faces
from app.face.regions import Region
from app.face.rendering.raster import Drawing, Layer, cut_dashes, render_image, render_label_mask
from app.face.rendering.svg import EmbeddedImage, OverlayStyle, read_background, render_svg

if TYPE_CHECKING:
    from types import ModuleType

GOLDEN = Path(__file__).parents[2] / "golden" / "regenerate.py"
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


def process(golden: ModuleType, name: str, style: OverlayStyle | None = None) -> tuple[FaceResult, OverlayStyle]:
    request = golden.CASES[name]()
    style = style or replace(request.style, show_labels=False)  # fonts differ between renderers
    return process_faces([replace(request, style=style)])[0], style


def draw(result: FaceResult, style: OverlayStyle, regions: Any = None, background: Any = None) -> np.ndarray:
    regions = result.regions if regions is None else regions
    return render(result.frame.size, regions, result.landmarks_px, style, background).astype(np.float64)


def render(size: Size, regions: Any, landmarks_px: Any, style: OverlayStyle, background: Any = None) -> np.ndarray:
    layer = Layer(regions, landmarks_px if style.show_landmarks else None)
    channels = render_image(Drawing(size, [layer], style), background)
    assert all(channel.dtype == np.uint8 for channel in channels)
    return np.dstack(channels)


def rasterize(svg: bytes) -> np.ndarray:
    png = resvg_py.svg_to_bytes(svg_string=svg.decode(), skip_system_fonts=True)
    image = cv2.imdecode(np.frombuffer(bytes(png), np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image.astype(np.float64)


def on_grey(image: np.ndarray) -> np.ndarray:
    alpha = image[..., 3:] / 255
    return image[..., :3] * alpha + 128 * (1 - alpha)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean difference of visible pixels, as a fraction of the value range."""
    visible = (one[..., 3] > 0) | (other[..., 3] > 0)
    assert visible.mean() > 0.001
    return float(np.abs(on_grey(one) - on_grey(other))[visible].mean() / 255)


@pytest.mark.parametrize("name", CASES)
def test_image_matches_a_reference_renderer(golden: ModuleType, name: str) -> None:
    result, style = process(golden, name)
    assert difference(draw(result, style), rasterize(result.svg)) < 0.02


def overlap(one: np.ndarray, other: np.ndarray, opacity: int) -> float:
    """Return the intersection over union of the pixels above an opacity."""
    actual, expected = one[..., 3] > opacity, other[..., 3] > opacity
    return float((actual & expected).sum() / (actual | expected).sum())


@pytest.mark.parametrize("name", CASES)
def test_coverage_matches_a_reference_renderer(golden: ModuleType, name: str) -> None:
    result, style = process(golden, name)
    assert overlap(draw(result, style), rasterize(result.svg), 80) > 0.97


@pytest.mark.parametrize("labels", [False, True])
def test_coverage_of_each_region_matches_a_reference_renderer(golden: ModuleType, *, labels: bool) -> None:
    # Enlarged, so that single edge pixels do not matter: the eyes of the sample have only 80 pixels.
    frame = golden._frame(is_upright=True, is_cropped=True, longer_side=800)
    label_image = golden._load_labels() if labels else None
    (result,) = process_faces([replace(golden.CASES["catalogue"](), output=frame, label_image=label_image)])
    for region in result.regions:
        alone = render_svg(size=frame.size, regions=[region], landmarks_px=None, style=PLAIN)
        assert overlap(draw(result, PLAIN, [region]), rasterize(alone), 127) > 0.97, region.name


@pytest.mark.parametrize("width", [0.3, 0.77, 1.0, 1.5, 3.0, 8.0])
def test_outline_strength_matches_a_reference_renderer(golden: ModuleType, width: float) -> None:
    result, style = process(golden, "upright_cropped", OverlayStyle(region_opacity=0.0, stroke_width=width))
    actual, expected = draw(result, style)[..., 3].sum(), rasterize(result.svg)[..., 3].sum()
    assert 0.85 < actual / expected < 1.18


def region(*polygons: Polygon, colour: str = "#ff8000") -> Region:
    return Region(6, "nose", colour, polygons or (Polygon(SQUARE),), 900.0, (10.0, 10.0, 30.0, 30.5), "nose")


def image_of(*regions: Region, style: OverlayStyle = PLAIN, background: Any = None) -> np.ndarray:
    return render(Size(64, 48), regions, SQUARE, style, background).astype(int)


def test_holes_stay_transparent_and_edges_are_antialiased() -> None:
    image = image_of(region(Polygon(SQUARE, (HOLE,))))
    assert image[15, 15].tolist() == [0, 128, 255, 255]
    assert image[25, 25].tolist() == image[5, 5].tolist() == [0, 0, 0, 0]
    assert abs(int(image[40, 38, 3]) - 255 * 0.5) < 40


@pytest.mark.parametrize("opacity", [0.0, 0.2, 1.0])
def test_fill_has_the_opacity_of_the_style(opacity: float) -> None:
    pixel = image_of(region(), style=OverlayStyle(region_opacity=opacity, stroke_width=0.0))[20, 20]
    # Premultiplied colours have 8 bits, so lower opacity reduces their precision.
    assert pixel[3] == round(255 * opacity)
    assert not opacity or (abs(pixel[:3] - [0, 128, 255]) <= 0.5 / opacity).all()


def test_background_is_below_the_regions() -> None:
    background = np.full((48, 64, 3), 100, np.uint8)
    opaque = image_of(region(), style=OverlayStyle(region_opacity=0.5, stroke_width=0.0), background=background)
    assert opaque[2, 2].tolist() == [100, 100, 100]
    assert opaque[20, 20].tolist() == [50, 114, 178]
    clear = np.dstack((background, np.full((48, 64), 51, np.uint8)))
    pixel = image_of(style=PLAIN, background=clear)[2, 2]
    assert (abs(pixel - [100, 100, 100, 51]) <= 2).all()


def test_labels_and_landmarks_are_optional() -> None:
    plain = image_of(region())
    dots = image_of(region(), style=replace(PLAIN, show_landmarks=True))
    named = image_of(region(), style=replace(PLAIN, show_labels=True))
    assert (dots[9:12, 9:12] != plain[9:12, 9:12]).any()
    changed = named != plain
    assert changed.any()
    whole = render(Size(400, 300), [region()], None, replace(PLAIN, show_labels=True))
    white = (whole[..., :3].min(axis=2) > 120) & (whole[..., 3] == 255)
    assert white.sum() > 10  # letters


def test_names_in_other_scripts_or_with_markup_are_accepted() -> None:
    for name in ("нос", "鼻", "a\x00<b>", "x" * 64):
        named = replace(region(), name=name)
        assert image_of(named, style=replace(PLAIN, show_labels=True)).shape == (48, 64, 4)


corners = st.tuples(st.integers(-3000, 9000), st.integers(-3000, 9000))


@given(st.lists(corners, min_size=3, max_size=30), st.sampled_from([0.0, 0.05, 0.9, 5.0, 64.0]))
@example([(100, 100)] * 3, 5.0)
def test_outlines_stay_within_their_box(points: list[tuple[int, int]], width: float) -> None:
    ring = np.array(points, np.float32) / 10
    low, high = ring.min(axis=0), ring.max(axis=0)
    box = (float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
    one = Region(1, "x", "#102030", (Polygon(ring),), 1.0, box, "nose")
    painted = np.argwhere(image_of(one, style=OverlayStyle(stroke_width=width))[..., 3])[:, ::-1]
    room = width / 2 + 1
    assert (painted > low - room - 1).all()
    assert (painted < high + room).all()


@given(st.lists(corners, min_size=3, max_size=20, unique=True), st.floats(0.5, 500), st.floats(0.5, 500))
def test_dashes_have_the_requested_length(points: list[tuple[int, int]], dash: float, gap: float) -> None:
    ring = np.array(points, np.float32)
    around = np.hypot(*np.diff(np.vstack((ring, ring[:1])), axis=0).T).sum()
    dash, gap = max(dash, around / 1000), max(gap, around / 1000)
    cut = cut_dashes([ring + 7, ring], dash, gap)
    both = np.split(cut.points, np.flatnonzero(cut.is_last)[:-1] + 1)
    lines = both[len(both) // 2 :]
    assert [len(line) for line in both] == 2 * [len(line) for line in lines]
    assert np.vstack(both[: len(lines)]) == pytest.approx(np.vstack(lines) + 7, abs=1e-2)
    lengths = [np.hypot(*np.diff(line, axis=0).T).sum() for line in lines]
    assert lengths[:-1] == pytest.approx([dash] * (len(lines) - 1), rel=1e-6, abs=1e-3)
    assert all(length <= dash + 1e-3 for length in lengths)


def test_background_is_read_from_an_overlay() -> None:
    regions = [replace(region(), name='x" href="data:image/png;base64,eA=="'), region(colour="#00ff00")]
    background = EmbeddedImage("aGVsbG8=", "image/png")
    svg = render_svg(size=Size(9, 9), regions=regions, landmarks_px=None, style=PLAIN, background=background)
    assert read_background(svg) == background
    assert read_background(render_svg(size=Size(9, 9), regions=regions, landmarks_px=None, style=PLAIN)) is None


def make_region(label_id: int, *rings: list[tuple[float, float]]) -> Region:
    polygon = Polygon(np.array(rings[0], np.float32), tuple(np.array(ring, np.float32) for ring in rings[1:]))
    return Region(label_id, f"r{label_id}", "#ffffff", (polygon,), 1.0, (0, 0, 1, 1), "custom")


BLOCK = [(0.5, 0.4), (4.5, 0.4), (4.5, 4.4), (0.5, 4.4)]


@pytest.mark.parametrize(
    ("regions", "rows"),
    [
        ([make_region(3, BLOCK)], ["3333.", "3333.", "3333.", "3333.", "....."]),
        ([make_region(3, BLOCK, [(1.2, 1.2), (2.8, 1.2), (2.8, 2.8), (1.2, 2.8)])], ["3333.", "3..3.", "3..3."]),
        ([make_region(3, BLOCK), make_region(5, [(2, 2.1), (9, 2.1), (9, 9)])], ["3333.", "3333.", "33555", "33355"]),
        ([make_region(5, [(2, 2.1), (9, 2.1), (9, 9)]), make_region(3, BLOCK)], ["3333.", "3333.", "33335", "33335"]),
        ([make_region(7, [(-9.5, -9), (2, -9), (2, 1.5), (-9.5, 1.5)])], ["77...", "....."]),
        ([make_region(7, [(-9.5, -9), (-2, -9), (-2, 50), (-9.5, 50)])], ["....."]),
    ],
    ids=["square", "hole", "later on top", "earlier below", "across the edge", "outside"],
)
def test_mask_contains_the_pixels_whose_centres_are_inside(regions: list[Region], rows: list[str]) -> None:
    expected = np.zeros((5, 5), np.uint8)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            expected[y, x] = 0 if cell == "." else int(cell)
    mask = render_label_mask(Size(5, 5), regions)
    known = len(rows)
    assert mask[:known].tolist() == expected[:known].tolist()


@given(st.lists(st.tuples(st.integers(-50, 250), st.integers(-50, 250)), min_size=3, max_size=9))
def test_mask_equals_the_even_odd_rule_at_each_centre(tenths: list[tuple[int, int]]) -> None:
    ring = [(0.1 * x + 0.03, 0.1 * y + 0.03) for x, y in tenths]
    points = np.array(ring, np.float32).astype(np.float64)
    ys, xs = np.mgrid[0:17, 0:20] + 0.5
    expected = np.zeros((17, 20), np.bool_)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if ay != by:
            expected ^= ((ay <= ys) != (by <= ys)) & (xs >= ax + (ys - ay) * (bx - ax) / (by - ay))
    assert (render_label_mask(Size(20, 17), [make_region(9, ring)]) == 9 * expected).all()


def test_mask_that_would_take_too_long_is_rejected() -> None:
    zigzag = [(x + 0.5, 0.5 if x % 2 else 1999.5) for x in range(1024)]
    with pytest.raises(LabelMapComplexityError, match="expected contours that cross at most 1000000 rows"):
        render_label_mask(Size(2000, 2000), [make_region(1, zigzag)])
