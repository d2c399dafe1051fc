from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt
import pytest

from app.face.errors import (
    LabelMapComplexityError,
    LabelMapFormatError,
    LabelMapLabelsError,
    LandmarkDegenerateError,
    RegionCountError,
    RegionIndexError,
    RegionNameError,
)
from app.face.frame import IDENTITY_TRANSFORM, Size
from app.face.landmarks import compute_interocular_px, compute_roll_deg
from app.face.outlines import check_regions
from app.face.pipeline import FaceRequest, FaceResult, OnStep, no_step, process_faces
from app.face.regions import CATALOGUE, LABELS, REGION_NAMES
from app.face.rendering.svg import OverlayStyle

Landmarks = npt.NDArray[np.float32]
CHEEK = {"my cheek": [50, 101, 36, 205], "nose": [168, 129, 2, 358]}


def process_face(request: FaceRequest, on_step: OnStep = no_step) -> FaceResult:
    (result,) = process_faces([request], on_step)
    return result


def names_in(svg: bytes) -> list[str | None]:
    root = ET.fromstring(svg)  # noqa: S314 - our own document
    return [element.get("data-name") for element in root.iter() if element.get("class") == "region"]


def test_catalogue_is_the_default(landmarks_px: Landmarks, frame: Size) -> None:
    result = process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px))
    expected = [spec.name for spec in CATALOGUE]
    assert [region.name for region in result.regions] == names_in(result.svg) == expected
    assert [region.kind for region in result.regions] == expected
    assert [region.colour for region in result.regions] == [spec.colour for spec in CATALOGUE]
    assert result.omitted == ()


def test_result_has_the_measures_of_the_face(landmarks_px: Landmarks, frame: Size) -> None:
    result = process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px))
    assert result.frame.size == frame
    assert result.frame.transform is result.frame.inverse is IDENTITY_TRANSFORM
    assert result.roll_deg == compute_roll_deg(landmarks_px)
    assert result.interocular_px == compute_interocular_px(landmarks_px)
    assert result.bbox == (179.4, 69.8, 92.3, 108.4)


def test_label_map_is_scaled_to_the_image(
    landmarks_px: Landmarks, label_image: npt.NDArray[np.uint8], frame: Size
) -> None:
    assert label_image.shape != (frame.height, frame.width)
    by_labels = process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px, label_image=label_image))
    by_landmarks = process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px))
    assert [region.name for region in by_labels.regions] == [spec.name for spec in LABELS.values()]
    assert [region.kind for region in by_labels.regions] == [region.name for region in by_labels.regions]
    outlined = {region.name: region for region in by_landmarks.regions}
    for region in by_labels.regions:
        if region.name in outlined:
            assert region.bbox == pytest.approx(outlined[region.name].bbox, abs=5)
    skin = by_labels.regions[0]
    assert len(skin.polygons[0].holes) == 6


def test_colour_label_images_name_regions_by_colour(landmarks_px: Landmarks, frame: Size) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[10:30, 10:30], image[40:50, 40:60] = (0, 0, 255), (255, 128, 0)
    result = process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px, label_image=image))
    assert [(region.label_id, region.name, region.kind) for region in result.regions] == [
        (1, "#0080ff", "custom"),
        (2, "#ff0000", "custom"),
    ]
    # Twenty pixels become blocks of eight; the first and last centres are 159 pixels apart.
    assert result.regions[1].bbox == (80, 80, 159, 159)


def test_labels_lost_in_scaling_and_specks_are_omitted(landmarks_px: Landmarks) -> None:
    image = np.zeros((100, 100), np.uint8)
    image[20:80, 20:80], image[0, 0], image[90, 99] = 1, 2, 3
    small = process_face(FaceRequest(image_size=Size(50, 50), landmarks_px=landmarks_px, label_image=image))
    assert [region.name for region in small.regions] == ["skin"]
    assert {region.name: region.reason for region in small.omitted} == {
        "right_eyebrow": "too_few_points",
        "left_eyebrow": "too_few_points",
    }


