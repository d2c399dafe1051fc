"""Exact antialiasing of polygons: the coverage of each pixel that they touch, as runs along the rows.

Each edge is cut at the borders of pixels. A piece in one pixel adds the signed area between itself and the right border
of that pixel, and its height to all pixels on the right, as in FreeType and font-rs. The time thus grows with the
length of the edges, not with the area inside.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from app.face.frame import Size

DoubleArray = npt.NDArray[np.float64]

# Rows end with two spare columns, which keep the pieces at the right border of a frame out of the next row.
_SPARE = 2


class Edges(NamedTuple):
    """Directed edges of closed polygons, both arrays ``(N, 2)`` in pixels."""

    starts: DoubleArray
    ends: DoubleArray


class Runs(NamedTuple):
    """Runs of neighbouring pixels of the same coverage, as positions in the flat frame, in order and without gaps."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    coverage: npt.NDArray[np.float32]  # above 0, at most 1


def connect_rings(rings: Sequence[npt.NDArray[np.floating]]) -> Edges:
    """Connect the points of closed rings ``(M, 2)``, whose first point is not repeated."""
    starts = np.concatenate(rings).astype(np.float64)
    last = np.cumsum([len(ring) for ring in rings]) - 1
    following = np.arange(1, len(starts) + 1)
    following[last[1:]] = last[:-1] + 1
    following[last[0]] = 0
    return Edges(starts, starts[following])


def connect_polygons(corners: DoubleArray) -> Edges:
    """Connect the corners ``(N, K, 2)`` of N polygons."""
    return Edges(corners.reshape(-1, 2), np.roll(corners, -1, axis=1).reshape(-1, 2))


def measure_edges(edges: Edges) -> float:
    """Return the number of pixels that edges cross, approximately."""
    return float(np.abs(edges.ends - edges.starts).sum()) + len(edges.starts)


def compute_runs(edges: Edges, size: Size, *, is_even_odd: bool) -> Runs:
    """Compute the pixels of a frame inside polygons, by the even-odd rule or by the nonzero rule.

    Polygons that overlap by the nonzero rule need the same orientation. Where edges cross inside a pixel, its coverage
    is approximate.

    Example:
        >>> square = np.array([[1.5, 0.0], [3.0, 0.0], [3.0, 0.5], [1.5, 0.5]])
        >>> runs = compute_runs(connect_rings([square]), Size(4, 1), is_even_odd=True)
        >>> runs.starts.tolist(), runs.lengths.tolist(), runs.coverage.tolist()
        ([1, 2], [1, 1], [0.25, 0.5])
    """
    stride = size.width + _SPARE
    keys, values = _cut_at_pixels(*_cut_at_rows(_clip_sides(edges, size.width), size.height), stride)
    order = np.argsort(keys)
    keys, values = keys[order], values[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    if len(first) == 0:
        return Runs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    # Rows need no separate sums, because the edges of a closed polygon add up to zero in each row.
    winding = np.cumsum(np.add.reduceat(values, first))[:-1]
    starts = keys[first]
    coverage = np.abs(winding - 2 * np.rint(winding / 2)) if is_even_odd else np.minimum(np.abs(winding), 1.0)
    lengths = np.diff(starts)
    found = coverage > 1 / 512
    rows, columns = np.divmod(starts[:-1][found], stride)
    # A run that reaches the right border includes the spare columns.
    lengths = np.minimum(lengths[found], size.width - columns)
    return Runs(rows * size.width + columns, lengths, coverage[found].astype(np.float32))


def expand_runs(runs: Runs) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the position and the coverage of each pixel of runs."""
    return count_up(runs.starts, runs.lengths), np.repeat(runs.coverage, runs.lengths)


def _clip_sides(edges: Edges, width: int) -> Edges:
    """Move the parts of edges outside the left and right border to the border, which keeps what is inside."""
    starts, ends = edges
    x, dx = starts[:, 0], ends[:, 0] - starts[:, 0]
    outside = (np.minimum(x, ends[:, 0]) < 0) | (np.maximum(x, ends[:, 0]) > width)
    if not outside.any():
        return edges
    part_starts, part_ends, x, dx = starts[outside], ends[outside], x[outside], dx[outside]
    steps = np.where(dx == 0, 1.0, dx)
    cuts = np.sort(np.clip(np.column_stack((-x / steps, (width - x) / steps)), 0.0, 1.0), axis=1)
    delta = part_ends - part_starts
    middle = part_starts[:, None] + cuts[:, :, None] * delta[:, None]
    lines = np.concatenate((part_starts[:, None], middle, part_ends[:, None]), axis=1)
    lines[:, :, 0] = lines[:, :, 0].clip(0, width)
    inside = ~outside
    return Edges(
        np.concatenate((starts[inside], lines[:, :-1].reshape(-1, 2))),
        np.concatenate((ends[inside], lines[:, 1:].reshape(-1, 2))),
    )


def _cut_at_rows(edges: Edges, height: int) -> tuple[npt.NDArray[np.int64], DoubleArray, DoubleArray, DoubleArray]:
    """Cut edges at the borders of rows; return the row, the ``x`` at start and end, and the signed height of parts."""
    (x, y), (dx, dy) = edges.starts.T, (edges.ends - edges.starts).T
    low, high = np.minimum(y, y + dy).clip(0, height), np.maximum(y, y + dy).clip(0, height)
    found = high > low
    x, y, dx, dy, low, high = x[found], y[found], dx[found], dy[found], low[found], high[found]
    tops = np.floor(low).astype(np.int64)
    counts = np.ceil(high).astype(np.int64) - tops
    rows = count_up(tops, counts)
    index = np.repeat(np.arange(len(counts)), counts)
    upper, lower = np.maximum(rows, low[index]), np.minimum(rows + 1, high[index])
    slope = (dx / dy)[index]
    offset = x[index] - y[index] * slope
    return rows, offset + upper * slope, offset + lower * slope, np.copysign(lower - upper, dy[index])


def _cut_at_pixels(
    rows: npt.NDArray[np.int64], from_x: DoubleArray, to_x: DoubleArray, heights: DoubleArray, stride: int
) -> tuple[npt.NDArray[np.int64], DoubleArray]:
    """Cut parts of edges at the borders of pixels; return changes of the winding number at positions in the rows."""
    left = np.minimum(from_x, to_x).clip(0, stride - _SPARE)
    right = np.maximum(from_x, to_x).clip(0, stride - _SPARE)
    first = np.floor(left).astype(np.int64)
    counts = np.maximum(np.ceil(right).astype(np.int64) - first, 1)
    if len(counts) and counts.max() > 1:
        columns = count_up(first, counts)
        index = np.repeat(np.arange(len(counts)), counts)
        part_left, part_right = np.maximum(columns, left[index]), np.minimum(columns + 1, right[index])
        width = right - left
        density = (heights / np.where(width > 0, width, 1.0))[index]
        heights = np.where(width[index] > 0, density * (part_right - part_left), heights[index])
        rows, left, right = rows[index], part_left, part_right
    else:
        columns = first
    keys = rows * stride + columns
    beyond = heights * ((left + right) / 2 - columns)
    return np.concatenate((keys, keys + 1)), np.concatenate((heights - beyond, beyond))


def count_up(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return ``starts[i], starts[i] + 1, …`` with ``counts[i]`` numbers for each ``i``.

    Example:
        >>> count_up(np.array([5, 2]), np.array([3, 1])).tolist()
        [5, 6, 7, 2]
    """
    before = np.cumsum(counts) - counts
    numbers: npt.NDArray[np.int64] = np.arange(int(counts.sum())) + np.repeat(starts - before, counts)
    return numbers
