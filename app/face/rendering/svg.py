"""Rendering of regions as an SVG overlay.

orjson formats the coordinates, because it is a dozen times as fast as formatting each number. Names are the only text
from the request. Only this module escapes them, and replaces characters that XML does not allow.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import orjson

from app.face.frame import Size
from app.face.landmarks import FloatArray
from app.face.regions import Region
from app.face.rendering.label_layout import PlacedLabel, layout_labels

# The page draws with the same constants. After a change, run `make generate`.

REFERENCE_SIDE_PX: Final = 1000
"""Longer side of a frame at which the default widths below apply; other frames scale them in proportion."""

STROKE_PX: Final = 1.5

# In stroke widths, so that dashes keep their proportions.
DASH: Final = 3.0
GAP: Final = 2.0

DOT_PX: Final = 1.6
DOT_COLOUR: Final = "#ffffff"

DEFAULT_OPACITY: Final = 0.35
"""Opacity of fills."""

# In font sizes. White text with a dark halo is readable on any background.
TEXT_COLOUR: Final = "#ffffff"
HALO_EM: Final = 0.22
HALO_COLOUR: Final = "#1a1a1a"
LEADER_EM: Final = 0.07
LEADER_GAP_EM: Final = 0.35
BASELINE_EM: Final = 0.35  # the `dy` of the text

# In widths of the leader line.
LEADER_HALO: Final = 2.5
LEADER_DOT: Final = 2.0  # radius

LEADER_HALO_OPACITY: Final = 0.5

# Characters outside the production Char of XML 1.0: most control characters, surrogates, and two non-characters.
_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# Tabs and line breaks are escaped, because an XML parser would normalize them.
_ESCAPES: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
)
# Names are escaped, so they cannot match this pattern.
_BACKGROUND: Final = re.compile(
    rb'<image class="photo" [^<>]*href="data:(image/(?:jpeg|png));base64,([A-Za-z0-9+/=]*)"'
)
_REGIONS: Final = re.compile(rb'<g class="regions" fill-opacity="([^"]+)" [^>]*stroke-width="([^"]+)"')
_LANDMARKS: Final = re.compile(rb'<path class="landmarks" d="M([^"]+)h0"')
_START: Final = re.compile(rb'<svg [^>]*viewBox="0 0 ([0-9]+) ([0-9]+)"')
_END: Final = b"</svg>"
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9 _.:#-]*")


@dataclass(frozen=True, slots=True)
class OverlayStyle:
    """Style of an overlay."""

    show_labels: bool = False  # the name of each region inside it, or next to the face if it does not fit
    show_landmarks: bool = False  # a dot for each landmark
    region_opacity: float = DEFAULT_OPACITY  # of the fill, 0 to 1
    stroke_width: float | None = None  # in pixels; None for a default in proportion to the frame


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image file that is embedded in an SVG."""

    base64: str
    media_type: str  # `image/jpeg` or `image/png`


def clean_text(text: str) -> str:
    r"""Replace every character that XML 1.0 does not allow with U+FFFD.

    Example:
        >>> clean_text("nul \x00 is not allowed") == "nul \ufffd is not allowed"
        True
    """
    return _FORBIDDEN.sub("\ufffd", text)


def escape_text(text: str) -> str:
    """Escape text for an XML element or attribute; a parser returns ``clean_text(text)``."""
    if _PLAIN_NAME.fullmatch(text):
        return text
    return clean_text(text).translate(_ESCAPES)


def render_svg(
    *,
    size: Size,
    regions: Sequence[Region],
    landmarks_px: FloatArray | None,
    style: OverlayStyle,
    background: EmbeddedImage | None = None,
) -> bytes:
    """Render regions, from bottom to top, as a transparent SVG document in UTF-8."""
    stroke = compute_stroke_px(size, style)
    group = (
        f'<g class="regions" fill-opacity="{style.region_opacity:.4g}" fill-rule="evenodd" stroke-width="{stroke:.4g}" '
        f'stroke-dasharray="{DASH * stroke:.4g} {GAP * stroke:.4g}" stroke-linejoin="round">'
    )
    # The background may be tens of megabytes, so avoid intermediate strings that copy it.
    parts = [_render_start(size), *_render_background(background, size), group, *map(_render_region, regions), "</g>"]
    if style.show_landmarks and landmarks_px is not None:
        parts.append(_render_landmarks(landmarks_px, size))
    if style.show_labels:
        parts.append(_render_labels(*layout_labels(size, regions)))
    parts.append("</svg>")
    return "".join(parts).encode()


