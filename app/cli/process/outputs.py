"""The results folder: its lock, its manifest, and atomic writes.

A result is written to a temporary file in the same folder and renamed when it is complete. An image is up to date if
all its results exist and none is older than its input files. No other state is stored, so that a run resumes after a
kill at any moment.
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

MANIFEST: Final = ".facial-service.json"
_MANIFEST_FORMAT: Final = 1
_NEVER_NS: Final = 1 << 63
_TEMPORARY: Final = re.compile(r"\.facial-service\.[0-9-]+\.part")
_numbers = itertools.count()


class OutputError(Exception):
    """The results folder cannot be used; the text gives the reason and the remedy."""


class FolderInUseError(OutputError):
    """Another run holds the lock of the results folder."""


class _Manifest(msgspec.Struct):
    """Options that results were made with, and the time since when results count as made with them."""

    format: int
    since_ns: int
    options: dict[str, Any]


class OutputFolder:
    """The results folder, used by one run at a time; `lock` creates it if it is missing."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._since_ns = 0
        self._listings: dict[str, dict[str, tuple[int, int]]] = {}
        self._lock: int | None = None
        self._is_dry_run = False

    def lock(self) -> None:
        """Create the folder, and lock it until `close` or the end of the process.

        Raises:
            FolderInUseError: another run holds the lock.
            OSError: the folder cannot be created.
        """
        os.makedirs(self.path, exist_ok=True)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUseError(
                "another run is writing to this folder; wait until it ends, or choose another --out"
            ) from None
        except OSError:
            pass  # Some network file systems cannot lock folders. Two runs would only duplicate work.

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_manifest(self, options: Mapping[str, Any], *, is_forced: bool, is_dry_run: bool = False) -> None:
        """Compare the options with the manifest, and write a manifest if there is none.

        If `is_forced`, the manifest is replaced, so that no existing result counts as up to date.

        Raises:
            OutputError: the existing results were made with different options.
            OSError: the manifest cannot be read or written.
        """
        self._is_dry_run = is_dry_run
        manifest = self._read_manifest()
        if manifest is not None and not is_forced:
            if changes := _describe_changes(manifest.options, options):
                raise OutputError(
                    f"existing results were made with different options: {changes}; choose another --out, or replace "
                    "the results with --force"
                )
            self._since_ns = manifest.since_ns
            return
        # Without a manifest, existing files are not results of this command.
        self._since_ns = _NEVER_NS
        if not is_dry_run:
            self._write_manifest(options)

    def is_up_to_date(self, files: Sequence[str], modified_ns: int) -> bool:
        """Return whether all results of an image exist and none is older than its input files."""
        oldest_ns = max(modified_ns, self._since_ns)
        for file in files:
            folder, name = os.path.split(file)
            written_ns, size = self._list(folder).get(name, (-1, 0))
            # A power cut can leave an empty file.
            if written_ns < oldest_ns or not size:
                return False
        return True

    def _list(self, folder: str) -> dict[str, tuple[int, int]]:
        """List a folder once, and remove the temporary files of a killed run from it."""
        listing = self._listings.get(folder)
        if listing is None:
            listing = self._listings[folder] = {}
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                for entry in entries:
                    if _TEMPORARY.fullmatch(entry.name):
                        if not self._is_dry_run:
                            os.unlink(entry.path)
                    elif entry.is_file():
                        status = entry.stat()
                        listing[entry.name] = status.st_mtime_ns, status.st_size
        return listing

    def _read_manifest(self) -> _Manifest | None:
        try:
            with open(os.path.join(self.path, MANIFEST), "rb") as file:
                manifest = msgspec.json.decode(file.read(), type=_Manifest)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            manifest = None
        if manifest is None or manifest.format != _MANIFEST_FORMAT:
            raise OutputError(
                f"{MANIFEST}: expected the manifest of an earlier run, got something else; choose another --out"
            )
        return manifest

    def _write_manifest(self, options: Mapping[str, Any]) -> None:
        path = os.path.join(self.path, MANIFEST)
        # Use the clock of the file system, because it sets the modification times of the results too.
        probe = write_temporary(path, b"")
        self._since_ns = os.stat(probe).st_mtime_ns
        os.unlink(probe)
        manifest = msgspec.json.encode(_Manifest(_MANIFEST_FORMAT, self._since_ns, dict(options)))
        os.rename(write_temporary(path, msgspec.json.format(manifest) + b"\n"), path)


def write_temporary(path: str, content: bytes) -> str:
    """Write content that will be renamed to ``path`` to a temporary file in the same folder; return its path.

    Raises:
        OSError: the file cannot be written; it is removed in that case.
    """
    folder = os.path.dirname(path)
    # The name does not contain that of the image, which may be as long as the file system allows.
    temporary = os.path.join(folder, f".facial-service.{os.getpid()}-{threading.get_ident()}-{next(_numbers)}.part")
    try:
        file = open(temporary, "xb")  # noqa: SIM115 - it is entered below
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)
        file = open(temporary, "xb")  # noqa: SIM115 - as above
    try:
        with file:
            file.write(content)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return temporary


def write_files(contents: Mapping[str, bytes]) -> None:
    """Write all results of one image, given by path, and rename them when all are complete.

    Raises:
        OSError: a result cannot be written.
    """
    temporary: dict[str, str] = {}
    try:
        for path, content in contents.items():
            temporary[path] = write_temporary(path, content)
        for path, written in temporary.items():
            os.rename(written, path)
    except BaseException:
        for written in temporary.values():
            with suppress(OSError):
                os.unlink(written)
        raise


def remove_temporary_files(files: Iterable[str], pid: int) -> None:
    """Remove the temporary files of a dead process from the folders of some results."""
    for folder in {os.path.dirname(file) for file in files}:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if _TEMPORARY.fullmatch(entry.name) and entry.name.startswith(f".facial-service.{pid}-"):
                    os.unlink(entry.path)


def _describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} changed from {_text(before.get(name))} to {_text(now.get(name))}" for name in names)


def _text(value: Any) -> str:
    return "unset" if value is None else str(msgspec.json.encode(value), "utf-8")
