"""The one EXIF tag that matters here: which way up the photo is."""

import struct

UPRIGHT = 1
"""The orientation of a photo whose stored pixels are the right way up, and of one that says nothing."""

_ORIENTATION_TAG = 0x0112
_TYPE_SHORT = 3
_LAST_ORIENTATION = 8
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


def read_orientation(block: memoryview) -> int:
    """Read the orientation from an EXIF block.

    A block that makes no sense counts as one without the tag: metadata is never a reason to refuse a photo, and
    viewers ignore it in the same way.

    Args:
        block: The TIFF structure, with or without the ``Exif`` prefix that JPEG puts before it. Some writers put the
            prefix into PNG and WebP too, where it does not belong.

    Returns:
        The EXIF orientation, 1 to 8; 1 where the tag is absent or malformed.
    """
    if bytes(block[:5]) == b"Exif\0":
        block = block[6:]
    order = _BYTE_ORDERS.get(bytes(block[:4]))
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, directory)
    except struct.error:
        return UPRIGHT
    entry = struct.Struct(f"{order}HHIHH")
    entries = block[directory + 2 : directory + 2 + count * entry.size]
    # A directory that is cut still counts as far as it goes.
    whole = len(entries) - len(entries) % entry.size
    for tag, kind, values, value, _ in entry.iter_unpack(entries[:whole]):
        if tag == _ORIENTATION_TAG:
            is_valid = kind == _TYPE_SHORT and values == 1 and UPRIGHT <= value <= _LAST_ORIENTATION
            return int(value) if is_valid else UPRIGHT
    return UPRIGHT
