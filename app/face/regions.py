"""Face regions: one table of names, label ids, landmark rings and colours.

A ring lists indices of MediaPipe's face mesh, clockwise in the image of an upright face, without repeating the first.
Neighbours in a ring are connected by an edge of the mesh. The mesh and its named rings (eyes, eyebrows, lips, oval) are
those of ``FaceLandmarksConnections`` in ``mediapipe.tasks.python.vision`` (Google, Apache-2.0). The rings of forehead,
cheeks, under-eyes, nose and chin follow edges of the mesh and are defined here.

Sides are the subject's: the right eye is on the left of the image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from app.face.contours import Polygon


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """Definition of a region."""

    label_id: int  # number in label maps and responses
    name: str
    landmarks: tuple[int, ...]  # ring of mesh indices; empty if the mesh does not outline the region
    colour: str  # `#rrggbb`


@dataclass(frozen=True, slots=True)
class Region:
    """A region of a specific face."""

    label_id: int
    name: str  # possibly chosen by the caller
    colour: str  # `#rrggbb`
    polygons: tuple[Polygon, ...]  # one for each separate part, at least one
    area_px: float  # in square pixels, excluding holes
    bbox: tuple[float, float, float, float]  # `(x, y, width, height)` in pixels
    kind: str  # one of `REGION_NAMES`, or `CUSTOM_REGION`; safe as a metric label, because the set is closed


@dataclass(frozen=True, slots=True)
class OmittedRegion:
    """A requested region that has no area on this face."""

    label_id: int
    name: str
    reason: str  # `too_few_points` (fewer than three distinct points) or `zero_area`


# fmt: off
# Each row of indices is one section of the outline, which makes it easy to compare with a drawing of the mesh.
REGIONS: Final[tuple[RegionSpec, ...]] = (
    RegionSpec(11, "face_oval", (
        10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
        148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
    ), "#99e9f2"),
    RegionSpec(1, "skin", (), "#ffb37a"),
    RegionSpec(10, "hair", (), "#8d5a2b"),
    RegionSpec(12, "forehead", (
        10, 338, 297, 332, 284, 251, 301,
        300, 293, 334, 296, 336, 9, 107, 66, 105, 63, 70,
        71, 21, 54, 103, 67, 109,
    ), "#7c5cff"),
    RegionSpec(16, "right_cheek", (
        117, 118, 119, 120, 121, 47,
        126, 142, 203, 206, 216, 212,
        214, 192, 213, 147, 123,
    ), "#ff6b9a"),
    RegionSpec(17, "left_cheek", (
        346, 352, 376, 433, 416, 434,
        432, 436, 426, 423, 371, 355,
        277, 350, 349, 348, 347,
    ), "#e64980"),
    RegionSpec(13, "chin", (
        18, 313, 406, 418, 262, 369,
        400, 377, 152, 148, 176,
        140, 32, 194, 182, 83,
    ), "#12b886"),
    RegionSpec(14, "right_under_eye", (
        33, 7, 163, 144, 145, 153, 154, 155, 133,
        112, 233, 128, 121, 120, 119, 118, 117, 31, 25,
    ), "#a9e34b"),
    RegionSpec(15, "left_under_eye", (
        263, 255, 261, 346, 347, 348, 349, 350, 357, 453, 341,
        362, 382, 381, 380, 374, 373, 390, 249,
    ), "#74b816"),
    RegionSpec(6, "nose", (
        168, 417, 465, 412, 399, 437, 429,
        358, 331, 294, 327, 326, 2, 97, 98, 64, 102, 129,
        209, 217, 174, 188, 245, 193,
    ), "#fab005"),
    RegionSpec(2, "right_eyebrow", (70, 63, 105, 66, 107, 55, 65, 52, 53, 46), "#b5651d"),
    RegionSpec(3, "left_eyebrow", (300, 276, 283, 282, 295, 285, 336, 296, 334, 293), "#8f4a0e"),
    RegionSpec(4, "right_eye", (
        33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7,
    ), "#4dabf7"),
    RegionSpec(5, "left_eye", (
        263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466,
    ), "#1c7ed6"),
    RegionSpec(7, "upper_lip", (
        61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291,
        306, 292, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191, 78, 62, 76,
    ), "#e03131"),
    RegionSpec(9, "lower_lip", (
        61, 76, 62, 78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 292, 306,
        291, 375, 321, 405, 314, 17, 84, 181, 91, 146,
    ), "#ff6b6b"),
    RegionSpec(8, "mouth_interior", (
        78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95,
    ), "#862e9c"),
)
# fmt: on
"""All regions in drawing order: larger regions first, so that smaller ones are drawn over them."""

CATALOGUE: Final[tuple[RegionSpec, ...]] = tuple(spec for spec in REGIONS if spec.landmarks)
"""Regions that landmarks alone outline, in drawing order."""

_LABEL_MAP_IDS: Final = range(1, 11)

LABELS: Final[Mapping[int, RegionSpec]] = MappingProxyType(
    {spec.label_id: spec for spec in sorted(REGIONS, key=lambda spec: spec.label_id) if spec.label_id in _LABEL_MAP_IDS}
)
"""Regions of a label map by label id; 0 is background. In a pair, the even id is the subject's right side, which is on
the left of the image."""

REGION_NAMES: Final[tuple[str, ...]] = tuple(spec.name for spec in sorted(REGIONS, key=lambda spec: spec.label_id))
"""Names of all regions, in the order of their label ids."""

CUSTOM_REGION: Final = "custom"
"""Kind of all custom regions, for use where names must come from a closed set."""

PALETTE: Final[tuple[str, ...]] = (
    "#4dabf7", "#ff6b6b", "#51cf66", "#fcc419", "#9775fa", "#ff922b",
    "#22b8cf", "#f06595", "#94d82d", "#5c7cfa", "#e8590c", "#20c997",
)  # fmt: skip
"""Colours of custom regions, assigned in turn."""
