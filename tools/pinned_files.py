"""Files that are taken from archives, each checked by its hash and moved into place atomically."""

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class ArchiveError(Exception):
    """An archive cannot be downloaded or is not the expected one; the message is the reason."""


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file of an archive.

    Attributes:
        name: path below the target folder.
        member: path in the archive.
        sha256: SHA-256 of the file, in hexadecimal.
    """

    name: str
    member: str
    sha256: str


def is_installed(file: PinnedFile, folder: Path) -> bool:
    """Return whether the file exists in the folder and has the expected hash."""
    path = folder / file.name
    return path.is_file() and compute_sha256(path) == file.sha256


def compute_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_archive(path: Path) -> Iterator[Callable[[str], bytes]]:
    """Open an archive for the duration of the block, and return a function that reads a member."""
    if path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as zipped:
            yield zipped.read
        return
    with tarfile.open(path) as packed:

        def read(member: str) -> bytes:
            file = packed.extractfile(member)
            if file is None:
                raise KeyError(f"{member} is not a file")
            return file.read()

        yield read


def extract(archive: Path, files: Sequence[PinnedFile], folder: Path) -> None:
    """Extract files of an archive, and move each into place once its hash is checked.

    Raises:
        ArchiveError: the archive lacks a file or has a different one.
    """
    try:
        with open_archive(archive) as read:
            for file in files:
                content = read(file.member)
                found = hashlib.sha256(content).hexdigest()
                if found != file.sha256:
                    raise ArchiveError(f"{file.member}: expected SHA-256 {file.sha256}, got {found}")
                target = folder / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f".{target.name}.{os.getpid()}")
                partial.write_bytes(content)
                partial.replace(target)
    except (KeyError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ArchiveError(f"{archive.name}: unexpected content: {error}") from error
