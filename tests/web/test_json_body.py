"""JSON bodies: valid ones are parsed, and invalid ones raise problems that echo nothing."""

from __future__ import annotations

import base64
import codecs
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.errors import InputError
from app.service.options import OPTION_NAMES, CropOptions
from app.web.json_body import (
    FIELDS,
    MAX_COMMAS,
    parse_json,
    parse_landmarks,
    parse_landmarks_json,
    parse_segmentation_map,
)
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
def test_points_of_every_form_are_parsed(points: list[Any]) -> None:
    for read in (parse_json(body(landmarks=points)).points, parse_landmarks(json.dumps(points).encode()).points):
        assert read.dtype == np.float64
        assert read.tolist() == POINTS


BOMS = {"utf-8-sig": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}


@pytest.mark.parametrize("encoding", BOMS)
def test_text_with_a_byte_order_mark_is_parsed(encoding: str) -> None:
    def encode(text: bytes) -> bytes:
        return BOMS[encoding] + text.decode().encode(encoding)

    request = parse_json(encode(body(segmentation_map={"é": [1, 2, 3]}, simplify=2)))
    assert (request.image, request.points.tolist(), request.segmentation_map) == (FILE, POINTS, {"é": [1, 2, 3]})
    assert request.options.simplify == 2
    assert parse_landmarks_json(encode(json.dumps({"image": IMAGE}).encode())).image == FILE
    assert parse_landmarks(encode(json.dumps(POINTS).encode())).points.tolist() == POINTS
    assert parse_segmentation_map(encode(b'{"a":[1,2,3]}')) == {"a": [1, 2, 3]}


DICTS = [{"x": 0.4, "y": 0.5, "z": -0.1, "visibility": 0, "presence": None, "name": None}, {"x": 0.1, "y": 1.2}]
FACE = [[0.4, 0.5], [0.1, 1.2]]
MORE = {"faceBlendshapes": [{"categories": []}], "facialTransformationMatrixes": []}


