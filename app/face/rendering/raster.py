"""Regions to pixels: the overlay of `svg` as an image.

Shapes are drawn without antialiasing at four times the size and then averaged, so the coverage of fills, outlines and
text is exact to a sixteenth of a pixel. Colours are premultiplied by alpha until the end, which makes blending the same
on any background. Large shapes are drawn in bands, which bounds memory.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from app.face.contours import split_points
from app.face.errors import LabelMapComplexityError
from app.face.frame import BGRA_CHANNELS, ByteArray, Size
from app.face.landmarks import FloatArray
from app.face.regions import Region
from app.face.rendering.label_layout import PlacedLabel, layout_labels
from app.face.rendering.svg import (
    BASELINE_EM,
    DASH,
    DOT_COLOUR,
    GAP,
    HALO_COLOUR,
    HALO_EM,
    LEADER_DOT,
    LEADER_EM,
    LEADER_HALO,
    LEADER_HALO_OPACITY,
    TEXT_COLOUR,
    OverlayStyle,
    clean_text,
    compute_dot_px,
    compute_leader_x,
    compute_stroke_px,
)

Draw = Callable[[ByteArray, float, float], object]
"""Draws a shape in white on a mask `_SCALE` times as large, whose top left corner is at ``(x, y)`` of the frame."""

_SCALE: Final = 4
_OPAQUE: Final = 255
_HALF: Final = 128
_BAND_CELLS: Final = 4_000_000
_BAND_ROWS: Final = 256
_SUBPIXEL_BITS: Final = 4
_MAX_DILATED_CELLS: Final = 6
_CROSSINGS_PER_CHUNK: Final = 1 << 18
_INDEX_COST: Final = 1 / 32
"""Time per crossing of OpenCV's filling, relative to that of filling by centres."""

MAX_CROSSINGS: Final = 1_000_000
"""Edges times the rows that they cross. A face of 64 million pixels has about 150,000; a million take up to 0.7 s."""
_CAP: Final = math.pi / 8
"""Fraction of the stroke width by which dashes are shortened: OpenCV rounds their ends, and this keeps their area."""

_FONT: Final = "sans"

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def render_image(
    *,
    size: Size,
    regions: Sequence[Region],
    landmarks_px: FloatArray | None,
    style: OverlayStyle,
    background: ByteArray | None = None,
) -> ByteArray:
    """Render regions, from bottom to top, as a transparent ``(H, W, 4)`` BGRA image.

    The background is ``(H, W, 3)`` BGR or ``(H, W, 4)`` BGRA of the size of the frame.
    """
    canvas = _Canvas(size, background)
    stroke = compute_stroke_px(size, style)
    for region in regions:
        _draw_region(canvas, region, style.region_opacity, stroke)
    if style.show_landmarks and landmarks_px is not None:
        _draw_landmarks(canvas, landmarks_px, compute_dot_px(size))
    if style.show_labels:
        font_size, labels = layout_labels(size, regions)
        for label in labels:
            if label.target is not None:
                _draw_leader(canvas, label, label.target, font_size)
            _draw_text(canvas, label, font_size)
    return canvas.finish()


def render_label_mask(size: Size, regions: Sequence[Region]) -> ByteArray:
    """Fill regions with their ids, from bottom to top, in a mask ``(H, W)`` that is 0 elsewhere.

    A pixel belongs to a region if its centre is inside, by the even-odd rule, so holes are left out. Contours of whole
    numbers are those of a label map that was not scaled. They are indices of pixels, which belong to the region too, so
    contours that are not simplified restore the label map.

    Raises:
        LabelMapComplexityError: the contours cross too many rows of pixels.

    Example:
        >>> from app.face.contours import Polygon
        >>> ring = np.array([[1, 1], [3, 1], [3, 2], [1, 2]], np.float32)
        >>> region = Region(6, "nose", "#fab005", (Polygon(ring),), 2.0, (1, 1, 2, 1), "nose")
        >>> render_label_mask(Size(5, 4), [region]).tolist()
        [[0, 0, 0, 0, 0], [0, 6, 6, 6, 0], [0, 6, 6, 6, 0], [0, 0, 0, 0, 0]]
    """
    mask: ByteArray = np.zeros((size.height, size.width), np.uint8)
    crossings = 0.0
    for region in regions:
        rings = [ring for polygon in region.polygons for ring in (polygon.outer, *polygon.holes)]
        points, lengths = np.concatenate(rings), [len(ring) for ring in rings]
        pixels = np.rint(points).astype(np.int32)
        is_indices = bool((pixels == points).all())
        edges = _find_edges(points, lengths, size.height)
        crossings += float(edges.rows.sum()) * (_INDEX_COST if is_indices else 1)
        if crossings > MAX_CROSSINGS:
            raise LabelMapComplexityError(
                f"segmentation_map: expected contours that cross at most {MAX_CROSSINGS} rows of the mask in total, "
                "got more; set output_size"
            )
        if is_indices:
            # OpenCV fills the pixels of the contours, too.
            cv2.fillPoly(mask, split_points(pixels, lengths), region.label_id)
        else:
            _fill_centres(mask, edges, region.label_id)
    return mask


