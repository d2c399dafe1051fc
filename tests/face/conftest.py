"""Sample face as arrays, and simple reference implementations of geometry."""

from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from app.face.contours import Polygon, measure_rings
from app.face.frame import Size


class HasPairs(Protocol):
    pairs: list[list[float]]
    photo: bytes
    labels: bytes


class Geometry:
    """Reference implementations, one point at a time."""

    @staticmethod
    def area_px(polygon: Polygon) -> float:
        """Return the area of a polygon without its holes."""
        areas, _ = measure_rings((polygon.outer, *polygon.holes))
        return float(areas[0] - areas[1:].sum())

    @staticmethod
    def signed_area(ring: npt.NDArray[np.floating]) -> float:
        points = [(round(float(x), 1), round(float(y), 1)) for x, y in ring]
        total = 0.0
        for (x, y), (next_x, next_y) in zip(points, [*points[1:], points[0]], strict=True):
            total += (next_x - x) * (next_y + y) / 2
        return -total

    @staticmethod
    def distance_to_ring(point: npt.NDArray[np.floating], ring: npt.NDArray[np.floating]) -> float:
        best = float("inf")
        x, y = (float(value) for value in point)
        corners = [(float(corner_x), float(corner_y)) for corner_x, corner_y in ring]
        for (from_x, from_y), (to_x, to_y) in zip(corners, [*corners[1:], corners[0]], strict=True):
            along_x, along_y = to_x - from_x, to_y - from_y
            length = along_x**2 + along_y**2
            share = 0.0 if length == 0 else ((x - from_x) * along_x + (y - from_y) * along_y) / length
            share = min(max(share, 0.0), 1.0)
            best = min(best, float(np.hypot(x - from_x - share * along_x, y - from_y - share * along_y)))
        return best

    @staticmethod
    def is_simple(ring: npt.NDArray[np.floating]) -> bool:
        """Return whether no two sides of a ring intersect, except neighbours at their common point."""
        corners = [complex(float(x), float(y)) for x, y in ring]
        sides = list(zip(corners, [*corners[1:], corners[0]], strict=True))

        def side_of(a: complex, b: complex, c: complex) -> float:
            return ((b - a).conjugate() * (c - a)).imag

        for first, (a, b) in enumerate(sides):
            for c, d in sides[first + 2 : len(sides) - (first == 0)]:
                if side_of(a, b, c) * side_of(a, b, d) <= 0 and side_of(c, d, a) * side_of(c, d, b) <= 0:
                    return False
        return True

    @staticmethod
    def fill(shape: tuple[int, int], polygon: Polygon) -> npt.NDArray[np.bool_]:
        """Fill a polygon with integer coordinates by the even-odd rule, including its contours."""
        canvas = np.zeros(shape, np.uint8)
        rings = [ring.astype(np.int32) for ring in (polygon.outer, *polygon.holes)]
        cv2.fillPoly(canvas, rings, 1)
        return canvas.astype(np.bool_)


@pytest.fixture(scope="session")
def geometry() -> Geometry:
    return Geometry()


@pytest.fixture(scope="session")
def landmarks_px(sample: HasPairs) -> npt.NDArray[np.float32]:
    landmarks = np.array(sample.pairs, np.float32)
    landmarks.flags.writeable = False
    return landmarks


@pytest.fixture(scope="session")
def label_image(sample: HasPairs) -> npt.NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(sample.labels, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image.astype(np.uint8, copy=False)


@pytest.fixture(scope="session")
def frame() -> Size:
    return Size(512, 512)
