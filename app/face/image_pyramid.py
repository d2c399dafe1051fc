"""Images at several scales, each decoded only when it is needed.

The decoders of some formats, such as JPEG, can return a smaller image at a fraction of the cost. A level with reduction
``r`` has one pixel for ``r`` by ``r`` pixels of the image, so its points times ``r`` are points of the image. If ``r``
does not divide the size of the image, the last row and column extend beyond it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from app.face.frame import BGRA_CHANNELS, ByteArray, Size

OVERVIEW_SIDE: Final = 1000
"""Minimum of the longer side of an overview, in pixels, unless the image is smaller: about twice the resolution of the
smallest tiles of the detector."""

# The ratio of two sizes may be a little below a whole number.
_ROUNDING: Final = 1e-6

# Grey under transparent pixels: neither hair nor skin stands out against it.
_GREY = 127
_GREY_BY_ALPHA = np.rint(_GREY * (255 - np.arange(256)) / 255).astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """An image, or a part of it, at one scale."""

    pixels: ByteArray  # `(H, W, 3)` BGR or `(H, W, 4)` BGRA
    reduction: int  # width and height of a pixel, in pixels of the image
    left: int = 0  # of the part, in pixels of the image
    top: int = 0  # of the part, in pixels of the image

    def to_image(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Transform points ``(N, 2)`` of this level to points of the image."""
        moved: npt.NDArray[np.float64] = points.astype(np.float64) * self.reduction + (self.left, self.top)
        return moved

    def from_image(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Transform points ``(N, 2)`` of the image to points of this level."""
        moved: npt.NDArray[np.float64] = (points.astype(np.float64) - (self.left, self.top)) / self.reduction
        return moved


class ImagePyramid:
    """An image at the scales at which it has been decoded.

    Args:
        size: size of the image.
        decode: returns the pixels at a reduction.
        reductions: reductions that the decoder supports; 1 is one of them.
    """

    def __init__(self, size: Size, decode: Callable[[int], ByteArray], reductions: Sequence[int] = (1,)) -> None:
        self.size = size
        self._decode = decode
        self._reductions = reductions
        self._levels: list[Level] = []

    @classmethod
    def from_pixels(cls, pixels: ByteArray) -> "ImagePyramid":
        """Return the pyramid of a decoded image, ``(H, W, 3)`` BGR or ``(H, W, 4)`` BGRA."""
        height, width = pixels.shape[:2]
        return cls(Size(width, height), lambda _: pixels)

    def get_level(self, max_reduction: float) -> Level:
        """Return the smallest level that is reduced at most this much; decode it if there is none.

        A ``max_reduction`` below 1 counts as 1.
        """
        limit = max(max_reduction, 1.0) + _ROUNDING
        fine = [level for level in self._levels if level.reduction <= limit]
        if not fine:
            reduction = max(one for one in self._reductions if one <= limit)
            fine = [Level(self._decode(reduction), reduction)]
            self._levels += fine
        return max(fine, key=lambda level: level.reduction)

    def flip(self) -> "ImagePyramid":
        """Return the pyramid of the horizontally flipped image, which shares the decoded levels of this one."""
        return _FlippedPyramid(self)

    def undo_flip(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Transform points ``(N, 2)`` of this image to points of the image that was flipped, if it was."""
        return points.astype(np.float64)


class _FlippedPyramid(ImagePyramid):
    def __init__(self, original: ImagePyramid) -> None:
        self.size = original.size
        self._original = original
        self._levels = []

    def get_level(self, max_reduction: float) -> Level:
        level = self._original.get_level(max_reduction)
        for flipped in self._levels:
            if flipped.reduction == level.reduction:
                return flipped
        # The last column, which may extend beyond the image, becomes the first.
        left = self.size.width - level.pixels.shape[1] * level.reduction
        pixels = cv2.flip(level.pixels, 1).astype(np.uint8, copy=False)
        self._levels.append(replace(level, pixels=pixels, left=left))
        return self._levels[-1]

    def undo_flip(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        return points.astype(np.float64) * (-1, 1) + (self.size.width, 0)


def make_overview(level: Level) -> Level:
    """Return a level as BGR. If it is larger, shrink it to a longer side of one to two times ``OVERVIEW_SIDE``."""
    return _shrink_and_blend(level, max(level.pixels.shape[:2]) // OVERVIEW_SIDE)


def make_closeup(level: Level, x: float, y: float, reach: float, max_reduction: float) -> Level:
    """Return a part of a level as BGR, not reduced by more than ``max_reduction`` unless the level itself is.

    The part extends from the point ``(x, y)`` by at least ``reach`` in each direction, in pixels of the image.
    """
    if level.pixels.shape[2] != BGRA_CHANNELS:
        return level
    # Blending needs several times the memory of its input, so only the part around the object is blended.
    height, width = level.pixels.shape[:2]
    (left, top), (right, bottom) = level.from_image(np.array([(x - reach, y - reach), (x + reach, y + reach)])).tolist()
    left, top = min(max(0, int(left)), width - 1), min(max(0, int(top)), height - 1)
    right, bottom = max(left + 1, math.ceil(right)), max(top + 1, math.ceil(bottom))
    part = Level(
        level.pixels[top:bottom, left:right],
        level.reduction,
        level.left + left * level.reduction,
        level.top + top * level.reduction,
    )
    return _shrink_and_blend(part, int(max_reduction / level.reduction))


def _shrink_and_blend(level: Level, factor: int) -> Level:
    pixels, reduction = level.pixels, level.reduction
    # A strip thinner than one block is left unchanged; it has few pixels.
    if 1 < factor <= min(pixels.shape[:2]):
        pixels, reduction = shrink(pixels, factor), reduction * factor
    return replace(level, pixels=blend_on_grey(pixels), reduction=reduction)


def shrink(pixels: ByteArray, factor: int) -> ByteArray:
    """Average blocks of this width and height; pixels beyond the last whole block are dropped."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    # Whole blocks only, because OpenCV averages blocks of equal size much faster.
    blocks = pixels[: height * factor, : width * factor]
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def blend_on_grey(image: ByteArray) -> ByteArray:
    """Blend an image with grey if it is ``(H, W, 4)`` BGRA; the result is ``(H, W, 3)`` BGR."""
    if image.shape[2] != BGRA_CHANNELS:
        return image
    # Premultiplying and a lookup table take a quarter of the time of multiplying each channel.
    colours = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGBA2mRGBA), cv2.COLOR_BGRA2BGR)
    grey = cv2.LUT(cv2.extractChannel(image, 3), _GREY_BY_ALPHA)
    return cv2.add(colours, cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)).astype(np.uint8, copy=False)
