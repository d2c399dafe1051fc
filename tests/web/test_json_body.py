"""JSON bodies: what is read from a good one, and that a bad one is told as a problem that echoes nothing."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.errors import InputError
from app.service.options import OPTION_NAMES, CropOptions
from app.web.json_body import parse_json
from app.web.json_text import FIELDS, MAX_COMMAS, parse_points, parse_regions
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

CANARY = "QXcanaryQX"
FILE = b"\x89PNG\xfb\xff\xbe?/"
IMAGE = base64.b64encode(FILE).decode()
POINTS = [[1.5, 2.0], [3.0, 4.25]]


def body(**fields: Any) -> bytes:
    return json.dumps({"image": IMAGE, "landmarks": POINTS, **fields}).encode()


def problem(code: str) -> AbstractContextManager[Any]:
    return pytest.raises(ProblemError, check=lambda error: error.code == code and CANARY not in error.detail)


@pytest.mark.parametrize(
    "points",
    [
        POINTS,
        [[*point, 7.0] for point in POINTS],
        [{"x": x, "y": y} for x, y in POINTS],
        [{"y": y, "x": x, "z": None} for x, y in POINTS],
        [{"x": x, "y": y, "z": 0.5, "visibility": {"of": ["any", 1, "kind"]}} for x, y in POINTS],
        [{"x": POINTS[0][0], "y": POINTS[0][1]}, POINTS[1]],
        [[1.5, 2], [3, 4.25, 9]],
    ],
)
def test_points_of_every_form_are_read_alike(points: list[Any]) -> None:
    for read in (parse_json(body(landmarks=points)).points, parse_points(json.dumps(points).encode(), "landmarks")):
        assert read.dtype == np.float64
        assert read.tolist() == POINTS


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        f"data:image/png;base64,{IMAGE}",
        f"data:;base64,{IMAGE}",
        f"data:image/png;charset=utf-8;base64,{IMAGE}",
        f"data:text/{'x' * 90};base64,{IMAGE}",
    ],
)
def test_image_is_read_from_base64_and_from_data_urls(image: str) -> None:
    for text in (json.dumps(image), json.dumps(image).replace("/", "\\/"), json.dumps(image).replace("P", "\\u0050")):
        request = parse_json(body().replace(json.dumps(IMAGE).encode(), text.encode()))
        assert request.image == FILE


@pytest.mark.parametrize(
    ("segmentation_map", "read"),
    [(None, None), (IMAGE, FILE), ({}, {}), ({"nose: tip": [1, 2, 3], 'a"b': []}, {"nose: tip": [1, 2, 3], 'a"b': []})],
)
def test_map_is_read(segmentation_map: Any, read: Any) -> None:
    assert parse_json(body(segmentation_map=segmentation_map)).segmentation_map == read
    assert parse_json(body()).segmentation_map is None


def test_options_are_read_and_default() -> None:
    assert parse_json(body()).options == parse_json(body(verify="structure", region_opacity=0.35)).options
    options = parse_json(body(show_labels=True, simplify=2, landmark_units="normalized")).options
    assert (options.show_labels, options.simplify, options.landmark_units) == (True, 2.0, "normalized")


def test_fields_are_those_of_the_options_and_three_more() -> None:
    assert ("image", "landmarks", "segmentation_map", *OPTION_NAMES) == FIELDS
    assert set(CropOptions.__struct_fields__) == set(OPTION_NAMES)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "invalid_json"),
        (b'{"image":', "invalid_json"),
        (b'{"image":"","landmarks":[]}}', "invalid_json"),
        (b"[" * 100_000, "field_invalid"),
        (b'{"image":' * 100_000, "invalid_json"),
        (b'{"image":"","landmarks":[{"x":1,"y":2,"z":' + b"[" * 100_000, "field_invalid"),
        (b'{"image":"","landmarks":[{"x":1,"y":2,"v":' + b"[" * 100_000, "invalid_json"),
        (b'{"image":"","landmarks":[{"x":1,"y":2,"v":"\xff"}]}', "invalid_json"),
        (b'{"image":"","landmarks":[{"x":1,"y":2,"\xff":1}]}', "invalid_json"),
        (b'{"image":"\xff\\/","landmarks":[]}', "invalid_json"),
        (b"{}", "field_missing"),
        (b"null", "field_invalid"),
        (body(**{CANARY: 1}), "field_unknown"),
        (body(image=7), "field_invalid"),
        (body(image=None), "field_invalid"),
        (body(landmarks=[[1]]), "field_invalid"),
        (body(landmarks=[[1, 2, 3, 4]]), "field_invalid"),
        (body(landmarks=[["1", 2]]), "field_invalid"),
        (body(landmarks=[{"x": 1}]), "field_missing"),
        (body(landmarks=[[1, 2]] * MAX_COMMAS), "field_invalid"),
        (body(landmark_units=CANARY), "field_invalid"),
        (body(verify=f"unknown field `{CANARY}` - at `$.verify`"), "field_invalid"),
        (body(region_opacity=CANARY), "field_invalid"),
        (body(segmentation_map=[1, 2, 3]), "field_invalid"),
        (body(segmentation_map={CANARY: [CANARY]}), "field_invalid"),
        (body(segmentation_map={CANARY: [0]}).replace(b"[0]", b"[" + b"9" * 5000 + b"]"), "field_invalid"),
        (body(image="QUJDRA"), "image_encoding"),
        (body(image="QUJD QUJD"), "image_encoding"),
        (body(image="QUJD\n"), "image_encoding"),
        (body(image="-_-_"), "image_encoding"),
        (body(image=f"{CANARY}é"), "image_encoding"),
        (body(image=f"data:image/png,{CANARY}"), "image_encoding"),
        (body(image=f"data:text/{'x' * 200};base64,{IMAGE}"), "image_encoding"),
        (body(segmentation_map=f"data:{CANARY}"), "image_encoding"),
        (body(image="x", segmentation_map="y", landmarks=[{"x": 1, "y": 2, "w": 3}]), "image_encoding"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_code(text: bytes, code: str) -> None:
    with problem(code):
        parse_json(text)


def test_numbers_that_python_would_not_convert_are_passed_over() -> None:
    digits = b"9" * 5000
    text = b'[{"x":1.5,"y":2,"v":%b},{"x":3,"y":4.25,"v":1e%b}]' % (digits, digits)
    assert parse_points(text, "landmarks").tolist() == POINTS


def test_choices_are_named() -> None:
    with pytest.raises(ProblemError, match=r"^landmark_units: expected 'normalized' or 'pixels', got another text$"):
        parse_json(body(landmark_units=CANARY))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@given(st.binary() | st.text().map(str.encode) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_lead_to_anything_but_a_problem(text: bytes) -> None:
    for parse in (parse_json, lambda text: parse_points(text, "landmarks"), lambda text: parse_regions(text, "map")):
        with suppress(ProblemError, InputError):
            parse(text)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3))
def test_no_values_of_known_fields_lead_to_anything_but_a_problem(fields: dict[str, Any]) -> None:
    with suppress(ProblemError):
        parse_json(body(**fields))


MEMBERS = [("x", "1"), ("y", "2")]


def escape_first(key: str) -> str:
    return f"\\u{ord(key[0]):04x}{key[1:]}"


def write(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}"


@st.composite
def bodies_with_one_key_twice(draw: st.DrawFn) -> tuple[str, str]:
    """Draw a good body, and the same one with one of its keys given twice, somewhere, perhaps escaped."""
    members = [*MEMBERS, *draw(st.sampled_from([[], [("z", "null")], [("name", '"a:b,c"')]]))]
    regions = [("mouth", "[1,2,3]"), ("a:b", "[4,5,6]")]
    options = [("show_labels", "true"), ("simplify", "0.5"), ("verify", '"structure"')]
    top = [("image", f'"{draw(st.sampled_from(["", "data:;base64,"]))}{IMAGE}"'), ("landmarks", "<points>"), *options]
    top.append(("segmentation_map", draw(st.sampled_from(["null", f'"{IMAGE}"', "<regions>"]))))
    top = draw(st.permutations(top))

    def fill(members: list[Any], regions: list[Any], top: list[Any]) -> str:
        values = {"<points>": f"[{write(MEMBERS)},[1,2],{write(members)}]", "<regions>": write(regions)}
        return write([(key, values.get(value, value)) for key, value in top])

    good = fill(members, regions, top)
    levels = [members, regions, top] if ("segmentation_map", "<regions>") in top else [members, top, top]
    twice = draw(st.sampled_from(levels))
    key, value = draw(st.sampled_from(twice))
    again = (draw(st.sampled_from([key, escape_first(key)])), value)
    doubled = [*twice]
    doubled.insert(draw(st.integers(0, len(twice))), again)
    return good, fill(*(doubled if level is twice else level for level in (members, regions, top)))


@given(bodies_with_one_key_twice())
def test_a_key_given_twice_is_always_found(texts: tuple[str, str]) -> None:
    good, bad = texts
    assert parse_json(good.encode()).image == FILE
    with problem("field_duplicate"):
        parse_json(bad.encode())


def test_a_key_given_twice_is_found_in_texts_of_their_own() -> None:
    with problem("field_duplicate"):
        parse_points(b'[{"x":1,"y":2,"y":3}]', "landmarks")
    with problem("field_duplicate"):
        parse_regions(b'{"a":[1],"\\u0061":[1]}', "segmentation_map")
