"""The sample photo in other forms, each with its landmarks moved along: what the finding of faces is measured on.

``mirrored_landmarks.json`` says which landmark each becomes in a mirror. It was found by laying the mesh of the sample
on its mirror image, and holds for its points and for its edges.
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
    """A picture and where the landmarks are in it.

    Attributes:
        name: What was done to the sample.
        image: ``(H, W, 3)`` BGR.
        landmarks_px: ``(478, 2)``.
    """

    name: str
    image: ByteArray
    landmarks_px: npt.NDArray[np.float64]


def read_sample() -> Variant:
    """Read the sample as it is."""
    image = cv2.imread(str(EXAMPLES / "astronaut.png"))
    if image is None:
        raise FileNotFoundError("examples/astronaut.png")
    points = json.loads((EXAMPLES / "astronaut.landmarks.json").read_text())
    landmarks_px = np.array([(point["x"], point["y"]) for point in points], np.float64)
    return Variant("as it is", image.astype(np.uint8, copy=False), landmarks_px)


def scale(one: Variant, factor: float) -> Variant:
    """Scale a picture."""
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    image = cv2.resize(one.image, None, fx=factor, fy=factor, interpolation=method)
    return Variant(f"{one.name}, × {factor:g}", image.astype(np.uint8, copy=False), one.landmarks_px * factor)


def rotate(one: Variant, degrees: float) -> Variant:
    """Turn a picture clockwise, on a canvas that holds all of it."""
    height, width = one.image.shape[:2]
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turn = np.array([[cosine, -sine], [sine, cosine]])
    size = np.ceil(np.abs(turn) @ (width, height))
    shift = size / 2 - turn @ (width / 2, height / 2)
    # cv2 counts from the middle of a pixel.
    transform = np.column_stack((turn, shift + turn @ (0.5, 0.5) - 0.5))
    image = cv2.warpAffine(one.image, transform, (int(size[0]), int(size[1])), flags=cv2.INTER_CUBIC)
    return Variant(f"{one.name}, {degrees:+g}°", image.astype(np.uint8, copy=False), one.landmarks_px @ turn.T + shift)


def mirror(one: Variant) -> Variant:
    """Exchange left and right."""
    landmarks_px = one.landmarks_px[json.loads((HERE / "mirrored_landmarks.json").read_text())]
    landmarks_px[:, 0] = one.image.shape[1] - landmarks_px[:, 0]
    return Variant(f"{one.name}, mirrored", np.ascontiguousarray(one.image[:, ::-1]), landmarks_px)


def darken(one: Variant, brightness: float) -> Variant:
    """Leave so much of the light."""
    return Variant(
        f"{one.name}, {brightness:.0%} of the light", (one.image * brightness).astype(np.uint8), one.landmarks_px
    )


def compress(one: Variant, quality: int) -> Variant:
    """Write as a JPEG, and read again."""
    file = cv2.imencode(".jpg", one.image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    image = cv2.imdecode(file, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("the JPEG does not decode")
    return Variant(f"{one.name}, JPEG {quality}", image.astype(np.uint8, copy=False), one.landmarks_px)


def pad(one: Variant, share: float) -> Variant:
    """Lay a picture on grey, so that the face takes that share of the width."""
    face = float(np.ptp(one.landmarks_px[:, 0]))
    side = round(face / share)
    height, width = one.image.shape[:2]
    left, top = (side - width) // 2, (side - height) // 3
    image = np.full((side, side, 3), GREY, np.uint8)
    image[top : top + height, left : left + width] = one.image
    return Variant(f"{one.name}, face {share:.1%} of the width", image, one.landmarks_px + np.array([left, top]))


def make_variants() -> Iterator[Variant]:
    """Make all of them."""
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
    """Compute the mean distance of landmarks to those expected, by the distance between the outer eye corners."""
    distances = np.hypot(*(landmarks_px - expected_px).T)
    return float(distances.mean() / np.hypot(*(expected_px[33] - expected_px[263])))
