"""Image files to pixels: images as BGR or BGRA, label maps as label values.

The decoders that OpenCV uses fill in missing data silently, so call ``sniff.verify_structure`` first.
"""

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from app.codec import isobmff, png, webp
from app.codec.sniff import HEIC_DECODER, ImageInfo
from app.face.errors import ImageCorruptError, ImageFormatError, LabelMapFormatError
from app.face.frame import BGRA_CHANNELS, ByteArray, Size

_LABEL_BITS = 8
# Samples of 16 (black) to 235 (white) to 0 to 255.
_FULL_RANGE: Final = np.clip(np.round((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)

# The errors that pillow-heif documents, and `LookupError` for a file without images.
_HEIF_ERRORS: Final = (ValueError, EOFError, SyntaxError, RuntimeError, OSError, LookupError)

_COLOUR_FLAGS: Final = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


# OpenCV would write the errors of libavif to stderr; they are part of the errors that are raised here.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


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
    # OpenCV holds three copies; with libavif, it takes up to 32 bytes per pixel of an image with alpha.
    return (32 if info.format == "avif" else 12) * pixels


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
    if info.format in {"avif", "heic"}:
        return _decode_isobmff(view, info, is_alpha_kept=False)
    source = png.strip_png(view) if info.format == "png" else view
    size = Size(-(-info.size.width // reduction), -(-info.size.height // reduction))
    return _decode(source, _COLOUR_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION, size)


def decode_image_with_alpha(data: bytes | memoryview, info: ImageInfo, reduction: int = 1) -> ByteArray:
    """Decode an image as `decode_image` does, but to ``(H, W, 4)`` BGRA if it has transparency."""
    view = memoryview(data)
    if reduction != 1 or info.format == "jpeg":
        return decode_image(view, info, reduction)
    if info.format in {"avif", "heic"}:
        return _decode_isobmff(view, info, is_alpha_kept=True)
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


def _decode_isobmff(view: memoryview, info: ImageInfo, *, is_alpha_kept: bool) -> ByteArray:
    """Decode the primary image of an AVIF or HEIC to the pixels of its clean aperture, without rotating them."""
    header = isobmff.read_header(view)
    is_alpha_kept = is_alpha_kept and header.has_alpha
    if header.format == "avif":
        image = _decode_avif(view, header, is_alpha_kept=is_alpha_kept)
    else:
        image = _decode_heic(view, header, is_alpha_kept=is_alpha_kept)
    if image.shape[:2] != (header.decoded_size.height, header.decoded_size.width):
        raise ImageCorruptError("expected pixels of the size and depth in the header, got others")
    left, top = header.offset
    cropped = image[top : top + header.size.height, left : left + header.size.width]
    return _check_pixels(np.ascontiguousarray(cropped), info.size)


def _decode_avif(view: memoryview, header: isobmff.IsobmffHeader, *, is_alpha_kept: bool) -> ByteArray:
    source = isobmff.strip(view, is_alpha_kept=is_alpha_kept and not header.is_grey)
    if is_alpha_kept and not header.is_grey:
        return _reduce_depth(_imdecode(source, cv2.IMREAD_UNCHANGED), header.bit_depth)
    image = _imdecode(source, _COLOUR_FLAGS[1] | cv2.IMREAD_IGNORE_ORIENTATION).astype(np.uint8, copy=False)
    if not header.is_grey:
        return image
    if not header.is_full_range:
        # OpenCV returns the samples of grey images as they are stored.
        image = cv2.LUT(image, _FULL_RANGE).astype(np.uint8, copy=False)
    if not is_alpha_kept:
        return image
    # OpenCV cannot decode grey with alpha together, so each is decoded separately.
    alpha = _imdecode(isobmff.strip(view, is_alpha_primary=True), cv2.IMREAD_COLOR)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA).astype(np.uint8, copy=False)
    return cv2.insertChannel(cv2.extractChannel(alpha, 0), image, 3).astype(np.uint8, copy=False)


def _reduce_depth(image: npt.NDArray[Any], bits: int) -> ByteArray:
    """Reduce samples of more than 8 bits to their 8 highest bits."""
    if image.dtype == np.uint16:
        np.right_shift(image, bits - _LABEL_BITS, out=image)
    return image.astype(np.uint8, copy=False)


def _decode_heic(view: memoryview, header: isobmff.IsobmffHeader, *, is_alpha_kept: bool) -> ByteArray:
    source = bytes(isobmff.strip(view, is_alpha_kept=is_alpha_kept))
    heif = _load_heif()
    try:
        image = np.asarray(heif.open_heif(source, convert_hdr_to_8bit=True, bgr_mode=True))
    except _HEIF_ERRORS as error:
        raise ImageCorruptError("expected pixel data that can be decoded, got invalid data") from error
    if image.ndim < 3:  # noqa: PLR2004 - a grey image has two dimensions
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR).astype(np.uint8, copy=False)
    if header.is_premultiplied and image.shape[2] == BGRA_CHANNELS:
        # libheif returns such colours as they are stored; libavif divides them by the alpha.
        return cv2.cvtColor(image, cv2.COLOR_mRGBA2RGBA).astype(np.uint8, copy=False)
    return image


@cache
def _load_heif() -> ModuleType:
    try:
        heif = import_module(HEIC_DECODER)
    except ImportError as error:
        raise ImageFormatError(
            "expected another format than HEIC; to decode it, install facial-service[heif]"
        ) from error
    # Requests are processed in parallel, so each uses one thread. Other images in the file are not used.
    heif.options.DECODE_THREADS = 1
    heif.options.THUMBNAILS = heif.options.DEPTH_IMAGES = heif.options.AUX_IMAGES = False
    return heif


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
    """Decode a label map to the values that it stores, regardless of its palette, transparency or bit depth.

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
        LabelMapFormatError: the file is a JPEG, AVIF, HEIC or lossy WebP, or has 16 bits per sample.
    """
    view = memoryview(data)
    if info.format in {"jpeg", "avif", "heic"}:
        name = info.format.upper()
        raise LabelMapFormatError(f"expected a PNG or lossless WebP, got {name}, whose compression alters labels")
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
