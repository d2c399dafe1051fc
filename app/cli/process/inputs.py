"""Find the input images: files as named on the command line, folders with everything below them."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

HEIC_SUFFIXES: Final = (".heic", ".heif", ".hif")
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", *HEIC_SUFFIXES)


class InputImage(NamedTuple):
    """An image file."""

    path: str  # path to open and to report
    sub: str  # its folder, relative to the common folder of all inputs; empty for that folder itself
    modified_ns: int


class Failure(NamedTuple):
    """An image or a folder that failed."""

    path: str
    code: str  # stable, machine-readable
    reason: str  # sentence for the user


class IgnoredFile(NamedTuple):
    """A file in an input folder that is not processed."""

    path: str
    reason: str  # sentence for the user


@dataclass(frozen=True, slots=True)
class FoundImages:
    """Result of a search."""

    images: list[InputImage] = field(default_factory=list)  # sorted by path within each input
    failures: list[Failure] = field(default_factory=list)  # files and folders that cannot be read
    ignored: list[IgnoredFile] = field(default_factory=list)  # other files in the folders, except hidden ones


def find_images(inputs: Sequence[str], out: str, *, has_heic: bool = True) -> FoundImages:
    """Find the images in files and folders.

    A named file is an image regardless of its suffix. In a folder, only files with one of `SUFFIXES` are images, in
    either case; hidden files and folders are skipped. Symbolic links to folders are followed after all real
    folders, and each folder is searched once. The results folder is never searched. Without `has_heic`, HEIC files
    in folders are ignored.

    Raises:
        OSError: an input is missing, or is the results folder.
    """
    if any(os.path.isdir(path) and os.path.isdir(out) and os.path.samefile(path, out) for path in inputs):
        # PNG results would be input images of the next run.
        raise FileExistsError(errno.EEXIST, "expected a results folder that is not an input; choose another --out", out)
    roots = [(path, _absolute(path), stat.S_ISDIR(os.stat(path).st_mode)) for path in inputs]
    common = os.path.commonpath([full if is_folder else os.path.dirname(full) for _, full, is_folder in roots])
    search = _Search(common, out, has_heic=has_heic)
    for path, full, is_folder in roots:
        if is_folder:
            search.add_folder(path, full)
        else:
            search.add_file(path, full)
    search.follow_links()
    return search.found


def _absolute(path: str) -> str:
    # Only the file system can resolve `..` after a symbolic link.
    return os.path.realpath(path) if ".." in path.split(os.sep) else os.path.abspath(path)


class _Search:
    def __init__(self, common: str, out: str, *, has_heic: bool) -> None:
        self.found = FoundImages()
        self._common = common
        self._has_heic = has_heic
        self._files: set[str] = set()
        self._folders: set[tuple[int, int]] = set()
        self._links: deque[tuple[str, str]] = deque()
        if os.path.isdir(out):
            self._mark_visited(out)

    def add_folder(self, path: str, full: str) -> None:
        """Add a folder and everything below it; queue links to other folders for `follow_links`."""
        pending = [(path, full)]
        while pending:
            folder, full = pending.pop()
            try:
                if not self._mark_visited(folder):
                    continue
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as error:
                self.found.failures.append(Failure(folder, "folder_unreadable", os_error_text(error)))
                continue
            subfolders = []
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                inside = os.path.join(full, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    subfolders.append((entry.path, inside))
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    self._links.append((entry.path, inside))
                elif reason := self._reason_to_ignore(entry.name):
                    self.found.ignored.append(IgnoredFile(entry.path, reason))
                else:
                    self.add_file(entry.path, inside)
            pending.extend(reversed(subfolders))

    def _reason_to_ignore(self, name: str) -> str:
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in SUFFIXES:
            return f"expected an image, got {f'a {escape_path(suffix)} file' if suffix else 'a file without a suffix'}"
        if suffix in HEIC_SUFFIXES and not self._has_heic:
            return "expected an image that can be decoded, got HEIC; install pillow-heif"
        return ""

    def follow_links(self) -> None:
        """Add the folders that only symbolic links lead to."""
        while self._links:
            self.add_folder(*self._links.popleft())

    def add_file(self, path: str, full: str) -> None:
        """Add a file unless it was added before."""
        if full in self._files:
            return
        self._files.add(full)
        try:
            status = os.stat(path)
        except OSError as error:
            self.found.failures.append(Failure(path, "file_unreadable", f"image: {os_error_text(error)}"))
            return
        sub = os.path.relpath(os.path.dirname(full), self._common)
        self.found.images.append(InputImage(path, "" if sub == os.curdir else sub, status.st_mtime_ns))

    def _mark_visited(self, folder: str) -> bool:
        """Mark a folder as visited; return False if it was visited before."""
        status = os.stat(folder)
        key = status.st_dev, status.st_ino
        is_new = key not in self._folders
        self._folders.add(key)
        return is_new


def os_error_text(error: OSError) -> str:
    """Return the system's description of an error, without the path, which the caller reports."""
    return error.strerror or type(error).__name__


def escape_path(path: str) -> str:
    r"""Escape the bytes of a path that a terminal or a JSON document cannot contain.

    Example:
        >>> escape_path("a\x1b[1m\udcff.png")
        'a\\x1b[1m\\xff.png'
    """
    if path.isprintable():
        return path
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
