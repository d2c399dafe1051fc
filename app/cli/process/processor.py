"""Process one image: read its files, find the regions, write the results."""

from __future__ import annotations

import os
import signal
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, NamedTuple

import cv2
import msgspec
import pybase64
from msgspec import Meta

from app.cli.process.inputs import os_error_text
from app.cli.process.jobs import Format, JobError, Outcome, result_of_face
from app.cli.process.outputs import write_files
from app.face.errors import InputError
from app.face.landmarks import MAX_FACES
from app.service.crop import CropInput, CropResults, CropService, ImageLimits
from app.service.detector_pool import DetectorPool
from app.service.png_export import json_to_png, result_to_png
from app.service.serialization import result_to_json
from app.web.json_body import parse_landmarks, parse_segmentation_map
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.cli.process.jobs import Job, JobConfig
    from app.service.crop import CropResult


class JobFiles(NamedTuple):
    """Contents of the input files of one image."""

    image: bytes
    landmarks: bytes | None
    label_map: bytes | None


class LocalProcessor:
    """Processes images in this process."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self._limits = _limits(config)
        self._service = CropService(self._limits, DetectorPool(config.models), fault_work_s=config.fault_work_s)
        # Worker processes provide the parallelism; see `app.main`.
        cv2.setNumThreads(0)

    def process(self, job: Job) -> int | None:
        """Process one image; return the number of faces if there are results for all of them.

        Raises:
            JobError: a file cannot be read or written.
            ProblemError: the landmarks or the segmentation map are malformed.
            InputError: the image, the landmarks or the segmentation map are invalid.
        """
        config = self._config
        files = read_files(job, config.max_bytes)
        landmarks = parse_landmarks(files.landmarks)
        label_map = parse_segmentation_map(files.label_map)
        if config.fault_poison_region and isinstance(label_map, dict) and config.fault_poison_region in label_map:
            os.kill(os.getpid(), signal.SIGKILL)
        result = self._service.process(
            CropInput(
                image=files.image,
                points=landmarks.points,
                are_points_normalized=landmarks.are_normalized,
                segmentation_map=label_map,
                options=config.options,
            )
        )
        has_all_faces = isinstance(result, CropResults)
        faces = result.faces if isinstance(result, CropResults) else (result,)
        return write_results(job, [self._encode(face) for face in faces], has_all_faces=has_all_faces)

    def _encode(self, result: CropResult) -> list[bytes]:
        encoders: dict[Format, Callable[[], bytes]] = {
            Format.SVG: lambda: result.svg,
            Format.JSON: lambda: result_to_json(result),
            Format.PNG: lambda: result_to_png(result, self._limits),
        }
        return [encoders[name]() for name in self._config.formats]


def _limits(config: JobConfig) -> ImageLimits:
    return ImageLimits(max_image_pixels=config.max_image_pixels, landmark_margin=config.landmark_margin)


class _Document(msgspec.Struct):
    svg: str


def split_document(document: bytes) -> list[bytes]:
    """Split the JSON array that a service returned for all faces into the document of each face.

    Raises:
        msgspec.DecodeError: the document is not an array of results.
    """
    return list(map(bytes, msgspec.json.decode(document, type=Annotated[list[msgspec.Raw], Meta(min_length=1)])))


def document_to_results(document: bytes, config: JobConfig) -> list[bytes]:
    """Return the results for one face in every format from the JSON document that a service returned.

    Raises:
        InputError: a PNG would be too large.
        msgspec.DecodeError: the document is not a result.
    """
    svg = pybase64.b64decode(msgspec.json.decode(document, type=_Document).svg)
    encoders: dict[Format, Callable[[], bytes]] = {
        Format.SVG: lambda: svg,
        Format.JSON: lambda: document,
        Format.PNG: lambda: json_to_png(document, _limits(config)),
    }
    return [encoders[name]() for name in config.formats]


def read_files(job: Job, max_bytes: int) -> JobFiles:
    """Read the input files of an image.

    Raises:
        JobError: a file cannot be read, or the files are too large.
    """
    remaining = max_bytes
    contents: list[bytes | None] = []
    for field, path in (("image", job.image), ("landmarks", job.landmarks), ("segmentation_map", job.label_map)):
        content = None if path is None else _read(field, path, remaining, max_bytes)
        remaining -= len(content or b"")
        contents.append(content)
    image, landmarks, label_map = contents
    return JobFiles(image or b"", landmarks, label_map)


def _read(field: str, path: str, remaining: int, max_bytes: int) -> bytes:
    try:
        with open(path, "rb", opener=_open_without_blocking) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise JobError("file_unreadable", f"{field}: expected a regular file, got something else")
            content = file.read(min(status.st_size, remaining) + 1)
    except OSError as error:
        raise JobError("file_unreadable", f"{field}: {os_error_text(error)}") from None
    if len(content) > remaining:
        limit = f"at most {max_bytes} bytes in all files together (MAX_BODY_BYTES)"
        raise JobError("body_too_large", f"{field}: expected {limit}, got more")
    return content


def _open_without_blocking(path: str, flags: int) -> int:
    # A named pipe would otherwise block until another process writes to it.
    return os.open(path, flags | os.O_NONBLOCK)


def write_results(job: Job, faces: Sequence[Sequence[bytes]], *, has_all_faces: bool) -> int | None:
    """Write the results of an image in every format; return the number of faces if there are results for all of them.

    Results of faces that the image had in an earlier run are removed. The results of the first face are written last,
    because they alone decide whether an image is up to date.

    Raises:
        JobError: a result cannot be written or removed.
    """
    contents = {
        (result_of_face(result, number) if has_all_faces else result): content
        for number, face in reversed(list(enumerate(faces)))
        for result, content in zip(job.results, face, strict=True)
    }
    outdated = range(len(faces), MAX_FACES) if has_all_faces else ()
    try:
        for path in (result_of_face(result, face) for result in job.results for face in outdated):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)
        write_files(contents)
    except OSError as error:
        raise JobError("output_unwritable", f"result: {os_error_text(error)}") from None
    return len(faces) if has_all_faces else None


def run_job(job: Job, process: Callable[[Job], int | None]) -> Outcome:
    """Process one image, and return any error as its outcome."""
    start = time.perf_counter()
    code, reason, faces = "", "", None
    try:
        faces = process(job)
    except JobError as error:
        code, reason = error.code, error.reason
    except ProblemError as error:
        code, reason = error.code, error.detail
    except InputError as error:
        code, reason = error.code, str(error)
    except MemoryError:
        code, reason = "out_of_memory", "not enough memory to process the image"
    except Exception as error:  # noqa: BLE001 - one image must not stop the others
        # Report the type only, because the text may contain parts of the image.
        code, reason = "internal_error", f"unexpected error: {type(error).__name__}"
    return Outcome(job.number, time.perf_counter() - start, code, reason, faces)
