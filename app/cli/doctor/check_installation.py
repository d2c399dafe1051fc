"""The checks of the installation: model files, Python, packages and OpenCV."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from app import PACKAGE_MODELS
from app.cli.doctor.findings import Finding, error, ok, warning
from app.face.detection.model_files import KNOWN_FILES
from app.observability.log_text import size_of
from app.supervisor.processes import describe_exit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.cli.doctor.context import Context


PACKAGE = "facial-service"
MIN_PYTHON, MAX_PYTHON = (3, 11), (3, 13)
IMPORT_TIMEOUT_S = 7.0
PIXELS = "OPENCV_IO_MAX_IMAGE_PIXELS"
MAX_PIXELS = 1_000_000_000  # 4 GB after decoding
OPENCV_MAX_PIXELS = 1 << 30  # OpenCV's default


def check_models(context: Context) -> Iterator[Finding]:
    """Check the files of the face-detection models."""
    part, configured = "models.files", context.settings.models_dir
    folder = configured or PACKAGE_MODELS
    missing = [name for name in KNOWN_FILES if not (folder / name).is_file()]
    if not missing:
        yield from (_check_model(folder / name) for name in KNOWN_FILES)
    elif len(missing) == len(KNOWN_FILES) and configured is None:
        found = "no models: requests must include landmarks"
        yield warning(part, str(folder), found, expected="the four face-detection models")
    else:
        subject = f"MODELS_DIR {folder}" if configured is not None else str(folder)
        found = f"missing: {', '.join(missing)}; requests without landmarks are rejected"
        yield error(part, subject, found, expected="the four face-detection models")


def _check_model(file: Path) -> Finding:
    part, known = "models.files", KNOWN_FILES[file.name]
    try:
        content = file.read_bytes()
    except OSError as failure:
        found = f"cannot be read: {os.strerror(failure.errno or 0)}"
        return error(part, str(file), found, expected="a readable file", advice=f"run `chmod a+r {file}`")
    digest = hashlib.sha256(content).hexdigest()
    if digest == known.sha256:
        return ok(part, file.name, f"{size_of(len(content))}, the expected SHA-256")
    expected = f"{known.size} bytes, SHA-256 {known.sha256[:12]}…"
    if len(content) < known.size:
        return error(part, str(file), f"incomplete: {len(content)} bytes", expected=expected)
    found = f"not the original file: {len(content)} bytes, SHA-256 {digest[:12]}…"
    return warning(part, str(file), found, expected=expected)


def check_python(context: Context) -> Iterator[Finding]:
    """Check Python, the packages, OpenCV and its limit."""
    yield _check_versions()
    yield _check_opencv()
    yield _check_pixels(context)


def _check_versions() -> Finding:
    part, subject = "python.version", f"Python {platform.python_version()}"
    try:
        outdated = list(_find_outdated_packages())
    except importlib.metadata.PackageNotFoundError:
        return ok(part, subject, f"{PACKAGE} is not installed as a package, so its requirements are unknown")
    if outdated:
        return error(part, subject, "; ".join(outdated), expected=f"the requirements of {PACKAGE}")
    if not MIN_PYTHON <= sys.version_info[:2] <= MAX_PYTHON:
        expected = f"{'.'.join(map(str, MIN_PYTHON))} to {'.'.join(map(str, MAX_PYTHON))}"
        return warning(part, subject, "not tested with this version", expected=expected)
    return ok(part, subject, "supported, with all packages")


def _find_outdated_packages() -> Iterator[str]:
    for requirement in importlib.metadata.requires(PACKAGE) or ():
        if "extra ==" in requirement:
            continue
        match = re.match(r"([\w.-]+)(?:\[[^\]]*\])?[^;]*>=\s*([\d.]+)", requirement)
        if match is None:
            continue
        name, minimum = match.groups()
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} is not installed"
        else:
            if _parse_version(version) < _parse_version(minimum):
                yield f"{name} {version} is older than {minimum}"


def _parse_version(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def _check_opencv() -> Finding:
    part, subject = "python.opencv", "cv2"
    try:
        return ok(part, subject, run_python("import cv2; print(cv2.__version__)", IMPORT_TIMEOUT_S).strip())
    except ChildProcessError as failure:
        return error(part, subject, f"import failed: {failure}", expected="an import of opencv-python-headless")


def run_python(code: str, timeout_s: float) -> str:
    """Run code in a child process, because a broken library can crash the process, and return its output.

    Raises:
        ChildProcessError: the code failed, crashed or timed out.
    """
    command = [sys.executable, "-P", "-c", code]
    try:
        child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise ChildProcessError(f"timed out after {timeout_s:g} s") from None
    if child.returncode < 0:
        raise ChildProcessError(describe_exit(child.returncode))
    if child.returncode:
        raise ChildProcessError((child.stderr.strip().splitlines() or ["no output"])[-1][:300])
    return child.stdout


def _check_pixels(context: Context) -> Finding:
    part, text = "python.pixels", context.environment.get(PIXELS) or str(OPENCV_MAX_PIXELS)
    needed = context.settings.max_image_pixels
    expected = f"{needed} (MAX_IMAGE_PIXELS) to {MAX_PIXELS}"
    if not text.isascii() or not text.isdigit():
        return error(part, PIXELS, "not an integer", expected=expected)
    if int(text) < needed:
        return warning(part, PIXELS, f"{text}: images that MAX_IMAGE_PIXELS allows are rejected", expected=expected)
    if int(text) > MAX_PIXELS:
        return warning(part, PIXELS, f"{text}: too high to be a limit", expected=expected)
    return ok(part, PIXELS, text)
