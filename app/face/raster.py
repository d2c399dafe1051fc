"""Regions to a picture: what `overlay` writes as SVG, drawn as pixels.

Shapes are drawn several times as large, without smoothing, and averaged: coverage is then right to a sixteenth of a
pixel, for fills, outlines and letters alike. Colours are kept multiplied by their opacity until the end, so that
laying one over another is the same wherever it happens. Large shapes are drawn in bands, which bounds their memory.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from app.face.callouts import Callout, place_callouts
from app.face.frame import Size
from app.face.landmarks import FloatArray
from app.face.outline_strokes import cut_dashes, to_fixed_point
from app.face.overlay import (
    BASELINE_EM,
    DASH,
    GAP,
    HALO_COLOUR,
    HALO_EM,
    LEADER_EM,
    OverlayStyle,
    choose_dot_px,
    choose_stroke_px,
    clean_text,
    find_leader_start,
)
from app.face.regions import Region

ByteArray = npt.NDArray[np.uint8]
Draw = Callable[[ByteArray, float, float], object]
"""Draws a shape in white into a mask `SCALE` times as large, whose upper left corner is at a point ``(x, y)``."""

SCALE: Final = 4
_OPAQUE: Final = 255
_HALF: Final = 128
_BAND_CELLS: Final = 4_000_000
_BAND_ROWS: Final = 256
_SUBPIXEL_BITS: Final = 4
_GROWN_CELLS: Final = 6
_CAP: Final = math.pi / 8
"""Of the width of a dash: cv2 rounds its ends, and with this much less at each it covers what square ends would."""

_WHITE: Final = "#ffffff"
_LEADER_HALO: Final = 2.5
_LEADER_HALO_OPACITY: Final = 0.5
_FONT: Final = "sans"

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def render_picture(
    *,
    frame: Size,
    regions: Sequence[Region],
    landmarks_px: FloatArray | None,
    style: OverlayStyle,
    background: ByteArray | None = None,
) -> ByteArray:
    """Draw regions over a frame.

    Args:
        frame: Size of the picture in pixels.
        regions: The regions, the first drawn lowest.
        landmarks_px: ``(N, 2)`` points in pixels, drawn where the style says so.
        style: How it looks.
        background: ``(H, W, 3)`` BGR or ``(H, W, 4)`` BGRA, as large as the frame, put under everything.

    Returns:
        ``(H, W, 4)`` BGRA, transparent where nothing is drawn.
    """
    canvas = _Canvas(frame, background)
    stroke = choose_stroke_px(frame, style)
    for region in regions:
        _draw_region(canvas, region, style.region_opacity, stroke)
    if style.show_landmarks and landmarks_px is not None:
        _draw_landmarks(canvas, landmarks_px, choose_dot_px(frame))
    if style.show_labels:
        font_size, callouts = place_callouts(frame, regions)
        for callout in callouts:
            _draw_callout(canvas, callout, font_size)
    return canvas.finish()


class _Canvas:
    """A picture whose colours are multiplied by their opacity.

    Args:
        frame: Its size in pixels.
        background: What it begins with; None for nothing.
    """

    def __init__(self, frame: Size, background: ByteArray | None) -> None:
        self._pixels: ByteArray = np.zeros((frame.height, frame.width, 4), np.uint8)
        if background is not None:
            self._pixels[..., : background.shape[2]] = background
            if background.shape[2] == 4:  # noqa: PLR2004 - BGRA
                self._multiply()
            else:
                self._pixels[..., 3] = _OPAQUE
        # Rows and columns that may be neither clear nor opaque: begin, end.
        is_mixed = background is not None and background.shape[2] == 4  # noqa: PLR2004 - BGRA
        self._mixed = (0, frame.height, 0, frame.width) if is_mixed else (frame.height, 0, frame.width, 0)

    def paint(self, box: Box, colour: str, opacity: float, draw: Draw) -> None:
        """Lay a shape over what is there.

        Args:
            box: What the shape is within.
            colour: ``#rrggbb``.
            opacity: 0 to 1.
            draw: Draws the shape.
        """
        height, width = self._pixels.shape[:2]
        left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
        right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
        if left >= right or top >= bottom or opacity <= 0:
            return
        low, high, near, far = self._mixed
        self._mixed = min(low, top), max(high, bottom), min(near, left), max(far, right)
        rows = max(1, _BAND_CELLS // ((right - left) * SCALE * SCALE))
        for start in range(top, bottom, rows):
            end = min(start + rows, bottom)
            mask: ByteArray = np.zeros(((end - start) * SCALE, (right - left) * SCALE), np.uint8)
            draw(mask, left, start)
            coverage = cv2.resize(mask, (right - left, end - start), interpolation=cv2.INTER_AREA)
            self._blend(self._pixels[start:end, left:right], coverage.astype(np.uint8, copy=False), colour, opacity)

    @staticmethod
    def _blend(part: ByteArray, coverage: ByteArray, colour: str, opacity: float) -> None:
        weight = np.multiply(coverage, opacity / _OPAQUE, dtype=np.float32)[..., None]
        ink = np.array([*_parse_colour(colour), _OPAQUE], np.float32)
        part += np.rint((ink - part) * weight).astype(np.int16).astype(np.uint8)

    def finish(self) -> ByteArray:
        """Return the picture with its colours as they are, whatever their opacity."""
        low, high, near, far = self._mixed
        for start in range(low, high, _BAND_ROWS):
            band = self._pixels[start : min(start + _BAND_ROWS, high), near:far]
            part, opacity = band[..., :3], band[..., 3:]
            if opacity.min() == _OPAQUE or opacity.max() == 0:
                continue
            visible = np.maximum(opacity, 1).astype(np.float32)
            part[:] = np.minimum(np.rint(part * (_OPAQUE / visible)), _OPAQUE).astype(np.uint8)
        return self._pixels

    def _multiply(self) -> None:
        for channel in range(3):
            scaled = cv2.multiply(self._pixels[..., channel], self._pixels[..., 3], scale=1 / _OPAQUE)
            self._pixels[..., channel] = scaled


def _parse_colour(colour: str) -> tuple[int, int, int]:
    """Read ``#rrggbb`` as blue, green, red."""
    return int(colour[5:7], 16), int(colour[3:5], 16), int(colour[1:3], 16)


