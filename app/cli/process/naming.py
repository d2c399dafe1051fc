"""What places are called: results, which share none; what belongs to a photo; a service."""

from __future__ import annotations

import collections
import os
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

PLACEHOLDERS: Final = ("dir", "name", "stem", "sub")
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_STRAY_BRACE: Final = re.compile(r"[{}]")


def name_results(places: Sequence[tuple[str, str]]) -> list[str]:
    """Choose a name for the results of each photo.

    A photo's results are named by its stem. Where that would be the name of another's too, all of these are named by
    their whole names: ``a.png`` and ``a.jpg`` become ``a.png.svg`` and ``a.jpg.svg``. None of them takes the short one,
    so that a photo that is added later never stands for the result of an earlier one.

    Args:
        places: folder, relative to where results go, and name of each photo; no two are the same.

    Returns:
        A path for each, relative to where results go, to which the suffix of a format is added.

    Example:
        >>> name_results([("", "a.png"), ("", "a.jpg"), ("b", "a.png")])
        ['a.png', 'a.jpg', 'b/a']
    """
    short = [os.path.join(folder, os.path.splitext(name)[0]) for folder, name in places]
    whole = [os.path.join(folder, name) for folder, name in places]
    chosen = list(short)
    while True:
        counts = collections.Counter(chosen)
        shared = [at for at, name in enumerate(chosen) if counts[name] > 1 and name != whole[at]]
        if not shared:
            return chosen
        for at in shared:
            chosen[at] = whole[at]


def check_pattern(pattern: str) -> None:
    """Refuse a pattern that could not be filled in.

    Raises:
        ValueError: it has a placeholder that there is not, or a brace of its own.
    """
    expected = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    if any(found[1] not in PLACEHOLDERS for found in _PLACEHOLDER.finditer(pattern)):
        raise ValueError(f"expected no placeholders but {expected}, got another")
    if _STRAY_BRACE.search(_PLACEHOLDER.sub("", pattern)):
        raise ValueError(f"expected braces around {expected} only, got one alone")


def is_service_url(text: str) -> bool:
    """Tell whether a text is the URL of a service, and nothing that should not be told of in messages.

    Example:
        >>> is_service_url("https://faces.example.com/prefix"), is_service_url("http://user:password@host")
        (True, False)
    """
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        return False


def fill_pattern(pattern: str, photo: str, sub: str) -> str:
    """Name the file that belongs to a photo.

    Args:
        pattern: a path with placeholders, as `check_pattern` lets through.
        photo: path of the photo.
        sub: its folder, relative to the one that all photos have in common.

    Example:
        >>> fill_pattern("{dir}/../points/{stem}.json", "photos/a.png", "")
        'photos/../points/a.json'
    """
    folder, name = os.path.split(photo)
    values = {"dir": folder or ".", "name": name, "stem": os.path.splitext(name)[0], "sub": sub or "."}
    return _PLACEHOLDER.sub(lambda found: values[found[1]], pattern)
