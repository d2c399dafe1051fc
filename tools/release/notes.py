#!/usr/bin/env python3
"""Check that a tag can be released, and print its release notes from CHANGELOG.md."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING

from version import ROOT, VersionError, read_version

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_HEADING = re.compile(r"^## \[(?P<name>[^]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)


class NotesError(Exception):
    """Raised if a tag cannot be released."""


def read_section(changelog: str, version: str) -> str:
    """Return the section of a version without its heading.

    Raises:
        NotesError: the section is missing, has no date, or is empty.
    """
    headings = list(_HEADING.finditer(changelog))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        if heading["name"] != version:
            continue
        end = following.start() if following else len(changelog)
        text = re.sub(r"^\[[^]]+\]: \S+$", "", changelog[heading.end() : end], flags=re.MULTILINE).strip()
        if not heading["date"]:
            raise NotesError(f"CHANGELOG.md: expected a date in the heading of {version}, found none")
        if not text:
            raise NotesError(f"CHANGELOG.md: expected changes in the section of {version}, found none")
        return text
    raise NotesError(f"CHANGELOG.md: expected a section `## [{version}] - YYYY-MM-DD`, found none")


def make_notes(root: Path, tag: str) -> str:
    """Return the release notes of a tag.

    Raises:
        NotesError: the tag is not the version of the code, or the changelog has no complete section for it.
        VersionError: the code has no version.
    """
    version = read_version(root)
    if tag != f"v{version}":
        raise NotesError(f"tag: expected v{version}, the version of the code, got {tag}")
    section = read_section((root / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    page = f"https://github.com/facial-service/facial-service/blob/{tag}/docs/upgrading.md"
    return f"[Upgrade, supported versions, verification of signatures]({page})\n\n{section}\n"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Print the release notes, or exit with 1 and the reason why the tag cannot be released."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag", metavar="TAG", help="the tag, such as v0.1.0")
    try:
        print(make_notes(root, parser.parse_args(arguments).tag), end="")
    except (NotesError, VersionError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
