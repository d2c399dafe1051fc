"""Rings as the pieces that a drawing is made of: dashes, and the fixed-point coordinates that cv2 draws by."""

import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from app.face.landmarks import FloatArray

Number = TypeVar("Number", np.float64, np.int32)


def to_fixed_point(
    lines: Sequence[npt.NDArray[np.floating]], left: float, top: float, scale: int, bits: int
) -> list[npt.NDArray[np.int32]]:
    """Take lines to the cells of a mask that is ``scale`` times as large as the picture.

    Args:
        lines: ``(N, 2)`` each, in pixels of the picture.
        left: Where the mask begins, in the same pixels.
        top: Likewise.
        scale: How many cells a pixel has in each direction.
        bits: How many bits of the result are behind the point.

    Returns:
        ``(N, 2)`` for each, counted from the middle of the first cell, as cv2 does.

    Example:
        >>> [line.tolist() for line in to_fixed_point([np.array([[2.0, 1.5]])], 1.0, 1.0, 4, 4)]
        [[[56, 24]]]
    """
    if not lines:  # dashes of a ring without length, say
        return []
    # All at once: there may be hundreds, of three points each.
    cells = (np.concatenate(lines) - (left, top)) * scale - 0.5
    return split_lines(np.rint(cells * (1 << bits)).astype(np.int32), [len(line) for line in lines])


def split_lines(points: npt.NDArray[Number], lengths: Sequence[int]) -> list[npt.NDArray[Number]]:
    """Cut points that were laid end to end into lines again; ten times as fast as ``np.split``."""
    bounds = list(itertools.accumulate(lengths, initial=0))
    return [points[start:end] for start, end in itertools.pairwise(bounds)]


def cut_dashes(ring: FloatArray, dash: float, gap: float, cap: float) -> list[npt.NDArray[np.float64]]:
    """Cut a ring into dashes, from its first point on.

    Args:
        ring: ``(N, 2)`` closed, the first point not repeated.
        dash: Length of a dash.
        gap: Length between two.
        cap: How far a line drawn reaches beyond its ends; each dash is that much shorter at both.

    Returns:
        A line ``(M, 2)`` for each dash; the last may be shorter.

    Example:
        >>> square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], np.float32)
        >>> [line.tolist() for line in cut_dashes(square, 6, 4, 0)]
        [[[0.0, 0.0], [4.0, 0.0], [4.0, 2.0]], [[2.0, 4.0], [0.0, 4.0], [0.0, 0.0]]]
    """
    closed = np.vstack((ring, ring[:1])).astype(np.float64)
    along = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))))
    starts = np.arange(0.0, along[-1], dash + gap)
    ends = np.minimum(starts + dash, along[-1])
    middles = (starts + ends) / 2
    starts, ends = np.minimum(starts + cap, middles), np.maximum(ends - cap, middles)
    first, last = np.searchsorted(along, starts, "right"), np.searchsorted(along, ends, "left")
    heads, tails = (
        np.column_stack([np.interp(at, along, closed[:, axis]) for axis in range(2)]) for at in (starts, ends)
    )
    pieces: list[npt.NDArray[np.float64]] = []
    for number, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        pieces += (heads[number : number + 1], closed[low:high], tails[number : number + 1])
    lengths = np.maximum(last - first, 0) + 2
    return split_lines(np.concatenate(pieces), lengths.tolist()) if pieces else []
