"""Regions to an SVG overlay.

Coordinates go through orjson, which writes an array of numbers a dozen times faster than formatting each. Names are
the only text that is not ours: they are cleaned of what XML cannot hold and escaped, here and nowhere else.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson

from app.face.callouts import Callout, place_callouts
from app.face.frame import Size
from app.face.landmarks import FloatArray
from app.face.regions import Region

REFERENCE_SIDE_PX: Final = 1000
"""Widths that are left to us are those below where a picture's longer side is this, and else in proportion."""

STROKE_PX: Final = 1.5

# In widths of the outline, so that a dash keeps its shape.
DASH: Final = 3.0
GAP: Final = 2.0

DOT_PX: Final = 1.6

# In heights of the letters. White on a dark halo can be read over any photo, and over none.
HALO_EM: Final = 0.22
HALO_COLOUR: Final = "#1a1a1a"
LEADER_EM: Final = 0.07
LEADER_GAP_EM: Final = 0.35
BASELINE_EM: Final = 0.35  # the `dy` of a text

# What the production Char of XML 1.0 leaves out: most control characters, surrogates, and two non-characters.
_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# White space other than a space is written as a reference: a parser would turn it into spaces or line feeds.
_ESCAPES: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
)
# Names are escaped, so that none can hold what these look for.
_BACKGROUND: Final = re.compile(
    rb'<image class="photo" [^<>]*href="data:(image/(?:jpeg|png));base64,([A-Za-z0-9+/=]*)"'
)
_COLOUR: Final = re.compile(rb' data-label-id="\d+" fill="(#[0-9a-f]{6})"')
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9 _.:#-]*")


@dataclass(frozen=True, slots=True)
class OverlayStyle:
    """How an overlay looks.

    Attributes:
        show_labels: Write each region's name beside the face, or inside the region where it fits.
        show_landmarks: Draw a dot for each landmark.
        region_opacity: Opacity of the fill, 0 to 1.
        stroke_width: Width of the outlines in pixels; None takes what suits the size of the picture.
    """

    show_labels: bool = False
    show_landmarks: bool = False
    region_opacity: float = 0.35
    stroke_width: float | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a file.

    Attributes:
        base64: The file's bytes, in base64.
        media_type: ``image/jpeg`` or ``image/png``.
    """

    base64: str
    media_type: str


def clean_text(text: str) -> str:
    r"""Replace every character that XML 1.0 cannot hold by U+FFFD.

    Example:
        >>> clean_text("nul \x00 is not allowed") == "nul \ufffd is not allowed"
        True
    """
    return _FORBIDDEN.sub("\ufffd", text)


def escape_text(text: str) -> str:
    """Write text so that a parser of XML reads ``clean_text(text)``, in an element or in an attribute."""
    if _PLAIN_NAME.fullmatch(text):
        return text
    return clean_text(text).translate(_ESCAPES)


def render_svg(
    *,
    frame: Size,
    regions: Sequence[Region],
    landmarks_px: FloatArray | None,
    style: OverlayStyle,
    background: Picture | None = None,
) -> bytes:
    """Draw regions over a frame.

    Args:
        frame: Size of the picture that the overlay is laid on, in pixels.
        regions: The regions, the first drawn lowest.
        landmarks_px: ``(N, 2)`` points in pixels, drawn where the style says so.
        style: How it looks.
        background: Put under everything, as large as the frame.

    Returns:
        An SVG document in UTF-8, transparent where nothing is drawn.
    """
    width, height = frame
    stroke = choose_stroke_px(frame, style)
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    group = (
        f'<g class="regions" fill-opacity="{style.region_opacity:.4g}" fill-rule="evenodd" stroke-width="{stroke:.4g}" '
        f'stroke-dasharray="{DASH * stroke:.4g} {GAP * stroke:.4g}" stroke-linejoin="round">'
    )
    # The photo may be tens of megabytes, and each string that it becomes a part of is a copy.
    parts = [start, *_render_background(background, frame), group, *map(_render_region, regions), "</g>"]
    if style.show_landmarks and landmarks_px is not None:
        parts.append(_render_landmarks(landmarks_px, frame))
    if style.show_labels:
        parts.append(_render_callouts(*place_callouts(frame, regions)))
    parts.append("</svg>")
    return "".join(parts).encode()


def choose_stroke_px(frame: Size, style: OverlayStyle) -> float:
    """Return the width of the outlines: what the style says, or what suits the size of the picture."""
    return STROKE_PX * max(frame) / REFERENCE_SIDE_PX if style.stroke_width is None else style.stroke_width


def choose_dot_px(frame: Size) -> float:
    """Return the diameter of a landmark's dot."""
    return DOT_PX * max(frame) / REFERENCE_SIDE_PX


