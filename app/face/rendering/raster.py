"""Regions to pixels: the overlay of `svg` as an image.

Shapes are polygons, which `scanline` covers exactly. Colours are premultiplied by alpha until the end, which makes
blending the same on any background. Each channel is an array of its own, so that OpenCV blends it without copies.
"""

import math
from collections.abc import Iterable, Sequence
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
from app.face.rendering.scanline import (
    DoubleArray,
    Edges,
    Runs,
    compute_runs,
    connect_polygons,
    connect_rings,
    count_up,
    expand_runs,
    measure_edges,
)
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

Channels = list[ByteArray]
"""Channels ``(H, W)`` of an image: blue, green, red and, unless all pixels are opaque, alpha."""

_OPAQUE: Final = 255
_BAND_PIXELS: Final = 1 << 18
_CROSSINGS_PER_CHUNK: Final = 1 << 18
_INDEX_COST: Final = 1 / 32
"""Time per crossing of OpenCV's filling, relative to that of filling by centres."""

MAX_CROSSINGS: Final = 1_000_000
"""Edges times the rows that they cross. A face of 64 million pixels has about 150,000; a million take up to 0.7 s."""

OUTLINE_COST: Final = 600
"""Time per pixel of an outline, relative to that per pixel inside."""

# Pixels in longer runs of full coverage are blended with a mask. That takes less time per pixel, but also blends the
# pixels between the runs.
_LONG_RUN: Final = 64

_MIN_PERIOD_PX: Final = 2
"""Shorter dashes look like a paler line."""

_CIRCLE_CORNERS: Final = 16
# A regular polygon of the same area as a circle has this circumradius.
_CIRCLE_RADIUS: Final = math.sqrt(2 * math.pi / (_CIRCLE_CORNERS * math.sin(2 * math.pi / _CIRCLE_CORNERS)))
_ANGLES: Final = np.arange(_CIRCLE_CORNERS) * (2 * math.pi / _CIRCLE_CORNERS)
_CIRCLE: Final = _CIRCLE_RADIUS * np.column_stack((np.cos(_ANGLES), np.sin(_ANGLES)))

_FONT: Final = "sans"
# Small letters are drawn larger and then averaged, because OpenCV places them at whole pixels.
_MAX_TEXT_SCALE: Final = 4
_LARGE_FONT_PX: Final = 64


class Layer(NamedTuple):
    """What the overlay of one face draws."""

    regions: Sequence[Region]
    landmarks_px: FloatArray | None  # drawn as dots; None for no dots


class Drawing(NamedTuple):
    """Overlays of faces in one frame, from bottom to top."""

    size: Size
    layers: Sequence[Layer]
    style: OverlayStyle


def render_image(drawing: Drawing, background: ByteArray | None = None) -> Channels:
    """Render overlays, over a background ``(H, W, 3)`` BGR or ``(H, W, 4)`` BGRA of the size of the frame.

    The image has an alpha channel unless the background is opaque.
    """
    size, layers, style = drawing
    canvas = _Canvas(size, background)
    stroke = compute_stroke_px(size, style)
    for layer in layers:
        for region in layer.regions:
            _draw_region(canvas, region, style.region_opacity, stroke)
        if layer.landmarks_px is not None:
            canvas.fill(_make_circles(layer.landmarks_px, compute_dot_px(size) / 2), DOT_COLOUR, 1.0)
        if style.show_labels:
            font_size, labels = layout_labels(size, layer.regions)
            for label in labels:
                if label.target is not None:
                    _draw_leader(canvas, label, label.target, font_size)
                _draw_text(canvas, label, font_size)
    return canvas.finish()


def render_grid(size: Size, images: Iterable[tuple[tuple[int, int], Channels]]) -> Channels:
    """Place images with their top left corners at ``(x, y)`` of a transparent frame."""
    channels: Channels = [np.zeros((size.height, size.width), np.uint8) for _ in range(BGRA_CHANNELS)]
    for (x, y), image in images:
        height, width = image[0].shape
        place = slice(y, y + height), slice(x, x + width)
        channels[3][place] = _OPAQUE
        for channel, part in zip(channels, image, strict=False):
            channel[place] = part
    return channels


