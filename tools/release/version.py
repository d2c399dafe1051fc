#!/usr/bin/env python3
"""Write the version of `app/__init__.py` into all files that repeat it, because other programs read them."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
VERSION = r"\d+\.\d+\.\d+"
SOURCE = Path("app/__init__.py")

# What precedes the version in each file, as regular expressions.
PLACES: dict[str, tuple[str, ...]] = {
    "Dockerfile": (r"^ARG VERSION=",),
    "charts/facial-service/Chart.yaml": (r"^version: ", r"^appVersion: ", r"image: ghcr\.io/\S+/facial-service:"),
    "charts/facial-service/README.md": (r"/facial-service:",),
    "README.md": (r"/facial-service:",),
    "docs/doctor.md": (r'^  "version": "',),
    "docs/upgrading.md": (r"/facial-service:", r"--version ", r"refs/tags/v", r"facial-service-"),
}


class VersionError(Exception):
    """Raised if a file has no version where one is expected."""


def read_version(root: Path = ROOT) -> str:
    """Return the version of the service, without importing it.

    Raises:
        VersionError: the version is missing, or is not MAJOR.MINOR.PATCH.
    """
    match = re.search(r'^__version__ = "(.*)"$', (root / SOURCE).read_text(encoding="utf-8"), re.MULTILINE)
    if not match or not re.fullmatch(VERSION, match[1]):
        raise VersionError(f"{SOURCE}: expected __version__ as MAJOR.MINOR.PATCH, got {match and match[1]}")
    return match[1]


def fill(name: str, text: str, version: str) -> str:
    """Replace each version in the text of a file.

    Raises:
        VersionError: a place has no version.
    """
    for place in PLACES[name]:
        text, count = re.subn(f"({place}){VERSION}", rf"\g<1>{version}", text, flags=re.MULTILINE)
        if not count:
            raise VersionError(f"{name}: expected a version after {place}, found none")
    return text


def update(root: Path, *, is_check: bool) -> list[str]:
    """Write the version, unless it is only checked, and return the names of the files that differed.

    Raises:
        VersionError: a version is missing.
    """
    version = read_version(root)
    stale = []
    for name in PLACES:
        text = (root / name).read_text(encoding="utf-8")
        if (new := fill(name, text, version)) != text:
            stale.append(name)
            if not is_check:
                (root / name).write_text(new, encoding="utf-8")
    return stale


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Write the version, or with --check exit with 1 if a file has another one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; fail if a file has another version")
    is_check = parser.parse_args(arguments).check
    try:
        stale = update(root, is_check=is_check)
    except VersionError as error:
        sys.exit(str(error))
    if stale and is_check:
        sys.exit(f"other version than {SOURCE}: {', '.join(stale)}; run `make generate`")


if __name__ == "__main__":
    main()