def _draw_region(canvas: _Canvas, region: Region, opacity: float, stroke: float) -> None:
    rings = [ring for polygon in region.polygons for ring in (polygon.outer, *polygon.holes)]
    x, y, width, height = region.bbox
    room = stroke / 2 + 1
    box = (x - room, y - room, x + width + room, y + height + room)

    def fill(mask: ByteArray, left: float, top: float) -> None:
        points = to_fixed_point(rings, left, top, SCALE, _SUBPIXEL_BITS)
        # cv2 fills every cell that the edge touches. Counted half, as many are won on one side as lost on the other.
        cv2.fillPoly(mask, points, _OPAQUE, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)
        cv2.polylines(mask, points, isClosed=True, color=_HALF, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)

    canvas.paint(box, region.colour, opacity, fill)
    if stroke > 0:
        _draw_outline(canvas, rings, box, region.colour, stroke)


def _draw_outline(canvas: _Canvas, rings: Sequence[FloatArray], box: Box, colour: str, stroke: float) -> None:
    cells = stroke * SCALE
    thickness = max(1, round(cells))
    # What is thinner than a cell is drawn paler instead.
    opacity = min(1.0, cells / thickness)
    is_dashed = (DASH + GAP) * stroke >= 1
    lines: Sequence[npt.NDArray[np.floating]] = rings
    if is_dashed:
        lines = [dash for ring in rings for dash in cut_dashes(ring, DASH * stroke, GAP * stroke, _CAP * stroke)]
    else:
        opacity *= DASH / (DASH + GAP)

    def draw(mask: ByteArray, left: float, top: float) -> None:
        points = to_fixed_point(lines, left, top, SCALE, _SUBPIXEL_BITS)
        _draw_lines(mask, points, thickness, is_closed=not is_dashed)

    canvas.paint(box, colour, opacity, draw)


def _draw_lines(mask: ByteArray, lines: Sequence[npt.NDArray[np.int32]], thickness: int, *, is_closed: bool) -> None:
    # What cv2 draws 2 to 4 cells wide comes out up to two thirds wider; a single cell, grown, does not.
    is_grown = 1 < thickness <= _GROWN_CELLS
    cells = 1 if is_grown else thickness
    cv2.polylines(mask, lines, isClosed=is_closed, color=_OPAQUE, thickness=cells, shift=_SUBPIXEL_BITS)
    if is_grown:
        cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thickness, thickness)), dst=mask)


