"""Shared libraries without code: each function returns 0, so a null pointer if it returns a pointer.

A library cannot be loaded if another one that it is linked with is missing, even if it never calls a function of it. A
stub takes the place of the missing one.

The layout follows the System V ABI, chapters "Object Files" and "Program Loading and Dynamic Linking" (64-bit,
little-endian), and "Symbol Versioning" of the Linux Standard Base.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"\x7fELF\x02\x01\x01"  # 64-bit, little-endian, version 1
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<QQ")
_VERSION = struct.Struct("<HHHHIII")
_VERSION_NAME = struct.Struct("<II")

_SHARED_OBJECT = 3  # ET_DYN
_DYNAMIC_SECTION, _SYMBOL_SECTION, _VERSION_SECTION = 6, 11, 0x6FFFFFFD  # SHT_*
_LOAD, _DYNAMIC_SEGMENT, _STACK = 1, 2, 0x6474E551  # PT_*
_EXECUTE, _WRITE, _READ = 1, 2, 4  # PF_*
_NEEDED, _HASH, _STRINGS, _SYMBOLS, _STRINGS_SIZE, _SYMBOL_SIZE, _SONAME = 1, 4, 5, 6, 10, 11, 14  # DT_*
_SYMBOL_VERSIONS, _VERSIONS, _VERSION_COUNT = 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFD  # DT_*
_GLOBAL_FUNCTION = 1 << 4 | 2  # STB_GLOBAL, STT_FUNC
_BASE_VERSION = 1  # VER_FLG_BASE: names the library itself

_ALIGNMENT = 0x10000  # the largest page size of AArch64
_RETURN_ZERO = {
    62: bytes.fromhex("31c0 c3"),  # x86-64: xor eax, eax; ret
    183: bytes.fromhex("000080d2 c0035fd6"),  # AArch64: mov x0, #0; ret
}


class StubError(Exception):
    """A library cannot be replaced by a stub; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Library:
    """What the dynamic linker reads of a shared library.

    Attributes:
        machine: number of the processor architecture.
        soname: name by which others refer to the library, or "".
        needed: names of the libraries that it is linked with.
        versions: names of the versions of its symbols.
        defined: functions and variables that it defines.
        undefined: functions and variables that others must define.
    """

    machine: int
    soname: str
    needed: frozenset[str]
    versions: tuple[str, ...]
    defined: frozenset[str]
    undefined: frozenset[str]


