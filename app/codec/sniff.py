"""Format, size and integrity of an image file, without decoding its pixels."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

from app.codec import isobmff, jpeg, png, webp
from app.face.errors import ImageEmptyError, ImageFormatError, ImageTooLargeError, ImageTruncatedError
from app.face.frame import NORMAL_ORIENTATION, Size

ImageFormat = Literal["png", "jpeg", "webp", "avif", "heic"]

MAX_SIDE_PX = 65_535
"""Maximum width and height: the limit of JPEG, and far below the limits of libpng and OpenCV."""

HEIC_DECODER = "pillow_heif"
"""The module that decodes HEIC, of the extra `heif`."""

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
_ZEROS = b"\0\0\0"  # the first bytes of a box of less than 256 bytes
_VERIFIERS = {
    "png": png.verify_png,
    "jpeg": jpeg.verify_jpeg,
    "webp": webp.verify_webp,
    "avif": isobmff.verify_isobmff,
    "heic": isobmff.verify_isobmff,
}


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Metadata from the header of an image file."""

    format: ImageFormat  # detected from the content
    size: Size  # of the stored pixels, before the orientation is applied
    # 1 to 8; 1 if upright or unknown. Of an AVIF or HEIC, the one with the effect of its rotation and mirroring. PNG
    # and WebP may store it after the pixels, so the value is reliable only after
    # `verify_structure`.
    exif_orientation: int = NORMAL_ORIENTATION


def sniff_image(data: bytes | memoryview, *, max_pixels: int) -> ImageInfo:
    """Detect the format and size of an image from its header, and the orientation if the header contains it.

    The data may be the first part of a file.

    Raises:
        ImageEmptyError: there are no bytes.
        ImageFormatError: the file is not PNG, JPEG, WebP, AVIF or HEIC, or uses an unsupported variant of them, or the
            decoder of HEIC is not installed.
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
        case "avif" | "heic":
            info = _sniff_isobmff(view, max_pixels)
    _check_size(info.size, max_pixels)
    return info


def verify_structure(data: bytes | memoryview, info: ImageInfo) -> ImageInfo:
    """Verify that a file is complete, at a fraction of the cost of decoding it.

    PNG: the checksums of the chunks up to IEND. JPEG: segments and scans up to the end of the image. WebP: the
    container and its chunks. AVIF and HEIC: the boxes, and the headers in the primary image. Data that decoders ignore
    is not checked, such as the data that cameras append.

    The result has the EXIF orientation from anywhere in the file.

    Raises:
        ImageTruncatedError: the file ends too early.
        ImageCorruptError: a checksum is wrong, or the structure is invalid.
        ImageFormatError: the file uses an unsupported variant of its format.
        DecodingForbiddenError: see `decoding_policy.limit_decoding`.
    """
    return replace(info, exif_orientation=_VERIFIERS[info.format](memoryview(data)))


def is_heic_supported() -> bool:
    """Return whether HEIC files can be decoded, without loading the decoder."""
    return find_spec(HEIC_DECODER) is not None


def _sniff_isobmff(view: memoryview, max_pixels: int) -> ImageInfo:
    """Read the header of an AVIF or HEIC, and check the sizes of everything that would be decoded."""
    if not isobmff.is_image(view):
        raise ImageFormatError("expected PNG, JPEG, WebP, AVIF or HEIC, got a video or another ISO media file")
    header = isobmff.read_header(view)
    if header.format == "heic" and not is_heic_supported():
        raise ImageFormatError("expected PNG, JPEG, WebP or AVIF, got HEIC; to decode it, install facial-service[heif]")
    limit, kind = max_pixels, ""
    if header.format == "avif":
        # The decoder uses 17 to 20 bytes per pixel, and twice as many with alpha; a PNG, 9 to 12.
        limit, kind = (limit // 4, " in an AVIF with alpha") if header.has_alpha else (limit // 2, " in an AVIF")
    _check_size(header.decoded_size, limit, kind)
    _check_size(header.largest_image, max_pixels, " in each tile and in the alpha")
    if header.tiles_pixels > 2 * max_pixels:
        raise ImageTooLargeError(f"expected at most {2 * max_pixels} pixels in all tiles, got {header.tiles_pixels}")
    return ImageInfo(header.format, header.size, header.exif_orientation)


def _detect_format(signature: bytes) -> ImageFormat:
    """Detect the format from the first 12 bytes. That of AVIF and HEIC is only tentative."""
    container, form = signature[:4], signature[8:12]
    if signature.startswith(png.SIGNATURE):
        return "png"
    if signature.startswith(jpeg.SIGNATURE):
        return "jpeg"
    if (container, form) == (webp.RIFF, webp.WEBP):
        return "webp"
    if len(signature) == _SIGNATURE_BYTES and signature[isobmff.FTYP_SPAN] == isobmff.FTYP:
        return "avif"
    is_start_of_webp = webp.RIFF.startswith(container) and webp.WEBP.startswith(form)
    start_of_type = signature[isobmff.FTYP_SPAN]
    is_start_of_box = isobmff.FTYP.startswith(start_of_type) and signature[:3] == _ZEROS[: len(signature)]
    is_start = png.SIGNATURE.startswith(signature) or jpeg.SIGNATURE.startswith(signature)
    if is_start or is_start_of_webp or (is_start_of_box and len(signature) < _SIGNATURE_BYTES):
        raise ImageTruncatedError("expected a complete image, got end of file in the signature")
    raise ImageFormatError(f"expected PNG, JPEG, WebP, AVIF or HEIC, got {_name_other_format(signature)}")


def _name_other_format(signature: bytes) -> str:
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
