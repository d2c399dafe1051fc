"""AVIF and HEIC files: the boxes of the ISO base media file format.

Only the primary image is decoded, with its alpha. Thumbnails, depth maps, gain maps and animations are ignored.

References: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (HEIF), the AV1 image file format specification.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, Literal, NamedTuple

from app.codec.bitstreams import HVCC_BYTES, MAX_UNITS, CodedHeaders, scan_av1, scan_hevc
from app.face.errors import ImageCorruptError, ImageFormatError, ImageTooLargeError, ImageTruncatedError
from app.face.frame import NORMAL_ORIENTATION, Size

IsobmffFormat = Literal["avif", "heic"]

FTYP: Final = b"ftyp"
FTYP_SPAN: Final = slice(4, 8)

_CODECS: Final[dict[bytes, IsobmffFormat]] = {b"av01": "avif", b"hvc1": "heic"}
_CONFIGS: Final[dict[IsobmffFormat, bytes]] = {"avif": b"av1C", "heic": b"hvcC"}
# The last three mean that a file contains images of some codec; the item types decide which.
_IMAGE_BRANDS: Final = frozenset(
    b"avif avis heic heix heim heis hevc hevx mif1 mif2 msf1".split(),
)
_ALPHA_TYPES: Final = {b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1"}
_TRANSFORMS: Final = {b"clap", b"irot", b"imir"}

# EXIF orientations, by the corners of the stored image (0 to 3, clockwise from the top left) in the order in which they
# are displayed, also clockwise from the top left.
_CORNERS: Final = {
    (0, 1, 2, 3): 1,
    (1, 0, 3, 2): 2,
    (2, 3, 0, 1): 3,
    (3, 2, 1, 0): 4,
    (0, 3, 2, 1): 5,
    (3, 0, 1, 2): 6,
    (2, 1, 0, 3): 7,
    (1, 2, 3, 0): 8,
}

# Empty boxes are 8 bytes, so the file size alone does not bound the work. A 48-megapixel image of a phone has about 250
# items, each with up to 8 properties.
_MAX_BOXES = 2_048
_MAX_ITEMS = 1_024
_MAX_ENTRIES = 16_384
_MAX_BRANDS = 256
# An AV1 image may consist of up to four layers. Further frames would be decoded but not displayed.
_MAX_FRAMES = 4
# The largest image, its alpha, and the parts of edge tiles outside the image: all of these pixels must be decoded.
_MAX_DECODED_PIXELS = 160_000_000
# Encoders pad images to whole blocks, whose sides are at most this long.
_MAX_BLOCK = 128
_MAX_OVERLAP = 4

_LARGE_SIZE, _TO_END = 1, 0


@dataclass(slots=True)
class _Item:
    """An item of the file: an image, a grid of images, or metadata."""

    kind: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)  # start in the file, and length
    properties: list[int] = field(default_factory=list)  # indices into the properties of the file
    # By property: start and length of its association in the file.
    associations: list[tuple[int, int]] = field(default_factory=list)

    @property
    def data_length(self) -> int:
        """Length of the data in bytes."""
        return sum(length for _, length in self.extents)


@dataclass(slots=True)
class _Meta:
    """Content of the boxes up to the end of the `meta` box."""

    view: memoryview
    brands: tuple[int, int] = 0, 0  # start and end in the file
    movie: int | None = None  # position of the type of the box `moov`
    primary: int = 0
    primary_span: tuple[int, int] = 0, 0  # of the id of the primary item
    items: dict[int, _Item] = field(default_factory=dict)
    properties: list[tuple[bytes, memoryview]] = field(default_factory=list)
    # Positions of the types of references that `strip` hides: those of auxiliary images and of metadata.
    auxiliaries: list[int] = field(default_factory=list)
    descriptions: list[int] = field(default_factory=list)
    # Ids of the items that an item refers to, in order, by type of reference and id of the item.
    references: dict[tuple[bytes, int], list[int]] = field(default_factory=dict)

    def find(self, item: _Item, kind: bytes) -> memoryview | None:
        """Return the content of the first property of a type, or None."""
        for index in item.properties:
            found, content = self.properties[index]
            if found == kind:
                return content
        return None

    def item(self, number: int) -> _Item:
        found = self.items.get(number)
        if found is None or not found.kind:
            raise ImageCorruptError("expected an item for each image in the file, got none")
        return found

    def find_alphas(self) -> dict[int, int]:
        """Return the id of the alpha of each image that has one, by id of the image."""
        alphas: dict[int, int] = {}
        for (kind, source), targets in self.references.items():
            if kind == b"auxl" and self.is_image(source):
                content = self.find(self.items[source], b"auxC")
                if content is not None and bytes(content[4:]).partition(b"\0")[0] in _ALPHA_TYPES:
                    alphas.update((target, source) for target in targets if target not in alphas)
        return alphas

    def is_image(self, number: int) -> bool:
        """Return whether an item is an image with data; decoders ignore other auxiliary items."""
        item = self.items.get(number)
        return item is not None and (item.kind in _CODECS or item.kind == b"grid") and item.data_length > 0

    def images_of(self, number: int) -> list[int]:
        """Return the ids of the coded images that an image consists of: itself, or the tiles of a grid."""
        return self.references.get((b"dimg", number), []) if self.item(number).kind == b"grid" else [number]


class IsobmffHeader(NamedTuple):
    """The properties of the primary image."""

    format: IsobmffFormat
    size: Size  # of the clean aperture, before rotation and mirroring
    offset: tuple[int, int]  # of the clean aperture in the decoded pixels
    decoded_size: Size
    largest_image: Size  # of the image itself, its tiles and its alpha
    tiles_pixels: int  # of all tiles, without alpha
    exif_orientation: int  # equivalent to the rotation and mirroring
    bit_depth: int
    is_grey: bool
    is_full_range: bool  # of grey pixels; others are converted
    has_alpha: bool
    is_premultiplied: bool  # colours are multiplied by the alpha
    profile: bytes  # ICC profile, or nothing
    primaries: int  # colour primaries (ITU-T H.273, table 2); 2 if unspecified
    transfer: int  # transfer characteristics (ITU-T H.273, table 3); 2 if unspecified


def is_image(view: memoryview) -> bool:
    """Return whether the brands of a file declare still images or image sequences.

    Raises:
        ImageTruncatedError: the file ends inside the brands.
        ImageCorruptError: the brands are malformed.
    """
    _, start, end = next(_iter_boxes(view, 0, len(view), is_nested=False))
    return not _IMAGE_BRANDS.isdisjoint(_read_brands(view, start, end))


def read_header(view: memoryview) -> IsobmffHeader:
    """Read the properties of the primary image.

    Raises:
        ImageTruncatedError: the file ends before the end of the `meta` box.
        ImageCorruptError: a box is malformed.
        ImageFormatError: the file has no still image, or one of another codec.
    """
    return _describe(_read_meta(view))


def verify_isobmff(view: memoryview) -> int:
    """Verify that the primary image and its alpha are complete, and that their frames have the size in the header.

    The formats have no checksums, so damage inside an image shows only in the pixels. Return the EXIF orientation, 1 to
    8, that has the same effect as the rotation and mirroring of the image; decoders ignore the orientation in EXIF.

    Raises:
        ImageTruncatedError: the file ends before the end of the image.
        ImageCorruptError: a box or image is malformed, or larger than in the header.
        ImageTooLargeError: decoding the frames would take too long.
        ImageFormatError: the file has no still image, or one of another codec.
    """
    meta = _read_meta(view)
    header = _describe(meta)
    # Encoders write equal tiles once.
    scans: dict[tuple[tuple[int, int], ...], CodedHeaders] = {}
    pixels = units = scanned_bytes = 0
    for number in _list_decoded(meta, header.decoded_size):
        item = meta.item(number)
        key = tuple(item.extents)
        if key not in scans:
            data = _read_data(view, item)
            # Extents of items may overlap, so the file size alone does not bound the work.
            scanned_bytes += len(data)
            if scanned_bytes > _MAX_OVERLAP * len(view):
                raise ImageCorruptError("expected images with separate data, got overlapping data")
            scans[key] = _scan_image(meta, item, data)
        scan, size = scans[key], _read_size(meta, item, header.decoded_size)
        if any(each.width >= size.width + _MAX_BLOCK or each.height >= size.height + _MAX_BLOCK for each in scan.sizes):
            raise ImageCorruptError("expected frames of the size in the header, got larger ones")
        pixels += scan.frames * size.width * size.height
        units += scan.units
        if pixels > _MAX_DECODED_PIXELS or units > MAX_UNITS:
            raise ImageTooLargeError(
                f"expected at most {_MAX_DECODED_PIXELS} pixels in all frames, tiles and alpha, got more"
            )
    return header.exif_orientation


def _describe(meta: _Meta) -> IsobmffHeader:
    item = meta.item(meta.primary)
    images = meta.images_of(meta.primary)
    kinds = {meta.item(number).kind for number in images}
    image_format = _CODECS.get(next(iter(kinds))) if len(kinds) == 1 else None
    if image_format is None:
        raise ImageFormatError("expected an AV1 (AVIF) or HEVC (HEIC) image, got one of another codec")
    decoded_size = _read_size(meta, item)
    sizes = [_read_size(meta, meta.item(number)) for number in images]
    alphas = meta.find_alphas()
    decoded_alphas = [alphas[number] for number in {meta.primary, *images} if number in alphas]
    alpha_sizes = [_read_size(meta, meta.item(number), decoded_size) for number in decoded_alphas]
    offset, size = _read_aperture(meta.find(item, b"clap"), decoded_size)
    first = meta.item(images[0])
    bit_depth, is_grey = _read_config(meta, first, image_format)
    colours = _read_colours(meta, [item, first])
    return IsobmffHeader(
        format=image_format,
        size=size,
        offset=offset,
        decoded_size=decoded_size,
        largest_image=max(decoded_size, *sizes, *alpha_sizes, key=lambda each: each.width * each.height),
        tiles_pixels=sum(each.width * each.height for each in sizes),
        exif_orientation=_read_orientation(meta, item),
        bit_depth=bit_depth,
        is_grey=is_grey,
        is_full_range=colours.is_full_range,
        has_alpha=bool(decoded_alphas),
        is_premultiplied=any((b"prem", number) in meta.references for number in (meta.primary, *images)),
        profile=colours.profile,
        primaries=colours.primaries,
        transfer=colours.transfer,
    )


def _list_decoded(meta: _Meta, size: Size) -> list[int]:
    """Return the ids of the coded images that are decoded: the primary one or its tiles, and the alpha of each."""
    alphas = meta.find_alphas()
    decoded: list[int] = []
    for number in [meta.primary, alphas.get(meta.primary)]:
        if number is None:
            continue
        images = meta.images_of(number)
        if meta.item(number).kind == b"grid":
            if _read_grid(_read_data(meta.view, meta.item(number))) != (len(images), size):
                raise ImageCorruptError("expected a grid with the tiles and size in the header, got others")
            decoded += [alphas[image] for image in images if image in alphas]
        decoded += images
    return decoded


def strip(view: memoryview, *, is_alpha_kept: bool = True, is_alpha_primary: bool = False) -> bytearray:
    """Return a copy in which decoders see only the primary image, as it is stored.

    Without `is_alpha_kept`, they do not see its alpha. With `is_alpha_primary`, they see only the alpha.

    Rotation, mirroring and clean aperture are removed, because only some decoders apply them. Animations, the brands
    that make decoders prefer them, and EXIF and XMP, which decoders would parse, are removed as well.

    Raises:
        ImageError: see `read_header`.
    """
    meta = _read_meta(view)
    header = _describe(meta)
    image = bytearray(view)
    start, end = meta.brands
    for position in [start, *range(start + 8, end - 3, 4)]:
        image[position : position + 4] = header.format.encode()
    if meta.movie is not None:
        image[meta.movie : meta.movie + 4] = b"free"
    alpha = meta.find_alphas().get(meta.primary)
    # Decoders reject an alpha with other transformations than those of its image.
    for item in [meta.item(number) for number in (meta.primary, alpha) if number is not None]:
        for index, (position, length) in zip(item.properties, item.associations, strict=True):
            if meta.properties[index][0] in _TRANSFORMS:
                image[position : position + length] = bytes(length)
    if is_alpha_primary and alpha is not None:
        position, end = meta.primary_span
        image[position:end] = alpha.to_bytes(end - position)
    hidden = meta.descriptions if is_alpha_kept or is_alpha_primary else meta.descriptions + meta.auxiliaries
    for position in hidden:
        image[position : position + 4] = b"free"
    return image


def _iter_boxes(view: memoryview, start: int, end: int, *, is_nested: bool = True) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, start and end of the content of each box in a part of the file."""
    for _ in range(_MAX_BOXES):
        if start >= end:
            return
        content = start + 8
        size = int.from_bytes(view[start : start + 4])
        if size == _LARGE_SIZE:
            size, content = int.from_bytes(view[content : content + 8]), content + 8
        elif size == _TO_END:
            size = end - start
        if content <= end and start + size < content:
            raise ImageCorruptError(f"expected a box of valid length at byte {start}, got an invalid length")
        if content > end or start + size > end:
            if not is_nested:
                raise ImageTruncatedError(f"expected a complete file, got end of file in the box at byte {start}")
            return  # libheif ignores it
        yield bytes(view[start + 4 : start + 8]), content, start + size
        start += size
    raise ImageCorruptError(f"expected at most {_MAX_BOXES} boxes, got more")