def is_library(path: Path) -> bool:
    """Return whether a file is an ELF file of the supported kind."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_library(path: Path) -> Library:
    """Read the dynamic section, the symbols and their versions of a shared library. It must have section headers."""
    data = path.read_bytes()
    header = _HEADER.unpack_from(data)
    machine, sections_at, count = header[2], header[6], header[12]
    sections = [_SECTION.unpack_from(data, sections_at + number * _SECTION.size) for number in range(count)]
    soname, versions = "", list[str]()
    needed, defined, undefined = set[str](), set[str](), set[str]()
    for _, kind, _, _, start, size, link, *_ in sections:
        content, strings = data[start : start + size], sections[link][4]
        if kind == _DYNAMIC_SECTION:
            for tag, value in _DYNAMIC.iter_unpack(content):
                if tag == _NEEDED:
                    needed.add(_read_string(data, strings + value))
                elif tag == _SONAME:
                    soname = _read_string(data, strings + value)
        elif kind == _VERSION_SECTION:
            versions += [_read_string(data, strings + name) for name in _list_versions(content)]
        elif kind == _SYMBOL_SECTION:
            for name, _, _, section, _, _ in _SYMBOL.iter_unpack(content):
                (defined if section else undefined).add(_read_string(data, strings + name))
    return Library(machine, soname, frozenset(needed), tuple(versions), frozenset(defined), frozenset(undefined))


def _list_versions(content: bytes) -> list[int]:
    """Return the offsets of the names of all versions but that of the library itself."""
    at, following, names = 0, -1, []
    while following:
        _, flags, _, _, _, name_at, following = _VERSION.unpack_from(content, at)
        if not flags & _BASE_VERSION:
            names.append(_VERSION_NAME.unpack_from(content, at + name_at)[0])
        at += following
    return names


def _read_string(data: bytes, start: int) -> str:
    return data[start : data.index(0, start)].decode()


def make_stub(library: Library, functions: Sequence[str]) -> bytes:
    """Return a library with the same name and version whose functions return 0.

    Raises:
        StubError: the architecture is not supported, or the library has several versions.
    """
    if library.machine not in _RETURN_ZERO:
        raise StubError(f"{library.soname}: expected x86-64 or AArch64, got ELF machine {library.machine}")
    if len(library.versions) > 1:
        raise StubError(f"{library.soname}: expected at most one version of the symbols, got {len(library.versions)}")
    code = _RETURN_ZERO[library.machine]
    names = [library.soname, *library.versions]
    strings = _Strings([*names, *functions])
    image = _Image(_HEADER.size + 4 * _SEGMENT.size)
    # One bucket, whose chain contains all symbols. The first symbol is empty.
    count = len(functions) + 1
    chain = [*range(1, count), 0]
    hash_at = image.add(struct.pack(f"<{3 + count}I", 1, count, chain[0], 0, *chain[1:]))
    code_at = image.add(code)
    symbols = [_SYMBOL.pack(strings[name], _GLOBAL_FUNCTION, 0, 1, code_at, len(code)) for name in functions]
    entries = [
        (_SONAME, strings[library.soname]),
        (_HASH, hash_at),
        (_STRINGS, image.add(strings.content)),
        (_STRINGS_SIZE, len(strings.content)),
        (_SYMBOLS, image.add(bytes(_SYMBOL.size) + b"".join(symbols))),
        (_SYMBOL_SIZE, _SYMBOL.size),
    ]
    if library.versions:
        entries += [
            (_SYMBOL_VERSIONS, image.add(struct.pack(f"<{count}H", 0, *(len(names) for _ in functions)))),
            (_VERSIONS, image.add(_pack_versions(names, strings))),
            (_VERSION_COUNT, len(names)),
        ]
    dynamic_at = image.add(b"".join(_DYNAMIC.pack(*entry) for entry in [*entries, (0, 0)]))
    return image.finish(library.machine, dynamic_at)


def _pack_versions(names: Sequence[str], strings: "_Strings") -> bytes:
    size = _VERSION.size + _VERSION_NAME.size
    return b"".join(
        _VERSION.pack(
            1,
            _BASE_VERSION if number == 0 else 0,
            number + 1,
            1,
            _hash_name(name),
            _VERSION.size,
            size if number + 1 < len(names) else 0,
        )
        + _VERSION_NAME.pack(strings[name], 0)
        for number, name in enumerate(names)
    )


def _hash_name(name: str) -> int:
    """Return the hash of the System V ABI."""
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high
    return value


class _Strings:
    """String table; names map to their offsets."""

    def __init__(self, names: Sequence[str]) -> None:
        self.content = b"\0"
        self._starts: dict[str, int] = {}
        for name in names:
            self._starts[name] = len(self.content)
            self.content += name.encode() + b"\0"

    def __getitem__(self, name: str) -> int:
        return self._starts[name]


class _Image:
    """Content of a library behind its headers. Addresses are offsets in the file, except of the dynamic section."""

    def __init__(self, headers: int) -> None:
        self._content = bytearray(headers)

    def add(self, content: bytes) -> int:
        """Append aligned content, and return its offset."""
        self._content += bytes(-len(self._content) % 16)
        start = len(self._content)
        self._content += content
        return start

    def finish(self, machine: int, dynamic_at: int) -> bytes:
        """Write the headers, and return the library. The dynamic section must have been added last."""
        dynamic_address = _ALIGNMENT + dynamic_at  # on a page of its own, because the linker writes to it
        dynamic_size = len(self._content) - dynamic_at
        segments = (
            (_LOAD, _READ | _EXECUTE, 0, 0, dynamic_at, _ALIGNMENT),
            (_LOAD, _READ | _WRITE, dynamic_at, dynamic_address, dynamic_size, _ALIGNMENT),
            (_DYNAMIC_SEGMENT, _READ | _WRITE, dynamic_at, dynamic_address, dynamic_size, 8),
            (_STACK, _READ | _WRITE, 0, 0, 0, 16),  # without it, the stack would become executable
        )
        ident, sizes = _MAGIC.ljust(16, b"\0"), (_HEADER.size, _SEGMENT.size, len(segments), 0, 0, 0)
        headers = _HEADER.pack(ident, _SHARED_OBJECT, machine, 1, 0, _HEADER.size, 0, 0, *sizes) + b"".join(
            _SEGMENT.pack(kind, flags, offset, address, address, size, size, alignment)
            for kind, flags, offset, address, size, alignment in segments
        )
        self._content[: len(headers)] = headers
        return bytes(self._content)
