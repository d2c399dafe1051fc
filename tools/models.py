#!/usr/bin/env python3
"""Install the face-detection models from the pinned `mediapipe` wheel, and check their hashes.

pip downloads the wheel from the configured index; nothing of it is installed or run. The models are Google's, under
Apache-2.0 (see NOTICE), and unmodified.

With --images, install the images without a face that tests use, from the pinned `scikit-image` wheel.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pinned_files import ArchiveError, PinnedFile, extract, is_installed

FOLDER = Path(__file__).resolve().parent
MODELS_HOME = FOLDER.parent / "app" / "models"
IMAGES_HOME = FOLDER.parent / ".tools" / "images"

# The wheel is only unpacked, so that the wheel of one platform works on all.
_PLATFORM = ("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64")
_PYTHON = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311")


@dataclass(frozen=True, slots=True)
class Source:
    """A wheel and its files to install."""

    lock: Path
    files: tuple[PinnedFile, ...]


MODELS = Source(
    FOLDER / "models.lock",
    (
        PinnedFile(
            "face_detection_short_range.tflite",
            "mediapipe/modules/face_detection/face_detection_short_range.tflite",
            "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
        ),
        PinnedFile(
            "face_detection_full_range_sparse.tflite",
            "mediapipe/modules/face_detection/face_detection_full_range_sparse.tflite",
            "2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1",
        ),
        PinnedFile(
            "face_landmark.tflite",
            "mediapipe/modules/face_landmark/face_landmark.tflite",
            "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
        ),
        PinnedFile(
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
    tuple(PinnedFile(name, f"skimage/data/{name}", sha256) for name, sha256 in _IMAGES.items()),
)


def download(source: Source, folder: Path) -> Path:
    """Download the wheel into a folder; pip checks its hash.

    Raises:
        ArchiveError: the download failed, or the hash differs.
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
        raise ArchiveError(f"pip download failed: {lines[-1] if lines else 'no output'}")
    return wheels[0]


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
    if all(is_installed(file, home) for file in source.files):
        return 0
    if options.check:
        print(f"{home}: files are missing or have another hash; run tools/models.py", file=sys.stderr)
        return 1
    try:
        if options.wheel:
            extract(options.wheel, source.files, home)
        else:
            print(f"Downloading {', '.join(file.name for file in source.files)} (once)", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                extract(download(source, Path(folder)), source.files, home)
    except (ArchiveError, OSError) as error:
        print(f"{home}: not installed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
