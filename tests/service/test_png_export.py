"""Pictures of results: from a result and from its document the same, and no larger than a photo may be."""

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
def test_a_document_gives_the_picture_of_its_result(make_input: Callable[..., CropInput], options: Any) -> None:
    request = make_input(**options)
    result = CropService(LIMITS).process(request)
    png = result_to_png(result, request.options, LIMITS)
    assert json_to_png(result_to_json(result), request.points, request.options, LIMITS) == png
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    assert picture.shape == (result.face.frame.size.height, result.face.frame.size.width, 4)


def test_a_map_with_holes_gives_the_same_too(make_input: Callable[..., CropInput], sample: Sample) -> None:
    request = make_input(segmentation_map=sample.labels)
    result = CropService(LIMITS).process(request)
    assert any(polygon.holes for region in result.face.regions for polygon in region.polygons)
    png = result_to_png(result, request.options, LIMITS)
    assert json_to_png(result_to_json(result), None, request.options, LIMITS) == png


def test_a_frame_larger_than_a_photo_may_be_is_refused(make_input: Callable[..., CropInput]) -> None:
    request = make_input(upright=True)
    result = CropService(LIMITS).process(request)
    with pytest.raises(ImageTooLargeError, match="png: the result is 539 x 540, and may have 270000 pixels"):
        result_to_png(result, request.options, ImageLimits(max_image_pixels=270_000))


@pytest.mark.parametrize("document", [b"", b"[]", b'{"svg": "", "regions": []}', b"<html>"])
def test_what_is_no_document_is_told_apart(document: bytes, make_input: Callable[..., CropInput]) -> None:
    with pytest.raises(msgspec.DecodeError):
        json_to_png(document, None, make_input().options, LIMITS)
