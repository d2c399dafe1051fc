import re
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.face.contours import Polygon
from app.face.frame import Size
from app.face.regions import Region
from app.face.rendering.svg import OverlayStyle, clean_text, escape_text, render_svg

SVG = "{http://www.w3.org/2000/svg}"
FRAME = Size(100, 80)
SQUARE = np.array([[10, 10], [40, 10], [40, 40.5], [10, 40]], np.float32)
HOLE = np.array([[20, 20], [30, 20], [30, 30]], np.float32)
EVERYTHING = OverlayStyle(show_labels=True, show_landmarks=True)
ELEMENTS = {f"{SVG}{name}" for name in ("svg", "g", "title", "polygon", "path", "circle", "text")}

texts = st.text(st.characters(categories=None), max_size=30)


def region(name: str = "nose", *polygons: Polygon, label_id: int = 6) -> Region:
    parts = polygons or (Polygon(SQUARE),)
    return Region(label_id, name, "#fab005", parts, 900.0, (10.0, 10.0, 30.0, 30.5), "nose")


def render(*regions: Region, style: OverlayStyle = EVERYTHING, frame: Size = FRAME) -> ET.Element:
    svg = render_svg(size=frame, regions=regions, landmarks_px=SQUARE, style=style)
    return ET.fromstring(svg.decode())  # noqa: S314 - our own document


def is_allowed(character: str) -> bool:
    """Return whether XML 1.0 allows a character, by the ranges of its production ``Char``."""
    code = ord(character)
    return code in (9, 10, 13) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000


@given(texts)
@example("]]><script>alert(1)</script><!--")
@example("\"><svg onload='alert(1)'>&lt;&#0;&nbsp;")
@example("a\rb\r\nc\td\ufffe\uffff\ud800\udfff\x00\x85\u2028 ")
def test_any_name_is_escaped_correctly(name: str) -> None:
    cleaned = "".join(character if is_allowed(character) else "\ufffd" for character in name)
    assert clean_text(name) == cleaned
    root = render(region(name))
    assert {element.tag for element in root.iter()} <= ELEMENTS
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on") or "href" in key]
    (title,) = root.iter(f"{SVG}title")
    assert (title.text or "") == cleaned
    (group,) = [element for element in root.iter() if element.get("class") == "region"]
    assert group.get("data-name") == cleaned
    (text,) = root.iter(f"{SVG}text")
    assert (text.text or "") == cleaned


@given(texts)
def test_escaped_text_has_no_special_characters(text: str) -> None:
    escaped = escape_text(text)
    assert not set("<>\"'\t\n\r") & set(escaped)
    assert not re.sub(r"&(amp|lt|gt|quot|#39|#9|#10|#13);", "", escaped).count("&")
    escaped.encode()


def test_view_box_and_size_match_the_frame() -> None:
    root = render(frame=Size(640, 480))
    assert (root.get("viewBox"), root.get("width"), root.get("height")) == ("0 0 640 480", "640", "480")


def test_each_region_is_a_group_with_name_id_and_colour() -> None:
    root = render(region("nose"), region("mole", label_id=9), style=OverlayStyle())
    groups = [element for element in root.iter() if element.get("class") == "region"]
    assert [(group.get("data-name"), group.get("data-label-id")) for group in groups] == [("nose", "6"), ("mole", "9")]
    assert {group.get("fill") for group in groups} == {group.get("stroke") for group in groups} == {"#fab005"}
    assert all(group[0].tag == f"{SVG}title" for group in groups)


def test_region_without_holes_is_a_polygon() -> None:
    (polygon,) = render(region(), style=OverlayStyle()).iter(f"{SVG}polygon")
    assert polygon.get("points") == "10,10,40,10,40,40.5,10,40"


def test_holes_and_parts_are_one_even_odd_path() -> None:
    root = render(region("nose", Polygon(SQUARE, (HOLE,)), Polygon(HOLE)), style=OverlayStyle())
    (path,) = root.iter(f"{SVG}path")
    assert path.get("d") == "M10,10,40,10,40,40.5,10,40ZM20,20,30,20,30,30ZM20,20,30,20,30,30Z"
    (regions,) = [element for element in root if element.get("class") == "regions"]
    assert regions.get("fill-rule") == "evenodd"


coordinates = st.integers(-5000, 50000).map(lambda value: value / 10)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=40))
def test_coordinates_are_preserved(corners: list[tuple[float, float]]) -> None:
    root = render(region("nose", Polygon(np.array(corners, np.float32))), style=OverlayStyle())
    (polygon,) = root.iter(f"{SVG}polygon")
    values = [float(value) for value in (polygon.get("points") or "").split(",")]
    assert values == [value for corner in corners for value in corner]


def test_non_contiguous_points_are_written_in_order() -> None:
    transposed = np.asfortranarray(SQUARE)
    assert not transposed.flags.c_contiguous
    (polygon,) = render(region("nose", Polygon(transposed)), style=OverlayStyle()).iter(f"{SVG}polygon")
    assert polygon.get("points") == "10,10,40,10,40,40.5,10,40"


@pytest.mark.parametrize(
    ("frame", "style", "expected"),
    [
        (Size(1000, 700), OverlayStyle(), ("0.35", "1.5", "4.5 3")),
        (Size(3000, 4000), OverlayStyle(), ("0.35", "6", "18 12")),
        (Size(500, 500), OverlayStyle(region_opacity=0.0, stroke_width=3.0), ("0", "3", "9 6")),
        (Size(100, 100), OverlayStyle(region_opacity=1.0, stroke_width=0.0), ("1", "0", "0 0")),
    ],
)
def test_fill_and_outline_follow_style_or_frame(
    frame: Size, style: OverlayStyle, expected: tuple[str, str, str]
) -> None:
    (regions,) = [
        element for element in render(region(), style=style, frame=frame) if element.get("class") == "regions"
    ]
    assert (regions.get("fill-opacity"), regions.get("stroke-width"), regions.get("stroke-dasharray")) == expected


@pytest.mark.parametrize(
    ("style", "classes"),
    [
        (OverlayStyle(), ["regions"]),
        (OverlayStyle(show_landmarks=True), ["regions", "landmarks"]),
        (OverlayStyle(show_labels=True), ["regions", "labels"]),
        (EVERYTHING, ["regions", "landmarks", "labels"]),
    ],
)
def test_landmarks_and_labels_are_optional(style: OverlayStyle, classes: list[str]) -> None:
    assert [element.get("class") for element in render(region(), style=style)] == classes


def test_landmarks_are_dots() -> None:
    (dots,) = [element for element in render(style=EVERYTHING) if element.get("class") == "landmarks"]
    assert dots.get("d") == "M10.0,10.0h0M40.0,10.0h0M40.0,40.5h0M10.0,40.0h0"
    assert dots.get("stroke-linecap") == "round"


def test_landmarks_may_be_missing() -> None:
    svg = render_svg(size=FRAME, regions=[region()], landmarks_px=None, style=EVERYTHING)
    assert b"landmarks" not in svg


def test_no_regions_render_an_empty_overlay() -> None:
    root = render(style=EVERYTHING)
    assert [len(element) for element in root if element.get("class") in ("regions", "labels")] == [0, 0]


@pytest.mark.parametrize("name", ["mole", "нос", "a <b>", "\x00"])
def test_documents_are_utf_8(name: str) -> None:
    svg: Any = render_svg(size=FRAME, regions=[region(name)], landmarks_px=SQUARE, style=EVERYTHING)
    assert clean_text(name).replace("<", "&lt;").replace(">", "&gt;").encode() in svg
