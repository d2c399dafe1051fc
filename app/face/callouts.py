"""Where the names of regions are written.

A name stands inside its region where it fits. Elsewhere it stands in a column beside the regions, with a line to a
point of the region that no other region hides; on a face of ninety pixels that is all but one or two.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from app.face.frame import Size
from app.face.outline_strokes import split_lines
from app.face.regions import Region

FONT_SIZE_RATIO: Final = 0.022
"""Height of the letters as a share of the frame's longer side."""

# Measured on the widest of the usual sans-serif faces; what is written in it must not be guessed too narrow.
_LETTER_WIDTH_EM: Final = 0.6
_LINE_HEIGHT_EM: Final = 1.35
_COLUMN_GAP_EM: Final = 1.5
_MARGIN_EM: Final = 0.5

# Regions are drawn this large to look for room in them: an eye is then some forty cells wide.
_GRID_SIDE: Final = 256
_SUBPIXEL_BITS: Final = 4

# A region this near the middle line (as a share of the width of all) may be named at either side.
_MIDDLE_RATIO: Final = 0.1


class Callout(NamedTuple):
    """A name and its place.

    Attributes:
        region: The region that is named.
        x: Where the text is anchored, in pixels.
        y: The middle of the letters, in pixels.
        text_anchor: ``start``, ``middle`` or ``end``, as SVG has it.
        target: The point of the region that a line leads to; None where the text is in the region.
    """

    region: Region
    x: float
    y: float
    text_anchor: str
    target: tuple[float, float] | None


class _Spot(NamedTuple):
    """Room inside a region: its middle, and half the width and height that are free there, in pixels."""

    region: Region
    x: float
    y: float
    half_width: float
    half_height: float


def place_callouts(frame: Size, regions: Sequence[Region]) -> tuple[float, list[Callout]]:
    """Find a place for the name of each region.

    Args:
        frame: Size of the picture in pixels.
        regions: The regions in drawing order, at most 255.

    Returns:
        The size of the letters in pixels, and a callout for each region.
    """
    if not regions:
        return 0.0, []
    font_size = FONT_SIZE_RATIO * max(frame)
    inside: list[Callout] = []
    left: list[_Spot] = []
    right: list[_Spot] = []
    box_left, box_right = _find_extent(regions)
    for spot in sorted(_find_spots(regions), key=lambda spot: spot.y):
        if _fits(spot, font_size):
            inside.append(Callout(spot.region, spot.x, spot.y, "middle", None))
            continue
        from_middle = (spot.x - (box_left + box_right) / 2) / (box_right - box_left)
        if abs(from_middle) < _MIDDLE_RATIO:
            from_middle = len(left) - len(right)
        (left if from_middle <= 0 else right).append(spot)
    font_size = min(font_size, frame.height / (_LINE_HEIGHT_EM * max(len(left), len(right), 1)))
    gap = _COLUMN_GAP_EM * font_size
    widest_left = max((_estimate_width(spot, font_size) for spot in left), default=0.0)
    widest_right = max((_estimate_width(spot, font_size) for spot in right), default=0.0)
    # A face that fills the picture leaves no room beside it; names then reach over its edge rather than be cut off.
    left_x = max(box_left - gap, widest_left + _MARGIN_EM * font_size)
    right_x = min(box_right + gap, frame.width - widest_right - _MARGIN_EM * font_size)
    return font_size, [
        *inside,
        *_stack(left, left_x, "end", font_size, frame),
        *_stack(right, right_x, "start", font_size, frame),
    ]


def _find_extent(regions: Sequence[Region]) -> tuple[float, float]:
    return min(region.bbox[0] for region in regions), max(region.bbox[0] + region.bbox[2] for region in regions)


def _estimate_width(spot: _Spot, font_size: float) -> float:
    return len(spot.region.name) * _LETTER_WIDTH_EM * font_size


def _fits(spot: _Spot, font_size: float) -> bool:
    return spot.half_height * 2 >= font_size and spot.half_width * 2 >= _estimate_width(spot, font_size)


def _stack(spots: Sequence[_Spot], x: float, text_anchor: str, font_size: float, frame: Size) -> list[Callout]:
    """Put names under each other, evenly, about as high as what they name."""
    if not spots:
        return []
    spread = spots[-1].y - spots[0].y
    line = min(max(_LINE_HEIGHT_EM * font_size, spread / max(len(spots) - 1, 1)), frame.height / len(spots))
    middle = sum(spot.y for spot in spots) / len(spots)
    top = middle - line * (len(spots) - 1) / 2
    top = max(line / 2, min(top, frame.height - line * (len(spots) - 0.5)))
    return [Callout(spot.region, x, top + line * row, text_anchor, (spot.x, spot.y)) for row, spot in enumerate(spots)]


def _find_spots(regions: Sequence[Region]) -> list[_Spot]:
    """Find in each region the point that is farthest from its edge and from the regions drawn over it."""
    lefts, tops, widths, heights = np.array([region.bbox for region in regions]).T
    origin = np.array([lefts.min(), tops.min()])
    extent = np.array([(lefts + widths).max(), (tops + heights).max()]) - origin
    # Two cells are left free all around, so that the edge of the drawing is an edge for the distances too.
    scale = (_GRID_SIDE - 4) / extent.max()
    columns, rows = np.ceil(extent * scale).astype(int) + 4
    grid = np.zeros((rows, columns), np.uint8)
    for number, region in enumerate(regions, start=1):
        rings = [ring for polygon in region.polygons for ring in (polygon.outer, *polygon.holes)]
        # All at once: a noisy label map has thousands of rings.
        cells = np.rint(((np.concatenate(rings) - origin) * scale + 2) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(grid, split_lines(cells, [len(ring) for ring in rings]), number, shift=_SUBPIXEL_BITS)
    return [_find_spot(grid, number, region, origin, scale) for number, region in enumerate(regions, start=1)]


def _find_spot(
    grid: npt.NDArray[np.uint8], number: int, region: Region, origin: npt.NDArray[np.float64], scale: float
) -> _Spot:
    mask = (grid == number).view(np.uint8)
    distances = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_5)
    _, distance, _, (column, row) = cv2.minMaxLoc(distances)
    if distance == 0:
        # Wholly hidden by others: any point of its outline will do.
        x, y = region.polygons[0].outer[0].tolist()
        return _Spot(region, x, y, 0.0, 0.0)
    free = np.flatnonzero(mask[row] == 0)
    following = int(np.searchsorted(free, column))
    half_width = min(column - int(free[following - 1]), int(free[following]) - column)
    x, y = ((np.array([column, row]) - 2) / scale + origin).tolist()
    return _Spot(region, x, y, half_width / scale, distance / scale)
