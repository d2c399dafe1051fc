"""Landmark detection on several threads, with one detector for each concurrent detection."""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from app import PACKAGE_MODELS
from app.face.detection.landmark_detector import DetectedFace, LandmarkDetector
from app.face.detection.model_files import KNOWN_FILES
from app.face.errors import DetectionUnavailableError, NoFaceError
from app.observability.recording import record_faces_detected
from app.observability.rich_logging import get_logger, log_faces_found

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.face.frame import ByteArray
    from app.face.image_pyramid import ImagePyramid
    from app.face.pipeline import OnStep


# By EXIF orientation, the clockwise quarter turns that make heads upright, after a horizontal flip if it is mirrored.
# Without the flip, the left eye would be found where the subject's right eye is displayed.
_QUARTER_TURNS = {3: 2, 4: 2, 5: 3, 6: 1, 7: 1, 8: 3}
_MIRRORED = {2, 4, 5, 7}

_STDERR = 2
_LITERT_NOTICE = b"INFO: "  # of the first line that LiteRT writes when it creates a delegate
_loading = threading.Lock()

log = get_logger("images")


class DetectorPool:
    """Landmark detectors, each used by one thread at a time, and created when all others are in use.

    A detector occupies 33 MB, so threads that detect one after the other share it.

    The models are in the given folder; None is the one inside the package.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or PACKAGE_MODELS
        self._idle: list[LandmarkDetector] = []

    @property
    def has_models(self) -> bool:
        """Whether all models are installed."""
        return all((self._folder / name).is_file() for name in KNOWN_FILES)

    def require_models(self) -> None:
        """Raise an error if the models are not installed.

        Raises:
            DetectionUnavailableError: a model is missing.
        """
        if not self.has_models:
            raise _unavailable("are not installed")

    def detect(
        self, image: ImagePyramid | ByteArray, on_step: OnStep, face: int | Literal["all"], exif_orientation: int
    ) -> tuple[DetectedFace, ...]:
        """Detect the landmarks of one face or of all, and count the outcome; see `LandmarkDetector`.

        The EXIF orientation is 1 to 8. Landmarks refer to the image as stored. Left and right are the subject's in the
        image as displayed.

        Raises:
            DetectionUnavailableError: the models are missing or cannot be loaded.
            NoFaceError: the image has no face.
            FaceIndexError: the image has fewer faces.
        """
        quarter_turns, is_mirrored = _QUARTER_TURNS.get(exif_orientation, 0), exif_orientation in _MIRRORED
        with self._borrow() as detector:
            try:
                detected = detector.detect(image, on_step, face, quarter_turns, is_mirrored=is_mirrored)
            except NoFaceError:
                record_faces_detected("none")
                raise
        number = len(detected[0].faces)
        record_faces_detected("one" if number == 1 else "several")
        log_faces_found(number)
        return detected

    @contextmanager
    def _borrow(self) -> Iterator[LandmarkDetector]:
        try:
            detector = self._idle.pop()
        except IndexError:
            detector = self._load()
        try:
            yield detector
        finally:
            self._idle.append(detector)

    def _load(self) -> LandmarkDetector:
        self.require_models()
        try:
            with without_litert_notices():
                return LandmarkDetector(str(self._folder))
        except ValueError:
            log.exception("The face-detection models cannot be loaded; install them again")
            raise _unavailable("cannot be loaded") from None


@contextmanager
def without_litert_notices() -> Iterator[None]:
    """Drop the notices that LiteRT writes to stderr in the block, because its log level cannot be set from Python.

    They do not have the log format. Everything else that the process writes to stderr in the meantime is kept, and
    written at the end of the block.
    """
    with _loading, tempfile.TemporaryFile() as held:
        stderr = os.dup(_STDERR)
        try:
            os.dup2(held.fileno(), _STDERR)
            try:
                yield
            finally:
                os.dup2(stderr, _STDERR)
                held.seek(0)
                kept = b"".join(line for line in held if not line.startswith(_LITERT_NOTICE))
                if kept:
                    os.write(stderr, kept)
        finally:
            os.close(stderr)


def _unavailable(reason: str) -> DetectionUnavailableError:
    return DetectionUnavailableError(
        f"landmarks: required, because the face-detection models {reason}; send landmarks, or install the models: "
        "`make models` in a checkout, MODELS_DIR elsewhere"
    )
