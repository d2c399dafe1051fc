"""What a file is and how large its picture, from the header alone."""

from dataclasses import dataclass
from typing import Literal

from app.codec import jpeg, png, webp
from app.codec.exif import UPRIGHT
from app.face.errors import ImageEmptyError, ImageFormatError, ImageTooLargeError, ImageTruncatedError
from app.face.frame import Size

ImageFormat = Literal["png", "jpeg", "webp"]

MAX_SIDE_PX = 65_535
"""The longest side that is read: JPEG's own limit, and far below what makes libpng and cv2 refuse to decode."""

_SIGNATURE_BYTES = 12
_USUAL_BITS = 8
# Formats that callers do send, so that the answer can name them.
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
_ISO_MEDIA_MARK = slice(4, 8), b"ftyp"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a file's header says.

    Attributes:
        format: The file's format, told from its content.
        size: Width and height of the stored pixels; orientation is not applied.
        exif_orientation: 1 to 8; 1 is upright or unsaid. JPEG says it before the size, PNG and WebP may say it after
            the pixels, so that it is certain only once the structure is verified.
    """

    format: ImageFormat
    size: Size
    exif_orientation: int = UPRIGHT


def sniff_image(data: bytes | memoryview, *, max_pixels: int) -> ImageInfo:
    """Read what a file is and how large its picture, before anything of it is decoded.

    Args:
        data: The whole file, or so much of it as has arrived.
        max_pixels: The most pixels, width times height, that are let through.

    Returns:
        Format, size and, where the header says it, orientation.

    Raises:
        ImageEmptyError: there are no bytes.
        ImageFormatError: the file is neither PNG, JPEG nor WebP, or of a kind of these that is not read.
        ImageTruncatedError: the file ends before its header does.
        ImageCorruptError: the header contradicts its format.
        ImageTooLargeError: the picture has more than ``max_pixels``, or a side longer than ``MAX_SIDE_PX``.
    """
    view = memoryview(data)
    if not view:
        raise ImageEmptyError("The image has no bytes.")
    signature = bytes(view[:_SIGNATURE_BYTES])
    match detect_format(signature):
        case "png":
            png_header = png.read_png_header(view)
            info = ImageInfo("png", png_header.size)
            if png_header.bit_depth > _USUAL_BITS:
                # Decoding takes twice as long. A photo that needs more pixels of 16 bits is larger than a body may be.
                _check_size(info.size, max_pixels // 2, " of 16 bits a sample")
        case "jpeg":
            header = jpeg.read_jpeg_header(view)
            info = ImageInfo("jpeg", header.size, header.exif_orientation)
        case "webp":
            info = ImageInfo("webp", webp.read_webp_size(view))
    _check_size(info.size, max_pixels)
    return info


def detect_format(signature: bytes) -> ImageFormat:
    """Tell the format from a file's first 12 bytes.

    Raises:
        ImageTruncatedError: there are fewer bytes, and they could become one of the formats.
        ImageFormatError: they are none of the formats.
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
        raise ImageTruncatedError("The image ends inside its signature.")
    raise ImageFormatError(f"The image is {_name_other_format(signature)}, and not PNG, JPEG or WebP.")


def _name_other_format(signature: bytes) -> str:
    span, mark = _ISO_MEDIA_MARK
    if signature[span] == mark:
        return "HEIC, AVIF or a video"
    return next((name for start, name in _OTHER_FORMATS.items() if signature.startswith(start)), "of an unknown format")


def _check_size(size: Size, max_pixels: int, kind: str = "") -> None:
    pixels = size.width * size.height
    if pixels > max_pixels:
        raise ImageTooLargeError(
            f"The image is {size.width} x {size.height}, which is {pixels} pixels{kind} and more than {max_pixels}."
        )
    if max(size) > MAX_SIDE_PX:
        raise ImageTooLargeError(f"The image is {size.width} x {size.height}; no side may exceed {MAX_SIDE_PX} pixels.")
