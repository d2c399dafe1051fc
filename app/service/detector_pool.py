"""Landmark detection on several threads, with one detector for each."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from app.face.detection.landmark_detector import DetectedFace, LandmarkDetector
from app.face.detection.model_files import KNOWN_FILES
from app.face.errors import DetectionUnavailableError, NoFaceError
from app.face.frame import BGRA_CHANNELS, ByteArray
from app.observability.recording import record_faces_detected
from app.observability.rich_logging import get_logger, log_image_processing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.face.pipeline import OnStep

PACKAGE_MODELS = Path(__file__).parents[1] / "models"

# Grey under transparent pixels: neither hair nor skin stands out against it.
_GREY = 127
_GREY_BY_ALPHA = np.rint(_GREY * (255 - np.arange(256)) / 255).astype(np.uint8)

# Clockwise quarter turns that make heads upright, by EXIF orientation. Mirrored images are not flipped, because faces
# in them can be detected, and landmarks refer to the stored pixels.
_QUARTER_TURNS = {3: 2, 4: 2, 5: 1, 6: 1, 7: 3, 8: 3}

log = get_logger("images")


class DetectorPool:
    """A landmark detector for each thread, created when the thread detects its first face.

    The models are in the given folder; None is the one inside the package.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or PACKAGE_MODELS
        self._thread = threading.local()

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

    def detect(self, image: ByteArray, on_step: OnStep, index: int, exif_orientation: int) -> DetectedFace:
        """Detect the landmarks of a face, and count the outcome; see `LandmarkDetector.detect`.

        The image is ``(H, W, 3)`` BGR or ``(H, W, 4)`` BGRA. Its EXIF orientation is 1 to 8.

        Raises:
            DetectionUnavailableError: the models are missing or cannot be loaded.
            NoFaceError: the image has no face.
            FaceIndexError: the image has fewer faces.
        """
        detector, quarter_turns = self._get_detector(), _QUARTER_TURNS.get(exif_orientation, 0)
        with _counted_if_none():
            detected = detector.detect(blend_on_grey(image), on_step, index, quarter_turns)
        _count(detected)
        return detected

    def detect_all(self, image: ByteArray, on_step: OnStep, exif_orientation: int) -> tuple[DetectedFace, ...]:
        """Detect the landmarks of all faces; see `detect` and `LandmarkDetector.detect_all`.

        Raises:
            DetectionUnavailableError: the models are missing or cannot be loaded.
            NoFaceError: the image has no face.
        """
        detector, quarter_turns = self._get_detector(), _QUARTER_TURNS.get(exif_orientation, 0)
        with _counted_if_none():
            faces = detector.detect_all(blend_on_grey(image), on_step, quarter_turns)
        _count(faces[0])
        return faces

    def _get_detector(self) -> LandmarkDetector:
        detector: LandmarkDetector | None = getattr(self._thread, "detector", None)
        if detector is None:
            self.require_models()
            try:
                detector = LandmarkDetector(str(self._folder))
            except cv2.error:
                log.exception("The face-detection models cannot be loaded; install them again")
                raise _unavailable("cannot be loaded") from None
            self._thread.detector = detector
        return detector


@contextmanager
def _counted_if_none() -> Iterator[None]:
    try:
        yield
    except NoFaceError:
        record_faces_detected("none")
        raise


def _count(detected: DetectedFace) -> None:
    record_faces_detected("one" if len(detected.faces) == 1 else "several")
    log_image_processing("faces", len(detected.faces))


def blend_on_grey(image: ByteArray) -> ByteArray:
    """Blend an image with grey if it is ``(H, W, 4)`` BGRA; the result is ``(H, W, 3)`` BGR."""
    if image.shape[2] != BGRA_CHANNELS:
        return image
    # Premultiplying and a lookup table take a quarter of the time of multiplying each channel.
    colours = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGBA2mRGBA), cv2.COLOR_BGRA2BGR)
    grey = cv2.LUT(cv2.extractChannel(image, 3), _GREY_BY_ALPHA)
    return cv2.add(colours, cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)).astype(np.uint8, copy=False)


def _unavailable(reason: str) -> DetectionUnavailableError:
    return DetectionUnavailableError(
        f"landmarks: required, because the face-detection models {reason}; send landmarks, or install the models: "
        "`make models` in a checkout, MODELS_DIR elsewhere"
    )
