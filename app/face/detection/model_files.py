"""Model files of the face detector: names and checksums.

The models are MediaPipe's (Google, Apache-2.0), unmodified. ``tools/models.py`` installs them.
"""

from typing import Final, NamedTuple

SHORT_RANGE_FILE: Final = "face_detection_short_range.tflite"  # BlazeFace for near faces
FULL_RANGE_FILE: Final = "face_detection_full_range_sparse.tflite"  # BlazeFace for small faces
MESH_FILE: Final = "face_landmark.tflite"  # the mesh of 468 points
IRIS_FILE: Final = "iris_landmark.tflite"  # the iris of a right eye


class ModelFile(NamedTuple):
    """Expected size in bytes and SHA-256 of a model file."""

    size: int
    sha256: str


KNOWN_FILES: Final[dict[str, ModelFile]] = {
    SHORT_RANGE_FILE: ModelFile(229_714, "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8"),
    FULL_RANGE_FILE: ModelFile(676_746, "2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1"),
    MESH_FILE: ModelFile(1_242_398, "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814"),
    IRIS_FILE: ModelFile(2_640_568, "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f"),
}
"""Models that this version was tested with, by file name."""
