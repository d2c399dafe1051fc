"""Scale at which images are decoded: only what a request needs, with the landmarks and pixels of the full image."""

from __future__ import annotations

import base64
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import orjson
import pytest

from app.codec import decode
from app.service.crop import CropInput, CropService, ImageLimits
from app.service.landmarks import LandmarksInput, find_landmarks
from app.service.options import CropOptions, LandmarkOptions
from app.service.serialization import result_to_json
from benchmarks import variants

if TYPE_CHECKING:
    from pathlib import Path

MAX_LOSS = 0.003
"""Additional error of the landmarks, relative to the inter-ocular distance, if the image is not decoded in full."""
MAX_DISTANCE = 0.005
"""Mean distance from the landmarks in the fully decoded image, relative to the inter-ocular distance."""
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 92)


@pytest.fixture
def service(face_models: Path) -> CropService:
    del face_models  # skips the test if the models are not installed
    return CropService(ImageLimits())


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the divisors of the sizes that OpenCV decodes."""
    divisors: list[int] = []
    decoder = cv2.imdecode

    def record(data: Any, flags: int) -> Any:
        divisors.append(
            {
                cv2.IMREAD_REDUCED_COLOR_2: 2,
                cv2.IMREAD_REDUCED_COLOR_4: 4,
                cv2.IMREAD_REDUCED_COLOR_8: 8,
            }.get(flags & ~cv2.IMREAD_IGNORE_ORIENTATION, 1)
        )
        return decoder(data, flags)

    monkeypatch.setattr(decode.cv2, "imdecode", record)
    return divisors


@cache
def make_photo(width: int, height: int, face: float, extension: str = ".jpg") -> bytes:
    """Return a photo of this size whose portrait has this side, as a fraction of the height."""
    side = round(face * height)
    portrait = cv2.resize(variants.read_sample().image, (side, side), interpolation=cv2.INTER_CUBIC)
    image = np.full((height, width, 3), 110, np.uint8)
    left, top = (width - side) // 3, (height - side) // 2
    image[top : top + side, left : left + side] = portrait
    return cv2.imencode(extension, image, JPEG if extension == ".jpg" else ())[1].tobytes()


def find_true_landmarks(width: int, height: int, face: float) -> np.ndarray:
    """Return the landmarks of `make_photo`."""
    side = round(face * height)
    sample = variants.read_sample()
    scale = side / len(sample.image)
    return sample.landmarks_px * scale + ((width - side) // 3, (height - side) // 2)


def process(service: CropService, image: bytes, points: Any = None, **options: Any) -> dict[str, Any]:
    request = CropInput(image=image, points=points, segmentation_map=None, options=CropOptions(**options))
    document: dict[str, Any] = orjson.loads(result_to_json(service.process(request)))
    return document


def read_landmarks(document: dict[str, Any]) -> np.ndarray:
    return np.array([(point["x"], point["y"]) for point in document["landmarks"]])


def read_background(document: dict[str, Any]) -> np.ndarray:
    found = re.search(rb'href="data:image/[a-z]+;base64,([^"]+)"', base64.b64decode(document["svg"]))
    assert found is not None
    image = cv2.imdecode(np.frombuffer(base64.b64decode(found[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


@pytest.mark.parametrize(
    ("width", "height", "face", "divisors"),
    [
        (640, 480, 1.0, [1]),
        (2003, 1501, 1.0, [2]),
        (4032, 3024, 1.0, [4]),
        (4001, 2999, 0.4, [4, 2]),
        (6016, 4016, 0.8, [4]),
        (8064, 6048, 1.0, [8]),
        (8000, 6000, 0.45, [8, 4]),
    ],
)
def test_landmarks_are_those_of_the_full_image(
    service: CropService, decoded: list[int], width: int, height: int, face: float, divisors: list[int]
) -> None:
    photo = make_photo(width, height, face)
    found = read_landmarks(process(service, photo))
    assert decoded == divisors
    # With `verify=pixels`, the full image is available, so nothing else is decoded.
    decoded.clear()
    expected = read_landmarks(process(service, photo, verify="pixels"))
    assert decoded == [1]
    assert variants.compute_error(found, expected) <= MAX_DISTANCE
    true = find_true_landmarks(width, height, face)
    assert variants.compute_error(found, true) <= variants.compute_error(expected, true) + MAX_LOSS


def test_landmarks_alone_are_those_of_the_crop(service: CropService, decoded: list[int]) -> None:
    photo = make_photo(4032, 3024, 1.0)
    found = orjson.loads(find_landmarks(service, LandmarksInput(image=photo, options=LandmarkOptions())))
    assert decoded == [4]
    assert found["landmarks"] == process(service, photo)["landmarks"]


@pytest.mark.parametrize(
    ("options", "divisors"),
    [
        ({}, []),
        ({"verify": "pixels"}, [1]),
        ({"output_size": 500, "upright": True}, []),
        ({"background": "image"}, [1]),
        ({"background": "image", "output_size": 1000}, [2]),
        ({"background": "image", "output_size": 1001}, [1]),
        ({"background": "image", "output_size": 250}, [8]),
        ({"background": "image", "output_size": 249, "verify": "pixels"}, [1]),
        ({"background": "image", "crop": "face"}, [1]),
        ({"background": "image", "crop": "face", "output_size": 100, "upright": True}, [4]),
    ],
)
def test_background_is_decoded_for_its_frame(
    service: CropService, decoded: list[int], options: dict[str, Any], divisors: list[int]
) -> None:
    photo = make_photo(2000, 1500, 1.0)
    points = read_landmarks(process(service, photo))
    decoded.clear()
    process(service, photo, points, **options)
    assert decoded == divisors


@pytest.mark.parametrize("size", [(2000, 1500), (2001, 1503), (1999, 1497)])
@pytest.mark.parametrize(
    "options",
    [
        {"output_size": 640},
        {"output_size": 333, "upright": True},
        {"output_size": 200, "crop": "face"},
        {"output_size": 150, "crop": "face", "margin": 3, "upright": True},
    ],
)
def test_background_shows_the_full_image(
    service: CropService, decoded: list[int], size: tuple[int, int], options: dict[str, Any]
) -> None:
    photo = make_photo(*size, 1.0)
    points = read_landmarks(process(service, photo))
    decoded.clear()
    reduced = read_background(process(service, photo, points, background="image", **options))
    assert decoded[0] > 1
    full = read_background(process(service, photo, points, background="image", verify="pixels", **options))
    # The last row or column of a frame may be beyond the image, and is then transparent.
    assert reduced.shape[:2] == full.shape[:2]
    difference = np.abs(reduced[:, :, :3].astype(float) - full[:, :, :3])
    assert difference.mean() < 3
    assert difference[5:-5, 5:-5].mean() < 3


@pytest.mark.parametrize("extension", [".png", ".webp"])
def test_other_formats_are_decoded_once_in_full(service: CropService, decoded: list[int], extension: str) -> None:
    photo = make_photo(2000, 1500, 1.0, extension)
    process(service, photo, background="image", output_size=300)
    assert decoded == [1]


def test_detection_for_a_full_background_decodes_once(service: CropService, decoded: list[int]) -> None:
    process(service, make_photo(2003, 1501, 1.0), background="image")
    assert decoded == [1]
