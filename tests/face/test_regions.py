"""The region table: its values, and the position of its rings on a real face."""

import re
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from app.face.landmarks import LEFT_EYE_OUTER_CORNER, MESH_POINTS, RIGHT_EYE_OUTER_CORNER
from app.face.regions import (
    CATALOGUE,
    CUSTOM_REGION,
    LABELS,
    PALETTE,
    REGION_NAMES,
    REGIONS,
    RegionSpec,
)

BY_NAME = {spec.name: spec for spec in REGIONS}
RINGS = {spec.name: spec.landmarks for spec in CATALOGUE}
PAIRS = ["eyebrow", "eye", "under_eye", "cheek"]
MIDDLE = sorted(name for name in RINGS if not name.startswith(("left_", "right_")))

# Points of rings on the centre line of the mesh, from forehead to chin.
MIDLINE = [10, 9, 168, 2, 0, 13, 14, 17, 18, 152]

# Mirrored pairs (subject's right, left) of all ring points that are not on the centre line.
MIRROR = {
    7: 249, 21: 251, 25: 255, 31: 261, 32: 262, 33: 263, 37: 267, 39: 269, 40: 270, 46: 276, 47: 277, 52: 282,
    53: 283, 54: 284, 55: 285, 58: 288, 61: 291, 62: 292, 63: 293, 64: 294, 65: 295, 66: 296, 67: 297, 70: 300,
    71: 301, 76: 306, 78: 308, 80: 310, 81: 311, 82: 312, 83: 313, 84: 314, 87: 317, 88: 318, 91: 321, 93: 323,
    95: 324, 97: 326, 98: 327, 102: 331, 103: 332, 105: 334, 107: 336, 109: 338, 112: 341, 117: 346, 118: 347,
    119: 348, 120: 349, 121: 350, 123: 352, 126: 355, 127: 356, 128: 357, 129: 358, 132: 361, 133: 362, 136: 365,
    140: 369, 142: 371, 144: 373, 145: 374, 146: 375, 147: 376, 148: 377, 149: 378, 150: 379, 153: 380, 154: 381,
    155: 382, 157: 384, 158: 385, 159: 386, 160: 387, 161: 388, 162: 389, 163: 390, 172: 397, 173: 398, 174: 399,
    176: 400, 178: 402, 181: 405, 182: 406, 185: 409, 188: 412, 191: 415, 192: 416, 193: 417, 194: 418, 203: 423,
    206: 426, 209: 429, 212: 432, 213: 433, 214: 434, 216: 436, 217: 437, 233: 453, 234: 454, 245: 465, 246: 466,
}  # fmt: skip
BOTH_WAYS = MIRROR | {left: right for right, left in MIRROR.items()} | {index: index for index in MIDLINE}


def test_ids_names_and_colours_are_unique() -> None:
    for values in ([spec.label_id for spec in REGIONS], REGION_NAMES, [spec.colour for spec in REGIONS], PALETTE):
        assert len(values) == len(set(values))
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in [*PALETTE, *(spec.colour for spec in REGIONS)])


@pytest.mark.parametrize(
    ("label_id", "name"),
    [
        (1, "skin"),
        (2, "right_eyebrow"),
        (3, "left_eyebrow"),
        (4, "right_eye"),
        (5, "left_eye"),
        (6, "nose"),
        (7, "upper_lip"),
        (8, "mouth_interior"),
        (9, "lower_lip"),
        (10, "hair"),
        (11, "face_oval"),
        (12, "forehead"),
        (13, "chin"),
        (14, "right_under_eye"),
        (15, "left_under_eye"),
        (16, "right_cheek"),
        (17, "left_cheek"),
    ],
)
def test_label_ids_match_the_api(label_id: int, name: str) -> None:
    assert BY_NAME[name].label_id == label_id
    assert REGION_NAMES[label_id - 1] == name
    assert (LABELS[label_id].name == name) if label_id <= 10 else (label_id not in LABELS)
    assert (name in RINGS) == (name not in ("skin", "hair"))


def test_custom_is_not_a_region_name() -> None:
    assert CUSTOM_REGION not in REGION_NAMES


