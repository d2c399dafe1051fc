"""Errors of the caller's input, each with its public code.

::

    InputError                        input_invalid
    ├─ ImageError                     image_invalid
    │  ├─ ImageEmptyError             image_empty
    │  ├─ ImageFormatError            image_unsupported_format
    │  ├─ ImageTruncatedError         image_truncated
    │  ├─ ImageCorruptError           image_corrupt
    │  └─ ImageTooLargeError          image_too_large
    ├─ LandmarkError                  landmarks_invalid
    │  ├─ LandmarkCountError          landmarks_count
    │  ├─ LandmarkShapeError          landmarks_shape
    │  ├─ LandmarkNotFiniteError      landmarks_not_finite
    │  ├─ LandmarkRangeError          landmarks_out_of_range
    │  └─ LandmarkDegenerateError     landmarks_degenerate
    ├─ LabelMapError                  label_map_invalid
    │  ├─ LabelMapFormatError         label_map_format
    │  ├─ LabelMapLabelsError         label_map_labels
    │  └─ LabelMapComplexityError     label_map_too_complex
    ├─ RegionError                    region_invalid
    │  ├─ RegionNameError             region_name
    │  ├─ RegionIndexError            region_landmarks
    │  └─ RegionCountError            region_count
    └─ FaceError                      face_invalid
       ├─ NoFaceError                 no_face
       ├─ FaceIndexError              face_index
       └─ DetectionUnavailableError   detection_unavailable

``str(error)`` is shown to the caller: the field, what is expected and what was received. It contains counts, positions
and limits, but never coordinates, image bytes or names from the request, because it also appears in logs and pages.
"""

from typing import ClassVar


class InputError(Exception):
    """The input is invalid; base class of all input errors."""

    code: ClassVar[str] = "input_invalid"


class ImageError(InputError):
    """The image cannot be used."""

    code: ClassVar[str] = "image_invalid"


class ImageEmptyError(ImageError):
    """The image is empty."""

    code: ClassVar[str] = "image_empty"


class ImageFormatError(ImageError):
    """The image format is not supported."""

    code: ClassVar[str] = "image_unsupported_format"


class ImageTruncatedError(ImageError):
    """The image file is incomplete."""

    code: ClassVar[str] = "image_truncated"


class ImageCorruptError(ImageError):
    """The image file is corrupt: wrong checksum, invalid header, or pixels that cannot be decoded."""

    code: ClassVar[str] = "image_corrupt"


class ImageTooLargeError(ImageError):
    """The image has more pixels than the limit."""

    code: ClassVar[str] = "image_too_large"


class LandmarkError(InputError):
    """The landmarks cannot be used."""

    code: ClassVar[str] = "landmarks_invalid"


class LandmarkCountError(LandmarkError):
    """The number of landmarks is neither 468 nor 478."""

    code: ClassVar[str] = "landmarks_count"


class LandmarkShapeError(LandmarkError):
    """The landmarks are not rows of two or three numbers."""

    code: ClassVar[str] = "landmarks_shape"


class LandmarkNotFiniteError(LandmarkError):
    """A coordinate is NaN, infinite, or out of range for single precision."""

    code: ClassVar[str] = "landmarks_not_finite"


class LandmarkRangeError(LandmarkError):
    """A landmark is too far outside the image."""

    code: ClassVar[str] = "landmarks_out_of_range"


class LandmarkDegenerateError(LandmarkError):
    """The landmarks do not form a face: the outer eye corners coincide."""

    code: ClassVar[str] = "landmarks_degenerate"


class LabelMapError(InputError):
    """The segmentation map cannot be used."""

    code: ClassVar[str] = "label_map_invalid"


class LabelMapFormatError(LabelMapError):
    """The format of the segmentation map cannot store exact labels."""

    code: ClassVar[str] = "label_map_format"


class LabelMapLabelsError(LabelMapError):
    """The segmentation map has no labels, or too many."""

    code: ClassVar[str] = "label_map_labels"


class LabelMapComplexityError(LabelMapError):
    """The segmentation map has too many runs, contours or contour points."""

    code: ClassVar[str] = "label_map_too_complex"


class RegionError(InputError):
    """The custom regions cannot be used."""

    code: ClassVar[str] = "region_invalid"


class RegionNameError(RegionError):
    """The name of a region is too long, blank, or has a character that is not allowed."""

    code: ClassVar[str] = "region_name"


class RegionIndexError(RegionError):
    """A region has too few or too many landmark indices, or an index outside the mesh."""

    code: ClassVar[str] = "region_landmarks"


class RegionCountError(RegionError):
    """There are no regions, or too many."""

    code: ClassVar[str] = "region_count"


class FaceError(InputError):
    """The request has no landmarks, and none can be detected."""

    code: ClassVar[str] = "face_invalid"


class NoFaceError(FaceError):
    """The request has no landmarks, and no face was detected in the image."""

    code: ClassVar[str] = "no_face"


class FaceIndexError(FaceError):
    """The requested face index is out of range."""

    code: ClassVar[str] = "face_index"


class DetectionUnavailableError(FaceError):
    """The request has no landmarks, and the face-detection models are not installed."""

    code: ClassVar[str] = "detection_unavailable"


def public_codes() -> dict[str, type[InputError]]:
    """Return every public code with its error class.

    Only leaf classes are raised, so only their codes are public.

    Returns:
        leaf classes by code, in the order of the tree.
    """

    def leaves(error: type[InputError]) -> list[type[InputError]]:
        children = error.__subclasses__()
        return [leaf for child in children for leaf in leaves(child)] if children else [error]

    return {error.code: error for error in leaves(InputError)}
