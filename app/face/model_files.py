"""The models that this version was made with: size and SHA-256 of each file that ``tools/models.py`` puts in place."""

from typing import Final, NamedTuple


class ModelFile(NamedTuple):
    """One file.

    Attributes:
        size: Bytes.
        sha256: Of its content, in hexadecimal.
    """

    size: int
    sha256: str


KNOWN_FILES: Final[dict[str, ModelFile]] = {
    "face_detection_short_range.tflite": ModelFile(
        229_714, "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8"
    ),
    "face_detection_full_range_dense.tflite": ModelFile(
        1_602_656, "97df687992c76bf6d1c06d4bb18fe61e436c3ac42f1f904d7085e3537c746ed4"
    ),
    "face_landmark.tflite": ModelFile(1_242_398, "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814"),
    "iris_landmark.tflite": ModelFile(2_640_568, "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f"),
}