def find_leader_start(callout: Callout, font_size: float) -> float:
    """Return where, along ``x``, the line from a name to its region begins: a little off the letters."""
    return callout.x + (-LEADER_GAP_EM if callout.text_anchor == "start" else LEADER_GAP_EM) * font_size


def read_background(svg: bytes) -> Picture | None:
    """Return the photo that an overlay of ours has under its regions; None where it has none."""
    found = _BACKGROUND.search(svg)
    return None if found is None else Picture(found[2].decode("ascii"), found[1].decode("ascii"))


def read_colours(svg: bytes) -> list[str]:
    """Return the colours of an overlay's regions, ``#rrggbb``, in drawing order."""
    return [colour.decode("ascii") for colour in _COLOUR.findall(svg)]


def _render_background(picture: Picture | None, frame: Size) -> tuple[str, ...]:
    if picture is None:
        return ()
    size = f'width="{frame.width}" height="{frame.height}"'
    return f'<image class="photo" {size} href="data:{picture.media_type};base64,', picture.base64, '"/>'


def _render_region(region: Region) -> str:
    name = escape_text(region.name)
    polygons = region.polygons
    if len(polygons) == 1 and not polygons[0].holes:
        shape = f'<polygon points="{_format_points(polygons[0].outer)}"/>'
    else:
        rings = [ring for polygon in polygons for ring in (polygon.outer, *polygon.holes)]
        shape = '<path d="' + "".join([f"M{_format_points(ring)}Z" for ring in rings]) + '"/>'
    return (
        f'<g class="region" data-name="{name}" data-label-id="{region.label_id}" '
        f'fill="{region.colour}" stroke="{region.colour}"><title>{name}</title>{shape}</g>'
    )


def _format_points(points: FloatArray) -> str:
    """Write a ring as ``x,y,x,y``, which ``points`` and, after an ``M``, the data of a path both take."""
    text = orjson.dumps(points.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
    return text.replace(b".0,", b",").replace(b".0]", b"]")[1:-1].decode()


def _render_landmarks(landmarks_px: FloatArray, frame: Size) -> str:
    # A stroke of no length with round caps is a dot; one path holds all of them.
    text = orjson.dumps(np.ascontiguousarray(landmarks_px), option=orjson.OPT_SERIALIZE_NUMPY).decode()
    data = text[2:-2].replace("],[", "h0M")
    diameter = choose_dot_px(frame)
    return (
        f'<path class="landmarks" d="M{data}h0" fill="none" stroke="#ffffff" '
        f'stroke-width="{diameter:.4g}" stroke-linecap="round"/>'
    )


def _render_callouts(font_size: float, callouts: Sequence[Callout]) -> str:
    head = (
        f'<g class="labels" font-family="sans-serif" font-size="{font_size:.4g}" '
        f'fill="#ffffff" stroke="{HALO_COLOUR}" stroke-linejoin="round" paint-order="stroke">'
    )
    parts = [head]
    for callout in callouts:
        if callout.target is not None:
            parts.append(_render_leader(callout, callout.target, font_size))
        parts.append(
            f'<text x="{callout.x:.1f}" y="{callout.y:.1f}" dy=".35em" text-anchor="{callout.text_anchor}" '
            f'stroke-width="{font_size * HALO_EM:.4g}">{escape_text(callout.region.name)}</text>'
        )
    return "".join([*parts, "</g>"])


def _render_leader(callout: Callout, target: tuple[float, float], font_size: float) -> str:
    x, y = target
    start = find_leader_start(callout, font_size)
    width = font_size * LEADER_EM
    line = f'd="M{start:.1f},{callout.y:.1f}L{x:.1f},{y:.1f}"'
    # The same line twice, dark and wide below, so that it too shows on any ground.
    return (
        f'<path class="leader" {line} fill="none" stroke-width="{2.5 * width:.4g}" stroke-opacity=".5"/>'
        f'<path class="leader" {line} fill="none" stroke="{callout.region.colour}" stroke-width="{width:.4g}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 * width:.4g}" fill="{callout.region.colour}" '
        f'stroke-width="{width:.4g}"/>'
    )