def test_custom_regions_are_numbered_and_named(landmarks_px: Landmarks, frame: Size) -> None:
    result = process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px, region_landmarks=CHEEK))
    assert [(region.label_id, region.name, region.kind) for region in result.regions] == [
        (1, "my cheek", "custom"),
        (2, "nose", "nose"),
    ]
    assert names_in(result.svg) == ["my cheek", "nose"]


def test_label_image_takes_precedence_over_custom_regions(
    landmarks_px: Landmarks, label_image: npt.NDArray[np.uint8], frame: Size
) -> None:
    request = FaceRequest(image_size=frame, landmarks_px=landmarks_px, label_image=label_image, region_landmarks=CHEEK)
    assert process_face(request).regions[0].name == "skin"


def test_degenerate_regions_are_omitted_with_a_reason(landmarks_px: Landmarks, frame: Size) -> None:
    regions = {"dot": [5, 5, 5], "line": [5, 4, 5, 4], "thin": [10, 9, 10, 8, 9], "cheek": CHEEK["my cheek"]}
    result = process_face(
        FaceRequest(image_size=frame, landmarks_px=landmarks_px, region_landmarks=regions, simplify_px=0)
    )
    assert {region.name: region.reason for region in result.omitted} == {
        "dot": "too_few_points",
        "line": "too_few_points",
    }
    assert names_in(result.svg) == ["thin", "cheek"]


def test_tiny_face_omits_regions_without_error(landmarks_px: Landmarks, frame: Size) -> None:
    result = process_face(FaceRequest(image_size=frame, landmarks_px=(landmarks_px / 40).astype(np.float32)))
    assert {region.reason for region in result.omitted} <= {"too_few_points", "zero_area"}
    assert len(result.omitted) + len(result.regions) == len(CATALOGUE)
    assert len(result.omitted) > 5


@pytest.mark.parametrize("simplify_px", [0, 0.5, 3])
@pytest.mark.parametrize("source", ["catalogue", "labels", "regions"])
def test_areas_and_boxes_match_the_returned_polygons(
    geometry: Any,
    source: str,
    simplify_px: float,
    landmarks_px: Landmarks,
    label_image: npt.NDArray[np.uint8],
    frame: Size,
) -> None:
    sources: dict[str, Any] = {
        "catalogue": {},
        "labels": {"label_image": label_image},
        "regions": {"region_landmarks": CHEEK},
    }
    request = FaceRequest(image_size=frame, landmarks_px=landmarks_px, simplify_px=simplify_px, **sources[source])
    for region in process_face(request).regions:
        assert region.area_px == pytest.approx(sum(map(geometry.area_px, region.polygons)), abs=1e-9)
        points = np.concatenate([polygon.outer for polygon in region.polygons])
        x, y, width, height = region.bbox
        assert [x, y, x + width, y + height] == pytest.approx([*points.min(axis=0), *points.max(axis=0)], abs=1e-4)
        assert (np.round(points, 1) == points).all()


def test_simplification_reduces_points_and_keeps_the_area(landmarks_px: Landmarks, frame: Size) -> None:
    def process(simplify_px: float) -> FaceResult:
        return process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px, simplify_px=simplify_px))

    for whole, simple in zip(process(0).regions, process(0.5).regions, strict=True):
        ring, simplified = whole.polygons[0].outer, simple.polygons[0].outer
        assert len(simplified) <= len(ring)
        perimeter = np.linalg.norm(ring - np.roll(ring, 1, axis=0), axis=1).sum()
        assert abs(whole.area_px - simple.area_px) <= 0.5 * perimeter


