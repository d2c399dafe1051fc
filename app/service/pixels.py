"""The steps of a crop request that touch pixels: decoding what has to be decoded, and the photo behind the regions."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pybase64

from app.codec.decode import decode_image, decode_image_with_alpha, decode_label_image
from app.codec.encode import encode_image
from app.codec.sniff import MAX_SIDE_PX
from app.face.errors import ImageTooLargeError, InputError
from app.face.frame import Frame, make_frame, warp_image
from app.face.landmarks import compute_roll_deg
from app.face.rendering.svg import EmbeddedImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from app.face.landmarks import FloatArray
    from app.face.pipeline import OnStep
    from app.service.crop import CheckedInput

_NO_PIXELS = np.empty((0, 0, 3), np.uint8)


@contextmanager
def named(field: str) -> Iterator[None]:
    """Say which of the two files it is that an error speaks of."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{field}: {error}") from error


def decode_pixels(checked: CheckedInput, on_step: OnStep) -> npt.NDArray[np.uint8]:
    """Decode the photo, with its transparency where it will be looked at; nothing where no pixel is needed.

    Raises:
        ImageCorruptError: the pixels do not decode.
    """
    if not checked.needs_photo:
        return _NO_PIXELS
    is_looked_at = checked.landmarks_px is None or checked.options.background == "image"
    with named("image"), on_step("decode"):
        return (decode_image_with_alpha if is_looked_at else decode_image)(checked.image, checked.image_info)


def decode_labels(checked: CheckedInput, on_step: OnStep) -> npt.NDArray[np.uint8] | None:
    """Decode the label image, where there is one.

    Raises:
        ImageCorruptError: the pixels do not decode.
    """
    if checked.label_image is None or checked.label_info is None:
        return None
    with named("segmentation_map"), on_step("decode"):
        return decode_label_image(checked.label_image, checked.label_info)


def choose_frame(checked: CheckedInput, landmarks_px: FloatArray, max_pixels: int) -> Frame:
    """Choose the result's frame.

    Raises:
        ImageTooLargeError: pixels are to fill it, and it has more of them than a photo may have.
    """
    frame = make_frame(checked.image_info.size, landmarks_px, compute_roll_deg(landmarks_px), checked.options.framing())
    width, height = frame.size
    is_large = width * height > max_pixels or max(frame.size) > MAX_SIDE_PX
    if checked.options.background == "image" and is_large:
        raise ImageTooLargeError(
            f"background: the result is {width} x {height}, and may have {max_pixels} pixels; crop it, or set "
            "output_size"
        )
    return frame


def draw_background(photo: npt.NDArray[np.uint8], frame: Frame, on_step: OnStep) -> EmbeddedImage:
    """Draw the photo in the result's frame, as the file that stands behind the regions."""
    with on_step("warp"):
        drawn = warp_image(photo, frame)
    with on_step("encode"):
        data, media_type = encode_image(drawn)
        return EmbeddedImage(pybase64.b64encode_as_string(data), media_type)
