"""Builders of valid and invalid image files, so that tests need no binary files."""

import io
import struct
import zlib
from collections.abc import Iterable
from types import SimpleNamespace

import cv2
import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


class ExifBuilder:
    def tiff(
        self,
        orientation: int = 6,
        *,
        order: str = "<",
        tag: int = 0x0112,
        kind: int = 3,
        count: int = 1,
        offset: int = 8,
    ) -> bytes:
        mark = b"II*\0" if order == "<" else b"MM\0*"
        width = struct.pack(f"{order}HHII", 0x0100, 4, 1, 640)
        entry = struct.pack(f"{order}HHIHH", tag, kind, count, orientation, 0)
        return mark + struct.pack(f"{order}IH", offset, 2) + width + entry + bytes(4)

    def app1(self, tiff: bytes | None = None) -> bytes:
        return b"Exif\0\0" + (self.tiff() if tiff is None else tiff)


class PngBuilder:
    signature = b"\x89PNG\r\n\x1a\n"

    def __init__(self) -> None:
        self.head, self.data, self.end = self.ihdr(), self.chunk(b"IDAT", zlib.compress(bytes(24))), self.chunk(b"IEND")

    def chunk(self, kind: bytes, content: bytes = b"") -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    def ihdr(self, width: int = 5, height: int = 4, *rest: int) -> bytes:
        return self.chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *(rest or (8, GREY, 0, 0, 0))))

    def raw(self, samples: npt.NDArray[np.integer], depth: int, *, is_interlaced: bool = False) -> bytes:
        passes = ADAM7 if is_interlaced else ((0, 0, 1, 1),)
        parts = (samples[y::step_y, x::step_x] for x, y, step_x, step_y in passes)
        return b"".join(b"\0" + self._pack(row, depth) for part in parts if part.size for row in part)

    def build(  # noqa: PLR0913 - each parameter is a variation of the file
        self,
        samples: npt.NDArray[np.integer],
        *,
        depth: int = 8,
        colour: int = GREY,
        is_interlaced: bool = False,
        palette: bytes | None = None,
        before: bytes = b"",
        after: bytes = b"",
        raw: bytes | None = None,
    ) -> bytes:
        height, width = samples.shape[:2]
        plte = b"" if palette is None else self.chunk(b"PLTE", palette)
        data = zlib.compress(self.raw(samples, depth, is_interlaced=is_interlaced) if raw is None else raw)
        header = self.ihdr(width, height, depth, colour, 0, 0, int(is_interlaced))
        return self.join(header, plte, before, self.chunk(b"IDAT", data), after, self.chunk(b"IEND"))

    def join(self, *chunks: bytes) -> bytes:
        return self.signature + b"".join(chunks)

    def zeros(self, megabytes: int) -> bytes:
        """Return a zlib stream of zeros, built in constant time."""
        deflater = zlib.compressobj(9)
        first, again = (deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
        length = megabytes << 20
        checksum = (length % 65_521) << 16 | 1
        return first + again * (megabytes - 1) + b"\x03\x00" + struct.pack(">I", checksum)

    def _pack(self, row: npt.NDArray[np.integer], depth: int) -> bytes:
        if depth == 16:
            return row.astype(">u2").tobytes()
        bits = np.unpackbits(row.reshape(-1, 1).astype(np.uint8), axis=1)[:, 8 - depth :]
        return np.packbits(bits.reshape(-1)).tobytes()


class JpegBuilder:
    sof, dht, dqt, dri, sos, app1, com = 0xC0, 0xC4, 0xDB, 0xDD, 0xDA, 0xE1, 0xFE
    eoi = b"\xff\xd9"

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.whole = self.encode(pixels)

    def encode(self, pixels: npt.NDArray[np.uint8], *settings: int) -> bytes:
        return cv2.imencode(".jpg", pixels, settings)[1].tobytes()

    def segment(self, marker: int, content: bytes = b"") -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

    def split(self, data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
        """Split a file into the segments up to the first scan header, and the rest."""
        segments: list[tuple[int, bytes]] = []
        position = 2
        while not segments or segments[-1][0] != self.sos:
            end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
            segments.append((data[position + 1], data[position + 4 : end]))
            position = end
        return segments, data[position:]

    def join(self, segments: Iterable[tuple[int, bytes]], rest: bytes) -> bytes:
        return b"\xff\xd8" + b"".join(self.segment(*each) for each in segments) + rest

    def insert(self, data: bytes, inserted: bytes, *, before: int | None = None) -> bytes:
        """Insert bytes after the start of the image, or before the first segment of a type."""
        if before is None:
            return data[:2] + inserted + data[2:]
        segments, rest = self.split(data)
        index = [marker for marker, _ in segments].index(before)
        return self.join(segments[:index], inserted) + self.join(segments[index:], rest)[2:]

    def patch(self, data: bytes, marker: int, start: int, content: bytes) -> bytes:
        """Overwrite part of the content of the first segment of a type."""
        segments, rest = self.split(data)
        index = [kind for kind, _ in segments].index(marker)
        old = segments[index][1]
        segments[index] = marker, old[:start] + content + old[start + len(content) :]
        return self.join(segments, rest)

    def drop(self, data: bytes, marker: int) -> bytes:
        segments, rest = self.split(data)
        return self.join([each for each in segments if each[0] != marker], rest)


class WebpBuilder:
    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.lossy, self.lossless = self.content(pixels, 50), self.content(pixels, 101)
        self.vp8, self.vp8l = self.chunk(b"VP8 ", self.lossy), self.chunk(b"VP8L", self.lossless)
        self.canvas = self.vp8x(pixels.shape[1], pixels.shape[0])
        self.odd = self.chunk(b"VP8L", self.lossless + bytes(1 - len(self.lossless) % 2))

    def chunk(self, kind: bytes, content: bytes, *, padding: bytes = b"\0") -> bytes:
        return kind + struct.pack("<I", len(content)) + content + padding * (len(content) % 2)

    def vp8x(self, width: int, height: int, flags: int = 0) -> bytes:
        sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        return self.chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides)

    def join(self, *chunks: bytes, size: int | None = None) -> bytes:
        body = b"WEBP" + b"".join(chunks)
        return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body

    def content(self, pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
        data = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
        return data[20 : 20 + struct.unpack_from("<I", data, 16)[0]]


class IsobmffBuilder:
    """AVIF and HEIC files, from images that OpenCV and libheif encode."""

    alpha_type = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.size = pixels.shape[1], pixels.shape[0]
        self.av1, self.av1c = self.split(cv2.imencode(".avif", pixels)[1].tobytes(), b"av1C")
        grey = np.ascontiguousarray(pixels[:, :, 0])
        self.grey, self.grey_av1c = self.split(cv2.imencode(".avif", grey)[1].tobytes(), b"av1C")
        self.hevc, self.hvcc = self.split(self.encode_heic(pixels), b"hvcC")

    def encode_heic(self, pixels: npt.NDArray[np.uint8], **options: object) -> bytes:
        mode = {2: "L", 3: "BGR", 4: "BGRA"}[pixels.shape[2] if pixels.ndim == 3 else 2]
        file = io.BytesIO()
        size = pixels.shape[1], pixels.shape[0]
        pillow_heif.from_bytes(mode, size, pixels.tobytes()).save(file, quality=90, **options)
        return file.getvalue()

    def split(self, data: bytes, config: bytes) -> tuple[bytes, bytes]:
        """Return the coded image of a file, and the content of the configuration of its decoder."""
        start = data.index(config) - 4
        length = int.from_bytes(data[start : start + 4])
        return data[data.rindex(b"mdat") + 4 :], data[start + 8 : start + length]

    def box(self, kind: bytes, content: bytes = b"") -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    def full(self, kind: bytes, content: bytes = b"", version: int = 0, flags: int = 0) -> bytes:
        return self.box(kind, struct.pack(">I", version << 24 | flags) + content)

    def ispe(self, width: int, height: int) -> bytes:
        return self.full(b"ispe", struct.pack(">II", width, height))

    def clap(self, width: int, height: int, right: tuple[int, int], down: tuple[int, int]) -> bytes:
        return self.box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, *right, *down))

    def nclx(self, primaries: int, transfer: int = 13, *, is_full_range: bool = True) -> bytes:
        return self.box(b"colr", b"nclx" + struct.pack(">HHHB", primaries, transfer, 6, is_full_range << 7))

    def icc(self, profile: bytes) -> bytes:
        return self.box(b"colr", b"prof" + profile)

    def item(self, data: bytes, *properties: bytes, kind: bytes = b"av01", **refs: list[int]) -> SimpleNamespace:
        return SimpleNamespace(kind=kind, data=data, properties=properties, refs=refs)

    def colour(self, *properties: bytes, size: tuple[int, int] | None = None, **refs: list[int]) -> SimpleNamespace:
        return self.item(self.av1, self.ispe(*(size or self.size)), self.box(b"av1C", self.av1c), *properties, **refs)

    def alpha(self, *properties: bytes, **refs: list[int]) -> SimpleNamespace:
        config = self.box(b"av1C", self.grey_av1c)
        return self.item(
            self.grey, self.ispe(*self.size), config, self.full(b"auxC", self.alpha_type), *properties, **refs
        )

    def heic(self, *properties: bytes, size: tuple[int, int] | None = None) -> SimpleNamespace:
        size = size or self.size
        return self.item(self.hevc, self.ispe(*size), self.box(b"hvcC", self.hvcc), *properties, kind=b"hvc1")

    def grid(self, rows: int, columns: int, size: tuple[int, int], *properties: bytes) -> SimpleNamespace:
        data = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *size)
        tiles = list(range(2, 2 + rows * columns))
        return self.item(data, self.ispe(*size), *properties, kind=b"grid", dimg=tiles)

    def join(
        self,
        *items: SimpleNamespace,
        brands: bytes = b"avif\0\0\0\0avifmif1miaf",
        before: bytes = b"",
        is_idat: bool = False,
    ) -> bytes:
        """Return a file of items with the ids 1, 2, …, of which the first is the primary one."""
        ftyp = self.box(b"ftyp", brands) + before
        meta = b""
        for _ in range(2):  # the length of the box must be known to write it
            meta = self.meta(items, len(ftyp) + len(meta) + 8, is_idat=is_idat)
        return ftyp + meta + self.box(b"mdat", b"" if is_idat else b"".join(item.data for item in items))

    def meta(self, items: tuple[SimpleNamespace, ...], start: int, *, is_idat: bool = False) -> bytes:
        entries, places, references, associations, properties = b"", b"", b"", b"", []
        offset = 0 if is_idat else start
        for number, item in enumerate(items, 1):
            entries += self.full(b"infe", struct.pack(">HH", number, 0) + item.kind + b"\0", version=2)
            places += struct.pack(">HHHHII", number, int(is_idat), 0, 1, offset, len(item.data))
            offset += len(item.data)
            for kind, targets in item.refs.items():
                ids = struct.pack(f">HH{len(targets)}H", number, len(targets), *targets)
                references += self.box(kind.encode(), ids)
            indices = range(len(properties) + 1, len(properties) + 1 + len(item.properties))
            associations += struct.pack(">HB", number, len(indices)) + bytes(0x80 | index for index in indices)
            properties += item.properties
        parts = [
            self.full(b"hdlr", b"\0\0\0\0pict" + bytes(13)),
            self.full(b"pitm", struct.pack(">H", 1)),
            self.full(b"iloc", struct.pack(">BBH", 0x44, 0, len(items)) + places, version=1),
            self.full(b"iinf", struct.pack(">H", len(items)) + entries),
            self.box(
                b"iprp",
                self.box(b"ipco", b"".join(properties))
                + self.full(b"ipma", struct.pack(">I", len(items)) + associations),
            ),
        ]
        if references:
            parts.append(self.full(b"iref", references))
        if is_idat:
            parts.append(self.box(b"idat", b"".join(item.data for item in items)))
        return self.full(b"meta", b"".join(parts))


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """Return the builders, and 5 x 4 pixels of each kind to build from."""
    rng = np.random.default_rng(3)
    bgr = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return SimpleNamespace(
        exif=ExifBuilder(),
        png=PngBuilder(),
        jpeg=JpegBuilder(bgr),
        webp=WebpBuilder(bgr),
        isobmff=IsobmffBuilder(bgr),
        grey=rng.integers(0, 256, (4, 5), dtype=np.uint8),
        bgr=bgr,
        bgra=rng.integers(1, 256, (4, 5, 4), dtype=np.uint8),
        labels=np.arange(20, dtype=np.uint8).reshape(4, 5),
    )


