import re

import pytest

from app.face import errors
from app.face.errors import PUBLIC_CODES, InputError


def classes(root: type[InputError]) -> list[type[InputError]]:
    return [root, *(found for child in root.__subclasses__() for found in classes(child))]


def test_codes_are_unique_and_plain_words() -> None:
    codes = [error.code for error in classes(InputError) if not error.__subclasses__()]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", code) for code in codes)


def test_public_codes_are_the_leaf_classes() -> None:
    leaves = {error for error in classes(InputError) if not error.__subclasses__()}
    assert set(PUBLIC_CODES.values()) == leaves
    assert all(code == error.code for code, error in PUBLIC_CODES.items())


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("image_empty", errors.ImageEmptyError),
        ("image_unsupported_format", errors.ImageFormatError),
        ("image_truncated", errors.ImageTruncatedError),
        ("image_corrupt", errors.ImageCorruptError),
        ("image_too_large", errors.ImageTooLargeError),
        ("landmarks_count", errors.LandmarkCountError),
        ("landmarks_shape", errors.LandmarkShapeError),
        ("landmarks_not_finite", errors.LandmarkNotFiniteError),
        ("landmarks_out_of_range", errors.LandmarkRangeError),
        ("landmarks_degenerate", errors.LandmarkDegenerateError),
        ("label_map_format", errors.LabelMapFormatError),
        ("label_map_labels", errors.LabelMapLabelsError),
        ("label_map_too_complex", errors.LabelMapComplexityError),
        ("region_name", errors.RegionNameError),
        ("region_landmarks", errors.RegionIndexError),
        ("region_count", errors.RegionCountError),
        ("no_face", errors.NoFaceError),
        ("face_index", errors.FaceIndexError),
        ("detection_unavailable", errors.DetectionUnavailableError),
    ],
)
def test_codes_are_stable(code: str, error: type[InputError]) -> None:
    assert PUBLIC_CODES[code] is error
