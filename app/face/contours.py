"""Label maps to contours, and contours measured.

A contour ``(N, 2)`` is a closed ring of points in pixels, the first not repeated. cv2's ``(N, 1, 2)`` arrays stay
inside this module. A contour traced from a label map runs through the centres of the label's outermost pixels, and
its coordinates are the indices of those pixels.

Work on many rings is done on all of them at once: a face has fifteen rings of some twenty points, and a numpy call
costs more than the arithmetic on so few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from app.face.errors import LabelMapComplexityError
from app.face.landmarks import FloatArray

COORDINATE_DECIMALS: Final = 1
"""A tenth of a pixel is finer than any landmark is accurate, and keeps answers short."""

LABELS_PER_PASS: Final = 16
"""Bits in the word that a pass over the label map keeps for each pixel."""

MAX_TRACED_PIXELS: Final = 240_000_000
"""Ten times the largest photo. A face of twenty labels takes three or four times; 255 labels strewn over all of it
would take ten seconds, for a map of a few kilobytes."""

MAX_CONTOURS: Final = 16_384
"""Each contour is several Python objects, however short. A badly segmented face has a few thousand."""

MAX_CONTOUR_POINTS: Final = 200_000
"""Points of all contours before they are simplified. An ordinary face on 24 million pixels has some
13,000; a noisy map of 2048 by 2048 pixels with a thousand strands of hair has 175,000."""

MIN_POLYGON_POINTS: Final = 3

LabelArray = npt.NDArray[np.uint8]
_DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """An outline and the holes in it.

    Attributes:
        outer: ``(N, 2)`` float32 ring in pixels.
        holes: Rings inside ``outer``, each ``(M, 2)``.
    """

    outer: FloatArray
    holes: tuple[FloatArray, ...] = ()


def trace_labels(labels: LabelArray, ids: Sequence[int] | None = None) -> dict[int, list[Polygon]]:
    """Trace the outlines of every label.

    Pixels that touch by a corner belong together. An island inside a hole is a polygon of its own. Filled by the
    even-odd rule, outlines included, the polygons give the label's pixels again.

    Args:
        labels: ``(H, W)`` uint8 label ids.
        ids: The labels to trace; all but 0 where left out.

    Returns:
        Polygons by label id, in the order of ``ids``; an empty list for a label that is not in the map.

    Raises:
        LabelMapComplexityError: The labels are so many and so spread, or their contours so many or so long, that the
            request would take seconds.
    """
    wanted = find_labels(labels) if ids is None else list(ids)
    traced: dict[int, list[Polygon]] = {}
    looked_at = contours = points = 0
    for start in range(0, len(wanted), LABELS_PER_PASS):
        batch = wanted[start : start + LABELS_PER_PASS]
        boxes = _find_boxes(labels, batch)
        looked_at += sum((box[2] - box[0]) * (box[3] - box[1]) for box in boxes if box is not None)
        if looked_at > MAX_TRACED_PIXELS:
            raise LabelMapComplexityError(
                f"segmentation_map: expected bounding boxes of all labels to hold at most {MAX_TRACED_PIXELS} pixels "
                f"at the size of the photo, got {looked_at} or more for {len(wanted)} labels"
            )
        for label_id, box in zip(batch, boxes, strict=True):
            polygons = [] if box is None else _trace_label(labels, label_id, box)
            contours += sum([1 + len(polygon.holes) for polygon in polygons])
            points += sum([len(ring) for polygon in polygons for ring in (polygon.outer, *polygon.holes)])
            _check_complexity(contours, points)
            traced[label_id] = polygons
    return traced


def _check_complexity(contours: int, points: int) -> None:
    """Refuse contours that cannot be simplified, drawn and written within the time of a request."""
    for count, limit, what in ((contours, MAX_CONTOURS, "contours"), (points, MAX_CONTOUR_POINTS, "contour points")):
        if count > limit:
            raise LabelMapComplexityError(
                f"segmentation_map: expected at most {limit} {what} in all labels, got {count} or more"
            )


def find_labels(labels: LabelArray) -> list[int]:
    """Find which label ids occur in a label map.

    Args:
        labels: ``(H, W)`` uint8 label ids.

    Returns:
        Ids in ascending order, without 0.
    """
    histogram = cv2.calcHist([labels], [0], None, [256], [0, 256])
    return [label_id for label_id in np.flatnonzero(histogram).tolist() if label_id]


def _find_boxes(labels: LabelArray, ids: Sequence[int]) -> list[tuple[int, int, int, int] | None]:
    # One look at the map for all labels: a bit for each label, or-ed along rows and columns, says where it occurs.
    # A comparison and a bounding rectangle for each label cost three times as much.
    bits = np.zeros(256, np.uint16)
    for bit, label_id in enumerate(ids):
        bits[label_id] = 1 << bit
    flags = cv2.LUT(labels, bits)
    rows, columns = np.bitwise_or.reduce(flags, axis=1), np.bitwise_or.reduce(flags, axis=0)
    boxes: list[tuple[int, int, int, int] | None] = []
    for bit in range(len(ids)):
        ys, xs = np.flatnonzero(rows & (1 << bit)), np.flatnonzero(columns & (1 << bit))
        boxes.append((int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1) if len(ys) else None)
    return boxes


def _trace_label(labels: LabelArray, label_id: int, box: tuple[int, int, int, int]) -> list[Polygon]:
    left, top, right, bottom = box
    mask = (labels[top:bottom, left:right] == label_id).view(np.uint8)
    # Two levels are enough to keep parents: cv2 makes an island inside a hole an outer contour again.
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    rings: list[FloatArray] = [contour[:, 0].astype(np.float32) for contour in contours]
    holes: dict[int, list[FloatArray]] = {}
    parents = hierarchy[0, :, 3].tolist()
    for ring, parent in zip(rings, parents, strict=True):
        if parent >= 0:
            holes.setdefault(parent, []).append(ring)
    return [
        Polygon(ring, tuple(holes.get(index, ())))
        for index, (ring, parent) in enumerate(zip(rings, parents, strict=True))
        if parent < 0
    ]


def measure_rings(rings: Sequence[FloatArray]) -> tuple[_DoubleArray, _DoubleArray]:
    """Compute area and box of many rings together.

    Coordinates are taken as they are printed, to ``COORDINATE_DECIMALS``, so that areas and boxes are those of the
    rings in the answer rather than of their nearest single-precision neighbours.

    Args:
        rings: ``R`` rings ``(N, 2)`` in pixels, none empty; ``R`` at least 1.

    Returns:
        ``(R,)`` areas by the shoelace formula, in square pixels and not signed, and ``(R, 4)`` boxes as
        ``left, top, right, bottom``.
    """
    points = np.concatenate(rings).astype(np.float64)
    np.round(points, COORDINATE_DECIMALS, out=points)
    ends = np.cumsum([len(ring) for ring in rings])
    starts = np.concatenate(([0], ends[:-1]))
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = starts
    xs, ys = points[:, 0], points[:, 1]
    crosses = xs * ys[following] - xs[following] * ys
    areas = np.abs(np.add.reduceat(crosses, starts)) / 2
    boxes = np.hstack((np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)))
    return areas, boxes


def compute_area_px(polygon: Polygon) -> float:
    """Compute the area of a polygon without its holes.

    Args:
        polygon: Outline and holes; coordinates count to ``COORDINATE_DECIMALS``.

    Returns:
        Area in square pixels; that of a line or a point is 0.

    Example:
        >>> square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], np.float32)
        >>> compute_area_px(Polygon(square, holes=(square / 2 + 1,)))
        12.0
    """
    areas, _ = measure_rings((polygon.outer, *polygon.holes))
    return float(areas[0] - areas[1:].sum())


def has_few_points(ring: FloatArray) -> bool:
    """Tell whether a ring has fewer than three distinct points."""
    return len(ring) < MIN_POLYGON_POINTS or len(np.unique(ring, axis=0)) < MIN_POLYGON_POINTS
