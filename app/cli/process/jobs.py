"""Jobs of a run: one per image, with its input files and result paths.

The parent process and its workers exchange these types. This module loads no image library, so that the parent starts
quickly.
"""

from __future__ import annotations

import collections
import os
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from app.cli.process.inputs import Failure, escape_path, os_error_text
from app.cli.process.outputs import OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from app.cli.process.inputs import FoundImages, IgnoredFile, InputImage
    from app.cli.process.outputs import OutputFolder
    from app.service.options import CropOptions

LANDMARKS_PATTERN: Final = os.path.join("{dir}", "{stem}.landmarks.json")
PLACEHOLDERS: Final = ("dir", "name", "stem", "sub")
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
FACE_MARK: Final = ".face-"
_FACE_RESULT: Final = re.compile(re.escape(FACE_MARK) + r"[0-9]+(\.[a-z]+)$")
_STRAY_BRACE: Final = re.compile(r"[{}]")


class Format(StrEnum):
    """A result format."""

    SVG = "svg"
    JSON = "json"
    PNG = "png"


class Job(NamedTuple):
    """One image to process."""

    number: int  # index of the image, unique in the run
    image: str
    landmarks: str | None  # path of its landmarks; None to detect them
    label_map: str | None  # path of its segmentation map; None if it has none
    # Path of each result, in the order of `JobConfig.formats`; those of the first face for all faces.
    results: tuple[str, ...]


class Outcome(NamedTuple):
    """The outcome of a job."""

    number: int
    seconds: float  # processing time
    code: str = ""  # error code; empty on success
    reason: str = ""  # error message; empty on success
    faces: int | None = None  # number of faces with results; None unless the results are those of all faces


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """Configuration that all jobs of a run share."""

    options: CropOptions
    formats: tuple[Format, ...]
    # Settings of the service have the same names.
    max_bytes: int  # limit of all input files of one image together
    max_image_pixels: int
    landmark_margin: float
    models: Path | None  # folder of the models; None for the package's own
    fault_work_s: float = 0.0
    fault_poison_region: str = ""


class RunError(Exception):
    """The run cannot continue with any image; the text gives the reason."""


class JobError(Exception):
    """One image cannot be processed; the others can. The code is stable, and the reason a sentence for the user."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which images to process, and into which results."""

    inputs: Sequence[str]
    formats: tuple[Format, ...]
    landmarks: str = LANDMARKS_PATTERN  # path pattern of the landmark files
    label_map: str | None = None  # path pattern of the segmentation maps; None for none
    # True to detect landmarks in every image, False in none, None in images without a landmark file.
    detect: bool | None = None
    has_all_faces: bool = False  # whether each image has results for all faces


@dataclass(slots=True)
class Plan:
    """The work of a run."""

    jobs: list[Job] = field(default_factory=list)
    up_to_date: list[Job] = field(default_factory=list)  # jobs whose results exist already
    failures: list[Failure] = field(default_factory=list)  # images and folders that cannot be processed
    # Files in the input folders that are neither images nor used by one.
    ignored: list[IgnoredFile] = field(default_factory=list)
    # Whether results include the suffix of their image, because names would collide otherwise.
    has_full_names: bool = False


def plan_jobs(selection: Selection, found: FoundImages, out: OutputFolder) -> Plan:
    """Pair each image with its input files, and separate the jobs whose results are up to date.

    Raises:
        OutputError: a result would overwrite an input.
    """
    plan = Plan(failures=list(found.failures))
    names = name_results([(image.sub, os.path.basename(image.path)) for image in found.images])
    sources: set[str] = set()
    for number, (image, name) in enumerate(zip(found.images, names, strict=True)):
        stem = f"{name}{FACE_MARK}0" if selection.has_all_faces else name
        results = tuple(os.path.join(out.path, f"{stem}.{suffix}") for suffix in selection.formats)
        sources.add(_resolve_folder(image.path))
        try:
            landmarks, label_map, modified_ns = _find_input_files(image, selection)
        except JobError as error:
            plan.failures.append(Failure(image.path, error.code, error.reason))
            continue
        sources.update(_resolve_folder(path) for path in (landmarks, label_map) if path is not None)
        job = Job(number, image.path, landmarks, label_map, results)
        plan.has_full_names |= os.path.basename(name) != os.path.splitext(os.path.basename(image.path))[0]
        is_done = out.is_up_to_date(results, max(image.modified_ns, modified_ns))
        (plan.up_to_date if is_done else plan.jobs).append(job)
    plan.ignored = [file for file in found.ignored if _resolve_folder(file.path) not in sources]
    if selection.has_all_faces:  # the number of faces is unknown, so a source may be the result for any face
        sources = {result_of_face(source, 0) for source in sources if _FACE_RESULT.search(source)}
    for result in (result for job in (*plan.jobs, *plan.up_to_date) for result in job.results):
        if _resolve_folder(result) in sources:
            raise OutputError(f"result {escape_path(result)} would overwrite an input; choose another --out")
    return plan


