"""PNG images of results: equal from a result and from its JSON document, and limited in size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import msgspec
import numpy as np
import pytest

from app.face.errors import ImageTooLargeError
from app.service.crop import CropInput, CropService, ImageLimits
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
        {"show_landmarks": True, "show_labels": True},
        {"upright": True, "crop": "face", "background": "image", "output_size": 200, "show_landmarks": True},
        {"crop": "face", "margin": 4.0, "background": "image"},
    ],
)
def test_png_of_json_equals_that_of_the_result(make_input: Callable[..., CropInput], options: Any) -> None:
    request = make_input(**options)
    result = CropService(LIMITS).process(request)
    png = result_to_png(result, request.options, LIMITS)
    assert json_to_png(result_to_json(result), request.points, request.options, LIMITS) == png
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    assert image.shape == (result.face.frame.size.height, result.face.frame.size.width, 4)


def test_png_of_json_with_holes_equals_that_of_the_result(make_input: Callable[..., CropInput], sample: Sample) -> None:
    request = make_input(segmentation_map=sample.labels)
    result = CropService(LIMITS).process(request)
    assert any(polygon.holes for region in result.face.regions for polygon in region.polygons)
    png = result_to_png(result, request.options, LIMITS)
    assert json_to_png(result_to_json(result), None, request.options, LIMITS) == png


def test_frame_above_the_limit_of_images_is_rejected(make_input: Callable[..., CropInput]) -> None:
    request = make_input(upright=True)
    result = CropService(LIMITS).process(request)
    with pytest.raises(ImageTooLargeError, match=r"png: expected a result of at most 270000 pixels .*, got 539 x 540"):
        result_to_png(result, request.options, ImageLimits(max_image_pixels=270_000))


@pytest.mark.parametrize("document", [b"", b"[]", b'{"svg": "", "regions": []}', b"<html>"])
def test_other_documents_are_rejected(document: bytes, make_input: Callable[..., CropInput]) -> None:
    with pytest.raises(msgspec.DecodeError):
        json_to_png(document, None, make_input().options, LIMITS)


def test_invalid_colour_is_rejected(make_input: Callable[..., CropInput]) -> None:
    document = result_to_json(CropService(LIMITS).process(make_input()))
    with pytest.raises(msgspec.ValidationError, match="colour"):
        json_to_png(document.replace(b'"colour":"#', b'"colour":"', 1), None, make_input().options, LIMITS)
