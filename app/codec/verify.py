"""Whether a file is whole, without decoding its pixels."""

from dataclasses import replace

from app.codec.jpeg import verify_jpeg
from app.codec.png import verify_png
from app.codec.sniff import ImageInfo
from app.codec.webp import verify_webp

_VERIFIERS = {"png": verify_png, "jpeg": verify_jpeg, "webp": verify_webp}


def verify_structure(data: bytes | memoryview, info: ImageInfo) -> ImageInfo:
    """Prove that a file is whole, for a small part of what decoding costs.

    PNG: every chunk's checksum up to IEND. JPEG: segments and scans up to the end of the image. WebP: the container
    and its chunks. Bytes after these are allowed, for cameras append things; missing ones are not.

    Args:
        data: The whole file.
        info: What ``sniff_image`` said of it.

    Returns:
        The same, with the EXIF orientation wherever in the file it stands.

    Raises:
        ImageTruncatedError: the file ends too early.
        ImageCorruptError: a checksum is wrong, or the structure is impossible.
        ImageFormatError: the file is of a kind that is not read.
    """
    return replace(info, exif_orientation=_VERIFIERS[info.format](memoryview(data)))
