"""JSON documents of results."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest

from app.codec.sniff import ImageInfo
from app.face.contours import Polygon
from app.face.frame import Frame, Size
from app.face.pipeline import FaceResult
from app.face.regions import OmittedRegion, Region
from app.service.crop import CropInput, CropResult, CropService, ImageLimits
from app.service.serialization import result_to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conftest import Sample

    MakeInput = Callable[..., CropInput]


def square(left: float, top: float, side: float) -> np.ndarray:
    return np.array([[left, top], [left + side, top], [left + side, top + side], [left, top + side]], np.float32)


def make_region(label_id: int, *polygons: Polygon) -> Region:
    return Region(label_id, f"region {label_id}", "#102030", polygons, 12.345, (1.0, 2.0, 3.5, 4.0), "custom")


def document(
    regions: Sequence[Region] = (), omitted: Sequence[OmittedRegion] = (), *, exif_orientation: int = 1
) -> dict[str, Any]:
    face = FaceResult(
        frame=Frame(Size(40, 30)),
        landmarks_px=np.zeros((478, 2), np.float32),
        regions=tuple(regions),
        omitted=tuple(omitted),
        svg="<svg>é</svg>".encode(),
        roll_deg=-12.3456,
        interocular_px=60.6149,
        bbox=(1.0, 2.25, 3.0, 4.0),
    )
    image = ImageInfo("webp", Size(40, 30), exif_orientation)
    written: dict[str, Any] = orjson.loads(
        result_to_json(CropResult(image=image, face=face, detected=None, processing_time_ms=1.23456))
    )
    return written


def test_an_empty_result_has_every_member() -> None:
    assert document() == {
        "svg": base64.b64encode("<svg>é</svg>".encode()).decode(),
        "mask_contours": {},
        "regions": [],
        "regions_detected": 0,
        "omitted": [],
        "image": {"width": 40, "height": 30, "format": "webp", "exif_orientation": 1},
        "face": {"roll_deg": -12.35, "interocular_px": 60.61, "bbox": [1.0, 2.2, 3.0, 4.0]},
        "landmarks": None,
        "detection": None,
        "output": {"width": 40, "height": 30},
        "transform": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        "inverse_transform": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        "warnings": [],
        "processing_time_ms": 1.235,
    }


def test_regions_are_written_whole() -> None:
    small, large, hole, other_hole = square(0, 0, 2), square(10, 0, 9), square(11, 1, 2), square(15, 1, 3)
    region = make_region(7, Polygon(small, ()), Polygon(large, (hole, other_hole)))
    written = document([region, make_region(3, Polygon(hole, ()))])
    assert written["regions_detected"] == 2
    assert written["regions"][0] == {
        "id": 7,
        "name": "region 7",
        "colour": "#102030",
        "area_px": 12.345,
        "bbox": [1.0, 2.0, 3.5, 4.0],
        "contours": [small.tolist(), large.tolist()],
        "holes": [{"parent": 1, "contour": hole.tolist()}, {"parent": 1, "contour": other_hole.tolist()}],
    }
    assert [one["id"] for one in written["regions"]] == [7, 3]


def test_mask_contours_hold_each_regions_largest_outer_contour() -> None:
    # The enclosed area decides, including holes.
    ring = Polygon(square(10, 0, 9), (square(11, 1, 8),))
    disc = Polygon(square(0, 0, 6), ())
    written = document([make_region(1, disc, ring), make_region(2, ring, disc), make_region(30, disc)])
    assert written["mask_contours"] == {
        "1": ring.outer.tolist(),
        "2": ring.outer.tolist(),
        "30": disc.outer.tolist(),
    }


def test_coordinates_keep_the_digits_they_were_rounded_to() -> None:
    ring = np.array([[0.1, 200.3], [1023.7, 0.2], [5.0, 4000.9]], np.float32)
    written = orjson.dumps(document([make_region(1, Polygon(ring, ()))])["mask_contours"]["1"])
    assert written == b"[[0.1,200.3],[1023.7,0.2],[5.0,4000.9]]"


def test_omitted_regions_are_named_with_the_reason() -> None:
    omitted = [OmittedRegion(4, "right_eye", "zero_area"), OmittedRegion(9, "x", "too_few_points")]
    assert document(omitted=omitted)["omitted"] == [
        {"id": 4, "name": "right_eye", "reason": "zero_area"},
        {"id": 9, "name": "x", "reason": "too_few_points"},
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_a_warning(orientation: int) -> None:
    written = document(exif_orientation=orientation)
    assert written["image"]["exif_orientation"] == orientation
    assert [warning["code"] for warning in written["warnings"]] == ["exif_orientation"] * (orientation != 1)
    assert all(f"EXIF orientation {orientation}" in warning["message"] for warning in written["warnings"])


def test_orientation_of_a_real_file_is_reported(make_input: MakeInput, sample: Sample) -> None:
    tag = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    turned = sample.jpeg[:2] + b"\xff\xe1" + (len(tag) + 2).to_bytes(2) + tag + sample.jpeg[2:]
    result = CropService(ImageLimits()).process(make_input(image=turned))
    written = orjson.loads(result_to_json(result))
    assert written["image"] == {"width": 512, "height": 512, "format": "jpeg", "exif_orientation": 6}
    assert written["warnings"][0]["code"] == "exif_orientation"


def test_holes_of_a_label_map_name_their_parents(make_input: MakeInput, sample: Sample) -> None:
    labels = np.zeros((512, 512), np.uint8)
    labels[10:60, 10:60] = 1  # a part without holes
    labels[100:400, 100:400] = 1
    labels[150:250, 150:250] = 0
    labels[180:220, 180:220] = 1  # an island in the hole
    labels[300:350, 300:350] = 8
    image = sample.encode(".png", labels)
    result = CropService(ImageLimits()).process(make_input(segmentation_map=image, simplify=0))
    skin, mouth = orjson.loads(result_to_json(result))["regions"]
    boxes = [[np.min(ring, 0).tolist(), np.max(ring, 0).tolist()] for ring in skin["contours"]]
    large = next(index for index, (low, high) in enumerate(boxes) if high[0] - low[0] > 250)
    assert len(boxes) == 3
    assert [hole["parent"] for hole in skin["holes"]] == [large, large]
    assert (mouth["name"], mouth["holes"]) == ("mouth_interior", [])


def test_colours_are_those_of_the_svg(make_input: MakeInput, sample: Sample) -> None:
    for regions in (None, sample.labels, {"nose": [168, 129, 2, 358], "mine": [61, 0, 291]}):
        result = CropService(ImageLimits()).process(make_input(segmentation_map=regions))
        written = orjson.loads(result_to_json(result))
        drawn = re.findall(rb' data-label-id="\d+" fill="(#[0-9a-f]{6})"', result.face.svg)
        assert [region["colour"] for region in written["regions"]] == [colour.decode() for colour in drawn]