def measure_drawing(drawing: Drawing) -> float:
    """Return the time to draw the regions, in pixels inside them; a pixel of an outline counts as `OUTLINE_COST`."""
    size, cost = drawing.size, 0.0
    for region in (region for layer in drawing.layers for region in layer.regions):
        x, y, width, height = region.bbox
        columns, rows = min(x + width, size.width) - max(x, 0.0), min(y + height, size.height) - max(y, 0.0)
        cost += max(columns, 0.0) * max(rows, 0.0) + OUTLINE_COST * measure_edges(connect_rings(_rings_of(region)))
    return cost


def _rings_of(region: Region) -> list[FloatArray]:
    return [ring for polygon in region.polygons for ring in (polygon.outer, *polygon.holes)]


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
        rings = _rings_of(region)
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
        self.size = size
        shape = size.height, size.width
        if background is None:
            self._planes: Channels = [np.zeros(shape, np.uint8) for _ in range(BGRA_CHANNELS)]
        else:
            self._planes = [plane.astype(np.uint8, copy=False) for plane in cv2.split(background)]
            for plane in self._planes[:3] if len(self._planes) == BGRA_CHANNELS else ():
                cv2.multiply(plane, self._planes[3], dst=plane, scale=1 / _OPAQUE)

    def fill(self, edges: Edges, colour: str, opacity: float, *, is_even_odd: bool = False) -> None:
        """Blend polygons over the current content."""
        if opacity <= 0 or len(edges.starts) == 0:
            return
        runs = compute_runs(edges, self.size, is_even_odd=is_even_odd)
        is_long = (runs.lengths > _LONG_RUN) & (runs.coverage == 1)
        if is_long.any():
            self._blend_long(Runs(*(values[is_long] for values in runs)), colour, opacity)
        positions, coverage = expand_runs(Runs(*(values[~is_long] for values in runs)))
        self._blend_pixels(positions, coverage * np.float32(opacity), colour)

    def _blend_pixels(self, positions: npt.NDArray[np.int64], weights: npt.NDArray[np.float32], colour: str) -> None:
        for plane, ink in zip(self._planes, _parse_colour(colour), strict=False):
            flat = plane.reshape(-1)
            pixels = flat[positions].astype(np.float32)
            pixels += (ink - pixels) * weights
            flat[positions] = np.rint(pixels).astype(np.uint8)

    def _blend_long(self, runs: Runs, colour: str, opacity: float) -> None:
        """Blend runs of full coverage with a mask, in bands of rows."""
        width = self.size.width
        rows, lefts = np.divmod(runs.starts, width)
        rights = lefts + runs.lengths
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        height = max(1, _BAND_PIXELS // int(rights.max() - lefts.min()))
        for low in range(top, bottom, height):
            high = min(low + height, bottom)
            first, last = np.searchsorted(rows, (low, high)).tolist()
            if first == last:
                continue
            near, far = int(lefts[first:last].min()), int(rights[first:last].max())
            mask: ByteArray = np.zeros((high - low, far - near), np.uint8)
            flat, offsets = mask.reshape(-1), (rows[first:last] - low) * (far - near) - near
            starts, ends = offsets + lefts[first:last], offsets + rights[first:last]
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                flat[start:end] = _OPAQUE
            for plane, ink in zip(self._planes, _parse_colour(colour), strict=False):
                part = plane[low:high, near:far]
                cv2.copyTo(cv2.convertScaleAbs(part, alpha=1 - opacity, beta=opacity * ink), mask, part)

    def blend(self, left: int, top: int, coverage: ByteArray, colour: str) -> None:
        """Blend a mask whose top left corner is at ``(left, top)`` over the current content."""
        height, width = coverage.shape
        near, low = max(0, left), max(0, top)
        far, high = min(left + width, self.size.width), min(top + height, self.size.height)
        if near >= far or low >= high:
            return
        part = coverage[low - top : high - top, near - left : far - left]
        rows, columns = np.nonzero(part)
        positions = (rows + low) * self.size.width + columns + near
        self._blend_pixels(positions, np.divide(part[rows, columns], _OPAQUE, dtype=np.float32), colour)

    def finish(self) -> Channels:
        """Return the channels with straight (not premultiplied) alpha."""
        if len(self._planes) == BGRA_CHANNELS:
            *colours, alpha = self._planes
            height = max(1, _BAND_PIXELS // self.size.width)
            for top in range(0, self.size.height, height):
                rows = slice(top, top + height)
                opacity = alpha[rows]
                if cv2.hasNonZero(opacity):
                    for plane in colours:
                        cv2.divide(plane[rows], opacity, dst=plane[rows], scale=_OPAQUE)
        return self._planes


def _parse_colour(colour: str) -> tuple[int, int, int, int]:
    """Convert ``#rrggbb`` to blue, green, red, alpha."""
    return int(colour[5:7], 16), int(colour[3:5], 16), int(colour[1:3], 16), _OPAQUE


def _draw_region(canvas: _Canvas, region: Region, opacity: float, stroke: float) -> None:
    rings = _rings_of(region)
    canvas.fill(connect_rings(rings), region.colour, opacity, is_even_odd=True)
    if stroke <= 0:
        return
    if (DASH + GAP) * stroke >= _MIN_PERIOD_PX:
        canvas.fill(_stroke_lines(cut_dashes(rings, DASH * stroke, GAP * stroke), stroke), region.colour, 1.0)
    else:
        canvas.fill(_stroke_lines(_close_rings(rings), stroke), region.colour, DASH / (DASH + GAP))


class Lines(NamedTuple):
    """Open lines one after the other, each of two or more points."""

    points: DoubleArray  # `(N, 2)`
    is_last: npt.NDArray[np.bool_]  # `(N,)`, whether a point is the last of its line


def _close_rings(rings: Sequence[FloatArray]) -> Lines:
    points = np.concatenate([part for ring in rings for part in (ring, ring[:1])]).astype(np.float64)
    is_last = np.zeros(len(points), np.bool_)
    is_last[np.cumsum([len(ring) + 1 for ring in rings]) - 1] = True
    return Lines(points, is_last)


def cut_dashes(rings: Sequence[FloatArray], dash: float, gap: float) -> Lines:
    """Cut rings into dashes, starting at the first point of each ring; the last dash of a ring may be shorter.

    Example:
        >>> square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], np.float32)
        >>> lines = cut_dashes([square], 6, 4)
        >>> lines.points.tolist()
        [[0.0, 0.0], [4.0, 0.0], [4.0, 2.0], [2.0, 4.0], [0.0, 4.0], [0.0, 0.0]]
        >>> lines.is_last.tolist()
        [False, False, True, False, False, True]
    """
    closed, is_ring_end = _close_rings(rings)
    steps = np.hypot(*np.diff(closed, axis=0).T)
    steps[is_ring_end[:-1]] = 1.0  # separates the rings
    along = np.concatenate(([0.0], np.cumsum(steps)))
    ring_ends = along[is_ring_end]
    ring_starts = np.concatenate((along[:1], ring_ends[:-1] + 1.0))
    counts = np.ceil((ring_ends - ring_starts) / (dash + gap)).astype(np.int64)
    numbers = count_up(np.zeros(len(counts), np.int64), counts)
    starts = np.repeat(ring_starts, counts) + numbers * (dash + gap)
    ends = np.minimum(starts + dash, np.repeat(ring_ends, counts))
    first, last = np.searchsorted(along, starts, "right"), np.searchsorted(along, ends, "left")
    inner = np.maximum(last - first, 0)
    tails = np.cumsum(inner + 2) - 1
    heads = tails - inner - 1
    points = np.empty((int((inner + 2).sum()), 2))
    is_last, is_inner = np.zeros(len(points), np.bool_), np.ones(len(points), np.bool_)
    is_last[tails] = True
    is_inner[tails] = is_inner[heads] = False
    points[is_inner] = closed[count_up(first, inner)]
    for axis in range(2):
        points[heads, axis] = np.interp(starts, along, closed[:, axis])
        points[tails, axis] = np.interp(ends, along, closed[:, axis])
    return Lines(points, is_last)


def _stroke_lines(lines: Lines, width: float) -> Edges:
    """Return the outlines of lines of this width, with round joins."""
    points, is_last = lines
    steps = np.diff(points, axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    found = (lengths > 0) & ~is_last[:-1]
    # Turned by 90 degrees, half the width long.
    normals = np.column_stack((-steps[:, 1], steps[:, 0])) * (width / 2 / np.where(lengths > 0, lengths, 1.0))[:, None]
    normals, starts, ends = normals[found], points[:-1][found], points[1:][found]
    segments = np.stack((starts + normals, starts - normals, ends - normals, ends + normals), axis=1)
    return _join_edges(connect_polygons(segments), _make_joins(starts, ends, normals))


def _make_joins(starts: DoubleArray, ends: DoubleArray, normals: DoubleArray) -> Edges:
    """Fill the gap on the outer side of each turn between segments that follow each other."""
    is_joined = (ends[:-1] == starts[1:]).all(axis=1)
    before, after, corners = normals[:-1][is_joined], normals[1:][is_joined], starts[1:][is_joined]
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    # The outer side is on the left of a turn to the right.
    sides = np.where(turns > 0, -1.0, 1.0)[:, None]
    middle = before + after
    radius = np.hypot(before[:, :1], before[:, 1:])
    middle *= radius / np.maximum(np.hypot(middle[:, :1], middle[:, 1:]), 1e-9)
    fan = np.stack((corners, corners + sides * before, corners + sides * middle, corners + sides * after), axis=1)
    return connect_polygons(np.where(sides[:, None] > 0, fan, fan[:, ::-1]))


def _join_edges(*edges: Edges) -> Edges:
    return Edges(np.concatenate([part.starts for part in edges]), np.concatenate([part.ends for part in edges]))


def _make_circles(centres_px: npt.NDArray[np.floating], radius: float) -> Edges:
    return connect_polygons(centres_px[:, None].astype(np.float64) + radius * _CIRCLE)


def _draw_leader(canvas: _Canvas, label: PlacedLabel, target: tuple[float, float], font_size: float) -> None:
    width = font_size * LEADER_EM
    line = Lines(np.array([[compute_leader_x(label, font_size), label.y], target]), np.array([False, True]))
    canvas.fill(_stroke_lines(line, LEADER_HALO * width), HALO_COLOUR, LEADER_HALO_OPACITY)
    canvas.fill(_stroke_lines(line, width), label.region.colour, 1.0)
    # As in the SVG: the circle has an outline of width 1, half of which is inside.
    canvas.fill(_make_circles(line.points[1:], (LEADER_DOT + 0.5) * width), HALO_COLOUR, 1.0)
    canvas.fill(_make_circles(line.points[1:], LEADER_DOT * width), label.region.colour, 1.0)


def _draw_text(canvas: _Canvas, label: PlacedLabel, font_size: float) -> None:
    """Draw a name in white with a dark halo, in the only font of OpenCV that supports most scripts."""
    scale = min(max(1, math.ceil(_LARGE_FONT_PX / font_size)), _MAX_TEXT_SCALE)
    text, size = clean_text(label.region.name), max(1, round(font_size * scale))
    font = cv2.FontFace(_FONT)
    _, _, text_width, _ = cv2.getTextSize((0, 0), text, (0, 0), font, size)
    fraction = {"start": 0.0, "middle": 0.5, "end": 1.0}[label.text_anchor]
    x, baseline = label.x - fraction * text_width / scale, label.y + BASELINE_EM * font_size
    # Only the part inside the frame.
    left, right = max(0, math.floor(x - font_size)), math.ceil(x + text_width / scale + font_size)
    top, bottom = max(0, math.floor(baseline - 1.5 * font_size)), math.ceil(baseline + font_size)
    width, height = min(right, canvas.size.width) - left, min(bottom, canvas.size.height) - top
    if width <= 0 or height <= 0:
        return
    letters: ByteArray = np.zeros((height * scale, width * scale), np.uint8)
    origin = round((x - left) * scale), round((baseline - top) * scale)
    # Without this range, OpenCV would wrap text at the edge of the mask.
    cv2.putText(letters, text, origin, _OPAQUE, font, size, 0, cv2.PUT_TEXT_ALIGN_LEFT, (-(1 << 20), 1 << 20))
    distances = cv2.distanceTransform(cv2.threshold(letters, 127, 1, cv2.THRESH_BINARY_INV)[1], cv2.DIST_L2, 5)
    # From the border of the letters, half a pixel from the centre of their last pixel.
    halo = cv2.convertScaleAbs(np.maximum(HALO_EM / 2 * size + 1 - distances, 0), alpha=_OPAQUE)
    for mask, colour in ((halo, HALO_COLOUR), (letters, TEXT_COLOUR)):
        coverage = mask if scale == 1 else cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
        canvas.blend(left, top, coverage.astype(np.uint8, copy=False), colour)
