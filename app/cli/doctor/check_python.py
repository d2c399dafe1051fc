"""Python and its packages."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from typing import TYPE_CHECKING

from app.cli.doctor.children import ChildError, run_python
from app.cli.doctor.findings import Finding, error, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context

PACKAGE = "facial-service"
OLDEST, TOO_NEW = (3, 11), (3, 14)
LOAD_S = 7.0
MOST_PIXELS = 1_000_000_000  # 4 GB once decoded
OPENCV_PIXELS = 1 << 30  # where the variable is empty
PIXELS = "OPENCV_IO_MAX_IMAGE_PIXELS"


def run(context: Context) -> Iterator[Finding]:
    """Look at versions, OpenCV, and its own limit."""
    yield _judge_versions()
    yield _judge_opencv()
    yield _judge_pixels(context)


def _judge_versions() -> Finding:
    part, place = "python.version", f"Python {platform.python_version()}"
    try:
        missing = list(_find_old_packages())
    except importlib.metadata.PackageNotFoundError:
        return ok(part, place, "the service runs from its folder, and its packages are not declared")
    if missing:
        return error(
            part,
            place,
            "; ".join(missing),
            expected=f"what {PACKAGE} needs",
            advice="install from requirements.lock, or take the image",
        )
    if not OLDEST <= sys.version_info[:2] < TOO_NEW:
        return warning(
            part,
            place,
            "not tried with this version",
            expected="3.11 to 3.13",
            advice="take one of these, or the image",
        )
    return ok(part, place, "supported, with all packages")


def _find_old_packages() -> Iterator[str]:
    for requirement in importlib.metadata.requires(PACKAGE) or ():
        found = re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*>=\s*([\d.]+)", requirement)
        if found is None:
            continue
        name, least = found.groups()
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} is not installed"
        else:
            if _numbers(version) < _numbers(least):
                yield f"{name} {version}, expected {least} or later"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def _judge_opencv() -> Finding:
    try:
        version = run_python("import cv2; print(cv2.__version__)", limit_s=LOAD_S).strip()
    except ChildError as fault:
        return error(
            "python.opencv",
            "cv2",
            f"cannot be loaded: {fault}",
            expected="opencv-python-headless, loaded",
            advice="install opencv-python-headless of requirements.lock, and remove other packages that bring cv2 "
            "(`pip list | grep -i opencv`)",
        )
    return ok("python.opencv", "cv2", version)


def _judge_pixels(context: Context) -> Finding:
    part, text = "python.pixels", context.environment.get(PIXELS) or str(OPENCV_PIXELS)
    wanted = context.settings.max_image_pixels
    if not text.isascii() or not text.isdigit():
        return error(
            part,
            PIXELS,
            "no whole number",
            expected=f"a number of pixels, at least MAX_IMAGE_PIXELS ({wanted})",
            advice=f"unset {PIXELS}; the service sets it",
        )
    if wanted <= int(text) <= MOST_PIXELS:
        return ok(part, PIXELS, text)
    return warning(
        part,
        PIXELS,
        f"{text}: " + ("photos that MAX_IMAGE_PIXELS allows are not decoded" if int(text) < wanted else "no bound"),
        expected=f"{wanted} (MAX_IMAGE_PIXELS) to {MOST_PIXELS}",
        advice=f"unset {PIXELS}; the service sets it to 100000000",
    )
