"""The option `orientation`: the result for an image as displayed equals that of an image that is stored upright."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import orjson
import pybase64
import pytest

from app.codec.decode import decode_image
from app.codec.icc import read_icc_profile
from app.codec.sniff import sniff_image, verify_structure
from app.face.frame import make_orientation_transform, orient_pixels, orient_size, transform_points
from app.face.rendering.svg import read_background
from app.service.crop import CropInput, CropResult, CropResults, CropService, ImageLimits
from app.service.landmarks import LandmarksInput, find_landmarks
from app.service.options import CropOptions, LandmarkOptions
from app.service.png_export import result_to_png
from app.service.serialization import result_to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Sample

    MakeInput = Callable[..., CropInput]

ORIENTATIONS = range(1, 9)
INVERSES = {6: 8, 8: 6}  # the others are their own


@pytest.fixture(scope="module")
def service() -> CropService:
    return CropService(ImageLimits())


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def store_png(sample: Sample, pixels: np.ndarray, orientation: int) -> bytes:
    """Encode pixels so that viewers show them as they are, although they are stored in another orientation."""
    stored = orient_pixels(pixels, INVERSES.get(orientation, orientation))
    png = sample.encode(".png", stored)
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return png[:33] + sample.png_chunk(b"eXIf", tiff) + png[33:]


def crop_document(service: CropService, request: CropInput) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(result_to_json(service.process(request)))
    del document["processing_time_ms"]
    return document


@pytest.fixture(scope="module")
def tall(sample: Sample) -> np.ndarray:
    """The photo with a border, so that its width and height differ and its centre is not that of the face."""
    photo = cv2.imdecode(np.frombuffer(sample.photo, np.uint8), cv2.IMREAD_COLOR)
    return cv2.copyMakeBorder(photo, 90, 11, 0, 0, cv2.BORDER_REFLECT)


@pytest.fixture(scope="module")
def points(sample: Sample) -> np.ndarray:
    """The landmarks of `tall`."""
    return np.array(sample.pairs) + np.array([0, 90])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pixels_and_points_are_oriented_as_opencv_does(sample: Sample, orientation: int) -> None:
    image = np.random.default_rng(orientation).integers(0, 255, (5, 8, 3), np.uint8)
    image = cv2.resize(image, (40, 24), interpolation=cv2.INTER_NEAREST)
    file = with_orientation(sample.encode(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, 100), orientation)
    info = verify_structure(file, sniff_image(file, max_pixels=10_000))
    stored, displayed = decode_image(file, info), cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(orient_pixels(stored, orientation), displayed)
    assert displayed.shape[1::-1] == orient_size(info.size, orientation)
    rows, columns = np.mgrid[0:24, 0:40].reshape(2, -1)
    centres = transform_points(np.stack((columns, rows), 1) + 0.5, make_orientation_transform(info.size, orientation))
    x, y = np.floor(centres).astype(int).T
    np.testing.assert_array_equal(displayed[y, x], stored[rows, columns])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    "options",
    [{}, {"upright": True, "crop": "face", "margin": 0.5, "output_size": 300}, {"crop": "face"}, {"upright": True}],
    ids=str,
)
def test_sent_landmarks_and_label_maps_refer_to_the_displayed_image(
    service: CropService,
    make_input: MakeInput,
    sample: Sample,
    tall: np.ndarray,
    points: np.ndarray,
    options: Any,
    orientation: int,
) -> None:
    labels = cv2.imdecode(np.frombuffer(sample.labels, np.uint8), cv2.IMREAD_UNCHANGED)
    for segmentation_map in (None, sample.encode(".png", labels)):
        given = {"points": points, "segmentation_map": segmentation_map, **options}
        upright = crop_document(service, make_input(image=sample.encode(".png", tall), **given))
        request = make_input(image=store_png(sample, tall, orientation), orientation="displayed", **given)
        displayed = crop_document(service, request)
        assert displayed["image"] == {**upright["image"], "exif_orientation": orientation}
        assert {**displayed, "image": None} == {**upright, "image": None}
        assert displayed["warnings"] == []


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_normalized_landmarks_are_fractions_of_the_displayed_image(
    service: CropService, make_input: MakeInput, sample: Sample, tall: np.ndarray, points: np.ndarray, orientation: int
) -> None:
    height, width = tall.shape[:2]
    image = store_png(sample, tall, orientation)
    fractions = points / (width, height)
    given = make_input(image=image, points=fractions, orientation="displayed", landmark_units="normalized")
    pixels = make_input(image=image, points=points, orientation="displayed")
    assert crop_document(service, given)["regions"] == crop_document(service, pixels)["regions"]


@pytest.mark.usefixtures("face_models")
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("options", [{}, {"upright": True, "crop": "face", "face": "all"}], ids=str)
def test_detected_faces_are_those_of_the_displayed_image(
    service: CropService, sample: Sample, tall: np.ndarray, options: Any, orientation: int
) -> None:
    def process(image: bytes, **more: Any) -> CropResult:
        request = CropInput(image=image, points=None, segmentation_map=None, options=CropOptions(**options, **more))
        result = service.process(request)
        return result.faces[0] if isinstance(result, CropResults) else result

    upright = process(sample.encode(".png", tall))
    displayed = process(store_png(sample, tall, orientation), orientation="displayed")
    face, expected = displayed.face, upright.face
    assert np.abs(np.subtract(face.frame.size, expected.frame.size)).max() <= 2
    assert np.abs(face.landmarks_px - expected.landmarks_px).max() < 0.05 * expected.interocular_px
    assert abs(face.roll_deg - expected.roll_deg) < 2
    assert np.abs(np.subtract(face.yaw_pitch_deg, expected.yaw_pitch_deg)).max() < 5
    written, other = (orjson.loads(result_to_json(result)) for result in (displayed, upright))
    boxes = [np.array(one["detection"]["faces"][0]["bbox"]) for one in (written, other)]
    assert np.abs(boxes[0] - boxes[1]).max() < 0.1 * expected.interocular_px


@pytest.mark.usefixtures("face_models")
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("units", ["pixels", "normalized"])
def test_landmarks_alone_are_those_of_the_displayed_image(
    service: CropService, sample: Sample, tall: np.ndarray, units: Any, orientation: int
) -> None:
    upright, displayed = (
        orjson.loads(
            find_landmarks(
                service,
                LandmarksInput(
                    image=store_png(sample, tall, stored),
                    options=LandmarkOptions(landmark_units=units, orientation="displayed"),
                ),
            )
        )
        for stored in (1, orientation)
    )
    assert displayed["image"] == {**upright["image"], "exif_orientation": orientation}
    assert displayed["warnings"] == []
    width, height = (1, 1) if units == "pixels" else (upright["image"]["width"], upright["image"]["height"])
    scale = np.array([width, height, width])
    found, expected = (
        np.array([[point["x"], point["y"], point["z"]] for point in one["landmarks"]]) * scale
        for one in (displayed, upright)
    )
    assert np.abs(found[:, :2] - expected[:, :2]).max() < 0.05 * upright["face"]["interocular_px"]
    assert np.abs(found[:, 2] - expected[:, 2]).mean() < 0.1 * upright["face"]["interocular_px"]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    "options",
    [{}, {"output_size": 200}, {"crop": "face"}, {"upright": True, "crop": "face", "output_size": 123}],
    ids=str,
)
def test_background_and_png_are_oriented(
    service: CropService,
    make_input: MakeInput,
    sample: Sample,
    tall: np.ndarray,
    points: np.ndarray,
    options: Any,
    orientation: int,
) -> None:
    """With a size that no reduction of JPEG divides, so that a reduced image has an incomplete last row and column."""
    image = cv2.resize(tall, (1021, 1227), interpolation=cv2.INTER_CUBIC)
    given = {"points": points * (1021 / 512, 1227 / 613), "background": "image", "region_opacity": 0, "stroke_width": 0}
    quality = cv2.IMWRITE_JPEG_QUALITY, 95
    stored = orient_pixels(image, INVERSES.get(orientation, orientation))
    upright = make_input(image=sample.encode(".jpg", image, *quality), **given, **options)
    file = with_orientation(sample.encode(".jpg", stored, *quality), orientation)
    turned = make_input(image=file, orientation="displayed", **given, **options)
    shown = []
    for request in (upright, turned):
        result = service.process(request)
        assert isinstance(result, CropResult)
        background = read_background(result.svg)
        assert background is not None
        files = pybase64.b64decode(background.base64), result_to_png(result, ImageLimits())
        shown += [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR).astype(int) for file in files]
    for found, expected in zip(shown[2:], shown[:2], strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < 5
        assert np.abs(found[:, ::-1] - expected).mean() > 10  # a mistake makes a difference
        # Details below the size of a pixel differ, but their position does not.
        pair = [one.mean(axis=2).astype(np.float32) for one in (found, expected)]
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-5)
        start = np.eye(2, 3, dtype=np.float32)
        _, shift = cv2.findTransformECC(*pair, start, cv2.MOTION_AFFINE, criteria, None, 5)
        np.testing.assert_allclose(shift, np.eye(2, 3), atol=0.05)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("options", [{}, {"crop": "face"}], ids=str)
def test_transparency_is_oriented(
    service: CropService, make_input: MakeInput, sample: Sample, tall: np.ndarray, points: np.ndarray, options: Any,
    orientation: int,
) -> None:  # fmt: skip
    transparent = np.dstack((tall, np.full(tall.shape[:2], 255, np.uint8)))
    transparent[200:260, 200:240, 3] = 0
    found = []
    for stored in (1, orientation):
        image = store_png(sample, transparent, stored)
        result = service.process(
            make_input(image=image, points=points, background="image", orientation="displayed", **options)
        )
        background = read_background(result.svg)
        assert background is not None
        assert background.media_type == "image/png"
        file = np.frombuffer(pybase64.b64decode(background.base64), np.uint8)
        found.append(cv2.imdecode(file, cv2.IMREAD_UNCHANGED))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0][..., 3] == 0).any()


def test_colour_profile_is_kept(
    service: CropService, make_input: MakeInput, sample: Sample, points: np.ndarray, tall: np.ndarray
) -> None:
    profile = (
        struct.pack(">I", 132) + bytes(12) + b"RGB " + bytes(16) + b"acsp" + bytes(92)
    )  # a header without a table of tags, which is not read
    icc = b"ICC_PROFILE\0\1\1" + profile
    jpeg = sample.encode(".jpg", orient_pixels(tall, 8))
    jpeg = jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(icc) + 2) + icc + jpeg[2:]
    result = service.process(
        make_input(
            image=with_orientation(jpeg, 6), points=points, background="image", orientation="displayed", crop="face"
        )
    )
    background = read_background(result.svg)
    assert background is not None
    file = pybase64.b64decode(background.base64)
    kept = read_icc_profile(file, sniff_image(file, max_pixels=1_000_000))
    assert kept is not None
    assert kept.data == profile


def test_stored_is_the_default_and_warns(
    service: CropService, make_input: MakeInput, sample: Sample, tall: np.ndarray
) -> None:
    image = store_png(sample, tall, 6)
    default = crop_document(service, make_input(image=image))
    assert default == crop_document(service, make_input(image=image, orientation="stored"))
    assert (default["image"]["width"], default["image"]["height"]) == (613, 512)
    assert [warning["code"] for warning in default["warnings"]] == ["exif_orientation"]
    assert "orientation" in default["warnings"][0]["message"]
