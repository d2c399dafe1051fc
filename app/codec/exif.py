"""EXIF orientation, the only tag that affects the service.

JPEG, PNG and WebP files all embed the same block, so this parser is shared by the three format modules.
"""

import struct

from app.face.frame import NORMAL_ORIENTATION

_ORIENTATION_TAG = 0x0112
_TYPE_SHORT = 3
_LAST_ORIENTATION = 8
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


def read_orientation(block: memoryview) -> int:
    """Return the orientation stored in an EXIF block, 1 to 8, or 1 if the tag is absent or malformed.

    A malformed block is treated as one without the tag: viewers ignore it too, so metadata never causes an error. The
    block is the TIFF structure, with or without the ``Exif`` prefix of JPEG, which some encoders wrongly write into
    other files too.
    """
    if bytes(block[:5]) == b"Exif\0":
        block = block[6:]
    order = _BYTE_ORDERS.get(bytes(block[:4]))
    if order is None:
        return NORMAL_ORIENTATION
    try:
        (directory,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, directory)
    except struct.error:
        return NORMAL_ORIENTATION
    entry = struct.Struct(f"{order}HHIHH")
    entries = block[directory + 2 : directory + 2 + count * entry.size]
    # Read the complete entries of a truncated directory.
    whole = len(entries) - len(entries) % entry.size
    for tag, kind, values, value, _ in entry.iter_unpack(entries[:whole]):
        if tag == _ORIENTATION_TAG:
            is_valid = kind == _TYPE_SHORT and values == 1 and NORMAL_ORIENTATION <= value <= _LAST_ORIENTATION
            return int(value) if is_valid else NORMAL_ORIENTATION
    return NORMAL_ORIENTATION
