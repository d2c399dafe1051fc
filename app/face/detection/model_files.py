"""Model files of the face detector: names, checksums, and loading with OpenCV.

The models are MediaPipe's (Google, Apache-2.0). ``tools/models.py`` installs them.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

SHORT_RANGE_FILE: Final = "face_detection_short_range.tflite"  # BlazeFace for near faces
FULL_RANGE_FILE: Final = "face_detection_full_range_dense.tflite"  # BlazeFace for small faces, see `tools/models.py`
MESH_FILE: Final = "face_landmark.tflite"  # the mesh of 468 points
IRIS_FILE: Final = "iris_landmark.tflite"  # the iris of a right eye


class ModelFile(NamedTuple):
    """Expected size in bytes and SHA-256 of a model file."""

    size: int
    sha256: str


KNOWN_FILES: Final[dict[str, ModelFile]] = {
    SHORT_RANGE_FILE: ModelFile(229_714, "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8"),
    FULL_RANGE_FILE: ModelFile(1_602_656, "97df687992c76bf6d1c06d4bb18fe61e436c3ac42f1f904d7085e3537c746ed4"),
    MESH_FILE: ModelFile(1_242_398, "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814"),
    IRIS_FILE: ModelFile(2_640_568, "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f"),
}
"""Models that this version was tested with, by file name."""


def read_net(path: str) -> cv2.dnn.Net:
    """Load a model.

    The default engine of OpenCV 5.0 returns only one output per pass, so the classic engine is selected. OpenCV ignores
    that selection for models passed as bytes, so the model must be a path.
    """
    return cv2.dnn.readNetFromTFLite(path, engine=cv2.dnn.ENGINE_CLASSIC)


def run_net(net: cv2.dnn.Net, outputs: Sequence[str]) -> list[npt.NDArray[np.float32]]:
    """Run a model on its current input, and return the named outputs."""
    return [np.asarray(output, np.float32) for output in net.forward(outputs)]