@pytest.mark.parametrize(
    "landmarks",
    [
        pytest.param({"faceLandmarks": [DICTS, DICTS], **MORE}, id="tasks in JavaScript"),
        pytest.param({**MORE, "face_landmarks": [DICTS, DICTS]}, id="tasks in Python"),
        pytest.param({"multi_face_landmarks": [{"landmark": DICTS}, {"landmark": DICTS}]}, id="protocol buffers"),
        pytest.param({"multiFaceLandmarks": [DICTS, DICTS]}, id="legacy JavaScript"),
        pytest.param([{"landmark": DICTS}, {"landmark": DICTS}], id="list of protocol buffers"),
        pytest.param([DICTS, DICTS], id="nested list"),
        pytest.param([FACE, FACE], id="nested list of pairs"),
        pytest.param({"faceLandmarks": DICTS}, id="holistic in JavaScript"),
        pytest.param({"face_landmarks": {"landmark": DICTS}}, id="holistic in Python"),
        pytest.param({"landmark": DICTS}, id="one face as a protocol buffer"),
        pytest.param({"faceLandmarks": None, "face_landmarks": [DICTS]}, id="one face"),
        pytest.param({"faceLandmarks": [[[400.0, 500.0], [100.0, 1200.0]]]}, id="not in the usual range"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_results_of_mediapipe_are_normalized(landmarks: Any, indent: int | None) -> None:
    text = json.dumps(landmarks, indent=indent).encode()
    request = parse_json(json.dumps({"image": IMAGE, "landmarks": landmarks}, indent=indent).encode())
    for points, are_normalized in (parse_landmarks(text), (request.points, request.are_points_normalized)):
        faces = points if points.ndim == 3 else points[None]
        assert are_normalized
        for face in faces:
            assert face.tolist() in (FACE, np.multiply(FACE, 1000).tolist())


def test_a_nested_list_of_pixels_is_not_normalized() -> None:
    assert not parse_landmarks(json.dumps([POINTS]).encode()).are_normalized


@pytest.mark.parametrize(
    ("landmarks", "code", "detail"),
    [
        (
            {CANARY: DICTS},
            "field_invalid",
            "landmarks: expected a list of points or a result of MediaPipe, got neither",
        ),
        ({"faceLandmarks": 3}, "field_invalid", "landmarks.faceLandmarks: expected an array or null, got an integer"),
        ({"faceLandmarks": [DICTS, [{"x": 1}]]}, "field_missing", "landmarks.faceLandmarks[1][0].y: expected a value"),
        (
            {"faceLandmarks": [DICTS, DICTS[:1]]},
            "field_invalid",
            "landmarks.faceLandmarks: expected faces with the same",
        ),
        ([[[[1, 2]]]], "field_invalid", "landmarks[0][0][0]: expected a number, got an array"),
        ({"landmark": {"landmark": {"landmark": DICTS}}}, "field_invalid", "landmarks.landmark: expected an array"),
    ],
)
def test_other_documents_are_refused(landmarks: Any, code: str, detail: str) -> None:
    with problem(code) as caught:
        parse_landmarks(json.dumps(landmarks).encode())
    assert caught.value.detail.startswith(detail)


@pytest.mark.parametrize(
    "points",
    [
        [[1.5, 2.0, 7], [3.0, 4.25, -8.5]],
        [{"x": 1.5, "y": 2.0, "z": 7}, {"x": 3.0, "y": 4.25, "z": -8.5}],
        [{"x": 1.5, "y": 2.0, "z": 7.0}, [3.0, 4.25, -8.5]],
    ],
)
def test_depths_are_kept_if_every_point_has_one(points: list[Any]) -> None:
    for read in (parse_json(body(landmarks=points)).points, parse_landmarks(json.dumps(points).encode()).points):
        assert read.tolist() == [[1.5, 2.0, 7.0], [3.0, 4.25, -8.5]]


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
def test_image_is_decoded_from_base64_and_from_data_urls(image: str) -> None:
    for text in (json.dumps(image), json.dumps(image).replace("/", "\\/"), json.dumps(image).replace("P", "\\u0050")):
        request = parse_json(body().replace(json.dumps(IMAGE).encode(), text.encode()))
        assert request.image == FILE


@pytest.mark.parametrize(
    ("segmentation_map", "read"),
    [(None, None), (IMAGE, FILE), ({}, {}), ({"nose: tip": [1, 2, 3], 'a"b': []}, {"nose: tip": [1, 2, 3], 'a"b': []})],
)
def test_map_is_parsed(segmentation_map: Any, read: Any) -> None:
    assert parse_json(body(segmentation_map=segmentation_map)).segmentation_map == read
    assert parse_json(body()).segmentation_map is None


def test_options_are_parsed_and_default() -> None:
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
        (b'{"image":"","landmarks":[{"x":1,"y":2,"z":' + b"[" * 100_000, "invalid_json"),
        (b'{"image":"","landmarks":[{"x":1,"y":2,"v":' + b"[" * 100_000, "invalid_json"),
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
def test_invalid_bodies_have_their_codes(text: bytes, code: str) -> None:
    with problem(code):
        parse_json(text)


def test_numbers_that_python_cannot_convert_are_ignored() -> None:
    digits = b"9" * 5000
    text = b'[{"x":1.5,"y":2,"v":%b},{"x":3,"y":4.25,"v":1e%b}]' % (digits, digits)
    assert parse_landmarks(text).points.tolist() == POINTS


def test_enumerations_are_listed() -> None:
    with pytest.raises(ProblemError, match=r"^landmark_units: expected 'normalized' or 'pixels', got another string$"):
        parse_json(body(landmark_units=CANARY))


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (b"{", "body: expected JSON, got truncated text"),
        (b'{"image":""}}', "body: expected JSON, got malformed text: trailing characters (byte 13)"),
        (b'{"image":"","verify":"\xff"}', "body: expected JSON, got text that is not UTF-8"),
        (b'{"image":' * 100_000, "body: expected JSON, got values that are nested too deeply"),
        (b"[]", "body: expected an object, got an array"),
        (b"{}", "image: expected a value, got none"),
        (body(image=7), "image: expected a base64 string, got another type"),
        (body(landmarks=3), "landmarks: expected an array or null, got an integer"),
        (body(landmarks=[{"x": 1}]), "landmarks[0].y: expected a value, got none"),
        (body(landmarks=[[1, 2], ["a", 2]]), "landmarks[1][0]: expected a number, got a string"),
        (body(landmarks=[[1]]), "landmarks[0]: expected an array of length >= 2, got another length"),
        (body(region_opacity=1.5), "region_opacity: expected a number <= 1, got another value"),
        (body(face=-1), "face: expected an integer >= 0, got another value"),
        (body(show_labels=1), "show_labels: expected a boolean, got an integer"),
        (body(segmentation_map=[]), "segmentation_map: expected a base64 string or an object, got another type"),
        (body(segmentation_map={"a": [1.5]}), "segmentation_map[...][0]: expected an integer, got a number"),
        (body(landmarks=[[1, 2]] * MAX_COMMAS), "body: expected at most 100000 values, got more"),
    ],
)
def test_details_name_the_field_and_what_was_expected_and_received(text: bytes, detail: str) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_json(text)
    assert caught.value.detail == detail


def test_the_last_of_repeated_members_wins() -> None:
    text = b'{"image":"","landmarks":[{"x":9,"x":1.5,"y":2},{"x":3,"y":9,"y":4.25}],"face":1,"face":2,"image":"%b"}'
    request = parse_json(text % IMAGE.encode())
    assert (request.image, request.points.tolist(), request.options.face) == (FILE, POINTS, 2)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@given(st.binary() | st.text().map(str.encode) | json_values.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_raise_only_problems(text: bytes) -> None:
    for parse in (parse_json, parse_landmarks, parse_segmentation_map):
        with suppress(ProblemError, InputError):
            parse(text)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3))
def test_arbitrary_values_raise_only_problems(fields: dict[str, Any]) -> None:
    with suppress(ProblemError):
        parse_json(body(**fields))