def _read_brands(view: memoryview, start: int, end: int) -> set[bytes]:
    if end - start < 8 or end - start > 4 * _MAX_BRANDS:  # noqa: PLR2004 - the major brand and its version
        raise ImageCorruptError("expected a list of brands of valid length, got an invalid length")
    return {bytes(view[position : position + 4]) for position in [start, *range(start + 8, end - 3, 4)]}


def _read_meta(view: memoryview) -> _Meta:
    """Parse the boxes up to the end of the first `meta` box; later boxes are ignored."""
    meta = _Meta(view)
    for kind, start, end in _iter_boxes(view, 0, len(view), is_nested=False):
        if kind == FTYP:
            meta.brands = start, end
            _read_brands(view, start, end)
        elif kind == b"moov":
            meta.movie = start - 4
        elif kind == b"meta":
            _parse_meta(view, start + 4, end, meta)
            return meta
    if meta.movie is not None:
        raise ImageFormatError("expected a still image, got an animation or a video")
    raise ImageTruncatedError("expected a complete file, got end of file before the description of its images")


def _parse_meta(view: memoryview, start: int, end: int, meta: _Meta) -> None:
    boxes: dict[bytes, tuple[int, int]] = {}
    for kind, first, last in _iter_boxes(view, start, end):
        boxes.setdefault(kind, (first, last))
    missing = {b"iinf", b"iloc", b"iprp", b"pitm"} - boxes.keys()
    if missing:
        raise ImageCorruptError("expected the boxes iinf, iloc, iprp and pitm, got fewer")
    try:
        first, last = boxes[b"pitm"]
        meta.primary_span = first + 4, first + (8 if view[first] else 6)
        meta.primary = int.from_bytes(view[slice(*meta.primary_span)])
        _parse_items(view, *boxes[b"iinf"], meta)
        idat = boxes.get(b"idat")
        _parse_locations(_Reader(view, *boxes[b"iloc"]), idat, meta)
        _parse_properties(view, *boxes[b"iprp"], meta)
        if b"iref" in boxes:
            _parse_references(_Reader(view, *boxes[b"iref"]), meta)
    except (IndexError, struct.error) as error:
        raise ImageCorruptError("expected complete descriptions of images, got shorter ones") from error


