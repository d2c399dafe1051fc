"""Variants of the sample image with transformed landmarks, for measuring the accuracy of the detection.

``mirrored_landmarks.json`` maps each landmark to its counterpart in a mirrored face. It was computed by matching the
mesh of the sample to its mirror image, and verified for points and edges.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from app.face.frame import ByteArray

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
SCALES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
ROLLS_DEG = tuple(degrees for degrees in range(-60, 61, 15) if degrees)
BRIGHTNESSES = (0.5, 0.25, 0.12)
JPEG_QUALITY = 30
WIDTH_SHARES = (0.1, 0.07, 0.05, 0.035)
GREY = 110


class Variant(NamedTuple):
    """An image and its landmarks.

    Attributes:
        name: description of the transformation.
        image: ``(H, W, 3)`` BGR image.
        landmarks_px: ``(478, 2)`` points in pixels of the image.
    """

    name: str
    image: ByteArray
    landmarks_px: npt.NDArray[np.float64]


def read_sample() -> Variant:
    """Read the unchanged sample."""
    image = cv2.imread(str(EXAMPLES / "astronaut.png"))
    if image is None:
        raise FileNotFoundError("examples/astronaut.png")
    points = json.loads((EXAMPLES / "astronaut.landmarks.json").read_text())
    landmarks_px = np.array([(point["x"], point["y"]) for point in points], np.float64)
    return Variant("unchanged", image.astype(np.uint8, copy=False), landmarks_px)


def scale(variant: Variant, factor: float) -> Variant:
    """Scale an image."""
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    image = cv2.resize(variant.image, None, fx=factor, fy=factor, interpolation=method)
    return Variant(f"{variant.name}, × {factor:g}", image.astype(np.uint8, copy=False), variant.landmarks_px * factor)


def rotate(variant: Variant, degrees: float) -> Variant:
    """Rotate an image clockwise, on a canvas that contains all of it."""
    height, width = variant.image.shape[:2]
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    size = np.ceil(np.abs(rotation) @ (width, height))
    shift = size / 2 - rotation @ (width / 2, height / 2)
    # The origin of OpenCV is the centre of the first pixel.
    transform = np.column_stack((rotation, shift + rotation @ (0.5, 0.5) - 0.5))
    image = cv2.warpAffine(variant.image, transform, (int(size[0]), int(size[1])), flags=cv2.INTER_CUBIC)
    return Variant(
        f"{variant.name}, {degrees:+g}°", image.astype(np.uint8, copy=False), variant.landmarks_px @ rotation.T + shift
    )


def mirror(variant: Variant) -> Variant:
    """Mirror an image horizontally."""
    landmarks_px = variant.landmarks_px[json.loads((HERE / "mirrored_landmarks.json").read_text())]
    landmarks_px[:, 0] = variant.image.shape[1] - landmarks_px[:, 0]
    return Variant(f"{variant.name}, mirrored", np.ascontiguousarray(variant.image[:, ::-1]), landmarks_px)


def darken(variant: Variant, brightness: float) -> Variant:
    """Reduce the brightness of an image to a fraction."""
    return Variant(
        f"{variant.name}, brightness {brightness:.0%}",
        (variant.image * brightness).astype(np.uint8),
        variant.landmarks_px,
    )


def compress(variant: Variant, quality: int) -> Variant:
    """Encode an image as JPEG and decode it."""
    file = cv2.imencode(".jpg", variant.image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    image = cv2.imdecode(file, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("JPEG: decoding failed")
    return Variant(f"{variant.name}, JPEG {quality}", image.astype(np.uint8, copy=False), variant.landmarks_px)


def pad(variant: Variant, share: float) -> Variant:
    """Place an image on a grey canvas, so that the face occupies a fraction of its width."""
    face = float(np.ptp(variant.landmarks_px[:, 0]))
    side = round(face / share)
    height, width = variant.image.shape[:2]
    left, top = (side - width) // 2, (side - height) // 3
    image = np.full((side, side, 3), GREY, np.uint8)
    image[top : top + height, left : left + width] = variant.image
    return Variant(
        f"{variant.name}, face {share:.1%} of the width", image, variant.landmarks_px + np.array([left, top])
    )


def make_variants() -> Iterator[Variant]:
    """Generate all variants."""
    sample = read_sample()
    doubled = scale(sample, 2.0)
    yield from (scale(sample, factor) for factor in SCALES)
    yield from (rotate(base, degrees) for degrees in ROLLS_DEG for base in (sample, doubled))
    mirrored = mirror(sample)
    yield from (mirrored, mirror(doubled), rotate(mirrored, 30))
    yield from (darken(sample, brightness) for brightness in BRIGHTNESSES)
    yield from (compress(base, JPEG_QUALITY) for base in (scale(sample, 0.5), sample, doubled))
    yield from (pad(sample, share) for share in WIDTH_SHARES)
    yield from (pad(base, 0.05) for base in (scale(sample, 0.5), rotate(sample, 30), mirrored))


def compute_error(landmarks_px: npt.NDArray[np.floating], expected_px: npt.NDArray[np.floating]) -> float:
    """Compute the mean distance between landmarks, relative to the distance between the outer eye corners."""
    distances = np.hypot(*(landmarks_px - expected_px).T)
    return float(distances.mean() / np.hypot(*(expected_px[33] - expected_px[263])))