@pytest.mark.parametrize("spec", CATALOGUE, ids=lambda spec: spec.name)
def test_rings_are_distinct_mesh_points(spec: RegionSpec) -> None:
    assert len(spec.landmarks) == len(set(spec.landmarks)) >= 10
    assert all(0 <= index < MESH_POINTS for index in spec.landmarks)


def edges(ring: tuple[int, ...]) -> set[frozenset[int]]:
    return {frozenset(pair) for pair in zip(ring, (*ring[1:], ring[0]), strict=True)}


@pytest.mark.parametrize("name", PAIRS)
def test_left_ring_mirrors_the_right_ring(name: str) -> None:
    mirrored = tuple(MIRROR[index] for index in RINGS[f"right_{name}"])
    assert edges(mirrored) == edges(RINGS[f"left_{name}"])


@pytest.mark.parametrize("name", MIDDLE)
def test_central_ring_mirrors_itself(name: str) -> None:
    mirrored = tuple(BOTH_WAYS[index] for index in RINGS[name])
    assert edges(mirrored) == edges(RINGS[name])


def test_mirrored_points_are_opposite_each_other(landmarks_px: npt.NDArray[np.float32]) -> None:
    top, bottom = landmarks_px[10], landmarks_px[152]
    down = (bottom - top) / np.linalg.norm(bottom - top)
    across = np.array([-down[1], down[0]])
    right, left = (landmarks_px[list(points)] - top for points in (MIRROR.keys(), MIRROR.values()))
    assert (right @ across > 0).all()
    assert (left @ across < 0).all()
    face_width = np.ptp(landmarks_px[:, 0])
    assert np.abs((right + left) @ across).max() < 0.08 * face_width
    assert np.abs((right - left) @ down).max() < 0.05 * face_width


def test_neighbours_in_rings_are_close(landmarks_px: npt.NDArray[np.float32]) -> None:
    # An edge of the mesh is always shorter than a third of the face; a wrong index usually makes a longer one.
    for ring in RINGS.values():
        points = landmarks_px[list(ring)]
        assert np.linalg.norm(points - np.roll(points, -1, axis=0), axis=1).max() < 20


