"""Label maps to contours, and measures of contours.

A contour ``(N, 2)`` is a closed ring of points in pixels; the first point is not repeated. OpenCV's ``(N, 1, 2)``
arrays are used only inside this module. A contour traced from a label map runs through the centres of the outermost
pixels of the label, and its coordinates are the indices of those pixels.

Functions process many rings at once: a face has fifteen rings of about twenty points, and a numpy call costs more than
the arithmetic on so few points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from app.face.errors import LabelMapComplexityError
from app.face.frame import ByteArray
from app.face.landmarks import FloatArray

COORDINATE_DECIMALS: Final = 1
"""A tenth of a pixel is finer than the accuracy of any landmark, and keeps responses short."""

_LABELS_PER_PASS: Final = 16
"""Bits per pixel that one pass over the label map uses."""

MAX_TRACED_PIXELS: Final = 240_000_000
"""Nearly four times the largest image, which is what a face of twenty labels needs at most. Without this limit, a map
of a few kilobytes with 255 scattered labels would take ten seconds."""

MAX_CONTOURS: Final = 16_384
"""Every contour, however short, is several Python objects. A badly segmented face has a few thousand."""

MAX_CONTOUR_POINTS: Final = 200_000
"""Maximum points of all contours before simplification. An ordinary face of 24 million pixels has about 13,000; a
noisy map of 2048 by 2048 pixels with a thousand strands of hair has 175,000."""

_MIN_POLYGON_POINTS: Final = 3

LabelArray = ByteArray
"""Label ids ``(H, W)``, 0 for background."""

_DoubleArray = npt.NDArray[np.float64]
_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """An outer contour and its holes."""

    outer: FloatArray  # `(N, 2)` in pixels
    holes: tuple[FloatArray, ...] = ()  # inside `outer`


def trace_labels(labels: LabelArray, ids: Sequence[int]) -> dict[int, list[Polygon]]:
    """Trace the contours of each label.

    Pixels that touch at a corner are connected. An island inside a hole is a separate polygon. Filling the polygons by
    the even-odd rule, including their contours, reproduces the pixels of the label.

    Returns:
        Polygons by label id, in the order of ``ids``; an empty list for a label that is not in the map.

    Raises:
        LabelMapComplexityError: the labels cover too many pixels, or their contours are too many or too long.
    """
    traced: dict[int, list[Polygon]] = {}
    scanned = contours = points = 0
    for start in range(0, len(ids), _LABELS_PER_PASS):
        batch = ids[start : start + _LABELS_PER_PASS]
        boxes = _find_boxes(labels, batch)
        scanned += sum((box[2] - box[0]) * (box[3] - box[1]) for box in boxes if box is not None)
        if scanned > MAX_TRACED_PIXELS:
            raise LabelMapComplexityError(
                f"segmentation_map: expected bounding boxes of all labels with at most {MAX_TRACED_PIXELS} pixels in "
                f"total, got {scanned} or more for {len(ids)} labels"
            )
        for label_id, box in zip(batch, boxes, strict=True):
            polygons = [] if box is None else _trace_label(labels, label_id, box)
            contours += sum([1 + len(polygon.holes) for polygon in polygons])
            points += sum([len(ring) for polygon in polygons for ring in (polygon.outer, *polygon.holes)])
            _check_complexity(contours, points)
            traced[label_id] = polygons
    return traced


def _check_complexity(contours: int, points: int) -> None:
    """Raise if the contours cannot be simplified and rendered within the time of a request."""
    for count, limit, what in ((contours, MAX_CONTOURS, "contours"), (points, MAX_CONTOUR_POINTS, "contour points")):
        if count > limit:
            raise LabelMapComplexityError(
                f"segmentation_map: expected at most {limit} {what} in all labels, got {count} or more"
            )


def _find_boxes(labels: LabelArray, ids: Sequence[int]) -> list[tuple[int, int, int, int] | None]:
    # One pass for all labels: each label is a bit, combined by OR along rows and columns. A comparison and a bounding
    # rectangle per label would cost three times as much.
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
    # Two levels are enough: OpenCV returns an island inside a hole as another outer contour.
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
    """Compute the areas and bounding boxes of many rings at once, none of them empty.

    Coordinates are rounded to ``COORDINATE_DECIMALS`` as in the response, so that areas and boxes match the rings in
    it exactly.

    Returns:
        ``(R,)`` unsigned areas in square pixels, by the shoelace formula, and ``(R, 4)`` boxes as ``left, top, right,
        bottom``.
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


def has_few_points(ring: FloatArray) -> bool:
    """Return whether a ring has fewer than three distinct points."""
    return len(ring) < _MIN_POLYGON_POINTS or len(np.unique(ring, axis=0)) < _MIN_POLYGON_POINTS


def split_points(points: npt.NDArray[_Number], lengths: Sequence[int]) -> list[npt.NDArray[_Number]]:
    """Split concatenated points into lines of the given lengths; ten times as fast as ``np.split``."""
    bounds = accumulate(lengths, initial=0)
    return [points[start:end] for start, end in pairwise(bounds)]