class _Edges(NamedTuple):
    """The edges of closed rings that cross the centres of rows of a frame."""

    starts: npt.NDArray[np.float64]  # `(N, 2)`
    ends: npt.NDArray[np.float64]  # `(N, 2)`
    tops: npt.NDArray[np.int64]  # first row, `(N,)`
    rows: npt.NDArray[np.int64]  # number of rows, `(N,)`


def _find_edges(points: FloatArray, lengths: Sequence[int], height: int) -> _Edges:
    last = np.cumsum(lengths) - 1
    following = np.arange(1, len(points) + 1)
    following[last] = last + 1 - np.array(lengths)
    starts = points.astype(np.float64)
    ends = starts[following]
    bounds = np.ceil(np.column_stack((starts[:, 1], ends[:, 1])) - 0.5).clip(0, height).astype(np.int64)
    tops, bottoms = bounds.min(axis=1), bounds.max(axis=1)
    found = bottoms > tops
    return _Edges(starts[found], ends[found], tops[found], (bottoms - tops)[found])


def _fill_centres(mask: ByteArray, edges: _Edges, label_id: int) -> None:
    """Fill the pixels whose centres are inside the rings, by the even-odd rule.

    ``cv2.fillPoly`` would also fill every pixel that an edge touches.
    """
    width = mask.shape[1]
    totals = np.concatenate(([0], np.cumsum(edges.rows)))
    # Positions in the flat mask where a row enters or leaves the region.
    crossings = np.empty(int(totals[-1]), np.int64)
    bounds = np.searchsorted(totals, np.arange(0, totals[-1], _CROSSINGS_PER_CHUNK)).tolist()
    for start, end in pairwise([*bounds, len(edges.rows)]):
        counts = edges.rows[start:end]
        part = slice(int(totals[start]), int(totals[end]))
        rows = np.arange(part.start, part.stop) + np.repeat(edges.tops[start:end] - totals[start:end], counts)
        (x, y), (dx, dy) = edges.starts[start:end].T, (edges.ends - edges.starts)[start:end].T
        xs = np.repeat(x, counts) + (rows + 0.5 - np.repeat(y, counts)) * np.repeat(dx / dy, counts)
        crossings[part] = rows * width + np.ceil(xs - 0.5).clip(0, width).astype(np.int64)
    crossings.sort()
    flat = mask.reshape(-1)
    # Each row has an even number of crossings.
    for enter, leave in crossings.reshape(-1, 2).tolist():
        flat[enter:leave] = label_id


