"""Image files to pixels: photos as BGR or BGRA, label images as label values.

The decoders that OpenCV uses fill in missing data silently, so call ``sniff.verify_structure`` first.
"""

from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from app.codec import png, webp
from app.codec.sniff import ImageInfo
from app.face.errors import ImageCorruptError, LabelMapFormatError
from app.face.frame import BGRA_CHANNELS, ByteArray, Size

_LABEL_BITS = 8

_COLOUR_FLAGS: Final = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def list_reductions(info: ImageInfo) -> tuple[int, ...]:
    """Return the reductions at which an image can be decoded for less than the cost of the full size."""
    # libjpeg reduces each block of 8 by 8 pixels before the inverse transform. OpenCV decodes other formats in full.
    return tuple(_COLOUR_FLAGS) if info.format == "jpeg" else (1,)


def estimate_decoding_bytes(info: ImageInfo, reduction: int = 1) -> float:
    """Return an upper bound of the memory that decoding an image takes, including its pixels, from its header."""
    pixels = info.size.width * info.size.height
    if info.format == "jpeg":
        # Pixels, and the coefficients of all blocks if it is progressive.
        return pixels * (3 / reduction**2 + 6)
    return 12 * pixels  # OpenCV holds three copies


def decode_image(data: bytes | memoryview, info: ImageInfo, reduction: int = 1) -> ByteArray:
    """Decode an image with verified structure to ``(H, W, 3)`` BGR pixels as stored, which landmarks refer to.

    The EXIF orientation is not applied, alpha is dropped, 16 bits become 8. With a reduction (see `list_reductions`),
    width and height are divided by it and rounded up: pixel ``(x, y)`` covers the square of that side whose first pixel
    is ``(reduction * x, reduction * y)``.

    Raises:
        ImageCorruptError: the pixels cannot be decoded, or do not match the size in the header.
        ImageTruncatedError: the file ends too early.
    """
    view = memoryview(data)
    source = png.strip_png(view) if info.format == "png" else view
    size = Size(-(-info.size.width // reduction), -(-info.size.height // reduction))
    return _decode(source, _COLOUR_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION, size)


def decode_image_with_alpha(data: bytes | memoryview, info: ImageInfo, reduction: int = 1) -> ByteArray:
    """Decode an image as `decode_image` does, but to ``(H, W, 4)`` BGRA if it has transparency."""
    view = memoryview(data)
    if reduction != 1 or info.format == "jpeg":
        return decode_image(view, info, reduction)
    source = png.strip_png(view, is_alpha_kept=True) if info.format == "png" else view
    image = _imdecode(source, cv2.IMREAD_UNCHANGED)
    alpha = _find_transparent_grey(view, image) if info.format == "png" else None
    if image.dtype == np.uint16:
        # Take the high byte, as every 16-bit to 8-bit conversion here does. Shifting would use 200 MB more for the
        # largest image. Contiguous, because OpenCV copies a strided array again at each call.
        image = np.ascontiguousarray(image.view("<u2").view(np.uint8)[..., 1::2])
    if image.ndim < 3:  # noqa: PLR2004 - a grey image has two dimensions
        image = cv2.cvtColor(image.astype(np.uint8), cv2.COLOR_GRAY2BGR)
    if alpha is not None:
        image = cv2.insertChannel(alpha, cv2.cvtColor(image, cv2.COLOR_BGR2BGRA), 3)
    return _check_pixels(image.astype(np.uint8, copy=False), info.size)


def _find_transparent_grey(view: memoryview, image: npt.NDArray[Any]) -> ByteArray | None:
    """Return the alpha of a grey PNG whose tRNS chunk declares one value transparent, or None."""
    grey = png.read_transparent_grey(view)
    if grey is None:
        return None
    depth = png.read_png_header(view).bit_depth
    if depth < _LABEL_BITS:
        grey *= 255 // ((1 << depth) - 1)  # libpng scales short samples to 0..255
    return np.where(image == grey, np.uint8(0), np.uint8(255))


def decode_label_image(data: bytes | memoryview, info: ImageInfo) -> ByteArray:
    """Decode a label image to the values that it stores, whatever its palette, transparency or bit depth.

    Raises:
        LabelMapFormatError: see `check_label_format`.
        ImageError: see `decode_image`.

    Returns:
        ``(H, W)`` labels of a grey or palette PNG: grey values as stored (0 to 1 for one bit), or palette indices.
        ``(H, W, 3)`` BGR of a colour PNG or a lossless WebP. Fully transparent pixels are 0.
    """
    check_label_format(data, info)
    view = memoryview(data)
    if info.format == "png":
        return _decode_png_labels(view, info)
    return _clear_transparent(_decode(view, cv2.IMREAD_UNCHANGED, info.size))


def check_label_format(data: bytes | memoryview, info: ImageInfo) -> None:
    """Check by the header alone that a file can store exact 8-bit labels.

    Raises:
        LabelMapFormatError: the file is a JPEG or a lossy WebP, or has 16 bits per sample.
    """
    view = memoryview(data)
    if info.format == "jpeg":
        raise LabelMapFormatError("expected a PNG or lossless WebP, got a JPEG, whose compression alters labels")
    if info.format == "webp" and not webp.is_lossless_webp(view):
        raise LabelMapFormatError("expected a PNG or lossless WebP, got a lossy WebP, whose compression alters labels")
    if info.format == "png" and (depth := png.read_png_header(view).bit_depth) > _LABEL_BITS:
        raise LabelMapFormatError(f"expected at most {_LABEL_BITS} bits per sample, got {depth}")


def _decode_png_labels(view: memoryview, info: ImageInfo) -> ByteArray:
    header = png.read_png_header(view)
    # OpenCV converts a palette to its colours. With a grey header, the same data decodes to the indices.
    source = png.strip_png(view, as_grey=header.colour_type == png.PALETTE)
    image = _decode(source, cv2.IMREAD_UNCHANGED, info.size)
    if header.bit_depth < _LABEL_BITS:
        # libpng fills the byte by repeating the bits of a short sample, so the high bits are the sample.
        return image >> np.uint8(_LABEL_BITS - header.bit_depth)
    image = _clear_transparent(image)
    # OpenCV decodes grey with alpha as colour.
    return np.ascontiguousarray(image[:, :, 0]) if header.colour_type == png.GREY_ALPHA else image


def _clear_transparent(image: ByteArray) -> ByteArray:
    """Drop the alpha channel of a BGRA image, and set fully transparent pixels to 0."""
    if image.ndim < 3 or image.shape[2] != BGRA_CHANNELS:  # noqa: PLR2004 - a grey image has two dimensions
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
        raise ImageCorruptError("expected pixel data that can be decoded, got invalid data")
    return image


def _check_pixels(image: npt.NDArray[Any], size: Size) -> ByteArray:
    if image.dtype != np.uint8 or image.shape[:2] != (size.height, size.width):
        raise ImageCorruptError("expected pixels of the size and depth in the header, got others")
    return image.astype(np.uint8, copy=False)
