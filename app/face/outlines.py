"""Outlines of regions, from landmarks or a label map, and their conversion to measured regions."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

import numpy as np

from app.face.contours import (
    COORDINATE_DECIMALS,
    MAX_CONTOUR_POINTS,
    MAX_CONTOURS,
    Polygon,
    has_few_points,
    measure_rings,
    trace_labels,
)
from app.face.errors import LabelMapComplexityError, RegionCountError, RegionIndexError, RegionNameError
from app.face.label_map import LabelMap
from app.face.landmarks import FloatArray
from app.face.regions import CATALOGUE, CUSTOM_REGION, PALETTE, REGION_NAMES, OmittedRegion, Region
from app.face.simplification import simplify_rings

MAX_REGIONS: Final = 64
MAX_TOTAL_REGIONS: Final = 512
"""Maximum number of regions in the results for all faces of an image together. The catalogue needs 480 for 32 faces.
Placing their labels takes half a millisecond for each."""

MIN_REGION_LANDMARKS: Final = 3
MAX_REGION_LANDMARKS: Final = 1024
"""Twice the points of the mesh: no outline needs more, and the cost stays low."""

MIN_AREA_PX: Final = 0.5 * 10.0 ** (-2 * COORDINATE_DECIMALS) / 2
"""Half the area of the smallest triangle on the coordinate grid: a smaller area is a rounding error of zero."""

_AREA_DECIMALS: Final = 2 * COORDINATE_DECIMALS + 1
"""Products of coordinates have twice their decimals, and half a product has one more, so rounding is lossless."""

# Letters and digits of any script, and common separators; no characters that are special in XML or a shell.
_REGION_NAME: Final = re.compile(r"[\w .:-]{1,64}")

_KINDS: Final = frozenset(REGION_NAMES)

# The concatenated rings of the catalogue, so that one indexing operation returns the points of all of them.
_CATALOGUE_LANDMARKS: Final = np.array([index for spec in CATALOGUE for index in spec.landmarks])
_CATALOGUE_SLICES: Final = tuple(
    slice(start, end) for start, end in pairwise(accumulate((len(spec.landmarks) for spec in CATALOGUE), initial=0))
)


class Outline(NamedTuple):
    """A region before it is simplified and measured."""

    label_id: int
    name: str
    colour: str  # `#rrggbb`
    polygons: Sequence[Sequence[FloatArray]]  # the rings of each polygon, outer ring first


def outline_catalogue(landmarks_px: FloatArray) -> list[Outline]:
    """Return the outlines of the catalogue regions, in the order of ``CATALOGUE``, from rounded landmarks."""
    points = landmarks_px[_CATALOGUE_LANDMARKS]
    return [
        Outline(spec.label_id, spec.name, spec.colour, ((points[ring],),))
        for spec, ring in zip(CATALOGUE, _CATALOGUE_SLICES, strict=True)
    ]


def outline_labels(label_map: LabelMap) -> list[Outline]:
    """Return the outline of each label of a map at the size of the image.

    An outline has no polygons if scaling removed the label.
    """
    return [
        Outline(
            label_id,
            label_map.names[label_id],
            label_map.colours[label_id],
            [(polygon.outer, *polygon.holes) for polygon in polygons],
        )
        for label_id, polygons in trace_labels(label_map.labels, list(label_map.names)).items()
    ]


def outline_landmarks(region_landmarks: Mapping[str, Sequence[int]], landmarks_px: FloatArray) -> list[Outline]:
    """Return the outlines of custom regions, with ids from 1 in the given order, from rounded landmarks.

    The values of ``region_landmarks`` are rings of landmark indices.
    """
    check_regions(region_landmarks, len(landmarks_px))
    outlines: list[Outline] = []
    for position, (name, indices) in enumerate(region_landmarks.items(), start=1):
        ring = landmarks_px[list(indices)]
        outlines.append(Outline(position, name, PALETTE[(position - 1) % len(PALETTE)], ((ring,),)))
    return outlines


def check_regions(region_landmarks: Mapping[str, Sequence[int]], landmark_count: int) -> None:
    """Check custom regions: rings of landmark indices by name.

    Raises:
        RegionCountError: there are no regions, or more than ``MAX_REGIONS``.
        RegionNameError: a name is blank, too long, or has a character that is not allowed.
        RegionIndexError: a region has too few or too many indices, or an invalid one.
    """
    if not 1 <= len(region_landmarks) <= MAX_REGIONS:
        raise RegionCountError(f"segmentation_map: expected 1 to {MAX_REGIONS} regions, got {len(region_landmarks)}")
    for position, (name, indices) in enumerate(region_landmarks.items(), start=1):
        _check_region(position, name, indices, landmark_count)


def _check_region(position: int, name: str, indices: Sequence[int], landmark_count: int) -> None:
    # Identify the region by position, because messages must not repeat text from the request.
    if not _REGION_NAME.fullmatch(name) or name.isspace():
        raise RegionNameError(
            f"segmentation_map: expected 1 to 64 letters, digits, spaces or _ - . : as the name of region {position}, "
            "got another name"
        )
    if not MIN_REGION_LANDMARKS <= len(indices) <= MAX_REGION_LANDMARKS:
        raise RegionIndexError(
            f"segmentation_map: expected {MIN_REGION_LANDMARKS} to {MAX_REGION_LANDMARKS} landmark indices for region "
            f"{position}, got {len(indices)}"
        )
    # numpy would accept booleans and negative numbers as indices.
    if any(type(index) is not int or not 0 <= index < landmark_count for index in indices):
        raise RegionIndexError(
            f"segmentation_map: expected integers from 0 to {landmark_count - 1} as landmark indices of region "
            f"{position}, got others"
        )


def check_total(outlines: Sequence[Outline], faces: int, *, is_label_map: bool) -> None:
    """Check the size of the results for several faces, each of which contains these outlines or similar ones.

    Raises:
        LabelMapComplexityError: the outlines of a label map are too many or too long.
        RegionCountError: those of custom regions are.
    """
    if faces == 1:
        return
    rings = [ring for outline in outlines for polygon in outline.polygons for ring in polygon]
    counts = (
        ("regions", len(outlines), MAX_TOTAL_REGIONS),
        ("contours", len(rings), MAX_CONTOURS),
        ("contour points", sum(map(len, rings)), MAX_CONTOUR_POINTS),
    )
    for name, count, limit in counts:
        if count * faces > limit:
            error = LabelMapComplexityError if is_label_map else RegionCountError
            raise error(
                f"segmentation_map: expected at most {limit} {name} for all {faces} faces together, got "
                f"{count * faces}; select one face"
            )


def measure_outlines(
    outlines: Sequence[Outline], simplify_px: float
) -> tuple[tuple[Region, ...], tuple[OmittedRegion, ...]]:
    """Simplify and measure outlines, and separate those without area.

    ``simplify_px`` is the maximum distance between a contour and its simplified form, in pixels of the output frame.
    """
    rings = [ring for outline in outlines for polygon in outline.polygons for ring in polygon]
    simplified = simplify_rings(rings, simplify_px)
    measured = _RingReader(simplified)
    regions: list[Region] = []
    omitted: list[OmittedRegion] = []
    for outline in outlines:
        start = measured.position
        parts = [part for polygon in outline.polygons if (part := measured.read_polygon(len(polygon)))]
        if parts:
            regions.append(_make_region(outline, parts))
        else:
            few_points = all(has_few_points(ring) for ring in simplified[start : measured.position])
            reason = "too_few_points" if few_points else "zero_area"
            omitted.append(OmittedRegion(outline.label_id, outline.name, reason))
    return tuple(regions), tuple(omitted)


class _Part(NamedTuple):
    """A polygon with its area and box (left, top, right, bottom)."""

    polygon: Polygon
    area_px: float
    box: list[float]


class _RingReader:
    """Sequential reader that groups measured rings into polygons again."""

    def __init__(self, rings: Sequence[FloatArray]) -> None:
        self.position = 0
        self._rings = rings
        self._areas: list[float] = []
        self._boxes: list[list[float]] = []
        if rings:
            areas, boxes = measure_rings(rings)
            self._areas, self._boxes = areas.tolist(), boxes.tolist()

    def read_polygon(self, ring_count: int) -> _Part | None:
        """Return the next rings as one polygon, or None if it has no area."""
        outer = self.position
        self.position += ring_count
        holes = [index for index in range(outer + 1, self.position) if self._areas[index] >= MIN_AREA_PX]
        area_px = self._areas[outer] - sum([self._areas[index] for index in holes])
        if area_px < MIN_AREA_PX:
            return None
        polygon = Polygon(self._rings[outer], tuple([self._rings[index] for index in holes]))
        return _Part(polygon, area_px, self._boxes[outer])


def _make_region(outline: Outline, parts: Sequence[_Part]) -> Region:
    if len(parts) == 1:
        left, top, right, bottom = parts[0].box
    else:
        lefts, tops, rights, bottoms = zip(*[part.box for part in parts], strict=True)
        left, top, right, bottom = min(lefts), min(tops), max(rights), max(bottoms)
    return Region(
        label_id=outline.label_id,
        name=outline.name,
        colour=outline.colour,
        polygons=tuple([part.polygon for part in parts]),
        area_px=round(sum([part.area_px for part in parts]), _AREA_DECIMALS),
        bbox=(left, top, round(right - left, COORDINATE_DECIMALS), round(bottom - top, COORDINATE_DECIMALS)),
        kind=outline.name if outline.name in _KINDS else CUSTOM_REGION,
    )