@pytest.mark.parametrize(
    ("label_image", "steps"),
    [(None, ["contours", "svg"]), (np.ones((4, 4), np.uint8), ["segmentation", "contours", "svg"])],
)
def test_steps_are_reported_in_order(label_image: Any, steps: list[str], landmarks_px: Landmarks, frame: Size) -> None:
    events: list[str] = []

    @contextmanager
    def on_step(name: str) -> Iterator[None]:
        events.append(f"{name} begins")
        yield
        events.append(f"{name} ends")

    process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px, label_image=label_image), on_step)
    assert events == [f"{step} {what}" for step in steps for what in ("begins", "ends")]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"landmarks_px": np.full((478, 2), 7.0, np.float32)}, LandmarkDegenerateError),
        ({"label_image": np.zeros((4, 4), np.uint8)}, LabelMapLabelsError),
        ({"label_image": np.zeros((4, 4, 2), np.uint8)}, LabelMapFormatError),
        ({"region_landmarks": {}}, RegionCountError),
        ({"region_landmarks": {"<b>": [1, 2, 3]}}, RegionNameError),
    ],
)
def test_invalid_requests_raise_specific_errors(
    fields: dict[str, Any], error: type[Exception], landmarks_px: Landmarks, frame: Size
) -> None:
    with pytest.raises(error):
        process_face(FaceRequest(**{"image_size": frame, "landmarks_px": landmarks_px, **fields}))


def test_inputs_are_not_modified(landmarks_px: Landmarks, label_image: npt.NDArray[np.uint8], frame: Size) -> None:
    landmarks, labels = landmarks_px.copy(), label_image.copy()
    process_face(
        FaceRequest(
            image_size=frame,
            landmarks_px=landmarks,
            label_image=labels,
            style=OverlayStyle(show_labels=True, show_landmarks=True),
        )
    )
    assert (landmarks == landmarks_px).all()
    assert (labels == label_image).all()


def test_mesh_without_irises_has_the_same_regions(landmarks_px: Landmarks, frame: Size) -> None:
    with_irises = process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px))
    without = process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px[:468]))
    assert without.svg == with_irises.svg


def test_region_kinds_are_a_closed_set(landmarks_px: Landmarks, frame: Size) -> None:
    labels = np.arange(256, dtype=np.uint8).repeat(256).reshape(256, 256)
    result = process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px, label_image=labels))
    assert len(result.regions) == 255
    assert {region.kind for region in result.regions} == {*(spec.name for spec in LABELS.values()), "custom"}
    assert "label_11" not in REGION_NAMES


@pytest.mark.parametrize(
    ("region_landmarks", "error"),
    [
        ({}, RegionCountError),
        ({f"r{number}": [1, 2, 3] for number in range(256)}, RegionCountError),
        ({"<b>": [1, 2, 3]}, RegionNameError),
        ({" ": [1, 2, 3]}, RegionNameError),
        ({"a": [1, 2]}, RegionIndexError),
        ({"a": [1, 2, 478]}, RegionIndexError),
        ({"a": [1, 2, -1]}, RegionIndexError),
    ],
)
def test_regions_can_be_checked_before_the_work(
    landmarks_px: Landmarks, frame: Size, region_landmarks: dict[str, list[int]], error: type[Exception]
) -> None:
    with pytest.raises(error) as by_check:
        check_regions(region_landmarks, len(landmarks_px))
    with pytest.raises(error) as by_work:
        process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px, region_landmarks=region_landmarks))
    assert str(by_check.value) == str(by_work.value)


def test_degenerate_landmarks_are_rejected(frame: Size) -> None:
    with pytest.raises(LandmarkDegenerateError):
        process_face(FaceRequest(image_size=frame, landmarks_px=np.full((478, 2), 7.0, np.float32)))


def test_irises_are_regions_if_they_were_sent(landmarks_px: Landmarks, frame: Size) -> None:
    iris = {"iris": [468, 469, 470, 471]}
    process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px, region_landmarks=iris))
    with pytest.raises(RegionIndexError):
        process_face(FaceRequest(image_size=frame, landmarks_px=landmarks_px[:468], region_landmarks=iris))


def test_longest_possible_zigzag_is_rejected_before_simplification(landmarks_px: Any) -> None:
    rows = np.arange(65_535)
    # Each row ends far from the previous one, so the contour has two points per row at both edges.
    left, right = np.where(rows % 2, 2, 150 - rows // 900), np.where(rows % 2, 360, 200 + rows // 900)
    columns = np.arange(366)
    labels = ((columns >= left[:, None]) & (columns < right[:, None])).astype(np.uint8)
    with pytest.raises(LabelMapComplexityError, match="expected at most 200000 contour points"):
        process_face(FaceRequest(image_size=Size(366, 65_535), landmarks_px=landmarks_px, label_image=labels))
