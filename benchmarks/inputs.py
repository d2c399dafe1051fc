"""Inputs of the benchmarks, generated from the sample image."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pybase64

from app.codec.decode import decode_label_image
from app.codec.sniff import sniff_image, verify_structure
from app.face.contours import Polygon, trace_labels
from app.face.frame import Size
from app.face.label_map import image_to_label_map, scale_labels
from app.face.regions import Region
from app.face.rendering.svg import OverlayStyle, render_svg

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.face.landmarks import FloatArray

EXAMPLES = Path(__file__).parent.parent / "examples"
IMAGE_BYTES = 900_000
MAP_SIDE = 1024
MAP_LABELS = 10


@cache
def image_and_landmarks() -> tuple[bytes, bytes]:
    """Return the sample, enlarged to a PNG of 0.9 MB, and its landmarks as JSON."""
    sample = cv2.imread(str(EXAMPLES / "astronaut.png"))
    points = json.loads((EXAMPLES / "astronaut.landmarks.json").read_text())
    if sample is None:
        raise FileNotFoundError("examples/astronaut.png")
    scale = 1.0
    while True:
        file = cv2.imencode(".png", cv2.resize(sample, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC))[1]
        if file.size >= IMAGE_BYTES:
            scaled = [{"x": point["x"] * scale, "y": point["y"] * scale} for point in points]
            return file.tobytes(), json.dumps(scaled).encode()
        scale += 0.05


@cache
def image_request() -> tuple[bytes, str]:
    """Return a multipart body with only the image, and its content type."""
    return _make_form(image_and_landmarks()[0])


def json_request() -> tuple[bytes, str]:
    """Return a JSON body with image and landmarks, and its content type."""
    image, points = image_and_landmarks()
    return b'{"image":"%s","landmarks":%s}' % (pybase64.b64encode(image), points), "application/json"


def multipart_request() -> tuple[bytes, str]:
    """Return a multipart body with image and landmarks, and its content type."""
    return _make_form(*image_and_landmarks())


@cache
def small_request() -> tuple[bytes, str]:
    """Return a multipart body with an image of a few kilobytes and its landmarks, and its content type."""
    sample = cv2.imread(str(EXAMPLES / "astronaut.png"))
    if sample is None:
        raise FileNotFoundError("examples/astronaut.png")
    small = cv2.imencode(".jpg", sample, [cv2.IMWRITE_JPEG_QUALITY, 20])[1].tobytes()
    return _make_form(small, (EXAMPLES / "astronaut.landmarks.json").read_bytes())


@cache
def photo_request(scale: int) -> tuple[bytes, str]:
    """Return a multipart body with the sample as a JPEG, enlarged and without landmarks, and its content type."""
    sample = cv2.imread(str(EXAMPLES / "astronaut.png"))
    if sample is None:
        raise FileNotFoundError("examples/astronaut.png")
    enlarged = cv2.resize(sample, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return _make_form(cv2.imencode(".jpg", enlarged, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())


def _make_form(image: bytes, points: bytes | None = None) -> tuple[bytes, str]:
    boundary = b"8f2c1d0b7a"
    parts = [(b"image", b"image.png", b"image/png", image)]
    if points is not None:
        parts.append((b"landmarks", b"face.json", b"application/json", points))
    form = b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\nContent-Type: %s\r\n\r\n%s\r\n'
    body = b"".join(form % (boundary, *part) for part in parts) + b"--%s--\r\n" % boundary
    return body, f"multipart/form-data; boundary={boundary.decode()}"


def label_image() -> bytes:
    """Return a label map of a face with ten labels, 1024 × 1024, as a greyscale PNG."""
    labels = np.zeros((MAP_SIDE, MAP_SIDE), np.uint8)
    shapes = {
        10: [((512, 380), (430, 360))],
        1: [((512, 520), (380, 460))],
        2: [((350, 360), (90, 18))],
        3: [((674, 360), (90, 18))],
        4: [((350, 430), (75, 32))],
        5: [((674, 430), (75, 32))],
        6: [((512, 560), (75, 130))],
        7: [((512, 735), (130, 40))],
        9: [((512, 775), (120, 45))],
        8: [((512, 755), (95, 16))],
    }
    for label, ellipses in shapes.items():
        for centre, axes in ellipses:
            cv2.ellipse(labels, centre, axes, 0, 0, 360, label, -1)
    return cv2.imencode(".png", labels)[1].tobytes()


def label_map_pair() -> tuple[Callable[[], object], Callable[[], object]]:
    """Return two functions that trace the contours of a label map: the service's and the reference."""
    file = label_image()
    array = np.frombuffer(file, np.uint8)

    def run_service() -> object:
        info = verify_structure(file, sniff_image(file, max_pixels=24_000_000))
        label_map = image_to_label_map(decode_label_image(file, info))
        return trace_labels(scale_labels(label_map.labels, Size(MAP_SIDE, MAP_SIDE)), sorted(label_map.names))

    def run_reference() -> object:
        labels = cv2.imdecode(array, cv2.IMREAD_UNCHANGED)
        found = []
        for label in range(1, MAP_LABELS + 1):
            mask = cv2.compare(labels, label, cv2.CMP_EQ)  # type: ignore[call-overload]  # OpenCV accepts a number
            x, y, width, height = cv2.boundingRect(mask)
            box = mask[y : y + height, x : x + width]
            found.append(cv2.findContours(box, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)))
        return found

    return run_service, run_reference


def svg_500_points() -> Callable[[], bytes]:
    """Return a function that renders one region of 500 points."""
    angle = np.linspace(0, 2 * np.pi, 500, endpoint=False)
    ring: FloatArray = np.round(np.stack([256 + 200 * np.cos(angle), 256 + 150 * np.sin(angle)], 1), 1)
    ring = ring.astype(np.float32)
    region = Region(
        label_id=1,
        name="face_oval",
        colour="#40c057",
        polygons=(Polygon(ring, ()),),
        area_px=1.0,
        bbox=(56.0, 106.0, 400.0, 300.0),
        kind="face_oval",
    )
    style = OverlayStyle()
    return lambda: render_svg(size=Size(512, 512), regions=[region], landmarks_px=None, style=style)


def cpu_ms(function: Callable[[], object], count: int = 3) -> float:
    """Return the CPU time of a function in milliseconds, averaged over several calls."""
    before = time.process_time()
    for _ in range(count):
        function()
    return 1000 * (time.process_time() - before) / count
