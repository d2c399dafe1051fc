"""PNG images of results: equal from a result and from its JSON document, like the SVG, and limited in size and time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import msgspec
import numpy as np
import pytest
import resvg_py

from app.face.errors import ImageTooLargeError
from app.service.crop import CropInput, CropResults, CropService, ImageLimits
from app.service.png_export import json_to_png, result_to_png
from app.service.serialization import result_to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Sample

LIMITS = ImageLimits()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"show_landmarks": True, "show_labels": True, "region_opacity": 0.1234567, "stroke_width": 1.23456},
        {"upright": True, "crop": "face", "background": "image", "output_size": 200, "show_landmarks": True},
        {"crop": "face", "margin": 4.0, "background": "image"},
    ],
)
def test_png_of_json_equals_that_of_the_result(make_input: Callable[..., CropInput], options: Any) -> None:
    result = CropService(LIMITS).process(make_input(**options))
    png = result_to_png(result, LIMITS)
    assert json_to_png(result_to_json(result), LIMITS) == png
    image = decode(png)
    is_opaque = options.get("background") == "image" and "margin" not in options
    assert image.shape == (result.face.frame.size.height, result.face.frame.size.width, 3 if is_opaque else 4)


def test_png_of_json_with_holes_equals_that_of_the_result(make_input: Callable[..., CropInput], sample: Sample) -> None:
    result = CropService(LIMITS).process(make_input(segmentation_map=sample.labels))
    assert any(polygon.holes for region in result.face.regions for polygon in region.polygons)
    assert json_to_png(result_to_json(result), LIMITS) == result_to_png(result, LIMITS)


FACES = [
    {},
    {"show_labels": True, "show_landmarks": True, "background": "image"},
    {"crop": "face", "upright": True, "output_size": 150},
    {"crop": "face", "margin": 0.1, "background": "image", "show_landmarks": True},
    {"segmentation_map": "labels", "show_labels": True, "show_landmarks": True},
]


@pytest.mark.parametrize("options", FACES)
def test_png_of_all_faces_equals_the_svg(make_input: Callable[..., CropInput], sample: Sample, options: Any) -> None:
    given = make_input(**{name: sample.labels if value == "labels" else value for name, value in options.items()})
    points = given.points
    assert points is not None
    faces = np.stack([points[:, :2], points[:, :2] * 0.5 + 20, points[:, :2] * 0.4 + (280, 60)])
    request = replace(given, points=faces, options=msgspec.structs.replace(given.options, face="all"))
    result = CropService(LIMITS).process(request)
    assert isinstance(result, CropResults)
    assert len(result.faces) == 3
    png = result_to_png(result, LIMITS, is_request=True)
    assert json_to_png(result_to_json(result), LIMITS, is_request=True) == png
    expected = decode(bytes(resvg_py.svg_to_bytes(svg_string=result.svg.decode(), skip_system_fonts=True)))
    image = decode(png)
    assert image.shape[:2] == expected.shape[:2]
    # The reference renderer has no fonts, so that labels are missing.
    allowed = 0.04 if options.get("show_labels") else 0.003
    assert np.abs(on_grey(image) - on_grey(expected)).mean() < 255 * allowed


def decode(png: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def on_grey(image: np.ndarray) -> np.ndarray:
    if image.shape[2] == 3:
        return image.astype(float)
    alpha = image[..., 3:] / 255
    return image[..., :3] * alpha + 128 * (1 - alpha)


def test_frame_above_the_limit_of_images_is_rejected(make_input: Callable[..., CropInput]) -> None:
    result = CropService(LIMITS).process(make_input(upright=True))
    with pytest.raises(ImageTooLargeError, match=r"png: expected a result of at most 270000 pixels .*, got 539 x 540"):
        result_to_png(result, ImageLimits(max_image_pixels=270_000))


def test_requests_with_a_background_have_fewer_pixels(make_input: Callable[..., CropInput]) -> None:
    limits = ImageLimits(max_image_pixels=512 * 512)
    plain = CropService(limits).process(make_input())
    result = CropService(limits).process(make_input(background="image"))
    assert decode(result_to_png(plain, limits, is_request=True)).shape == (512, 512, 4)
    assert decode(result_to_png(result, limits)).shape == (512, 512, 3)
    for render in (
        lambda: result_to_png(result, limits, is_request=True),
        lambda: json_to_png(result_to_json(result), limits, is_request=True),
    ):
        with pytest.raises(
            ImageTooLargeError, match=r"at most 104857 pixels with a background, got 512 x 512; set crop"
        ):
            render()


def test_requests_that_would_take_too_long_are_rejected(make_input: Callable[..., CropInput]) -> None:
    regions = {f"r{number}": np.random.default_rng(number).integers(0, 468, 1024).tolist() for number in range(8)}
    result = CropService(LIMITS).process(make_input(segmentation_map=regions, stroke_width=0.0))
    with pytest.raises(
        ImageTooLargeError, match=r"png: expected regions of at most 260000000 pixels .*; set output_size"
    ):
        result_to_png(result, LIMITS, is_request=True)
    assert decode(result_to_png(result, LIMITS)).any()


@pytest.mark.parametrize("document", [b"", b"[]", b'{"svg": "", "regions": []}', b"<html>"])
def test_other_documents_are_rejected(document: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        json_to_png(document, LIMITS)


def test_invalid_colour_is_rejected(make_input: Callable[..., CropInput]) -> None:
    document = result_to_json(CropService(LIMITS).process(make_input()))
    with pytest.raises(msgspec.ValidationError, match="colour"):
        json_to_png(document.replace(b'"colour":"#', b'"colour":"', 1), LIMITS)
