"""Pixels to a file that every viewer reads: PNG where something of the picture is transparent, otherwise JPEG."""

from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

JPEG_QUALITY: Final = 90
"""Above it files grow fast, and nobody sees a difference under coloured regions."""

# Of zlib's nine: the first is several times as fast as the default, for files a tenth larger.
_PNG_LEVEL: Final = 1
_BGRA_CHANNELS: Final = 4


class EncodedPicture(NamedTuple):
    """A file's bytes and their type."""

    data: bytes
    media_type: str


def encode_picture(picture: npt.NDArray[np.uint8]) -> EncodedPicture:
    """Write a picture.

    Args:
        picture: ``(H, W, 3)`` BGR, or ``(H, W, 4)`` BGRA.

    Returns:
        A JPEG, or with four channels a PNG; without any of the metadata of the file that the pixels came from.
    """
    if picture.shape[2] == _BGRA_CHANNELS:
        return EncodedPicture(_encode(".png", picture, cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL), "image/png")
    return EncodedPicture(_encode(".jpg", picture, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY), "image/jpeg")


def encode_drawing(picture: npt.NDArray[np.uint8]) -> bytes:
    """Write a picture of flat colours, most of it clear.

    Args:
        picture: ``(H, W, 4)`` BGRA.

    Returns:
        A PNG.
    """
    # To look for a filter in each row takes three quarters of the time, and flat colours are the larger for it.
    options = cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE
    return _encode(".png", picture, *options)


def _encode(extension: str, picture: npt.NDArray[np.uint8], *options: int) -> bytes:
    is_done, data = cv2.imencode(extension, picture, options)
    if not is_done:
        raise ValueError(f"{extension}: the picture was not written")
    return data.tobytes()