class _Reader:
    """Numbers in a part of the file, from start to end."""

    def __init__(self, view: memoryview, start: int, end: int) -> None:
        self._view, self.position, self._end = view, start, end
        self.version, self.flags = self.take(1), self.take(3)

    @property
    def has_more(self) -> bool:
        return self.position < self._end

    def take(self, length: int) -> int:
        start = self.position
        self.position += length
        if self.position > self._end:
            raise IndexError
        return int.from_bytes(self._view[start : self.position])


def _parse_items(view: memoryview, start: int, end: int, meta: _Meta) -> None:
    reader = _Reader(view, start, end)
    reader.take(4 if reader.version else 2)
    for kind, first, last in _iter_boxes(view, reader.position, end):
        if kind != b"infe":
            raise ImageCorruptError("expected only descriptions of items, got another box")
        entry = _Reader(view, first, last)
        number = entry.take(2 if entry.version == 2 else 4)  # noqa: PLR2004 - ids of version 3 have 32 bits
        entry.take(2)
        meta.items[number] = _Item(entry.take(4).to_bytes(4))
    if len(meta.items) > _MAX_ITEMS:
        raise ImageCorruptError(f"expected at most {_MAX_ITEMS} items, got more")


def _parse_locations(reader: _Reader, idat: tuple[int, int] | None, meta: _Meta) -> None:
    sizes = reader.take(2)
    offset_bytes, length_bytes, base_bytes, index_bytes = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    if reader.version == 0:
        index_bytes = 0
    offset_bytes, length_bytes, base_bytes, index_bytes = (
        size if size in {4, 8} else 0 for size in (offset_bytes, length_bytes, base_bytes, index_bytes)
    )
    entries = 0
    for _ in range(reader.take(4 if reader.version == 2 else 2)):  # noqa: PLR2004 - ids of version 2 have 32 bits
        item = meta.items.get(reader.take(4 if reader.version == 2 else 2))  # noqa: PLR2004
        is_in_idat = bool(reader.version and reader.take(2) & 15 == 1)
        reader.take(2)
        base = reader.take(base_bytes)
        for _ in range(reader.take(2)):
            entries += 1
            if entries > _MAX_ENTRIES:
                raise ImageCorruptError(f"expected at most {_MAX_ENTRIES} item extents, got more")
            reader.take(index_bytes)
            start, length = base + reader.take(offset_bytes), reader.take(length_bytes)
            if is_in_idat:
                if idat is None or idat[0] + start + length > idat[1]:
                    raise ImageCorruptError("expected item extents that fit in the box idat, got a longer one")
                start += idat[0]
            if item is not None:
                item.extents.append((start, length))


