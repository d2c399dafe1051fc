"""Frames: the pixel rectangles that coordinates refer to, and the transforms between them.

Points are on the continuous plane of a picture, as landmarks are: its pixel (0, 0) covers 0 to 1, and the middle of
that pixel is at (0.5, 0.5).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Transform = npt.NDArray[np.float64]
"""Affine map ``(2, 3)`` between the planes of two pictures: ``transform @ (x, y, 1)``."""

ByteArray = npt.NDArray[np.uint8]

BGRA_CHANNELS = 4
_OPAQUE = 255
# What is nearer to the grid of pixels than this is on it.
_GRID_ERROR = 1e-6
# Room around what is cut out of a photo before it is turned, for the pixels that interpolation looks at.
_RIM_PX = 2


class Size(NamedTuple):
    """Width and height of a picture or frame in pixels."""

    width: int
    height: int


def _make_identity() -> Transform:
    identity = np.eye(2, 3, dtype=np.float64)
    # Every result shares this one array, so that nobody may write to it.
    identity.flags.writeable = False
    return identity


IDENTITY_TRANSFORM: Transform = _make_identity()
"""The transform of a result whose frame is the photo itself. Read-only."""


def _identity() -> Transform:
    return IDENTITY_TRANSFORM


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """What is asked of a frame.

    Attributes:
        is_upright: Turn the photo so that the eyes are level.
        is_cropped: Cut to the landmarks.
        margin: Room around them on each side, as a share of their width and height.
        longer_side: Scale to this, in pixels; None leaves the scale.
    """

    is_upright: bool = False
    is_cropped: bool = False
    margin: float = 0.25
    longer_side: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The rectangle that a result is drawn in.

    Attributes:
        size: Its size in pixels.
        transform: ``(2, 3)`` from the photo's plane to the frame's.
        inverse: ``(2, 3)`` back.
    """

    size: Size
    transform: Transform = field(default_factory=_identity)
    inverse: Transform = field(default_factory=_identity)

    @property
    def is_photo(self) -> bool:
        """Whether the frame is that of the photo."""
        return self.transform is IDENTITY_TRANSFORM


def make_frame(photo: Size, landmarks_px: npt.NDArray[np.floating], roll_deg: float, framing: Framing) -> Frame:
    """Choose the frame of a result.

    Uncropped, it holds the whole photo, turned or not; cropped, it holds every landmark, and may reach beyond the
    photo. Without turning or scaling, pixels keep their places in the grid.

    Args:
        photo: Size of the photo in pixels.
        landmarks_px: ``(N, 2)`` points in pixels of the photo.
        roll_deg: How far the head is tilted in the photo, clockwise.
        framing: What is asked for.

    Returns:
        The frame.

    Example:
        >>> face = np.array([[10.0, 20.0], [30.0, 60.0]])
        >>> frame = make_frame(Size(100, 80), face, 0.0, Framing(is_cropped=True, margin=0.25))
        >>> frame.size, frame.transform.tolist()
        (Size(width=30, height=60), [[1.0, 0.0, -5.0], [0.0, 1.0, -10.0]])
    """
    if not (framing.is_upright or framing.is_cropped or framing.longer_side):
        return Frame(photo)
    turn = _make_rotation(-roll_deg if framing.is_upright else 0.0)
    width, height = photo
    shown = (
        landmarks_px.astype(np.float64)
        if framing.is_cropped
        else np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    )
    shown = shown @ turn.T
    low, high = shown.min(axis=0), shown.max(axis=0)
    if framing.is_cropped:
        room = framing.margin * (high - low)
        low, high = low - room, high + room
    if framing.longer_side is None:
        # Whole pixels, outwards.
        low, high = np.floor(low + _GRID_ERROR), np.ceil(high - _GRID_ERROR)
    extent = np.maximum(high - low, 1.0)
    scale = 1.0 if framing.longer_side is None else framing.longer_side / float(extent.max())
    new_width, new_height = np.maximum(np.ceil(extent * scale - _GRID_ERROR), 1).astype(int).tolist()
    transform = scale * np.column_stack((turn, -low)) + 0.0
    return Frame(Size(new_width, new_height), transform, invert_transform(transform))


def _make_rotation(degrees: float) -> npt.NDArray[np.float64]:
    """Make the matrix that turns points clockwise, as seen in a picture."""
    if degrees == 0:
        return np.eye(2)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


