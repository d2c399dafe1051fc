"""Image files to arrays and back: format, integrity, decoding and encoding.

The order is always the same. ``sniff.sniff_image`` reads the header and enforces the size limit.
``sniff.verify_structure`` then checks that the file is complete, without decoding it. ``decode`` decodes pixels, and
only when a request needs them. Invalid files only raise subclasses of ``InputError``.
"""