def _draw_landmarks(canvas: _Canvas, landmarks_px: FloatArray, diameter: float) -> None:
    room = diameter / 2 + 1
    (left, top), (right, bottom) = landmarks_px.min(axis=0) - room, landmarks_px.max(axis=0) + room

    def draw(mask: ByteArray, left: float, top: float) -> None:
        for centre in to_fixed_point([landmarks_px], left, top, SCALE, _SUBPIXEL_BITS)[0].tolist():
            _draw_disc(mask, centre, diameter / 2)

    canvas.paint((left, top, right, bottom), _WHITE, 1.0, draw)


def _draw_disc(mask: ByteArray, centre: Sequence[int], radius: float) -> None:
    # cv2 colours what the circle's line touches as well, which is half a cell more on each side.
    cells = max(round((radius * SCALE - 0.5) * (1 << _SUBPIXEL_BITS)), 0)
    cv2.circle(mask, centre, cells, _OPAQUE, cv2.FILLED, shift=_SUBPIXEL_BITS)


def _draw_callout(canvas: _Canvas, callout: Callout, font_size: float) -> None:
    if callout.target is not None:
        _draw_leader(canvas, callout, callout.target, font_size)
    _draw_text(canvas, callout, font_size)


def _draw_leader(canvas: _Canvas, callout: Callout, target: tuple[float, float], font_size: float) -> None:
    width = font_size * LEADER_EM
    line = np.array([[find_leader_start(callout, font_size), callout.y], target])
    room = 3 * width + 1
    (left, top), (right, bottom) = line.min(axis=0) - room, line.max(axis=0) + room
    box = (left, top, right, bottom)

    def stroke(thickness: float) -> Draw:
        def draw(mask: ByteArray, left: float, top: float) -> None:
            points = to_fixed_point([line], left, top, SCALE, _SUBPIXEL_BITS)
            _draw_lines(mask, points, max(1, round(thickness * SCALE)), is_closed=False)

        return draw

    def disc(radius: float) -> Draw:
        def draw(mask: ByteArray, left: float, top: float) -> None:
            _draw_disc(mask, to_fixed_point([line[1:]], left, top, SCALE, _SUBPIXEL_BITS)[0][0].tolist(), radius)

        return draw

    canvas.paint(box, HALO_COLOUR, _LEADER_HALO_OPACITY, stroke(_LEADER_HALO * width))
    canvas.paint(box, callout.region.colour, 1.0, stroke(width))
    # A circle of radius 2 with a line of width 1 around it, half of which is inside.
    canvas.paint(box, HALO_COLOUR, 1.0, disc(2.5 * width))
    canvas.paint(box, callout.region.colour, 1.0, disc(2 * width))


def _draw_text(canvas: _Canvas, callout: Callout, font_size: float) -> None:
    """Write a name, white on a dark halo, with the one font that cv2 brings for most of the world's letters."""
    text, size = clean_text(callout.region.name), max(1, round(font_size * SCALE))
    font = cv2.FontFace(_FONT)
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), font, size)
    share = {"start": 0.0, "middle": 0.5, "end": 1.0}[callout.text_anchor]
    x, baseline = callout.x - share * width / SCALE, callout.y + BASELINE_EM * font_size
    box = (x - font_size, baseline - 1.5 * font_size, x + width / SCALE + font_size, baseline + font_size)
    radius = round(HALO_EM / 2 * size)

    def write(mask: ByteArray, left: float, top: float) -> None:
        origin = round((x - left) * SCALE), round((baseline - top) * SCALE)
        # Without a range of its own, a text that reaches the edge would go on at the other.
        cv2.putText(mask, text, origin, _OPAQUE, font, size, 0, cv2.PUT_TEXT_ALIGN_LEFT, (-(1 << 20), 1 << 20))

    def halo(mask: ByteArray, left: float, top: float) -> None:
        write(mask, left, top)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        cv2.dilate(mask, kernel, dst=mask)

    canvas.paint(box, HALO_COLOUR, 1.0, halo)
    canvas.paint(box, _WHITE, 1.0, write)