def _parse_properties(view: memoryview, start: int, end: int, meta: _Meta) -> None:
    for kind, first, last in _iter_boxes(view, start, end):
        if kind == b"ipco":
            meta.properties += [(name, view[one:two]) for name, one, two in _iter_boxes(view, first, last)]
    entries = 0
    for kind, first, last in _iter_boxes(view, start, end):
        if kind != b"ipma":
            continue
        reader = _Reader(view, first, last)
        length = 2 if reader.flags & 1 else 1
        for _ in range(reader.take(4)):
            if not reader.has_more:
                break  # libheif ignores a number that is too high
            item = meta.items.get(reader.take(4 if reader.version else 2))
            for _ in range(reader.take(1)):
                entries += 1
                position = reader.position
                # The highest bit declares that readers must support the property.
                index = reader.take(length) & (1 << (8 * length - 1)) - 1
                if index > len(meta.properties) or entries > _MAX_ENTRIES:
                    raise ImageCorruptError("expected associations with existing properties, got others or too many")
                if item is not None and index:
                    item.properties.append(index - 1)
                    item.associations.append((position, length))


def _parse_references(reader: _Reader, meta: _Meta) -> None:
    """Parse references as decoders do: in sequence, by their target counts; the lengths of their boxes are ignored."""
    if reader.version > 1:
        return  # decoders ignore unknown versions
    length = 4 if reader.version else 2
    entries = 0
    while reader.has_more:
        reader.take(4)
        position, kind, source = reader.position, reader.take(4).to_bytes(4), reader.take(length)
        count = reader.take(2)
        entries += 1 + count
        if entries > _MAX_ENTRIES:
            raise ImageCorruptError(f"expected at most {_MAX_ENTRIES} references between items, got more")
        meta.references.setdefault((kind, source), []).extend(reader.take(length) for _ in range(count))
        if kind == b"auxl":
            meta.auxiliaries.append(position)
        elif kind == b"cdsc":
            meta.descriptions.append(position)