def result_of_face(result: str, face: int) -> str:
    """Return the path of the result for a face, from that for another one.

    Example:
        >>> result_of_face("out/a.face-0.svg", 3)
        'out/a.face-3.svg'
    """
    return _FACE_RESULT.sub(lambda found: f"{FACE_MARK}{face}{found[1]}", result)


def _find_input_files(image: InputImage, selection: Selection) -> tuple[str | None, str | None, int]:
    """Find the landmark file and the segmentation map of an image, and the later modification time of the two."""
    landmarks, label_map, landmarks_ns, label_map_ns = None, None, None, None
    try:
        if selection.detect is not True:
            landmarks = fill_pattern(selection.landmarks, image.path, image.sub)
            landmarks_ns = _modified_ns(landmarks)
        if selection.label_map is not None:
            label_map = fill_pattern(selection.label_map, image.path, image.sub)
            label_map_ns = _modified_ns(label_map)
    except OSError as error:
        raise JobError("file_unreadable", f"landmarks or segmentation_map: {os_error_text(error)}") from None
    if landmarks_ns is None:
        if selection.detect is False:
            raise JobError("landmarks_missing", "landmarks: expected a file because of --no-detect, got none")
        landmarks = None
    if label_map is not None and label_map_ns is None:
        raise JobError("segmentation_map_missing", "segmentation_map: expected a file, got none")
    return landmarks, label_map, max(landmarks_ns or 0, label_map_ns or 0)


def _modified_ns(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None


def _resolve_folder(path: str) -> str:
    """Resolve the symbolic links of a path's folder, but not of its last component."""
    folder, name = os.path.split(path)
    return os.path.join(_realpath(folder), name)


@lru_cache(maxsize=64)
def _realpath(folder: str) -> str:
    return os.path.realpath(folder)


def name_results(images: Sequence[tuple[str, str]]) -> list[str]:
    """Choose a unique name for the results of each image.

    Results are named by the stem of the image. If several images share one, all of them are named by their full file
    names: ``a.png`` and ``a.jpg`` become ``a.png.svg`` and ``a.jpg.svg``. None of them gets the short name, so that
    adding an image cannot turn an existing result into the result of another image.

    Returns:
        A path for each image, relative to the results folder and without the suffix of the format.

    Example:
        >>> name_results([("", "a.png"), ("", "a.jpg"), ("b", "a.png")])
        ['a.png', 'a.jpg', 'b/a']
    """
    full = [os.path.join(folder, name) for folder, name in images]
    chosen = [os.path.join(folder, os.path.splitext(name)[0]) for folder, name in images]
    while True:
        counts = collections.Counter(chosen)
        shared = [index for index, name in enumerate(chosen) if counts[name] > 1 and name != full[index]]
        if not shared:
            return chosen
        for index in shared:
            chosen[index] = full[index]


def check_pattern(pattern: str) -> None:
    """Validate a path pattern.

    Raises:
        ValueError: the pattern has an unknown placeholder or an unmatched brace.
    """
    allowed = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    if any(found[1] not in PLACEHOLDERS for found in _PLACEHOLDER.finditer(pattern)):
        raise ValueError(f"expected only the placeholders {allowed}, got another one")
    if _STRAY_BRACE.search(_PLACEHOLDER.sub("", pattern)):
        raise ValueError(f"expected braces only in the placeholders {allowed}, got an unmatched one")


def fill_pattern(pattern: str, image: str, sub: str) -> str:
    """Return the path that a valid pattern gives for an image in the folder `sub`, as in `InputImage`.

    Example:
        >>> fill_pattern("{dir}/../points/{stem}.json", "photos/a.png", "")
        'photos/../points/a.json'
    """
    folder, name = os.path.split(image)
    values = {"dir": folder or ".", "name": name, "stem": os.path.splitext(name)[0], "sub": sub or "."}
    return _PLACEHOLDER.sub(lambda found: values[found[1]], pattern)
