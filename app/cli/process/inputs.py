"""Which photos there are: files as they are named, folders with all that is below them."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")


class Photo(NamedTuple):
    """A photo that was found.

    Attributes:
        path: as it is opened and told of.
        sub: its folder, relative to the one that all inputs have in common; empty for that one.
        changed_ns: when it was last changed.
    """

    path: str
    sub: str
    changed_ns: int


class Unreadable(NamedTuple):
    """A file or folder that cannot be looked at, and why."""

    path: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Attributes:
        photos: in the order of their paths, input by input.
        unreadable: what could not be looked at.
    """

    photos: list[Photo] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)


def find_photos(inputs: Sequence[str], out: str) -> Found:
    """Find photos.

    In folders, those are files with one of `SUFFIXES`, in capitals or not; hidden files and folders are passed over.
    Folders are followed through symbolic links, each once, real paths first. The folder of results is no input.

    Args:
        inputs: files and folders, which have to be there.
        out: the folder of results, which need not.

    Raises:
        OSError: an input is not there, or is the folder of results.
    """
    if any(os.path.isdir(path) and os.path.isdir(out) and os.path.samefile(path, out) for path in inputs):
        # Pictures that are results would be photos the next time.
        raise FileExistsError(errno.EEXIST, "expected a folder of its own for results, got one of photos", out)
    roots = [(path, _absolute(path), stat.S_ISDIR(os.stat(path).st_mode)) for path in inputs]
    common = os.path.commonpath([whole if is_folder else os.path.dirname(whole) for _, whole, is_folder in roots])
    walk = _Walk(common, out)
    for path, whole, is_folder in roots:
        if is_folder:
            walk.add_folder(path, whole)
        else:
            walk.add_file(path, whole)
    walk.follow_links()
    return walk.found


def _absolute(path: str) -> str:
    # Only the file system knows what `..` behind a link means.
    return os.path.realpath(path) if ".." in path.split(os.sep) else os.path.abspath(path)


class _Walk:
    def __init__(self, common: str, out: str) -> None:
        self.found = Found()
        self._common = common
        self._photos: set[str] = set()
        self._folders: set[tuple[int, int]] = set()
        self._links: deque[tuple[str, str]] = deque()
        if os.path.isdir(out):
            self._mark(out)

    def add_folder(self, path: str, whole: str) -> None:
        """Add a folder and all below it, but for links to other folders, which come last."""
        waiting = [(path, whole)]
        while waiting:
            folder, whole = waiting.pop()
            try:
                if not self._mark(folder):
                    continue
                entries = sorted(_list(folder), key=lambda entry: entry.name)
            except OSError as error:
                self.found.unreadable.append(Unreadable(folder, "folder_unreadable", explain(error)))
                continue
            below = []
            for entry in entries:
                inside = os.path.join(whole, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    below.append((entry.path, inside))
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    self._links.append((entry.path, inside))
                elif entry.name.lower().endswith(SUFFIXES):
                    self.add_file(entry.path, inside)
            waiting.extend(reversed(below))

    def follow_links(self) -> None:
        """Add the folders that links lead to and that nothing has led to before."""
        while self._links:
            self.add_folder(*self._links.popleft())

    def add_file(self, path: str, whole: str) -> None:
        """Add one file, once."""
        if whole in self._photos:
            return
        self._photos.add(whole)
        try:
            status = os.stat(path)
        except OSError as error:
            self.found.unreadable.append(Unreadable(path, "file_unreadable", f"image: {explain(error)}"))
            return
        sub = os.path.relpath(os.path.dirname(whole), self._common)
        self.found.photos.append(Photo(path, "" if sub == os.curdir else sub, status.st_mtime_ns))

    def _mark(self, folder: str) -> bool:
        """Note a folder; False where it was noted before."""
        status = os.stat(folder)
        key = status.st_dev, status.st_ino
        is_new = key not in self._folders
        self._folders.add(key)
        return is_new


def _list(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def explain(error: OSError) -> str:
    """Say what the system says, without the path, which stands beside it."""
    return error.strerror or type(error).__name__


def show(path: str) -> str:
    r"""Write a path so that any terminal and any JSON document takes it.

    Example:
        >>> show("a\x1b[1m\udcff.png")
        'a\\x1b[1m\\xff.png'
    """
    if path.isprintable():
        return path
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
