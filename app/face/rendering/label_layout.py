"""Layout of region labels, which are the names of regions.

A label is inside its region if it fits. Otherwise it is in a column next to the regions, with a leader line to a
visible point of the region. On a face of ninety pixels, that applies to all but one or two labels.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from app.face.contours import split_points
from app.face.frame import ByteArray, Size
from app.face.regions import Region

FONT_SIZE_RATIO: Final = 0.022
"""Font size as a fraction of the longer side of the frame."""

# Measured with the widest common sans-serif font, so that the width of a label is not underestimated.
LETTER_WIDTH_EM: Final = 0.6
LINE_HEIGHT_EM: Final = 1.35
COLUMN_GAP_EM: Final = 1.5
MARGIN_EM: Final = 0.5

# Size of the grid on which free space is measured: an eye is then about forty cells wide.
GRID_SIDE: Final = 256
_SUBPIXEL_BITS: Final = 4

# A region this close to the centre line (as a fraction of the total width) may be labelled on either side.
CENTRE_RATIO: Final = 0.1


class PlacedLabel(NamedTuple):
    """A label and its position."""

    region: Region
    x: float  # anchor of the text
    y: float  # vertical centre of the text
    text_anchor: str  # `start`, `middle` or `end`, as in SVG
    target: tuple[float, float] | None  # point of the region where the leader line ends; None if the label is inside


class _FreeSpace(NamedTuple):
    """Free space inside a region: its centre, half width and half height, in pixels."""

    region: Region
    x: float
    y: float
    half_width: float
    half_height: float


def layout_labels(size: Size, regions: Sequence[Region]) -> tuple[float, list[PlacedLabel]]:
    """Compute the font size in pixels, and the position of each region's label. There are at most 255 regions."""
    if not regions:
        return 0.0, []
    font_size = FONT_SIZE_RATIO * max(size)
    inside: list[PlacedLabel] = []
    left: list[_FreeSpace] = []
    right: list[_FreeSpace] = []
    box_left, box_right = _find_extent(regions)
    for space in sorted(_find_free_spaces(regions), key=lambda space: space.y):
        if _fits(space, font_size):
            inside.append(PlacedLabel(space.region, space.x, space.y, "middle", None))
            continue
        offset = (space.x - (box_left + box_right) / 2) / (box_right - box_left)
        if abs(offset) < CENTRE_RATIO:
            offset = len(left) - len(right)
        (left if offset <= 0 else right).append(space)
    font_size = min(font_size, size.height / (LINE_HEIGHT_EM * max(len(left), len(right), 1)))
    gap = COLUMN_GAP_EM * font_size
    widest_left = max((_estimate_width(space, font_size) for space in left), default=0.0)
    widest_right = max((_estimate_width(space, font_size) for space in right), default=0.0)
    # A face that fills the image leaves no space next to it. Labels then overlap its edge instead of being cut off.
    left_x = max(box_left - gap, widest_left + MARGIN_EM * font_size)
    right_x = min(box_right + gap, size.width - widest_right - MARGIN_EM * font_size)
    return font_size, [
        *inside,
        *_stack(left, left_x, "end", font_size, size),
        *_stack(right, right_x, "start", font_size, size),
    ]


def _find_extent(regions: Sequence[Region]) -> tuple[float, float]:
    return min(region.bbox[0] for region in regions), max(region.bbox[0] + region.bbox[2] for region in regions)


def _estimate_width(space: _FreeSpace, font_size: float) -> float:
    return len(space.region.name) * LETTER_WIDTH_EM * font_size


def _fits(space: _FreeSpace, font_size: float) -> bool:
    return space.half_height * 2 >= font_size and space.half_width * 2 >= _estimate_width(space, font_size)


def _stack(spaces: Sequence[_FreeSpace], x: float, text_anchor: str, font_size: float, size: Size) -> list[PlacedLabel]:
    """Place labels in a column, evenly spaced, at about the height of their regions."""
    if not spaces:
        return []
    spread = spaces[-1].y - spaces[0].y
    line = min(max(LINE_HEIGHT_EM * font_size, spread / max(len(spaces) - 1, 1)), size.height / len(spaces))
    centre = sum(space.y for space in spaces) / len(spaces)
    top = centre - line * (len(spaces) - 1) / 2
    top = max(line / 2, min(top, size.height - line * (len(spaces) - 0.5)))
    return [
        PlacedLabel(space.region, x, top + line * row, text_anchor, (space.x, space.y))
        for row, space in enumerate(spaces)
    ]


def _find_free_spaces(regions: Sequence[Region]) -> list[_FreeSpace]:
    """Find in each region the point that is farthest from its edge and from the regions drawn over it."""
    lefts, tops, widths, heights = np.array([region.bbox for region in regions]).T
    origin = np.array([lefts.min(), tops.min()])
    extent = np.array([(lefts + widths).max(), (tops + heights).max()]) - origin
    # Two empty cells on each side make the edge of the grid an edge for the distance transform too.
    scale = (GRID_SIDE - 4) / extent.max()
    columns, rows = np.ceil(extent * scale).astype(int) + 4
    grid = np.zeros((rows, columns), np.uint8)
    for number, region in enumerate(regions, start=1):
        rings = [ring for polygon in region.polygons for ring in (polygon.outer, *polygon.holes)]
        # Convert all rings at once, because a noisy label map has thousands.
        cells = np.rint(((np.concatenate(rings) - origin) * scale + 2) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(grid, split_points(cells, [len(ring) for ring in rings]), number, shift=_SUBPIXEL_BITS)
    return [_find_free_space(grid, number, region, origin, scale) for number, region in enumerate(regions, start=1)]


def _find_free_space(
    grid: ByteArray, number: int, region: Region, origin: npt.NDArray[np.float64], scale: float
) -> _FreeSpace:
    mask = (grid == number).view(np.uint8)
    distances = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_5)
    _, distance, _, (column, row) = cv2.minMaxLoc(distances)
    if distance == 0:
        # Other regions hide all of it, so any point of its outline is as good.
        x, y = region.polygons[0].outer[0].tolist()
        return _FreeSpace(region, x, y, 0.0, 0.0)
    free = np.flatnonzero(mask[row] == 0)
    following = int(np.searchsorted(free, column))
    half_width = min(column - int(free[following - 1]), int(free[following]) - column)
    x, y = ((np.array([column, row]) - 2) / scale + origin).tolist()
    return _FreeSpace(region, x, y, half_width / scale, distance / scale)
