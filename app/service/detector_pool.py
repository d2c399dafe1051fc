"""Finding faces: the models' files, and one finder a thread."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from app.face.detection.landmark_detector import DetectedFace, LandmarkDetector
from app.face.detection.model_files import MODEL_FILES, FaceModels
from app.face.errors import DetectionUnavailableError, NoFaceError
from app.face.frame import BGRA_CHANNELS
from app.observability.recording import record_faces_detected
from app.observability.rich_logging import log_image_processing

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from app.face.pipeline import OnStep

PACKAGE_MODELS = Path(__file__).parents[1] / "models"

# What shows through where a photo is transparent: neither of the colours that hair and skin stand out from.
_GROUND = 127
_GROUND_BY_OPACITY = np.rint(_GROUND * (255 - np.arange(256)) / 255).astype(np.uint8)

# By EXIF orientation, how often a photo has to be turned clockwise for heads to be up. Mirrors are left: a face in a
# mirror is a face, and its landmarks shall be those of the pixels as they are stored.
_QUARTER_TURNS = {3: 2, 4: 2, 5: 1, 6: 1, 7: 3, 8: 3}

log = logging.getLogger("images")


class DetectorPool:
    """Finds faces on as many threads as ask for it; models are read when the first face is looked for.

    Args:
        directory: folder of the models; None for the one inside the package.
    """

    def __init__(self, directory: Path | None = None) -> None:
        folder = PACKAGE_MODELS if directory is None else directory
        self._models = FaceModels(
            short_range=str(folder / MODEL_FILES.short_range),
            full_range=str(folder / MODEL_FILES.full_range),
            mesh=str(folder / MODEL_FILES.mesh),
            iris=str(folder / MODEL_FILES.iris),
        )
        self._of_thread = threading.local()

    @property
    def has_models(self) -> bool:
        """Whether landmarks can be found."""
        models = self._models
        return all(Path(path).is_file() for path in (models.short_range, models.full_range, models.mesh, models.iris))

    def require(self) -> None:
        """Refuse a request without landmarks where none can be found.

        Raises:
            DetectionUnavailableError: the models are not there.
        """
        if not self.has_models:
            raise _unavailable("were not set up")

    def find(self, photo: npt.NDArray[np.uint8], on_step: OnStep, index: int, exif_orientation: int) -> DetectedFace:
        """Find the landmarks of a face, and count what was found.

        Args:
            photo: ``(H, W, 3)`` BGR or ``(H, W, 4)`` BGRA.
            on_step: told of each step: ``detect``, ``mesh``, ``iris``.
            index: which face, counted from the largest.
            exif_orientation: 1 to 8; which way up the photo is to be looked at.

        Raises:
            DetectionUnavailableError: the models are not there, or cannot be read.
            NoFaceError: there is no face.
            FaceIndexError: there are faces, but not as many.
        """
        finder = self._finder()
        with _counted():
            found = finder.detect(flatten(photo), on_step, index, _QUARTER_TURNS.get(exif_orientation, 0))
        record_faces_detected("one" if len(found.faces) == 1 else "several")
        log_image_processing("faces", len(found.faces))
        return found

    def _finder(self) -> LandmarkDetector:
        finder: LandmarkDetector | None = getattr(self._of_thread, "finder", None)
        if finder is None:
            self.require()
            try:
                finder = LandmarkDetector(self._models)
            except cv2.error:
                log.exception("The models that find faces cannot be read")
                raise _unavailable("cannot be read") from None
            self._of_thread.finder = finder
        return finder


def flatten(photo: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Lay a photo with transparency on grey.

    Args:
        photo: ``(H, W, 3)`` BGR or ``(H, W, 4)`` BGRA.

    Returns:
        ``(H, W, 3)`` BGR.
    """
    if photo.shape[2] != BGRA_CHANNELS:
        return photo
    # Premultiplied and looked up, this takes a quarter of the time of multiplying each channel.
    colours = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGBA2mRGBA), cv2.COLOR_BGRA2BGR)
    ground = cv2.LUT(cv2.extractChannel(photo, 3), _GROUND_BY_OPACITY)
    return cv2.add(colours, cv2.cvtColor(ground, cv2.COLOR_GRAY2BGR)).astype(np.uint8, copy=False)


@contextmanager
def _counted() -> Iterator[None]:
    try:
        yield
    except NoFaceError:
        record_faces_detected("none")
        raise


def _unavailable(reason: str) -> DetectionUnavailableError:
    return DetectionUnavailableError(
        f"landmarks: expected, for the models that find them {reason}; send landmarks, or have them set up: "
        "`make models` in a checkout, MODELS_DIR elsewhere"
    )