def invert_transform(transform: Transform) -> Transform:
    """Return the way back.

    Example:
        >>> invert_transform(np.array([[2.0, 0.0, 10.0], [0.0, 2.0, 0.0]])).tolist()
        [[0.5, 0.0, -5.0], [0.0, 0.5, 0.0]]
    """
    linear = np.linalg.inv(transform[:, :2])
    # A difference of -0.0 would be printed as such.
    inverse: Transform = np.column_stack((linear, -linear @ transform[:, 2])) + 0.0
    return inverse


def transform_points(points: npt.NDArray[np.floating], transform: Transform) -> npt.NDArray[np.float64]:
    """Take points ``(N, 2)`` from one plane to another."""
    moved: npt.NDArray[np.float64] = points @ transform[:, :2].T + transform[:, 2]
    return moved


def warp_photo(photo: ByteArray, frame: Frame) -> ByteArray:
    """Draw a photo in a frame.

    Args:
        photo: ``(H, W, 3)`` BGR or ``(H, W, 4)`` BGRA.
        frame: Where it goes.

    Returns:
        ``(frame.height, frame.width, 3)`` where all of it is opaque; otherwise with a fourth channel, 0 where there is
        no photo.
    """
    if frame.is_photo:
        return drop_full_alpha(photo)
    scale = math.sqrt(abs(float(np.linalg.det(frame.transform[:, :2]))))
    part, offset = _cut_part(photo, frame, math.ceil(_RIM_PX / min(scale, 1.0)))
    ratio = np.ones(2)
    if scale < 1:
        # Averaged where it shrinks; the warp then only has to turn it.
        height, width = part.shape[:2]
        size = max(1, round(width * scale)), max(1, round(height * scale))
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        ratio = np.array([width, height]) / size
    linear = frame.transform[:, :2] * ratio
    shift = transform_points(offset[None], frame.transform)[0]
    # cv2 counts from the middle of a pixel.
    shift += linear @ (0.5, 0.5) - 0.5
    return _warp(part, np.column_stack((linear, shift)), frame.size)


def _cut_part(photo: ByteArray, frame: Frame, rim: int) -> tuple[ByteArray, npt.NDArray[np.float64]]:
    """Cut out the part of a photo that a frame shows, and say where it begins; at least a pixel."""
    height, width = photo.shape[:2]
    right, bottom = frame.size
    corners = transform_points(np.array([[0, 0], [right, 0], [0, bottom], [right, bottom]], np.float64), frame.inverse)
    low, high = corners.min(axis=0) - rim, corners.max(axis=0) + rim
    left, top = np.clip(np.floor(low), 0, (width - 1, height - 1)).astype(int).tolist()
    right, bottom = np.clip(np.ceil(high), (left + 1, top + 1), (width, height)).astype(int).tolist()
    return photo[top:bottom, left:right], np.array([left, top], np.float64)


def _warp(part: ByteArray, transform: Transform, size: Size) -> ByteArray:
    """Warp colours and opacity apart: at the photo's edge, colours go on as they end while opacity ends."""
    drawn = cv2.warpAffine(part, transform, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # A level edge lies between two pixels; a slanting one is smoothed.
    method = cv2.INTER_LINEAR if transform[0, 1] else cv2.INTER_NEAREST
    whole = np.full(part.shape[:2], _OPAQUE, np.uint8)
    opacity = cv2.warpAffine(whole, transform, size, flags=method, borderMode=cv2.BORDER_CONSTANT)
    if part.shape[2] == BGRA_CHANNELS:
        opacity = cv2.multiply(opacity, cv2.extractChannel(drawn, 3), scale=1 / _OPAQUE)
    if int(opacity.min()) == _OPAQUE:
        return np.ascontiguousarray(drawn[:, :, :3], np.uint8)
    merged = drawn if part.shape[2] == BGRA_CHANNELS else cv2.cvtColor(drawn, cv2.COLOR_BGR2BGRA)
    return cv2.insertChannel(opacity, merged, 3).astype(np.uint8, copy=False)


def drop_full_alpha(picture: ByteArray) -> ByteArray:
    """Drop a fourth channel that says nothing: all of it opaque."""
    if picture.shape[2] != BGRA_CHANNELS or cv2.extractChannel(picture, 3).min() != _OPAQUE:
        return picture
    return np.ascontiguousarray(picture[:, :, :3])