def combine_svgs(overlays: Sequence[bytes], *, is_same_frame: bool) -> bytes:
    """Combine the overlays of several faces in one document, with a group ``<g class="face" data-face="0">`` for each.

    Overlays in the same frame are drawn over each other. The background, and regions that are the same for all faces
    because they come from a label map, are drawn once. Overlays in different frames are arranged in a grid, row by
    row. Each cell has the size of the largest frame.
    """
    sizes = [Size(int(found[1]), int(found[2])) for found in map(_START.match, overlays) if found is not None]
    size, corners = arrange_frames(sizes, is_same_frame=is_same_frame)
    parts = [_render_start(size).encode()]
    if is_same_frame:
        parts.extend(_merge_groups(overlays))
    else:
        for face, (overlay, (x, y)) in enumerate(zip(overlays, corners, strict=True)):
            place = f'<g class="face" data-face="{face}" transform="translate({x} {y})">'
            # A nested document clips what is outside its frame, as a document of its own does.
            parts.extend((place.encode(), overlay, b"</g>"))
    parts.append(_END)
    return b"".join(parts)


def arrange_frames(sizes: Sequence[Size], *, is_same_frame: bool) -> tuple[Size, list[tuple[int, int]]]:
    """Return the size of the frame that contains the overlays of all faces, and the top left corner of each.

    Example:
        >>> arrange_frames([Size(20, 30), Size(40, 10), Size(10, 10)], is_same_frame=False)
        (Size(width=80, height=60), [(0, 0), (40, 0), (0, 30)])
    """
    width, height = max(size.width for size in sizes), max(size.height for size in sizes)
    columns = 1 if is_same_frame else math.ceil(math.sqrt(len(sizes)))
    rows = 1 if is_same_frame else math.ceil(len(sizes) / columns)
    size = Size(columns * width, rows * height)
    if is_same_frame:
        return size, [(0, 0)] * len(sizes)
    return size, [(face % columns * width, face // columns * height) for face in range(len(sizes))]


def _merge_groups(overlays: Sequence[bytes]) -> list[bytes]:
    background, shared, *_ = split_overlay(overlays[0])
    parts = [background]
    for face, overlay in enumerate(overlays):
        _, regions, landmarks, labels = split_overlay(overlay)
        content = landmarks if face and regions == shared else regions + landmarks + labels
        parts.extend((f'<g class="face" data-face="{face}">'.encode(), content, b"</g>"))
    return parts


class OverlayParts(NamedTuple):
    """Parts of an overlay for one face, each possibly empty."""

    background: bytes
    regions: bytes
    landmarks: bytes
    labels: bytes


def split_overlay(overlay: bytes) -> OverlayParts:
    """Split the content of an overlay for one face."""
    end = len(overlay) - len(_END)
    ends = [end]
    # Names are escaped, so they cannot contain these tags.
    for tag in (b'<g class="labels"', b'<path class="landmarks"', b'<g class="regions"'):
        found = overlay.find(tag)
        ends.insert(0, ends[0] if found < 0 else found)
    starts = [overlay.index(b">") + 1, *ends]
    return OverlayParts(*(overlay[a:b] for a, b in pairwise(starts)))


def _render_start(size: Size) -> str:
    width, height = size
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'


def compute_stroke_px(size: Size, style: OverlayStyle) -> float:
    """Return the width of the outlines: that of the style, or the default in proportion to the frame."""
    return STROKE_PX * max(size) / REFERENCE_SIDE_PX if style.stroke_width is None else style.stroke_width


def compute_dot_px(size: Size) -> float:
    """Return the diameter of landmark dots."""
    return DOT_PX * max(size) / REFERENCE_SIDE_PX


def compute_leader_x(label: PlacedLabel, font_size: float) -> float:
    """Return the ``x`` where the leader line of a label starts, with a small gap to the text."""
    return label.x + (-LEADER_GAP_EM if label.text_anchor == "start" else LEADER_GAP_EM) * font_size


def read_style(overlay: OverlayParts) -> tuple[OverlayStyle, FloatArray | None]:
    """Return the style of an overlay, and its landmarks ``(N, 2)`` if it shows them.

    Raises:
        ValueError: the document is not an overlay that this module rendered.
    """
    group = _REGIONS.match(overlay.regions)
    if group is None:
        raise ValueError("svg: expected an overlay, got another document")
    landmarks_px = None
    if dots := _LANDMARKS.match(overlay.landmarks):
        landmarks_px = np.array(orjson.loads(b"[[" + dots[1].replace(b"h0M", b"],[") + b"]]"), np.float32)
    style = OverlayStyle(
        show_labels=bool(overlay.labels),
        show_landmarks=landmarks_px is not None,
        region_opacity=float(group[1]),
        stroke_width=float(group[2]),
    )
    return style, landmarks_px


def read_background(svg: bytes) -> EmbeddedImage | None:
    """Return the background image of an overlay, or None if it has none."""
    match = _BACKGROUND.search(svg)
    return None if match is None else EmbeddedImage(match[2].decode("ascii"), match[1].decode("ascii"))


def _render_background(background: EmbeddedImage | None, size: Size) -> tuple[str, ...]:
    if background is None:
        return ()
    start = f'<image class="photo" width="{size.width}" height="{size.height}" '
    return f'{start}href="data:{background.media_type};base64,', background.base64, '"/>'


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
    """Format a ring as ``x,y,x,y``, which is valid in ``points`` and, after an ``M``, in path data."""
    text = orjson.dumps(points.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
    return text.replace(b".0,", b",").replace(b".0]", b"]")[1:-1].decode()


def _render_landmarks(landmarks_px: FloatArray, size: Size) -> str:
    # A stroke of zero length with round caps is a dot, so one path can contain all of them.
    text = orjson.dumps(np.ascontiguousarray(landmarks_px), option=orjson.OPT_SERIALIZE_NUMPY).decode()
    data = text[2:-2].replace("],[", "h0M")
    diameter = compute_dot_px(size)
    return (
        f'<path class="landmarks" d="M{data}h0" fill="none" stroke="{DOT_COLOUR}" '
        f'stroke-width="{diameter:.4g}" stroke-linecap="round"/>'
    )


def _render_labels(font_size: float, labels: Sequence[PlacedLabel]) -> str:
    head = (
        f'<g class="labels" font-family="sans-serif" font-size="{font_size:.4g}" '
        f'fill="{TEXT_COLOUR}" stroke="{HALO_COLOUR}" stroke-linejoin="round" paint-order="stroke">'
    )
    parts = [head]
    for label in labels:
        if label.target is not None:
            parts.append(_render_leader(label, label.target, font_size))
        parts.append(
            f'<text x="{label.x:.1f}" y="{label.y:.1f}" dy="{_format_fraction(BASELINE_EM)}em" '
            f'text-anchor="{label.text_anchor}" stroke-width="{font_size * HALO_EM:.4g}">'
            f"{escape_text(label.region.name)}</text>"
        )
    return "".join([*parts, "</g>"])


def _format_fraction(value: float) -> str:
    """Format a number between 0 and 1 without its leading zero."""
    return f"{value:g}".removeprefix("0")


def _render_leader(label: PlacedLabel, target: tuple[float, float], font_size: float) -> str:
    x, y = target
    start = compute_leader_x(label, font_size)
    width = font_size * LEADER_EM
    line = f'd="M{start:.1f},{label.y:.1f}L{x:.1f},{y:.1f}"'
    # A wider dark line below makes the leader visible on any background.
    return (
        f'<path class="leader" {line} fill="none" stroke-width="{LEADER_HALO * width:.4g}" '
        f'stroke-opacity="{_format_fraction(LEADER_HALO_OPACITY)}"/>'
        f'<path class="leader" {line} fill="none" stroke="{label.region.colour}" stroke-width="{width:.4g}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{LEADER_DOT * width:.4g}" fill="{label.region.colour}" '
        f'stroke-width="{width:.4g}"/>'
    )
