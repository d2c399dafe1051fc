"""Bytes to arrays: what a file is, whether it is whole, and its pixels.

The order is always the same: ``sniff.sniff_image`` reads the header and enforces the size limit,
``verify.verify_structure`` proves that the file is whole without decoding it, and only where pixels are needed does
``decode`` decode them. Whatever the bytes hold, nothing but an ``InputError`` leaves this package.
"""