def _read_size(meta: _Meta, item: _Item, default: Size | None = None) -> Size:
    """Return the size of an image, from its `ispe` property or, as HEIC decoders do, from the coded image."""
    content = meta.find(item, b"ispe")
    if content is not None and len(content) >= 12:  # noqa: PLR2004 - the version and two numbers
        size = Size(int.from_bytes(content[4:8]), int.from_bytes(content[8:12]))
    elif default is not None:
        size = default
    elif item.kind == b"grid":
        _, size = _read_grid(_read_data(meta.view, item))
    else:
        config = meta.find(item, b"hvcC") or meta.view[:0]
        sizes = scan_hevc(config, config[:0]).visible_sizes if len(config) >= HVCC_BYTES else []
        if not sizes:
            raise ImageCorruptError("expected the size of each image, got none")
        size = sizes[0]
    if 0 in size:
        raise ImageCorruptError("expected a valid size of each image, got 0")
    return size


def _read_aperture(content: memoryview | None, size: Size) -> tuple[tuple[int, int], Size]:
    """Return the offset and size of the clean aperture. One that is invalid or not of whole pixels is ignored."""
    if content is None or len(content) < 32:  # noqa: PLR2004 - eight numbers
        return (0, 0), size
    numbers = struct.unpack(">IIIIiIiI", content[:32])
    if 0 in numbers[1::2]:
        return (0, 0), size
    width, height, right, down = (Fraction(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True))
    left, top = (size.width - width) / 2 + right, (size.height - height) / 2 + down
    is_whole = all(each.denominator == 1 for each in (width, height, left, top))
    if not is_whole or min(left, top) < 0 or min(width, height) < 1:
        return (0, 0), size
    if left + width > size.width or top + height > size.height:
        return (0, 0), size
    return (int(left), int(top)), Size(int(width), int(height))


