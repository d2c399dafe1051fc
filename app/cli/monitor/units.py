"""Numbers as a person reads them, a few characters each; a dash where there is no value."""

from __future__ import annotations

from typing import Final

NONE: Final = "-"

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_K: Final = 1000
_LEAST: Final = 0.001
_KI: Final = 1024


def format_figure(value: float) -> str:
    """Write a number with two to three figures that count.

    Example:
        >>> [format_figure(value) for value in (0, 0.0002, 0.0312, 0.5, 3.14159, 42.4, 512.3, 15_300, 2_500_000)]
        ['0', '<0.001', '0.031', '0.50', '3.1', '42', '512', '15.3k', '2.5M']
    """
    if value == 0:
        return "0"
    if value < _LEAST:
        return f"<{_LEAST}"
    for limit, digits in ((0.1, 3), (1, 2), (10, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    if value < 9_999.5:  # noqa: PLR2004 - from here on it would have five figures
        return f"{value:.0f}"
    return f"{value / _K:.1f}k" if value < _K * (_K - 0.05) else f"{value / _K / _K:.1f}M"


def format_rate(per_s: float | None) -> str:
    """Write a rate per second.

    Example:
        >>> format_rate(12.34), format_rate(None)
        ('12/s', '-')
    """
    return NONE if per_s is None else f"{format_figure(per_s)}/s"


def format_count(value: float | None) -> str:
    """Write a number of things.

    Example:
        >>> format_count(3.0), format_count(9999), format_count(123_456)
        ('3', '9999', '123.5k')
    """
    if value is None:
        return NONE
    return f"{value:.0f}" if value < 9_999.5 else format_figure(value)  # noqa: PLR2004 - as there


def format_seconds(seconds: float | None, *, is_beyond: bool = False) -> str:
    """Write a short time, such as that of a request.

    Args:
        seconds: the time.
        is_beyond: whether it is no less than that, and nobody knows how much more.

    Example:
        >>> [format_seconds(value) for value in (0, 0.00042, 0.0031, 0.0425, 0.31, 2.345, 75)]
        ['0 ms', '0.42 ms', '3.1 ms', '42 ms', '310 ms', '2.3 s', '75 s']
        >>> format_seconds(10.0, is_beyond=True)
        '>10 s'
    """
    if seconds is None:
        return NONE
    text = f"{format_figure(_K * seconds)} ms" if seconds < 0.9995 else f"{format_figure(seconds)} s"  # noqa: PLR2004
    return f">{text}" if is_beyond else text


def format_span(seconds: float | None) -> str:
    """Write how long something lasts, or is ago.

    Example:
        >>> [format_span(value) for value in (0.4, 59.4, 60, 3725, 200_000)]
        ['0 s', '59 s', '1 min 0 s', '1 h 2 min', '2 d 7 h']
    """
    if seconds is None:
        return NONE
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def format_size(size: float | None) -> str:
    """Write a number of bytes.

    Example:
        >>> [format_size(value) for value in (0, 900, 42_147, 101_580_800, 4_831_838_208)]
        ['0 B', '900 B', '41 KiB', '97 MiB', '4.5 GiB']
    """
    if size is None:
        return NONE
    for unit in ("B", "KiB", "MiB"):
        if size < _KI - 0.5:
            return f"{format_figure(size)} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= _KI
    return f"{format_figure(size)} GiB"


def format_percent(percent: float | None) -> str:
    """Write a share of a hundred.

    Example:
        >>> format_percent(0.41), format_percent(33.3), format_percent(None)
        ('0.4 %', '33 %', '-')
    """
    if percent is None:
        return NONE
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"  # noqa: PLR2004 - "9.9 %", then "10 %"


def printable(text: str) -> str:
    r"""Make text from the network harmless to a terminal: what is no character to see becomes a question mark.

    Example:
        >>> printable("a\x1b[31mb\n")
        'a?[31mb?'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)
