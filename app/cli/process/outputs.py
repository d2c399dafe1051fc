"""The folder of results: whose it is, what is done in it already, and how a result gets there.

A photo is done when all its files are there, none older than what they were made from. Each is written under a
temporary name beside its place and renamed; nothing else says what is done, so a killed run goes on where it was.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NOTES: Final = ".facial-service.json"
_NOTES_FORMAT: Final = 1
_NEVER_NS: Final = 1 << 63
_PART: Final = re.compile(r"\.facial-service\.[0-9-]+\.part")
_numbers = itertools.count()


class OutputError(Exception):
    """The folder of results cannot be used; the text says why, and what to do."""


class BusyError(OutputError):
    """Another run has the folder."""


class _Notes(msgspec.Struct):
    """What an earlier run left: how results were made, and from when on they count."""

    format: int
    since_ns: int
    options: dict[str, Any]


class OutputFolder:
    """The folder of results, held by one run at a time.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._since_ns = 0
        self._seen: dict[str, dict[str, tuple[int, int]]] = {}
        self._lock: int | None = None
        self._is_dry = False

    def hold(self) -> None:
        """Make the folder, and keep other runs out of it while this process lives.

        Raises:
            BusyError: another run has it.
            OSError: it cannot be made.
        """
        os.makedirs(self.path, exist_ok=True)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError("another run is writing into it; wait for its end, or choose another --out") from None
        except OSError:
            pass  # some network file systems lock no folders; two runs would do the same work, and do it no harm

    def close(self) -> None:
        """Let others have the folder; so does the end of the process, whatever kind of end it is."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def claim(self, options: Mapping[str, Any], *, is_again: bool, is_dry: bool = False) -> None:
        """Compare the options with those that were noted, and note these.

        Args:
            options: by their names, as JSON has them.
            is_again: whatever is there shall be made again.
            is_dry: change nothing.

        Raises:
            OutputError: the results that are there were made otherwise.
            OSError: the notes cannot be read or written.
        """
        self._is_dry = is_dry
        before = self._read_notes()
        if before is not None and not is_again:
            if differences := _tell_differences(before.options, options):
                raise OutputError(
                    f"its results were made with other options: {differences}; choose another --out, or make all of "
                    "them again with --again"
                )
            self._since_ns = before.since_ns
            return
        # What is there without notes is not ours.
        self._since_ns = _NEVER_NS
        if not is_dry:
            self._write_notes(options)

    def is_done(self, files: Sequence[str], changed_ns: int) -> bool:
        """Tell whether all files of a photo are there and not older than what they are made from."""
        needed_ns = max(changed_ns, self._since_ns)
        for file in files:
            folder, name = os.path.split(file)
            written_ns, size = self._look(folder).get(name, (-1, 0))
            # An empty file is what a power cut may leave of one.
            if written_ns < needed_ns or not size:
                return False
        return True

    def _look(self, folder: str) -> dict[str, tuple[int, int]]:
        """List a folder once, and remove what a killed run left half written in it."""
        seen = self._seen.get(folder)
        if seen is None:
            seen = self._seen[folder] = {}
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                for entry in entries:
                    if _PART.fullmatch(entry.name):
                        if not self._is_dry:
                            os.unlink(entry.path)
                    elif entry.is_file():
                        status = entry.stat()
                        seen[entry.name] = status.st_mtime_ns, status.st_size
        return seen

    def _read_notes(self) -> _Notes | None:
        try:
            with open(os.path.join(self.path, NOTES), "rb") as file:
                notes = msgspec.json.decode(file.read(), type=_Notes)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            notes = None
        if notes is None or notes.format != _NOTES_FORMAT:
            raise OutputError(f"{NOTES}: expected notes of an earlier run, got something else; choose another --out")
        return notes

    def _write_notes(self, options: Mapping[str, Any]) -> None:
        place = os.path.join(self.path, NOTES)
        # By the clock of the file system, which results are dated by too.
        mark = write_part(place, b"")
        self._since_ns = os.stat(mark).st_mtime_ns
        os.unlink(mark)
        notes = msgspec.json.encode(_Notes(_NOTES_FORMAT, self._since_ns, dict(options)))
        os.rename(write_part(place, msgspec.json.format(notes) + b"\n"), place)


def write_part(place: str, content: bytes) -> str:
    """Write what is to be renamed to ``place``, beside it and under a name of no other.

    Returns:
        Its path.

    Raises:
        OSError: it cannot be written; nothing is left then.
    """
    folder = os.path.dirname(place)
    # Of the photo's own name nothing: a name that is nearly too long would be too long then.
    part = os.path.join(folder, f".facial-service.{os.getpid()}-{threading.get_ident()}-{next(_numbers)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        file = os.open(part, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)
        file = os.open(part, flags, 0o666)
    try:
        with open(file, "wb", buffering=0) as stream:
            view = memoryview(content)
            while view:
                view = view[stream.write(view) :]
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
    return part


def write_all(contents: Mapping[str, bytes]) -> None:
    """Write all files of a photo, and rename them once all are written.

    Args:
        contents: by path.

    Raises:
        OSError: one cannot be written.
    """
    parts: dict[str, str] = {}
    try:
        for place, content in contents.items():
            parts[place] = write_part(place, content)
        for place, part in parts.items():
            os.rename(part, place)
    except BaseException:
        for part in parts.values():
            with suppress(OSError):
                os.unlink(part)
        raise


def remove_parts(files: Iterable[str], pid: int) -> None:
    """Remove what a process that is dead left half written beside some files."""
    for folder in {os.path.dirname(file) for file in files}:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if _PART.fullmatch(entry.name) and entry.name.startswith(f".facial-service.{pid}-"):
                    os.unlink(entry.path)


def _tell_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {_text(before.get(name))} and is {_text(now.get(name))}" for name in names)


def _text(value: Any) -> str:
    return "not given" if value is None else str(msgspec.json.encode(value), "utf-8")
