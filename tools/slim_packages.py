"""Remove the parts of installed packages that the service does not use, then check that it still decodes all formats.

    python slim_packages.py SITE_PACKAGES

Used by the Dockerfile only: in a checkout, packages stay complete. Libraries that are linked but not used are replaced
by stubs; libraries that nothing is linked with any more are removed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from stub_library import StubError, is_library, make_stub, read_library

UNUSED = (
    # Accelerators, compilers and an API of LiteRT that are not used on CPUs.
    "ai_edge_litert/aot",
    "ai_edge_litert/tools",
    "ai_edge_litert/vendors",
    "ai_edge_litert/*Accelerator.so",
    "ai_edge_litert/libLiteRt.so",
    # Pillow is needed only by pillow-heif, which uses its core.
    "PIL/_avif.*.so",
    "PIL/_imagingcms.*.so",
    "PIL/_imagingft.*.so",
    "PIL/_imagingtk.*.so",
    "PIL/_webp.*.so",
)
"""Patterns of files and folders, relative to the packages."""

STUBS = (
    # libheif encodes with x265, which is licensed under GPL-2.0. Only decoding is used.
    ("pillow_heif.libs/libheif-*", "pillow_heif.libs/libx265-*"),
    # OpenCV reads and writes videos with FFmpeg. Only images are used.
    ("cv2/cv2.*.so", "opencv_python_headless.libs/libavcodec-*"),
    ("cv2/cv2.*.so", "opencv_python_headless.libs/libavformat-*"),
    ("cv2/cv2.*.so", "opencv_python_headless.libs/libavutil-*"),
    ("cv2/cv2.*.so", "opencv_python_headless.libs/libswscale-*"),
)
"""Patterns of a library that is used, and of one that it is linked with and that becomes a stub."""

CHECK = """
import base64, sys
import cv2, numpy, pillow_heif
from ai_edge_litert.interpreter import Interpreter

for extension in (".png", ".jpg", ".webp", ".avif"):
    encoded = cv2.imencode(extension, numpy.full((16, 16, 3), 99, numpy.uint8))[1]
    assert abs(int(cv2.imdecode(encoded, cv2.IMREAD_COLOR).mean()) - 99) <= 2, extension
pixels = numpy.asarray(pillow_heif.open_heif(base64.b64decode(sys.argv[1])))
assert abs(pixels.reshape(-1, 3).mean(axis=0) - (200, 100, 50)).max() <= 4, "HEIC"
"""

HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9j"
    "AAAAAERAAAEAAQAAAAABoAABAAAAAAAAADIAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/Glw"
    "cnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AA"
    "AAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABA"
    "AAAAQAAAAChjbGFwAAAAEAAAAAEAAAAQAAAAAf///9AAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYEC"
    "AwWEAAAAOm1kYXQAAAAuKAGvEyFiY0D1JyL/9+Sf/Ie5/xd2WFncroDBW/L6wPZkm8DzqpGegIdppzAVeA=="
)
"""An HEIC image of 16 by 16 pixels, made for this check."""


class SlimError(Exception):
    """The packages are not as expected; the message is the reason."""


def find(packages: Path, pattern: str) -> Path:
    """Return the only path that matches a pattern.

    Raises:
        SlimError: there is none or several, for example because a new version of a package has another layout.
    """
    found = list(packages.glob(pattern))
    if len(found) != 1:
        raise SlimError(f"{pattern}: expected one file, got {len(found)}; adapt {Path(__file__).name}")
    return found[0]


def remove_unused(packages: Path) -> None:
    """Remove the files and folders that are not used. Some packages of other architectures lack some of them."""
    for path in [path for pattern in UNUSED for path in packages.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_stub(user: Path, path: Path) -> None:
    """Replace a library by a stub with the functions that its user needs.

    Raises:
        StubError: the library cannot be replaced.
    """
    library = read_library(path)
    # Mangled names are those of the C++ runtime, of which libraries export copies.
    functions = sorted(name for name in library.defined & read_library(user).undefined if not name.startswith("_Z"))
    path.write_bytes(make_stub(library, functions))


def remove_orphans(packages: Path) -> None:
    """Remove bundled libraries that no module is linked with, directly or through other libraries."""
    paths = [path for path in packages.rglob("*.so*") if path.is_file() and is_library(path)]
    orphans = {path.name: path for path in paths if path.parent.suffix == ".libs"}
    pending = [path for path in paths if path.name not in orphans]
    while pending:
        pending += [orphans.pop(name) for name in read_library(pending.pop()).needed if name in orphans]
    for path in orphans.values():
        path.unlink()


def main() -> None:
    """Slim the packages in a folder, and check them with the interpreter that runs this script."""
    packages = Path(sys.argv[1])
    try:
        remove_unused(packages)
        for user, library in STUBS:
            write_stub(find(packages, user), find(packages, library))
        remove_orphans(packages)
    except (SlimError, StubError) as error:
        sys.exit(f"slim_packages: {error}")
    subprocess.run([sys.executable, "-c", CHECK, HEIC], check=True)  # noqa: S603


if __name__ == "__main__":
    main()
