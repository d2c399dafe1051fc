"""Label maps to contours; contours simplified and measured.

A contour ``(N, 2)`` is a closed ring of points in pixels, the first not repeated. cv2's ``(N, 1, 2)`` arrays stay
inside this module. A contour traced from a label map runs through the centres of the label's outermost pixels, and
its coordinates are the indices of those pixels.

Work on many rings is done on all of them at once: a face has fifteen rings of some twenty points, and a numpy call
costs more than the arithmetic on so few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from app.face.errors import LabelMapLabelsError
from app.face.landmarks import FloatArray

COORDINATE_DECIMALS: Final = 1
"""A tenth of a pixel is finer than any landmark is accurate, and keeps answers short."""

LABELS_PER_PASS: Final = 16
"""Bits in the word that a pass over the label map keeps for each pixel."""

MAX_TRACED_PIXELS: Final = 240_000_000
"""Ten times the largest photo. A face of twenty labels takes three or four times; 255 labels strewn over all of it
would take ten seconds, for a map of a few kilobytes."""

MIN_POLYGON_POINTS: Final = 3

_SHORTEST_CHORD: Final = 1e-9
"""In pixels; far below what single precision can tell apart."""

_KEY_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
"""An odd number with well mixed bits: a ring's number times this marks the keys of its points."""

LabelArray = npt.NDArray[np.uint8]
_IndexArray = npt.NDArray[np.intp]
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
        LabelMapLabelsError: The labels are so many and so spread that tracing them would take seconds.
    """
    wanted = find_labels(labels) if ids is None else list(ids)
    traced: dict[int, list[Polygon]] = {}
    looked_at = 0
    for start in range(0, len(wanted), LABELS_PER_PASS):
        batch = wanted[start : start + LABELS_PER_PASS]
        boxes = _find_boxes(labels, batch)
        looked_at += sum((box[2] - box[0]) * (box[3] - box[1]) for box in boxes if box is not None)
        if looked_at > MAX_TRACED_PIXELS:
            raise LabelMapLabelsError(
                f"the boxes around the labels, at the photo's size, may hold {MAX_TRACED_PIXELS} pixels in all; "
                f"{len(wanted)} labels hold more"
            )
        for label_id, box in zip(batch, boxes, strict=True):
            traced[label_id] = [] if box is None else _trace_label(labels, label_id, box)
    return traced


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


def simplify_polygon(points: FloatArray, tolerance_px: float) -> FloatArray:
    """Leave out points of a ring that are not needed to describe it.

    Args:
        points: ``(N, 2)`` ring in pixels.
        tolerance_px: How far a point of the input may be from the ring that is returned; 0 changes nothing.

    Returns:
        Some of the points, in their order, the first among them; fewer than three where the whole ring lies within
        the tolerance of a point or a line.
    """
    return simplify_rings([points], tolerance_px)[0]


def simplify_rings(rings: Sequence[FloatArray], tolerance_px: float) -> list[FloatArray]:
    """Simplify many rings together; see ``simplify_polygon``.

    The method is Douglas and Peucker's. ``cv2.approxPolyDP`` does most of it, but its last pass drops points without
    looking at those dropped before, and so may exceed the tolerance: what it keeps is checked here, and points are
    added where it went too far.
    """
    if tolerance_px <= 0 or not rings:
        return list(rings)
    # Each ring becomes a chain that returns to its first point.
    chain = np.concatenate([part for ring in rings for part in (ring, ring[:1])])
    counts = np.array([len(ring) + 1 for ring in rings])
    ends = np.cumsum(counts)
    kept = _find_approximation(chain, counts, rings, tolerance_px)
    kept[ends - counts] = True
    kept[ends - 1] = True
    _keep_needed(chain.astype(np.float64).view(np.complex128)[:, 0], kept, tolerance_px)
    kept[ends - 1] = False
    points = chain[kept]
    bounds = [0, *np.cumsum(kept)[ends - 1].tolist()]
    return [points[start:end] for start, end in pairwise(bounds)]


def _find_approximation(
    chain: FloatArray, counts: _IndexArray, rings: Sequence[FloatArray], tolerance_px: float
) -> npt.NDArray[np.bool_]:
    """Mark the points of the chains, ``counts`` of them to a ring, that cv2 keeps."""
    approximations = [cv2.approxPolyDP(ring, tolerance_px, closed=True) for ring in rings]
    # cv2 gives points, not their indices. Both coordinates and the ring's number make one key to find them by; where
    # a ring passes a point twice, or keys should coincide, a point too many is kept, which does no harm.
    numbers = np.arange(len(rings), dtype=np.uint64) * _KEY_FACTOR
    wanted = np.concatenate(approximations).view(np.uint64).reshape(-1)
    wanted ^= np.repeat(numbers, [len(points) for points in approximations])
    wanted.sort()
    keys = chain.view(np.uint64)[:, 0] ^ np.repeat(numbers, counts)
    found: npt.NDArray[np.bool_] = wanted.take(np.searchsorted(wanted, keys), mode="clip") == keys
    return found


def _keep_needed(chain: npt.NDArray[np.complex128], kept: npt.NDArray[np.bool_], tolerance_px: float) -> None:
    """Mark more points until none is too far from its chord, the segment between the marked points around it."""
    marked = np.flatnonzero(kept)
    firsts, lasts = marked[:-1], marked[1:]
    while True:
        counts = lasts - firsts - 1
        has_points = counts > 0
        firsts, lasts, counts = firsts[has_points], lasts[has_points], counts[has_points]
        if not len(firsts):
            return
        ends = np.cumsum(counts)
        starts = ends - counts
        points = np.arange(ends[-1]) + np.repeat(firsts + 1 - starts, counts)
        distances = _compute_distances(chain, points, firsts, lasts, counts)
        farthest = np.maximum.reduceat(distances, starts)
        too_far = farthest > tolerance_px
        if not too_far.any():
            return
        chords = np.repeat(np.arange(len(firsts)), counts)
        candidates = np.flatnonzero((distances == farthest[chords]) & too_far[chords])
        # Of points equally far from one chord the first is taken.
        is_first = np.diff(chords[candidates], prepend=-1) > 0
        splits = points[candidates[is_first]]
        kept[splits] = True
        firsts, lasts = firsts[too_far], lasts[too_far]
        firsts, lasts = np.concatenate((firsts, splits)), np.concatenate((splits, lasts))


def _compute_distances(
    chain: npt.NDArray[np.complex128], points: _IndexArray, firsts: _IndexArray, lasts: _IndexArray, counts: _IndexArray
) -> _DoubleArray:
    """Compute the distance of each point from its chord, ``counts`` of them to a chord.

    Points are complex numbers: divided by its chord, a point has its place along the chord as the real part.
    """
    begins = chain[firsts]
    chords = chain[lasts] - begins
    # A ring that was reduced to one point has a chord of no length; a very short one gives the same distances.
    chords[chords == 0] = _SHORTEST_CHORD
    ratios = (chain[points] - np.repeat(begins, counts)) / np.repeat(chords, counts)
    ratios -= np.clip(ratios.real, 0, 1)
    distances: _DoubleArray = np.abs(ratios) * np.repeat(np.abs(chords), counts)
    return distances


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
