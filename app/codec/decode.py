"""Pixels: photos as BGR, label images as the labels that they hold.

The decoders under cv2 fill in what a file lacks, so ``verify.verify_structure`` has to come first.
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from app.codec import png, webp
from app.codec.png_pixels import strip_png
from app.codec.sniff import ImageInfo
from app.face.errors import ImageCorruptError, LabelMapFormatError
from app.face.frame import Size

ByteArray = npt.NDArray[np.uint8]

_LABEL_BITS = 8
_BGRA_CHANNELS = 4


def decode_image(data: bytes | memoryview, info: ImageInfo) -> ByteArray:
    """Decode a photo.

    Args:
        data: The whole file, its structure verified.
        info: What ``sniff_image`` said of it.

    Returns:
        ``(H, W, 3)`` BGR: the stored pixels, which landmarks refer to. EXIF orientation is not applied, alpha is
        dropped, 16 bits become 8.

    Raises:
        ImageCorruptError: the pixels do not decode, or are not as many as the header announces.
        ImageTruncatedError: the file ends too early.
    """
    view = memoryview(data)
    source = strip_png(view) if info.format == "png" else view
    return _decode(source, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, info.size)


def decode_photo(data: bytes | memoryview, info: ImageInfo) -> ByteArray:
    """Decode a photo with its transparency, where it has any.

    Args:
        data: The whole file, its structure verified.
        info: What ``sniff_image`` said of it.

    Returns:
        ``(H, W, 3)`` BGR, or ``(H, W, 4)`` BGRA: the stored pixels. EXIF orientation is not applied, grey becomes
        colour, 16 bits become 8.

    Raises:
        ImageCorruptError: the pixels do not decode, or are not as many as the header announces.
        ImageTruncatedError: the file ends too early.
    """
    view = memoryview(data)
    if info.format == "jpeg":
        return decode_image(view, info)
    source = strip_png(view, is_alpha_kept=True) if info.format == "png" else view
    image = _imdecode(source, cv2.IMREAD_UNCHANGED)
    if image.dtype == np.uint16:
        # The high byte, as everywhere where 16 bits become 8; shifted, the largest photo would take 200 MB more.
        # Contiguous, because cv2 copies a strided array again at each call.
        image = np.ascontiguousarray(image.view("<u2").view(np.uint8)[..., 1::2])
    if image.ndim < 3:  # noqa: PLR2004 - a grey image has two dimensions
        image = cv2.cvtColor(image.astype(np.uint8), cv2.COLOR_GRAY2BGR)
    return _check_pixels(image.astype(np.uint8, copy=False), info.size)


def decode_label_image(data: bytes | memoryview, info: ImageInfo) -> ByteArray:
    """Decode a label image to the values that it stores, whatever its palette, transparency or bit depth.

    Args:
        data: The whole file, its structure verified.
        info: What ``sniff_image`` said of it.

    Returns:
        ``(H, W)`` labels of a grey or palette PNG: grey values as they are stored, 0 to 1 for one bit, or indices into
        the palette. ``(H, W, 3)`` BGR of a colour PNG or a lossless WebP. Fully transparent pixels are 0.

    Raises:
        LabelMapFormatError: the format cannot hold exact 8-bit labels: JPEG, lossy WebP, 16 bits.
        ImageCorruptError: the pixels do not decode, or are not as many as the header announces.
        ImageTruncatedError: the file ends too early.
    """
    require_label_format(data, info)
    view = memoryview(data)
    if info.format == "png":
        return _decode_png_labels(view, info)
    return _clear_transparent(_decode(view, cv2.IMREAD_UNCHANGED, info.size))


def require_label_format(data: bytes | memoryview, info: ImageInfo) -> None:
    """Refuse, by its header alone, a file that cannot hold exact 8-bit labels.

    Args:
        data: The whole file.
        info: What ``sniff_image`` said of it.

    Raises:
        LabelMapFormatError: a JPEG, a lossy WebP, or 16 bits a sample.
    """
    view = memoryview(data)
    if info.format == "jpeg":
        raise LabelMapFormatError("A segmentation map cannot be a JPEG, which blurs labels: send a PNG.")
    if info.format == "webp" and not webp.is_lossless_webp(view):
        raise LabelMapFormatError("A segmentation map cannot be a lossy WebP, which blurs labels: send a PNG.")
    if info.format == "png" and png.read_png_header(view).bit_depth > _LABEL_BITS:
        raise LabelMapFormatError("A segmentation map has 8 bits a sample or fewer, not 16.")


def _decode_png_labels(view: memoryview, info: ImageInfo) -> ByteArray:
    header = png.read_png_header(view)
    # cv2 turns a palette into its colours. Under a grey header the same data are the indices.
    source = strip_png(view, as_grey=header.colour_type == png.PALETTE)
    image = _decode(source, cv2.IMREAD_UNCHANGED, info.size)
    if header.bit_depth < _LABEL_BITS:
        # libpng repeats a short sample's bits until they fill the byte, so that the first ones are the sample.
        return image >> np.uint8(_LABEL_BITS - header.bit_depth)
    image = _clear_transparent(image)
    # cv2 gives grey with alpha as colour.
    return np.ascontiguousarray(image[:, :, 0]) if header.colour_type == png.GREY_ALPHA else image


def _clear_transparent(image: ByteArray) -> ByteArray:
    """Drop the alpha channel of a BGRA image, with 0 where nothing is to be seen."""
    if image.ndim < 3 or image.shape[2] != _BGRA_CHANNELS:  # noqa: PLR2004 -- a grey image has two dimensions
        return image
    colours = cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)
    # Three times as fast as indexing with a mask.
    return cv2.bitwise_and(colours, colours, mask=cv2.extractChannel(image, 3)).astype(np.uint8, copy=False)


def _decode(source: bytearray | memoryview, flags: int, size: Size) -> ByteArray:
    return _check_pixels(_imdecode(source, flags), size)


def _imdecode(source: bytearray | memoryview, flags: int) -> npt.NDArray[Any]:
    try:
        image = cv2.imdecode(np.frombuffer(source, dtype=np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise ImageCorruptError("The image's pixels do not decode.")
    return image


def _check_pixels(image: npt.NDArray[Any], size: Size) -> ByteArray:
    if image.dtype != np.uint8 or image.shape[:2] != (size.height, size.width):
        raise ImageCorruptError("The image's pixels are not of the size and depth that its header gives.")
    return image.astype(np.uint8, copy=False)
