"""Use of the package from Python, without a server."""

from __future__ import annotations

import doctest
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args, get_overloads, get_type_hints

import cv2
import msgspec
import numpy as np
import pytest

import facial_service
from app import api
from app.service.options import CropOptions
from facial_service import ArgumentError, FaceRegions, InputError, find_regions

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from tests.conftest import Sample

ROOT = Path(__file__).parents[2]
CROP = "/api/v1/frontal/crop"
OPTIONS = list(CropOptions.__struct_fields__)


def test_the_result_is_that_of_the_http_api(
    make_app: Callable[..., FastAPI], call: Callable[..., httpx.Response], sample: Sample
) -> None:
    options: dict[str, Any] = {"upright": True, "crop": "face", "show_labels": True}
    content = sample.json(**options)
    response = call(make_app(), path=CROP, content=content, headers={"content-type": "application/json"})
    found = json.loads(find_regions(sample.jpeg, sample.pairs, **options).to_json())
    assert found | {"processing_time_ms": 0} == response.json() | {"processing_time_ms": 0}


def test_keywords_are_the_options_with_their_types_and_defaults() -> None:
    signature = inspect.signature(find_regions)
    keywords = {name: item for name, item in signature.parameters.items() if item.kind is item.KEYWORD_ONLY}
    assert sorted(keywords) == sorted(OPTIONS)
    assert {name: item.default for name, item in keywords.items()} == msgspec.to_builtins(CropOptions())
    declared = get_type_hints(CropOptions)
    for name, item in keywords.items():
        hint = eval(item.annotation, vars(api) | {"Literal": api.Literal})  # noqa: S307 - annotations of the module
        assert _values(hint) == _values(declared[name]), name
    for variant in get_overloads(find_regions):
        assert list(inspect.signature(variant).parameters) != []
        assert set(inspect.signature(variant).parameters) == set(signature.parameters)


def _values(hint: Any) -> set[Any]:
    return {value for part in get_args(hint) for value in _values(part)} or {hint}


@pytest.mark.parametrize("wrap", [str, Path, Path.read_bytes])
def test_image_is_a_path_or_content(sample: Sample, tmp_path: Path, wrap: Callable[[Path], Any]) -> None:
    path = tmp_path / "face.jpg"
    path.write_bytes(sample.jpeg)
    assert find_regions(wrap(path), sample.pairs).size == (512, 512)


def test_every_form_of_landmarks_has_the_same_result(sample: Sample) -> None:
    expected = find_regions(sample.jpeg, sample.pairs).landmarks
    shares = [SimpleNamespace(x=x / 512, y=y / 512, z=0.0) for x, y in sample.pairs]
    forms: list[Any] = [
        np.array(sample.pairs),
        np.array(sample.pairs, np.float32),
        np.array([sample.pairs]),
        sample.points,
        [SimpleNamespace(x=x, y=y) for x, y in sample.pairs],
        SimpleNamespace(face_landmarks=[shares]),
        SimpleNamespace(multi_face_landmarks=[SimpleNamespace(landmark=shares)]),
        SimpleNamespace(landmark=shares),
        {"faceLandmarks": [[{"x": x / 512, "y": y / 512} for x, y in sample.pairs]]},
    ]
    for number, form in enumerate(forms):
        landmarks = find_regions(sample.jpeg, form, landmark_units="normalized" if number == 7 else "pixels").landmarks
        assert np.abs(landmarks - expected).max() < 0.02, number


def test_all_faces_are_a_list(sample: Sample) -> None:
    faces = find_regions(sample.jpeg, np.array([sample.pairs, sample.pairs]), face="all")
    assert [type(face) for face in faces] == [FaceRegions, FaceRegions]


def test_result(sample: Sample) -> None:
    face = find_regions(sample.jpeg, sample.pairs, {"mouth": [61, 0, 291, 17]})
    (region,) = face.regions
    assert face["mouth"] is region
    assert (face.confidence, face.depths, face.yaw_pitch_deg, face.omitted) == (None, None, None, ())
    assert face.transform.tolist() == [[1, 0, 0], [0, 1, 0]]
    mask = face.to_mask()
    assert mask.shape == (512, 512)
    assert np.count_nonzero(mask == region.label_id) == pytest.approx(region.area_px, rel=0.2)
    assert cv2.imdecode(np.frombuffer(face.to_png(), np.uint8), cv2.IMREAD_UNCHANGED).shape == (512, 512, 4)
    assert face.svg.startswith(b"<svg")
    assert repr(face) == "<FaceRegions: 1 regions, 512 x 512 pixels>"


@pytest.mark.parametrize(
    ("arguments", "detail"),
    [
        ({"region_opacity": 2}, "region_opacity: expected a number <= 1, got another value"),
        ({"upright": "yes"}, "upright: expected a boolean, got a string"),
        ({"landmarks": 3}, "landmarks: expected points, or a result of MediaPipe, got int"),
        ({"landmarks": "abc"}, "landmarks[0]: expected an object or an array, got a string"),
        ({"landmarks": np.array(["a"])}, "landmarks: expected an array of numbers, got str32"),
        ({"image": 3}, "image: expected the content of a file or its path, got int"),
        ({"segmentation_map": "x"}, "segmentation_map: expected the content of a label map, or an object, got str"),
    ],
)
def test_arguments_are_checked(sample: Sample, arguments: dict[str, Any], detail: str) -> None:
    given: dict[str, Any] = {"image": sample.jpeg, "landmarks": sample.pairs, **arguments}
    with pytest.raises(ArgumentError) as caught:
        find_regions(**given)
    assert str(caught.value) == detail


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"image": b""}, "image_empty"),
        ({"image": b"GIF89a"}, "image_unsupported_format"),
        ({"landmarks": [[1, 2]]}, "landmarks_count"),
        ({"segmentation_map": {"": [1, 2, 3]}}, "region_name"),
    ],
)
def test_errors_of_the_input_have_the_codes_of_the_http_api(
    sample: Sample, arguments: dict[str, Any], code: str
) -> None:
    given: dict[str, Any] = {"image": sample.jpeg, "landmarks": sample.pairs, **arguments}
    with pytest.raises(InputError) as caught:
        find_regions(**given)
    assert caught.value.code == code


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_regions(tmp_path / "face.jpg")


def test_examples_of_the_page_and_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False)
    assert page.attempted > 15
    assert page.failed == 0
    assert doctest.testmod(facial_service).failed == 0


def test_the_import_loads_no_web_framework_or_queue() -> None:
    code = "import sys, facial_service; print(sorted({'fastapi', 'starlette', 'nats', 'uvicorn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