@pytest.fixture(scope="module")
def masks(landmarks_px: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return each region as a mask of the sample image at four times the size."""
    drawn = {}
    for name, ring in RINGS.items():
        canvas = np.zeros((2048, 2048), np.uint8)
        cv2.fillPoly(canvas, [np.rint(landmarks_px[list(ring)] * 4).astype(np.int32)], 1)
        drawn[name] = canvas.astype(np.bool_)
    return drawn


def centre(mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    ys, xs = np.nonzero(mask)
    return float(xs.mean()), float(ys.mean())


@pytest.mark.parametrize("spec", CATALOGUE, ids=lambda spec: spec.name)
def test_rings_are_simple_and_clockwise_on_the_sample(
    spec: RegionSpec, landmarks_px: npt.NDArray[np.float32], geometry: Any
) -> None:
    ring = landmarks_px[list(spec.landmarks)]
    assert geometry.is_simple(ring)
    # With y down, a ring that is clockwise in the image has a positive area.
    assert geometry.signed_area(ring) > 50


@pytest.mark.parametrize("name", sorted(set(RINGS) - {"face_oval"}))
def test_regions_are_inside_the_face_oval(name: str, masks: dict[str, npt.NDArray[np.bool_]]) -> None:
    outline_px = 4 * (masks[name].sum() ** 0.5)
    assert (masks[name] & ~masks["face_oval"]).sum() < 0.1 * outline_px


@pytest.mark.parametrize("name", PAIRS)
def test_left_regions_are_on_the_right_of_the_image(name: str, masks: dict[str, npt.NDArray[np.bool_]]) -> None:
    nose_x, _ = centre(masks["nose"])
    assert centre(masks[f"right_{name}"])[0] < nose_x < centre(masks[f"left_{name}"])[0]
    right, left = masks[f"right_{name}"].sum(), masks[f"left_{name}"].sum()
    assert 0.8 < right / left < 1.25


@pytest.mark.parametrize("name", MIDDLE)
def test_central_regions_straddle_the_centre_line(
    name: str, masks: dict[str, npt.NDArray[np.bool_]], landmarks_px: npt.NDArray[np.float32]
) -> None:
    top, bottom = landmarks_px[10] * 4, landmarks_px[152] * 4
    ys, xs = np.nonzero(masks[name])
    middle_xs = top[0] + (ys - top[1]) * (bottom[0] - top[0]) / (bottom[1] - top[1])
    assert 0.4 < (xs < middle_xs).mean() < 0.6


@pytest.mark.parametrize(
    ("upper", "lower"),
    [
        ("forehead", "right_eyebrow"),
        ("forehead", "left_eyebrow"),
        ("right_eyebrow", "right_eye"),
        ("left_eyebrow", "left_eye"),
        ("right_eye", "right_under_eye"),
        ("left_eye", "left_under_eye"),
        ("right_under_eye", "right_cheek"),
        ("left_under_eye", "left_cheek"),
        ("forehead", "nose"),
        ("nose", "upper_lip"),
        ("upper_lip", "mouth_interior"),
        ("mouth_interior", "lower_lip"),
        ("lower_lip", "chin"),
    ],
)
def test_regions_are_ordered_from_top_to_bottom(
    upper: str, lower: str, masks: dict[str, npt.NDArray[np.bool_]]
) -> None:
    assert centre(masks[upper])[1] < centre(masks[lower])[1]
    # Masks may share only outlines.
    shared = cv2.erode((masks[upper] & masks[lower]).astype(np.uint8), np.ones((3, 3), np.uint8))
    assert not shared.any()


def test_regions_do_not_overlap_except_with_the_oval(masks: dict[str, npt.NDArray[np.bool_]]) -> None:
    count = np.zeros((2048, 2048), np.int32)
    for name, mask in masks.items():
        if name != "face_oval":
            count += cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    assert count.max() == 1


@pytest.mark.parametrize(
    ("index", "name"),
    [
        pytest.param(4, "nose", id="tip of the nose"),
        pytest.param(48, "nose", id="right ala"),
        pytest.param(278, "nose", id="left ala"),
        pytest.param(6, "nose", id="bridge"),
        pytest.param(468, "right_eye", id="right iris"),
        pytest.param(473, "left_eye", id="left iris"),
        pytest.param(50, "right_cheek", id="right cheekbone"),
        pytest.param(280, "left_cheek", id="left cheekbone"),
        pytest.param(151, "forehead", id="middle of the forehead"),
        pytest.param(199, "chin", id="middle of the chin"),
        pytest.param(11, "upper_lip", id="upper vermilion"),
        pytest.param(16, "lower_lip", id="lower vermilion"),
        pytest.param(230, "right_under_eye", id="below the right eye"),
        pytest.param(450, "left_under_eye", id="below the left eye"),
    ],
)
def test_known_points_are_in_their_region(
    index: int, name: str, masks: dict[str, npt.NDArray[np.bool_]], landmarks_px: npt.NDArray[np.float32]
) -> None:
    x, y = np.rint(landmarks_px[index] * 4).astype(int)
    assert {found for found, mask in masks.items() if mask[y, x]} == {name, "face_oval"}


@pytest.mark.parametrize(("corner", "side"), [(RIGHT_EYE_OUTER_CORNER, "right"), (LEFT_EYE_OUTER_CORNER, "left")])
def test_outer_corners_belong_to_the_eye_of_their_side(corner: int, side: str) -> None:
    assert corner in RINGS[f"{side}_eye"]


def test_lips_meet_at_the_mouth_corners_and_exclude_the_interior() -> None:
    assert {61, 291, 78, 308} <= set(RINGS["upper_lip"]) & set(RINGS["lower_lip"])
    inner = set(RINGS["mouth_interior"])
    assert edges(RINGS["mouth_interior"]) <= edges(RINGS["upper_lip"]) | edges(RINGS["lower_lip"])
    assert {78, 308} == inner & set(RINGS["upper_lip"]) & set(RINGS["lower_lip"])


def test_large_regions_are_drawn_first() -> None:
    order = [spec.name for spec in REGIONS]
    assert order[0] == "face_oval"
    assert order.index("skin") < order.index("nose")
    assert order.index("right_cheek") < order.index("right_eye")
