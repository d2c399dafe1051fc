"""Simplification of contours within a tolerance.

A ring ``(N, 2)`` is closed; its first point is not repeated. Many rings are simplified at once: a face has fifteen
rings of about twenty points, and a numpy call costs more than the arithmetic on so few points.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from app.face.landmarks import FloatArray

_LONG_RING: Final = 4_096
"""`cv2.approxPolyDP` has quadratic worst-case cost: a millisecond for this many points, but ten seconds for the maximum
of a label map. Longer rings are split first."""

_VISITS_PER_POINT: Final = 8
"""Splitting at the farthest point visits each point a few times on a natural outline, but thousands of times on a
zigzag. After this many visits per point, chords are split in the middle, which needs only logarithmically many."""

_SHORTEST_CHORD: Final = 1e-9
"""In pixels; far below the resolution of single precision."""

_KEY_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
"""Odd multiplier with well-mixed bits: the ring number times this factor is part of the key of each point."""

_IndexArray = npt.NDArray[np.intp]
_DoubleArray = npt.NDArray[np.float64]


def simplify_rings(rings: Sequence[FloatArray], tolerance_px: float) -> list[FloatArray]:
    """Remove points that are not needed to describe the rings, so that no removed point is farther than the tolerance.

    The algorithm is Douglas-Peucker. ``cv2.approxPolyDP`` does most of the work, but its last pass can exceed the
    tolerance, because it does not check points that were dropped before. This function checks the result and adds
    points where needed. The time is O(n log n) for any shape.

    Returns:
        For each ring, a subset of its points in order, including the first; fewer than three points if the whole ring
        is within the tolerance of a point or a line.
    """
    if tolerance_px <= 0 or not rings:
        return list(rings)
    # Each ring becomes a chain that ends at its first point.
    chain = np.concatenate([part for ring in rings for part in (ring, ring[:1])])
    counts = np.array([len(ring) + 1 for ring in rings])
    ends = np.cumsum(counts)
    kept = _find_approximation(chain, counts, rings, tolerance_px)
    kept[ends - counts] = True
    kept[ends - 1] = True
    numbers = chain.astype(np.float64).view(np.complex128)[:, 0]
    firsts, lasts = _split_chords(numbers, kept, tolerance_px, _VISITS_PER_POINT * len(numbers))
    _halve_chords(numbers, kept, firsts, lasts, tolerance_px)
    kept[ends - 1] = False
    points = chain[kept]
    bounds = [0, *np.cumsum(kept)[ends - 1].tolist()]
    return [points[start:end] for start, end in pairwise(bounds)]


def _find_approximation(
    chain: FloatArray, counts: _IndexArray, rings: Sequence[FloatArray], tolerance_px: float
) -> npt.NDArray[np.bool_]:
    """Mark the points that OpenCV keeps; ``counts`` is the number of chain points per ring."""
    approximations = [
        cv2.approxPolyDP(ring, tolerance_px, closed=True)
        if len(ring) <= _LONG_RING
        else _approximate_long_ring(ring, tolerance_px)
        for ring in rings
    ]
    # OpenCV returns points instead of indices, so they are found by a key of both coordinates and the ring number. If
    # a ring passes a point twice, or if keys collide, an extra point is kept, which is harmless.
    numbers = np.arange(len(rings), dtype=np.uint64) * _KEY_FACTOR
    wanted = np.concatenate(approximations).view(np.uint64).reshape(-1)
    wanted ^= np.repeat(numbers, [len(points) for points in approximations])
    wanted.sort()
    keys = chain.view(np.uint64)[:, 0] ^ np.repeat(numbers, counts)
    found: npt.NDArray[np.bool_] = wanted.take(np.searchsorted(wanted, keys), mode="clip") == keys
    return found


def _approximate_long_ring(ring: FloatArray, tolerance_px: float) -> FloatArray:
    """Return the points that describe a ring of more than ``_LONG_RING`` points.

    The first splits use the whole ring, so that a large tolerance leaves few points. OpenCV then processes the
    remaining chords, in pieces short enough for its quadratic worst case.
    """
    chain = np.concatenate((ring, ring[:1]))
    numbers = chain.astype(np.float64).view(np.complex128)[:, 0]
    kept = np.zeros(len(chain), np.bool_)
    kept[[0, -1]] = True
    firsts, lasts = _split_chords(numbers, kept, tolerance_px, _VISITS_PER_POINT * len(chain))
    pieces: list[npt.NDArray[Any]] = [chain[kept].reshape(-1, 1, 2)]
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        for start in range(first, last, _LONG_RING):
            piece = chain[start : min(start + _LONG_RING, last) + 1]
            pieces.append(cv2.approxPolyDP(piece, tolerance_px, closed=False))
    return np.concatenate(pieces)


def _split_chords(
    chain: npt.NDArray[np.complex128], kept: npt.NDArray[np.bool_], tolerance_px: float, max_visits: int
) -> tuple[_IndexArray, _IndexArray]:
    """Mark the farthest points until every point is close enough to its chord.

    A chord is the segment between two consecutive marked points. Return the first and last points of the chords that
    remain when ``max_visits`` is exceeded.
    """
    marked = np.flatnonzero(kept)
    firsts, lasts = marked[:-1], marked[1:]
    visits = 0
    while visits <= max_visits:
        found = _find_far_points(chain, firsts, lasts, tolerance_px)
        firsts, lasts, splits = found.firsts, found.lasts, found.farthest
        visits += found.visits
        kept[splits] = True
        firsts, lasts = np.concatenate((firsts, splits)), np.concatenate((splits, lasts))
        if not len(firsts):
            break
    return firsts, lasts


def _halve_chords(
    chain: npt.NDArray[np.complex128],
    kept: npt.NDArray[np.bool_],
    firsts: _IndexArray,
    lasts: _IndexArray,
    tolerance_px: float,
) -> None:
    """Mark the middle points of chords until every point is close enough to its chord."""
    while len(firsts):
        found = _find_far_points(chain, firsts, lasts, tolerance_px)
        firsts, lasts = found.firsts, found.lasts
        middles = (firsts + lasts) // 2
        kept[middles] = True
        firsts, lasts = np.concatenate((firsts, middles)), np.concatenate((middles, lasts))


class _FarChords(NamedTuple):
    """Chords with a point beyond the tolerance, their farthest points, and the number of points visited."""

    firsts: _IndexArray
    lasts: _IndexArray
    farthest: _IndexArray
    visits: int


def _find_far_points(
    chain: npt.NDArray[np.complex128], firsts: _IndexArray, lasts: _IndexArray, tolerance_px: float
) -> _FarChords:
    counts = lasts - firsts - 1
    has_points = counts > 0
    firsts, lasts, counts = firsts[has_points], lasts[has_points], counts[has_points]
    if not len(firsts):
        return _FarChords(firsts, lasts, firsts, 0)
    ends = np.cumsum(counts)
    starts = ends - counts
    points = np.arange(ends[-1]) + np.repeat(firsts + 1 - starts, counts)
    distances = _compute_distances(chain, points, firsts, lasts, counts)
    farthest = np.maximum.reduceat(distances, starts)
    too_far = farthest > tolerance_px
    if not too_far.any():
        return _FarChords(firsts[:0], firsts[:0], firsts[:0], len(points))
    chords = np.repeat(np.arange(len(firsts)), counts)
    candidates = np.flatnonzero((distances == farthest[chords]) & too_far[chords])
    # Of several equally distant points, take the first.
    is_first = np.diff(chords[candidates], prepend=-1) > 0
    return _FarChords(firsts[too_far], lasts[too_far], points[candidates[is_first]], len(points))


def _compute_distances(
    chain: npt.NDArray[np.complex128], points: _IndexArray, firsts: _IndexArray, lasts: _IndexArray, counts: _IndexArray
) -> _DoubleArray:
    """Compute the distance of each point from its chord; ``counts`` is the number of points per chord.

    Points are complex numbers: the real part of point divided by chord is the position along the chord.
    """
    begins = chain[firsts]
    chords = chain[lasts] - begins
    # A ring reduced to one point has a chord of zero length; a very short one gives the same distances.
    chords[chords == 0] = _SHORTEST_CHORD
    ratios = (chain[points] - np.repeat(begins, counts)) / np.repeat(chords, counts)
    ratios -= np.clip(ratios.real, 0, 1)
    distances: _DoubleArray = np.abs(ratios) * np.repeat(np.abs(chords), counts)
    return distances