def _read_orientation(meta: _Meta, item: _Item) -> int:
    """Return the EXIF orientation that has the same effect as the rotations and mirrorings of an image in their order.

    Rotations are anticlockwise in steps of 90 degrees. A mirroring exchanges top and bottom (0), or left and right (1).
    """
    corners = [0, 1, 2, 3]
    for kind, content in (meta.properties[index] for index in item.properties):
        value = content[0] if content else 0
        if kind == b"irot":
            turns = value & 3
            corners = corners[turns:] + corners[:turns]
        elif kind == b"imir":
            order = (1, 0, 3, 2) if value & 1 else (3, 2, 1, 0)
            corners = [corners[position] for position in order]
    return _CORNERS.get((corners[0], corners[1], corners[2], corners[3]), NORMAL_ORIENTATION)


def _read_config(meta: _Meta, item: _Item, image_format: IsobmffFormat) -> tuple[int, bool]:
    """Return the bits per sample of an image, and whether it is grey."""
    config = meta.find(item, _CONFIGS[image_format])
    if config is None or len(config) < (4 if image_format == "avif" else HVCC_BYTES):
        raise ImageCorruptError("expected a complete decoder configuration, got none or a shorter one")
    if image_format == "avif":
        return 8 + 2 * (config[2] >> 6 & 1) + 2 * (config[2] >> 5 & 1), bool(config[2] >> 4 & 1)
    return 8 + (config[17] & 7), config[16] & 3 == 0


class _Colours(NamedTuple):
    """The `colr` boxes of an image; see `IsobmffHeader`."""

    profile: bytes = b""
    primaries: int = 2
    transfer: int = 2
    is_full_range: bool = True


def _read_colours(meta: _Meta, items: list[_Item]) -> _Colours:
    colours = _Colours()
    for index in (index for item in reversed(items) for index in reversed(item.properties)):
        kind, content = meta.properties[index]
        if kind != b"colr":
            continue
        form = bytes(content[:4])
        if form in {b"prof", b"rICC"}:
            colours = colours._replace(profile=bytes(content[4:]))
        elif form == b"nclx" and len(content) >= 11:  # noqa: PLR2004 - its four values
            colours = colours._replace(
                primaries=int.from_bytes(content[4:6]),
                transfer=int.from_bytes(content[6:8]),
                is_full_range=bool(content[10] >> 7),
            )
    return colours


def _read_data(view: memoryview, item: _Item) -> memoryview:
    """Return the data of an item.

    Raises:
        ImageTruncatedError: the file ends before the data.
        ImageCorruptError: the item has no data.
    """
    if not item.data_length:
        raise ImageCorruptError("expected data of each image, got none")
    # Otherwise, overlapping extents could add up to much more than the file.
    if item.data_length > len(view) or max(sum(extent) for extent in item.extents) > len(view):
        raise ImageTruncatedError("expected a complete file, got end of file in the data of an image")
    if len(item.extents) == 1:
        start, length = item.extents[0]
        return view[start : start + length]
    return memoryview(b"".join(view[start : start + length] for start, length in item.extents))


def _read_grid(data: memoryview) -> tuple[int, Size]:
    """Return the number of tiles of a grid, and its size in pixels."""
    length = 4 if len(data) > 1 and data[1] & 1 else 2
    if len(data) < 4 + 2 * length:
        raise ImageCorruptError("expected a complete description of a grid, got a shorter one")
    size = Size(int.from_bytes(data[4 : 4 + length]), int.from_bytes(data[4 + length : 4 + 2 * length]))
    return (data[2] + 1) * (data[3] + 1), size


def _scan_image(meta: _Meta, item: _Item, data: memoryview) -> CodedHeaders:
    """Scan the headers of a coded image without decoding it."""
    image_format = _CODECS.get(item.kind)
    if image_format is None:
        raise ImageFormatError("expected an AV1 (AVIF) or HEVC (HEIC) image, got one of another codec")
    if image_format == "avif":
        scan = scan_av1(data)
    else:
        _read_config(meta, item, image_format)
        scan = scan_hevc(meta.find(item, b"hvcC") or data[:0], data)
    if not scan.frames or not scan.sizes:
        raise ImageCorruptError("expected a frame in each image, got none")
    if scan.frames > _MAX_FRAMES:
        raise ImageCorruptError(f"expected at most {_MAX_FRAMES} frames in an image, got more")
    return scan
