"""Options of requests: structures that define, validate and document them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from app.face.frame import Framing
    from app.face.rendering.svg import OverlayStyle


FaceChoice = Annotated[int, Meta(ge=0, le=99)] | Literal["all"]


Orientation = Annotated[
    Literal["stored", "displayed"],
    Meta(
        description="Image that all coordinates of the request and the response refer to: `stored`, the pixels as they "
        "are in the file, or `displayed`, as viewers show them according to the EXIF orientation."
    ),
]


class LandmarkOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Options of a landmarks request. Each is a query parameter and a field of the body.

    The query takes precedence unless it has the default value, which generated clients send.
    """

    face: Annotated[
        FaceChoice,
        Meta(description="Index of the detected face; 0 is the largest. `all` returns an array, one result per face."),
    ] = 0
    landmark_units: Annotated[
        Literal["pixels", "normalized"],
        Meta(description="`pixels` of the image, or `normalized` to 0..1 of its width and height."),
    ] = "pixels"
    orientation: Orientation = "stored"


class CropOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Options of a crop request. Each is a query parameter and a field of the body.

    The query takes precedence unless it has the default value, which generated clients send.
    """

    landmark_units: Annotated[
        Literal["pixels", "normalized"],
        Meta(description="`pixels` of the image, or `normalized` to 0..1 of its width and height."),
    ] = "pixels"
    show_labels: Annotated[bool, Meta(description="Draw each region's name in the overlay.")] = False
    show_landmarks: Annotated[bool, Meta(description="Draw the landmarks in the overlay.")] = False
    region_opacity: Annotated[float, Meta(ge=0, le=1, description="Opacity of a region's fill, 0 to 1.")] = 0.35
    stroke_width: Annotated[
        Annotated[float, Meta(ge=0, le=64)] | None,
        Meta(description="Width of outlines, in pixels; default: proportional to the size of the image."),
    ] = None
    simplify: Annotated[
        float,
        Meta(ge=0, le=1000, description="Maximum deviation of simplified contours, in pixels; 0 keeps every point."),
    ] = 0.5
    verify: Annotated[
        Literal["structure", "pixels"],
        Meta(description="`structure` verifies the image file without decoding it; `pixels` also decodes it."),
    ] = "structure"
    face: Annotated[
        FaceChoice,
        Meta(
            description="Index of the face: of the detected ones, 0 is the largest; those in a result of MediaPipe "
            "keep their order. `all` returns an array, one result per face."
        ),
    ] = 0
    upright: Annotated[bool, Meta(description="Rotate the result so that the eyes are level.")] = False
    crop: Annotated[Literal["none", "face"], Meta(description="`face` crops the result to the face.")] = "none"
    margin: Annotated[
        float,
        Meta(
            ge=0, le=4, description="Margin around a cropped face on each side, as a fraction of its width and height."
        ),
    ] = 0.25
    output_size: Annotated[
        Annotated[int, Meta(ge=16, le=4096)] | None,
        Meta(description="Longer side of the result, in pixels; default: not scaled."),
    ] = None
    background: Annotated[
        Literal["none", "image"], Meta(description="`image` embeds the image below the regions of the overlay.")
    ] = "none"
    orientation: Orientation = "stored"

    def framing(self) -> Framing:
        """Return the options of the output frame."""
        # Import lazily: the command line uses this table for its options, and its help must not load OpenCV.
        from app.face.frame import Framing  # noqa: PLC0415

        return Framing(
            is_upright=self.upright,
            is_cropped=self.crop == "face",
            margin=self.margin,
            longer_side=self.output_size,
        )

    def style(self) -> OverlayStyle:
        """Return the options of the overlay."""
        from app.face.rendering.svg import OverlayStyle  # noqa: PLC0415 - as above

        return OverlayStyle(
            show_labels=self.show_labels,
            show_landmarks=self.show_landmarks,
            region_opacity=self.region_opacity,
            stroke_width=self.stroke_width,
        )


OPTION_NAMES = tuple(field.name for field in msgspec.structs.fields(CropOptions))
LANDMARK_OPTION_NAMES = tuple(field.name for field in msgspec.structs.fields(LandmarkOptions))
