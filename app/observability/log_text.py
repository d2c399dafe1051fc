"""Text of log lines: numbers with their nouns, sizes, and characters that could forge a line or control a terminal."""

from __future__ import annotations

import re
from typing import Final

# Control characters, line separators, characters that change the direction of text, and surrogates.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNITS: Final = ("B", "KiB", "MiB", "GiB")
_NEXT_UNIT: Final = 1023.5  # rounds to 1024
_THREE_DIGITS: Final = 99.95  # rounds to 100; more significant digits would need an exponent


def escape_unsafe(text: str) -> str:
    r"""Return text in which characters that could forge a line or control a terminal are visible escapes.

    Example:
        >>> print(escape_unsafe("one\ntwo \x1b[31mred 🙂"))
        one\ntwo \x1b[31mred 🙂
    """
    return text if text.isprintable() else _UNSAFE.sub(_escape, text)


def escape_unsafe_json(line: str) -> str:
    r"""Return a line of JSON in which those characters that JSON allows in strings are escapes of JSON.

    Example:
        >>> print(escape_unsafe_json('{"path":"a\u202eb"}'))
        {"path":"a\u202eb"}
    """
    if line.isascii() and "\x7f" not in line:
        return line
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun.

    Example:
        >>> count_of(1, "region"), count_of(2, "region"), count_of(0, "process", "processes")
        ('1 region', '2 regions', '0 processes')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def size_of(number: float) -> str:
    """Return a size in bytes with a unit, in up to three significant digits.

    Example:
        >>> size_of(812), size_of(35_123), size_of(16 * 2**20), size_of(1023 * 2**20), size_of(2.25 * 2**30)
        ('812 B', '34.3 KiB', '16 MiB', '1023 MiB', '2.25 GiB')
    """
    power = 0
    while number >= _NEXT_UNIT and power < len(_UNITS) - 1:
        number /= 1024
        power += 1
    digits = ".0f" if power == 0 or number >= _THREE_DIGITS else ".3g"
    return f"{number:{digits}} {_UNITS[power]}"