class _Canvas:
    """An image whose colours are premultiplied by alpha; transparent without a background."""

    def __init__(self, size: Size, background: ByteArray | None) -> None:
        self._pixels: ByteArray = np.zeros((size.height, size.width, BGRA_CHANNELS), np.uint8)
        has_alpha = background is not None and background.shape[2] == BGRA_CHANNELS
        if background is not None:
            self._pixels[..., : background.shape[2]] = background
            if has_alpha:
                self._premultiply()
            else:
                self._pixels[..., 3] = _OPAQUE
        # Rows and columns (start, end) that may contain translucent pixels.
        self._translucent = (0, size.height, 0, size.width) if has_alpha else (size.height, 0, size.width, 0)

    def paint(self, box: Box, colour: str, opacity: float, draw: Draw) -> None:
        """Blend a shape over the current content."""
        height, width = self._pixels.shape[:2]
        left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
        right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
        if left >= right or top >= bottom or opacity <= 0:
            return
        low, high, near, far = self._translucent
        self._translucent = min(low, top), max(high, bottom), min(near, left), max(far, right)
        rows = max(1, _BAND_CELLS // ((right - left) * _SCALE * _SCALE))
        for start in range(top, bottom, rows):
            end = min(start + rows, bottom)
            mask: ByteArray = np.zeros(((end - start) * _SCALE, (right - left) * _SCALE), np.uint8)
            draw(mask, left, start)
            coverage = cv2.resize(mask, (right - left, end - start), interpolation=cv2.INTER_AREA)
            self._blend(self._pixels[start:end, left:right], coverage.astype(np.uint8, copy=False), colour, opacity)

    @staticmethod
    def _blend(part: ByteArray, coverage: ByteArray, colour: str, opacity: float) -> None:
        weight = np.multiply(coverage, opacity / _OPAQUE, dtype=np.float32)[..., None]
        ink = np.array([*_parse_colour(colour), _OPAQUE], np.float32)
        part += np.rint((ink - part) * weight).astype(np.int16).astype(np.uint8)

    def finish(self) -> ByteArray:
        """Return the image with straight (not premultiplied) alpha."""
        low, high, near, far = self._translucent
        for start in range(low, high, _BAND_ROWS):
            band = self._pixels[start : min(start + _BAND_ROWS, high), near:far]
            part, opacity = band[..., :3], band[..., 3:]
            if opacity.min() == _OPAQUE or opacity.max() == 0:
                continue
            visible = np.maximum(opacity, 1).astype(np.float32)
            part[:] = np.minimum(np.rint(part * (_OPAQUE / visible)), _OPAQUE).astype(np.uint8)
        return self._pixels

    def _premultiply(self) -> None:
        for channel in range(3):
            scaled = cv2.multiply(self._pixels[..., channel], self._pixels[..., 3], scale=1 / _OPAQUE)
            self._pixels[..., channel] = scaled


def _parse_colour(colour: str) -> tuple[int, int, int]:
    """Convert ``#rrggbb`` to blue, green, red."""
    return int(colour[5:7], 16), int(colour[3:5], 16), int(colour[1:3], 16)


def _draw_region(canvas: _Canvas, region: Region, opacity: float, stroke: float) -> None:
    rings = [ring for polygon in region.polygons for ring in (polygon.outer, *polygon.holes)]
    x, y, width, height = region.bbox
    margin = stroke / 2 + 1
    box = (x - margin, y - margin, x + width + margin, y + height + margin)

    def fill(mask: ByteArray, left: float, top: float) -> None:
        points = _to_cells(rings, left, top)
        # OpenCV fills every cell that the edge touches. Drawing edge cells at half intensity corrects the area.
        cv2.fillPoly(mask, points, _OPAQUE, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)
        cv2.polylines(mask, points, isClosed=True, color=_HALF, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)

    canvas.paint(box, region.colour, opacity, fill)
    if stroke > 0:
        _draw_outline(canvas, rings, box, region.colour, stroke)


def _draw_outline(canvas: _Canvas, rings: Sequence[FloatArray], box: Box, colour: str, stroke: float) -> None:
    cells = stroke * _SCALE
    thickness = max(1, round(cells))
    # A line thinner than a cell is drawn with a lower opacity instead.
    opacity = min(1.0, cells / thickness)
    is_dashed = (DASH + GAP) * stroke >= 1
    lines: Sequence[npt.NDArray[np.floating]] = rings
    if is_dashed:
        lines = [dash for ring in rings for dash in cut_dashes(ring, DASH * stroke, GAP * stroke, _CAP * stroke)]
    else:
        opacity *= DASH / (DASH + GAP)

    def draw(mask: ByteArray, left: float, top: float) -> None:
        points = _to_cells(lines, left, top)
        _draw_lines(mask, points, thickness, is_closed=not is_dashed)

    canvas.paint(box, colour, opacity, draw)


def cut_dashes(ring: FloatArray, dash: float, gap: float, cap: float) -> list[npt.NDArray[np.float64]]:
    """Cut a ring into dashes ``(M, 2)``, starting at its first point; the last may be shorter.

    The renderer extends a line by ``cap`` at each end, so each dash is shortened by that length.

    Example:
        >>> square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], np.float32)
        >>> [line.tolist() for line in cut_dashes(square, 6, 4, 0)]
        [[[0.0, 0.0], [4.0, 0.0], [4.0, 2.0]], [[2.0, 4.0], [0.0, 4.0], [0.0, 0.0]]]
    """
    closed = np.vstack((ring, ring[:1])).astype(np.float64)
    along = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))))
    starts = np.arange(0.0, along[-1], dash + gap)
    ends = np.minimum(starts + dash, along[-1])
    centres = (starts + ends) / 2
    starts, ends = np.minimum(starts + cap, centres), np.maximum(ends - cap, centres)
    first, last = np.searchsorted(along, starts, "right"), np.searchsorted(along, ends, "left")
    heads, tails = (
        np.column_stack([np.interp(at, along, closed[:, axis]) for axis in range(2)]) for at in (starts, ends)
    )
    pieces: list[npt.NDArray[np.float64]] = []
    for number, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        pieces += (heads[number : number + 1], closed[low:high], tails[number : number + 1])
    lengths = np.maximum(last - first, 0) + 2
    return split_points(np.concatenate(pieces), lengths.tolist()) if pieces else []


