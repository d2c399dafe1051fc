"""Format, size and integrity of an image file, without decoding its pixels."""

from dataclasses import dataclass, replace
from typing import Literal

from app.codec import jpeg, png, webp
from app.codec.exif import UPRIGHT
from app.face.errors import ImageEmptyError, ImageFormatError, ImageTooLargeError, ImageTruncatedError
from app.face.frame import Size

ImageFormat = Literal["png", "jpeg", "webp"]

MAX_SIDE_PX = 65_535
"""Maximum width and height: the limit of JPEG, and far below the limits of libpng and OpenCV."""

_SIGNATURE_BYTES = 12
_USUAL_BITS = 8
# Formats that clients often send by mistake, so that the error can name them.
_OTHER_FORMATS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\1\0": "ICO",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xm": "SVG or XML",
}
_ISO_MEDIA_SPAN, _ISO_MEDIA_BRAND = slice(4, 8), b"ftyp"
_VERIFIERS = {"png": png.verify_png, "jpeg": jpeg.verify_jpeg, "webp": webp.verify_webp}


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Metadata from the header of an image file."""

    format: ImageFormat  # detected from the content
    size: Size  # of the stored pixels, before the orientation is applied
    # 1 to 8; 1 if upright or unknown. PNG and WebP may store it after the pixels, so the value is reliable only after
    # `verify_structure`.
    exif_orientation: int = UPRIGHT


def sniff_image(data: bytes | memoryview, *, max_pixels: int) -> ImageInfo:
    """Detect the format and size of an image from its header, and the orientation if the header contains it.

    The data may be the first part of a file.

    Raises:
        ImageEmptyError: there are no bytes.
        ImageFormatError: the file is not PNG, JPEG or WebP, or uses an unsupported variant of them.
        ImageTruncatedError: the file ends inside its header.
        ImageCorruptError: the header is invalid.
        ImageTooLargeError: the image has more than ``max_pixels`` pixels, or a side longer than ``MAX_SIDE_PX``.
    """
    view = memoryview(data)
    if not view:
        raise ImageEmptyError("expected an image file, got 0 bytes")
    signature = bytes(view[:_SIGNATURE_BYTES])
    match _detect_format(signature):
        case "png":
            png_header = png.read_png_header(view)
            info = ImageInfo("png", png_header.size)
            if png_header.bit_depth > _USUAL_BITS:
                # Decoding 16 bits takes twice as long. A photo above this limit would exceed the body limit anyway.
                _check_size(info.size, max_pixels // 2, " of 16 bits per sample")
        case "jpeg":
            header = jpeg.read_jpeg_header(view)
            info = ImageInfo("jpeg", header.size, header.exif_orientation)
        case "webp":
            info = ImageInfo("webp", webp.read_webp_size(view))
    _check_size(info.size, max_pixels)
    return info


def verify_structure(data: bytes | memoryview, info: ImageInfo) -> ImageInfo:
    """Verify that a file is complete, at a small part of the cost of decoding it.

    PNG: the checksums of the chunks up to IEND. JPEG: segments and scans up to the end of the image. WebP: the
    container and its chunks. What libpng, libjpeg and libwebp ignore is ignored, such as the data that cameras append.

    The result has the EXIF orientation from anywhere in the file.

    Raises:
        ImageTruncatedError: the file ends too early.
        ImageCorruptError: a checksum is wrong, or the structure is invalid.
        ImageFormatError: the file uses an unsupported variant of its format.
        DecodingForbiddenError: see `decoding_policy.limit_decoding`.
    """
    return replace(info, exif_orientation=_VERIFIERS[info.format](memoryview(data)))


def _detect_format(signature: bytes) -> ImageFormat:
    """Detect the format from the first 12 bytes.

    Raises:
        ImageTruncatedError: there are fewer bytes, and they match the start of a supported format.
        ImageFormatError: they match no supported format.
    """
    container, form = signature[:4], signature[8:12]
    if signature.startswith(png.SIGNATURE):
        return "png"
    if signature.startswith(jpeg.SIGNATURE):
        return "jpeg"
    if (container, form) == (webp.RIFF, webp.WEBP):
        return "webp"
    is_start_of_webp = webp.RIFF.startswith(container) and webp.WEBP.startswith(form)
    if png.SIGNATURE.startswith(signature) or jpeg.SIGNATURE.startswith(signature) or is_start_of_webp:
        raise ImageTruncatedError("expected a complete image, got end of file in the signature")
    raise ImageFormatError(f"expected PNG, JPEG or WebP, got {_name_other_format(signature)}")


def _name_other_format(signature: bytes) -> str:
    if signature[_ISO_MEDIA_SPAN] == _ISO_MEDIA_BRAND:
        return "HEIC, AVIF or a video"
    return next(
        (name for start, name in _OTHER_FORMATS.items() if signature.startswith(start)), "a file of unknown format"
    )


def _check_size(size: Size, max_pixels: int, kind: str = "") -> None:
    pixels = size.width * size.height
    if pixels > max_pixels:
        raise ImageTooLargeError(
            f"expected at most {max_pixels} pixels{kind}, got {size.width} x {size.height}, which is {pixels} pixels"
        )
    if max(size) > MAX_SIDE_PX:
        raise ImageTooLargeError(f"expected sides of at most {MAX_SIDE_PX} pixels, got {size.width} x {size.height}")