@pytest.fixture(scope="session")
def samples(make: SimpleNamespace) -> dict[str, bytes]:
    """Return a small complete file of every supported kind, each 5 x 4 pixels."""
    png, jpeg, webp, exif, isobmff = make.png, make.jpeg, make.webp, make.exif, make.isobmff
    ten_bits = make.bgr.astype(np.uint16) * 4
    animation = cv2.Animation()
    animation.frames = [make.bgr, 255 - make.bgr]
    animation.durations = [100, 100]
    alpha = cv2.imencode(".webp", make.bgra, [cv2.IMWRITE_WEBP_QUALITY, 50])[1].tobytes()
    return {
        "png grey": png.build(make.grey),
        "png colour": cv2.imencode(".png", make.bgr)[1].tobytes(),
        "png alpha": cv2.imencode(".png", make.bgra)[1].tobytes(),
        "png palette": png.build(make.labels % 4, depth=2, colour=PALETTE, palette=bytes(range(12))),
        "png interlaced": png.build(make.labels, is_interlaced=True),
        "png 16 bit": png.build(make.grey.astype(np.uint16) * 257, depth=16),
        "png exif": png.build(make.grey, after=png.chunk(b"eXIf", exif.tiff())),
        "png animated": cv2.imencodeanimation(".png", animation)[1].tobytes(),
        "jpeg baseline": jpeg.whole,
        "jpeg grey": jpeg.encode(make.grey),
        "jpeg progressive": jpeg.encode(make.bgr, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "jpeg restarts": jpeg.encode(np.tile(make.bgr, (5, 5, 1))[:4, :5], cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
        "jpeg exif": jpeg.insert(jpeg.whole, jpeg.segment(jpeg.app1, exif.app1())),
        "webp lossy": webp.join(webp.vp8),
        "webp lossless": webp.join(webp.vp8l),
        "webp extended": webp.join(webp.vp8x(5, 4, 0x08), webp.vp8, webp.chunk(b"EXIF", exif.tiff())),
        "webp alpha": alpha,
        "avif colour": cv2.imencode(".avif", make.bgr)[1].tobytes(),
        "avif grey": cv2.imencode(".avif", make.grey)[1].tobytes(),
        "avif alpha": cv2.imencode(".avif", make.bgra)[1].tobytes(),
        "avif 10 bit": cv2.imencode(".avif", ten_bits, [cv2.IMWRITE_AVIF_DEPTH, 10])[1].tobytes(),
        "avif rotated": isobmff.join(isobmff.colour(isobmff.box(b"irot", b"\3"))),
        "heic colour": isobmff.encode_heic(make.bgr),
        "heic grey": isobmff.encode_heic(make.grey),
        "heic alpha": isobmff.encode_heic(make.bgra),
    }
