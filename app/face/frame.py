"""Frames: pixel rectangles that coordinates refer to, and transforms between them.

Points are on the continuous plane of an image, as landmarks are: pixel (0, 0) covers 0 to 1, and its centre is at
(0.5, 0.5).
"""

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]
"""Pixels: ``(H, W)`` grey or labels, ``(H, W, 3)`` BGR, or ``(H, W, 4)`` BGRA."""

BGRA_CHANNELS: Final = 4

Transform = npt.NDArray[np.float64]
"""Affine transform ``(2, 3)`` between the planes of two images: ``transform @ (x, y, 1)``."""

_OPAQUE: Final = 255
# A coordinate this close to the pixel grid counts as on the grid.
_GRID_TOLERANCE_PX: Final = 1e-6
# Margin around the part of an image that is cropped before warping, for the pixels that interpolation reads.
_RIM_PX: Final = 2


class Size(NamedTuple):
    """Width and height of an image or frame in pixels."""

    width: int
    height: int


IDENTITY_TRANSFORM: Final[Transform] = np.eye(2, 3)
"""The transform of a result whose frame is the image itself. Read-only, because all results share it."""
IDENTITY_TRANSFORM.flags.writeable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """Options for the output frame."""

    is_upright: bool = False  # rotate the image so that the eyes are level
    is_cropped: bool = False  # crop to the landmarks
    margin: float = 0.25  # around the landmarks on each side, as a fraction of their width and height
    longer_side: int | None = None  # scale the longer side to this number of pixels; None keeps the scale


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The rectangle that contains a result."""

    size: Size
    transform: Transform = field(default_factory=lambda: IDENTITY_TRANSFORM)  # from the plane of the image
    inverse: Transform = field(default_factory=lambda: IDENTITY_TRANSFORM)  # to the plane of the image

    @property
    def is_identity(self) -> bool:
        """Whether the frame is the image itself."""
        return self.transform is IDENTITY_TRANSFORM

    @property
    def scale(self) -> float:
        """Length in the frame divided by length in the image."""
        return math.sqrt(abs(float(np.linalg.det(self.transform[:, :2]))))

    def from_stored(self, size: Size, orientation: int) -> "Frame":
        """Return the frame that maps the stored pixels, an image of this size, instead of the displayed image."""
        if orientation == NORMAL_ORIENTATION:
            return self
        oriented = make_orientation_transform(size, orientation)
        transform = compose_transforms(self.transform, oriented)
        return Frame(self.size, transform, invert_transform(transform))

    def reduce(self, reduction: int) -> "Frame":
        """Return the frame for an image whose pixels are squares of this side in the original image."""
        if reduction == 1:
            return self
        transform = self.transform.copy()
        transform[:, :2] *= reduction
        return Frame(self.size, transform, self.inverse / reduction)


NORMAL_ORIENTATION: Final = 1
"""The EXIF orientation of an image that viewers show as it is stored."""

# By EXIF orientation, from stored to displayed: the linear part, and the translation in stored widths and heights.
_ORIENTATIONS: Final[dict[int, tuple[list[list[int]], list[list[int]]]]] = {
    2: ([[-1, 0], [0, 1]], [[1, 0], [0, 0]]),
    3: ([[-1, 0], [0, -1]], [[1, 0], [0, 1]]),
    4: ([[1, 0], [0, -1]], [[0, 0], [0, 1]]),
    5: ([[0, 1], [1, 0]], [[0, 0], [0, 0]]),
    6: ([[0, -1], [1, 0]], [[0, 1], [0, 0]]),
    7: ([[0, -1], [-1, 0]], [[0, 1], [1, 0]]),
    8: ([[0, 1], [-1, 0]], [[0, 0], [1, 0]]),
}
_TRANSPOSED: Final = range(5, 9)


def orient_size(size: Size, orientation: int) -> Size:
    """Return the size at which viewers show an image of this EXIF orientation, 1 to 8.

    Example:
        >>> orient_size(Size(40, 30), 6)
        Size(width=30, height=40)
    """
    return Size(size.height, size.width) if orientation in _TRANSPOSED else size


def make_orientation_transform(size: Size, orientation: int) -> Transform:
    """Return the transform from an image as stored, of this size, to the image as viewers show it.

    Example:
        >>> transform_points(np.array([[1.0, 2.0]]), make_orientation_transform(Size(40, 30), 6)).tolist()
        [[28.0, 1.0]]
    """
    if orientation == NORMAL_ORIENTATION:
        return IDENTITY_TRANSFORM
    linear, sides = _ORIENTATIONS[orientation]
    return np.column_stack((linear, np.array(sides) @ size)).astype(np.float64)


def orient_pixels(image: ByteArray, orientation: int) -> ByteArray:
    """Apply an EXIF orientation to the pixels of an image as stored."""
    if orientation == NORMAL_ORIENTATION:
        return image
    linear, _ = _ORIENTATIONS[orientation]
    pixels = cv2.transpose(image) if orientation in _TRANSPOSED else image
    is_flipped_x, is_flipped_y = -1 in linear[0], -1 in linear[1]
    if is_flipped_x or is_flipped_y:
        pixels = cv2.flip(pixels, -1 if is_flipped_x and is_flipped_y else int(is_flipped_x))
    return pixels.astype(np.uint8, copy=False)


def make_frame(image_size: Size, landmarks_px: npt.NDArray[np.floating], roll_deg: float, framing: Framing) -> Frame:
    """Compute the frame of a result.

    An uncropped frame contains the whole image, rotated or not. A cropped frame contains every landmark, and may extend
    beyond the image. Without rotation and scaling, pixels stay on the grid. ``roll_deg`` is positive clockwise.

    Example:
        >>> face = np.array([[10.0, 20.0], [30.0, 60.0]])
        >>> frame = make_frame(Size(100, 80), face, 0.0, Framing(is_cropped=True, margin=0.25))
        >>> frame.size, frame.transform.tolist()
        (Size(width=30, height=60), [[1.0, 0.0, -5.0], [0.0, 1.0, -10.0]])
    """
    if not (framing.is_upright or framing.is_cropped or framing.longer_side):
        return Frame(image_size)
    rotation = _make_rotation(-roll_deg if framing.is_upright else 0.0)
    width, height = image_size
    content = (
        landmarks_px.astype(np.float64)
        if framing.is_cropped
        else np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    )
    content = content @ rotation.T
    low, high = content.min(axis=0), content.max(axis=0)
    if framing.is_cropped:
        margin = framing.margin * (high - low)
        low, high = low - margin, high + margin
    if framing.longer_side is None:
        # Round outwards to whole pixels.
        low, high = np.floor(low + _GRID_TOLERANCE_PX), np.ceil(high - _GRID_TOLERANCE_PX)
    extent = np.maximum(high - low, 1.0)
    scale = 1.0 if framing.longer_side is None else framing.longer_side / float(extent.max())
    new_width, new_height = np.maximum(np.ceil(extent * scale - _GRID_TOLERANCE_PX), 1).astype(int).tolist()
    transform = scale * np.column_stack((rotation, -low)) + 0.0
    return Frame(Size(new_width, new_height), transform, invert_transform(transform))


def _make_rotation(degrees: float) -> npt.NDArray[np.float64]:
    """Return the matrix that rotates points clockwise in the image."""
    if degrees == 0:
        return np.eye(2)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


def invert_transform(transform: Transform) -> Transform:
    """Return the inverse of a transform.

    Example:
        >>> invert_transform(np.array([[2.0, 0.0, 10.0], [0.0, 2.0, 0.0]])).tolist()
        [[0.5, 0.0, -5.0], [0.0, 0.5, 0.0]]
    """
    linear = np.linalg.inv(transform[:, :2])
    # Adding 0.0 turns -0.0 into 0.0, which matters in printed output.
    inverse: Transform = np.column_stack((linear, -linear @ transform[:, 2])) + 0.0
    return inverse


def compose_transforms(second: Transform, first: Transform) -> Transform:
    """Return the transform that applies the first one, then the second."""
    linear = second[:, :2] @ first[:, :2]
    composed: Transform = np.column_stack((linear, second[:, :2] @ first[:, 2] + second[:, 2])) + 0.0
    return composed


def transform_points(points: npt.NDArray[np.floating], transform: Transform) -> npt.NDArray[np.float64]:
    """Apply a transform to points ``(N, 2)``."""
    moved: npt.NDArray[np.float64] = points @ transform[:, :2].T + transform[:, 2]
    return moved


def warp_image(image: ByteArray, frame: Frame) -> ByteArray:
    """Warp an image, ``(H, W, 3)`` BGR or ``(H, W, 4)`` BGRA, into a frame.

    The result has an alpha channel, which is 0 outside the image, unless all pixels are opaque.
    """
    if frame.is_identity:
        return drop_opaque_alpha(image)
    scale = frame.scale
    part, offset = _crop_to_frame(image, frame, math.ceil(_RIM_PX / min(scale, 1.0)))
    ratio = np.ones(2)
    if scale < 1:
        # Shrink by averaging first; the warp then only rotates.
        height, width = part.shape[:2]
        size = max(1, round(width * scale)), max(1, round(height * scale))
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        ratio = np.array([width, height]) / size
    linear = frame.transform[:, :2] * ratio
    shift = transform_points(offset[None], frame.transform)[0]
    # OpenCV's origin is the centre of the first pixel.
    shift += linear @ (0.5, 0.5) - 0.5
    return _warp(part, np.column_stack((linear, shift)), frame.size)


def _crop_to_frame(image: ByteArray, frame: Frame, rim: int) -> tuple[ByteArray, npt.NDArray[np.float64]]:
    """Return the part of an image that a frame shows, at least one pixel, and the position of its top left corner."""
    height, width = image.shape[:2]
    right, bottom = frame.size
    corners = transform_points(np.array([[0, 0], [right, 0], [0, bottom], [right, bottom]], np.float64), frame.inverse)
    low, high = corners.min(axis=0) - rim, corners.max(axis=0) + rim
    left, top = np.clip(np.floor(low), 0, (width - 1, height - 1)).astype(int).tolist()
    right, bottom = np.clip(np.ceil(high), (left + 1, top + 1), (width, height)).astype(int).tolist()
    return image[top:bottom, left:right], np.array([left, top], np.float64)


def _warp(part: ByteArray, transform: Transform, size: Size) -> ByteArray:
    """Warp colours and alpha separately, because colours are extended beyond the image edge but alpha is not."""
    warped = cv2.warpAffine(part, transform, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # An axis-aligned edge lies between pixels; an oblique edge is antialiased.
    method = cv2.INTER_LINEAR if transform[0, 0] and transform[0, 1] else cv2.INTER_NEAREST
    opaque = np.full(part.shape[:2], _OPAQUE, np.uint8)
    alpha = cv2.warpAffine(opaque, transform, size, flags=method, borderMode=cv2.BORDER_CONSTANT)
    if part.shape[2] == BGRA_CHANNELS:
        alpha = cv2.multiply(alpha, cv2.extractChannel(warped, 3), scale=1 / _OPAQUE)
    if int(alpha.min()) == _OPAQUE:
        return np.ascontiguousarray(warped[:, :, :3], np.uint8)
    merged = warped if part.shape[2] == BGRA_CHANNELS else cv2.cvtColor(warped, cv2.COLOR_BGR2BGRA)
    return cv2.insertChannel(alpha, merged, 3).astype(np.uint8, copy=False)


def drop_opaque_alpha(image: ByteArray) -> ByteArray:
    """Drop the alpha channel of an image if all pixels are opaque."""
    if image.shape[2] != BGRA_CHANNELS or cv2.extractChannel(image, 3).min() != _OPAQUE:
        return image
    return np.ascontiguousarray(image[:, :, :3])
