"""Errors of the caller's input, each with its public code.

``str(error)`` is shown to the caller: the field, what is expected and what was received. It contains counts, positions
and limits, but never coordinates, image bytes or names from the request, because it also appears in logs and pages.
"""

from typing import ClassVar, Final

PUBLIC_CODES: Final[dict[str, type["InputError"]]] = {}
"""Every class that is raised, by its code."""


class InputError(Exception):
    """The input is invalid; base class of all input errors. The classes without a code are never raised themselves."""

    code: ClassVar[str]

    def __init_subclass__(cls, code: str = "") -> None:
        if code:
            cls.code = code
            PUBLIC_CODES[code] = cls


class ImageError(InputError):
    """The image cannot be used."""


class ImageEmptyError(ImageError, code="image_empty"):
    """The image is empty."""


class ImageFormatError(ImageError, code="image_unsupported_format"):
    """The image format is not supported."""


class ImageTruncatedError(ImageError, code="image_truncated"):
    """The image file is incomplete."""


class ImageCorruptError(ImageError, code="image_corrupt"):
    """The image file is corrupt: wrong checksum, invalid header, or pixels that cannot be decoded."""


class ImageTooLargeError(ImageError, code="image_too_large"):
    """The image has more pixels than the limit."""


class LandmarkError(InputError):
    """The landmarks cannot be used."""


class LandmarkCountError(LandmarkError, code="landmarks_count"):
    """The number of landmarks is neither 468 nor 478, or there are too many faces."""


class LandmarkShapeError(LandmarkError, code="landmarks_shape"):
    """The landmarks are not rows of two or three numbers."""


class LandmarkNotFiniteError(LandmarkError, code="landmarks_not_finite"):
    """A coordinate is NaN, infinite, or out of range for single precision."""


class LandmarkRangeError(LandmarkError, code="landmarks_out_of_range"):
    """A landmark is too far outside the image."""


class LandmarkDegenerateError(LandmarkError, code="landmarks_degenerate"):
    """The landmarks do not form a face: the outer eye corners coincide."""


class LabelMapError(InputError):
    """The segmentation map cannot be used."""


class LabelMapFormatError(LabelMapError, code="label_map_format"):
    """The format of the segmentation map cannot store exact labels."""


class LabelMapLabelsError(LabelMapError, code="label_map_labels"):
    """The segmentation map has no labels, or too many."""


class LabelMapComplexityError(LabelMapError, code="label_map_too_complex"):
    """The segmentation map has too many runs, contours or contour points, or is too large to fill as a mask."""


class RegionError(InputError):
    """The custom regions cannot be used."""


class RegionNameError(RegionError, code="region_name"):
    """The name of a region is too long, blank, or has a character that is not allowed."""


class RegionIndexError(RegionError, code="region_landmarks"):
    """A region has too few or too many landmark indices, or an index outside the mesh."""


class RegionCountError(RegionError, code="region_count"):
    """There are no regions, or too many."""


class FaceError(InputError):
    """The request has no landmarks, and none can be detected."""


class NoFaceError(FaceError, code="no_face"):
    """The request has no landmarks, and no face was detected in the image."""


class FaceIndexError(FaceError, code="face_index"):
    """The requested face index is out of range."""


class DetectionUnavailableError(FaceError, code="detection_unavailable"):
    """The request has no landmarks, and the face-detection models are not installed."""