def _to_cells(lines: Sequence[npt.NDArray[np.floating]], left: float, top: float) -> list[npt.NDArray[np.int32]]:
    """Convert lines in pixels to fixed-point cells of a mask that starts at ``(left, top)``.

    Example:
        >>> [line.tolist() for line in _to_cells([np.array([[2.0, 1.5]])], 1.0, 1.0)]
        [[[56, 24]]]
    """
    if not lines:  # for example the dashes of a ring of zero length
        return []
    # Convert all lines at once, because there may be hundreds of three points each. The origin of OpenCV is the centre
    # of the first cell.
    cells = (np.concatenate(lines) - (left, top)) * _SCALE - 0.5
    return split_points(np.rint(cells * (1 << _SUBPIXEL_BITS)).astype(np.int32), [len(line) for line in lines])


def _draw_lines(mask: ByteArray, lines: Sequence[npt.NDArray[np.int32]], thickness: int, *, is_closed: bool) -> None:
    # OpenCV draws lines of 2 to 4 cells up to two thirds too wide; dilating a line of one cell is exact.
    is_dilated = 1 < thickness <= _MAX_DILATED_CELLS
    cells = 1 if is_dilated else thickness
    cv2.polylines(mask, lines, isClosed=is_closed, color=_OPAQUE, thickness=cells, shift=_SUBPIXEL_BITS)
    if is_dilated:
        cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thickness, thickness)), dst=mask)


def _draw_landmarks(canvas: _Canvas, landmarks_px: FloatArray, diameter: float) -> None:
    margin = diameter / 2 + 1
    (left, top), (right, bottom) = landmarks_px.min(axis=0) - margin, landmarks_px.max(axis=0) + margin

    def draw(mask: ByteArray, left: float, top: float) -> None:
        for centre in _to_cells([landmarks_px], left, top)[0].tolist():
            _draw_disc(mask, centre, diameter / 2)

    canvas.paint((left, top, right, bottom), DOT_COLOUR, 1.0, draw)


def _draw_disc(mask: ByteArray, centre: Sequence[int], radius: float) -> None:
    # OpenCV also fills the cells that the outline of the circle touches, which adds half a cell on each side.
    cells = max(round((radius * _SCALE - 0.5) * (1 << _SUBPIXEL_BITS)), 0)
    cv2.circle(mask, centre, cells, _OPAQUE, cv2.FILLED, shift=_SUBPIXEL_BITS)


def _draw_leader(canvas: _Canvas, label: PlacedLabel, target: tuple[float, float], font_size: float) -> None:
    width = font_size * LEADER_EM
    line = np.array([[compute_leader_x(label, font_size), label.y], target])
    margin = 3 * width + 1
    (left, top), (right, bottom) = line.min(axis=0) - margin, line.max(axis=0) + margin
    box = (left, top, right, bottom)

    def stroke(thickness: float) -> Draw:
        def draw(mask: ByteArray, left: float, top: float) -> None:
            points = _to_cells([line], left, top)
            _draw_lines(mask, points, max(1, round(thickness * _SCALE)), is_closed=False)

        return draw

    def disc(radius: float) -> Draw:
        def draw(mask: ByteArray, left: float, top: float) -> None:
            _draw_disc(mask, _to_cells([line[1:]], left, top)[0][0].tolist(), radius)

        return draw

    canvas.paint(box, HALO_COLOUR, LEADER_HALO_OPACITY, stroke(LEADER_HALO * width))
    canvas.paint(box, label.region.colour, 1.0, stroke(width))
    # As in the SVG: the circle has an outline of width 1, half of which is inside.
    canvas.paint(box, HALO_COLOUR, 1.0, disc((LEADER_DOT + 0.5) * width))
    canvas.paint(box, label.region.colour, 1.0, disc(LEADER_DOT * width))


def _draw_text(canvas: _Canvas, label: PlacedLabel, font_size: float) -> None:
    """Draw a name in white with a dark halo, in the only font of OpenCV that supports most scripts."""
    text, size = clean_text(label.region.name), max(1, round(font_size * _SCALE))
    font = cv2.FontFace(_FONT)
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), font, size)
    fraction = {"start": 0.0, "middle": 0.5, "end": 1.0}[label.text_anchor]
    x, baseline = label.x - fraction * width / _SCALE, label.y + BASELINE_EM * font_size
    box = (x - font_size, baseline - 1.5 * font_size, x + width / _SCALE + font_size, baseline + font_size)
    radius = round(HALO_EM / 2 * size)

    def write(mask: ByteArray, left: float, top: float) -> None:
        origin = round((x - left) * _SCALE), round((baseline - top) * _SCALE)
        # Without this range, OpenCV would wrap text at the edge of the mask.
        cv2.putText(mask, text, origin, _OPAQUE, font, size, 0, cv2.PUT_TEXT_ALIGN_LEFT, (-(1 << 20), 1 << 20))

    def halo(mask: ByteArray, left: float, top: float) -> None:
        write(mask, left, top)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        cv2.dilate(mask, kernel, dst=mask)

    canvas.paint(box, HALO_COLOUR, 1.0, halo)
    canvas.paint(box, TEXT_COLOUR, 1.0, write)
