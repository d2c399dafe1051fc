"""What can be wrong with an input, each kind with its public code.

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

``str(error)`` is the sentence shown to the caller. It holds counts, positions and limits, and never a landmark's
value, a byte of an image or a name that the caller sent: it ends up in logs and in pages.
"""

from typing import ClassVar


class InputError(Exception):
    """Something in the caller's input cannot be worked with; the base of the tree."""

    code: ClassVar[str] = "input_invalid"


class ImageError(InputError):
    """The photo cannot be used."""

    code: ClassVar[str] = "image_invalid"


class ImageEmptyError(ImageError):
    """There are no bytes, or not enough to hold any header."""

    code: ClassVar[str] = "image_empty"


class ImageFormatError(ImageError):
    """The bytes are none of the formats that are read."""

    code: ClassVar[str] = "image_unsupported_format"


class ImageTruncatedError(ImageError):
    """The file ends before its format says that it may."""

    code: ClassVar[str] = "image_truncated"


class ImageCorruptError(ImageError):
    """The file contradicts its format: a wrong checksum, an impossible header, pixels that do not decode."""

    code: ClassVar[str] = "image_corrupt"


class ImageTooLargeError(ImageError):
    """The header announces more pixels than are allowed."""

    code: ClassVar[str] = "image_too_large"


class LandmarkError(InputError):
    """The landmarks cannot be used."""

    code: ClassVar[str] = "landmarks_invalid"


class LandmarkCountError(LandmarkError):
    """The number of points is that of no known mesh."""

    code: ClassVar[str] = "landmarks_count"


class LandmarkShapeError(LandmarkError):
    """The points are not rows of two or three numbers."""

    code: ClassVar[str] = "landmarks_shape"


class LandmarkNotFiniteError(LandmarkError):
    """A coordinate is NaN, infinite, or becomes infinite in single precision."""

    code: ClassVar[str] = "landmarks_not_finite"


class LandmarkRangeError(LandmarkError):
    """A point lies further outside the picture than is allowed."""

    code: ClassVar[str] = "landmarks_out_of_range"


class LandmarkDegenerateError(LandmarkError):
    """The points do not span a face: the outer corners of the eyes coincide."""

    code: ClassVar[str] = "landmarks_degenerate"


class LabelMapError(InputError):
    """The segmentation map cannot be used."""

    code: ClassVar[str] = "label_map_invalid"


class LabelMapFormatError(LabelMapError):
    """The segmentation map is not an image that holds exact labels."""

    code: ClassVar[str] = "label_map_format"


class LabelMapLabelsError(LabelMapError):
    """The segmentation map holds no label, or more labels than there are ids."""

    code: ClassVar[str] = "label_map_labels"


class LabelMapComplexityError(LabelMapError):
    """The segmentation map has more runs, contours or contour points than a request may take."""

    code: ClassVar[str] = "label_map_too_complex"


class RegionError(InputError):
    """The regions that the caller names cannot be used."""

    code: ClassVar[str] = "region_invalid"


class RegionNameError(RegionError):
    """A region's name has a length or a character that is not allowed."""

    code: ClassVar[str] = "region_name"


class RegionIndexError(RegionError):
    """A region's list of landmark indices is too short, too long, or points outside the mesh."""

    code: ClassVar[str] = "region_landmarks"


class RegionCountError(RegionError):
    """There are more regions than are allowed, or none."""

    code: ClassVar[str] = "region_count"


class FaceError(InputError):
    """No landmarks were sent, and none can be found."""

    code: ClassVar[str] = "face_invalid"


class NoFaceError(FaceError):
    """No landmarks were sent, and no face is found in the photo."""

    code: ClassVar[str] = "no_face"


class FaceIndexError(FaceError):
    """The face that was asked for by its index is not there: fewer were found."""

    code: ClassVar[str] = "face_index"


class DetectionUnavailableError(FaceError):
    """No landmarks were sent, and the service was set up without the models that find them."""

    code: ClassVar[str] = "detection_unavailable"


def public_codes() -> dict[str, type[InputError]]:
    """Map every code that a caller can meet to the error that carries it.

    Only the leaves of the tree are raised, so only their codes are public.

    Returns:
        Leaf classes by code, in the order of the tree.
    """

    def leaves(error: type[InputError]) -> list[type[InputError]]:
        children = error.__subclasses__()
        return [leaf for child in children for leaf in leaves(child)] if children else [error]

    return {error.code: error for error in leaves(InputError)}
