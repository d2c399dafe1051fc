"""Work on one photo: its files read, regions found, results written; whatever is wrong is told by code and reason."""

from __future__ import annotations

import os
import signal
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

import cv2
import msgspec
import pybase64

from app.cli.process.inputs import explain
from app.cli.process.jobs import Fault, Format, Outcome
from app.cli.process.outputs import write_all
from app.face.errors import InputError
from app.service.crop import CropInput, CropService, Limits
from app.service.document import result_to_json
from app.service.faces import FaceFinders
from app.service.picture import document_to_png, result_to_png
from app.web.json_text import parse_points, read_map
from app.web.problem_codes import ProblemError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.cli.process.jobs import Job, Recipe


class Files(NamedTuple):
    """The files of one photo, as they are."""

    image: bytes
    landmarks: bytes | None
    label_map: bytes | None


class LocalWork:
    """Does photos in this process.

    Args:
        recipe: how.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._limits = limits_of(recipe)
        self._service = CropService(self._limits, FaceFinders(recipe.models), fault_work_s=recipe.fault_work_s)
        # Parallelism comes from processes; see `app.main`.
        cv2.setNumThreads(0)

    def do(self, job: Job) -> None:
        """Do one photo.

        Raises:
            Fault: its files cannot be read.
            ProblemError: its landmarks or regions are no text of the right form.
            InputError: what they hold is at fault.
            OSError: its results cannot be written.
        """
        recipe = self._recipe
        files = read_files(job, recipe.max_bytes)
        points = None if files.landmarks is None else parse_points(files.landmarks, "landmarks")
        label_map = read_map(files.label_map)
        if recipe.fault_poison_region and isinstance(label_map, dict) and recipe.fault_poison_region in label_map:
            os.kill(os.getpid(), signal.SIGKILL)
        result = self._service.process(
            CropInput(image=files.image, points=points, segmentation_map=label_map, options=recipe.options)
        )
        makers: dict[Format, Callable[[], bytes]] = {
            Format.SVG: lambda: result.face.svg,
            Format.JSON: lambda: result_to_json(result),
            Format.PNG: lambda: result_to_png(result, recipe.options, self._limits),
        }
        write_results(job, [makers[name]() for name in recipe.formats])


def limits_of(recipe: Recipe) -> Limits:
    """Return what an input may be at most."""
    return Limits(max_image_pixels=recipe.max_image_pixels, landmark_margin=recipe.landmark_margin)


def document_to_results(document: bytes, files: Files, recipe: Recipe) -> list[bytes]:
    """Make every result from the document that a service answered.

    Raises:
        InputError: a picture would be too large.
        msgspec.DecodeError: it is no such document.
    """
    overlay = pybase64.b64decode(msgspec.json.decode(document, type=_Overlay).svg)
    results = []
    for name in recipe.formats:
        if name is Format.JSON:
            results.append(document)
        elif name is Format.SVG:
            results.append(overlay)
        else:
            points = None if files.landmarks is None else parse_points(files.landmarks, "landmarks")
            results.append(document_to_png(document, points, recipe.options, limits_of(recipe)))
    return results


class _Overlay(msgspec.Struct):
    svg: str


def read_files(job: Job, max_bytes: int) -> Files:
    """Read the files of a photo.

    Raises:
        Fault: one cannot be read, or they are too large.
    """
    left = max_bytes
    contents: list[bytes | None] = []
    for field, path in (("image", job.photo), ("landmarks", job.landmarks), ("segmentation_map", job.label_map)):
        content = None if path is None else _read(field, path, left, max_bytes)
        left -= len(content or b"")
        contents.append(content)
    image, landmarks, label_map = contents
    return Files(image or b"", landmarks, label_map)


def _read(field: str, path: str, left: int, max_bytes: int) -> bytes:
    try:
        # Not to wait for what writes into a pipe.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise Fault("file_unreadable", f"{field}: expected a file, got a folder or something else")
            content = _read_up_to(file, min(status.st_size, left) + 1)
        finally:
            os.close(file)
    except OSError as error:
        raise Fault("file_unreadable", f"{field}: {explain(error)}") from None
    if len(content) > left:
        raise Fault("body_too_large", f"{field}: all files of a photo may have {max_bytes} bytes together, got more")
    return content


def _read_up_to(file: int, count: int) -> bytes:
    first = os.read(file, count)
    if len(first) == count - 1:  # all that there was when it was opened
        return first
    parts = [first]
    while parts[-1] and (count := count - len(parts[-1])):
        parts.append(os.read(file, count))
    return b"".join(parts)


def write_results(job: Job, contents: Sequence[bytes]) -> None:
    """Write the results of a photo.

    Raises:
        Fault: they cannot be written.
    """
    try:
        write_all(dict(zip(job.results, contents, strict=True)))
    except OSError as error:
        raise Fault("output_unwritable", f"result: {explain(error)}") from None


def attempt(job: Job, do: Callable[[Job], None]) -> Outcome:
    """Do one photo, and tell what came of it, whatever that is."""
    start = time.perf_counter()
    code, reason = "", ""
    try:
        do(job)
    except Fault as fault:
        code, reason = fault.code, fault.reason
    except ProblemError as problem:
        code, reason = problem.code, problem.detail
    except InputError as error:
        code, reason = error.code, str(error)
    except MemoryError:
        code, reason = "out_of_memory", "there was not enough memory for it"
    except Exception as error:  # noqa: BLE001 - the other photos shall be done all the same
        # The kind alone: the text might hold something of the photo.
        code, reason = "internal_error", f"an error of ours: {type(error).__name__}"
    return Outcome(job.number, time.perf_counter() - start, code, reason)
