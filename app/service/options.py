"""The options of a crop request: one structure that checks them, documents them and names their defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from app.face.frame import Framing
    from app.face.rendering.svg import OverlayStyle


class LandmarkOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How landmarks are found and given. Each field is a query parameter and a field of the body; the query wins."""

    face: Annotated[int, Meta(ge=0, le=99, description="Which face: 0 is the largest, 1 the next.")] = 0
    landmark_units: Annotated[
        Literal["pixels", "normalized"],
        Meta(description="`pixels` of the image, or `normalized` to 0..1 of its width and height."),
    ] = "pixels"


class CropOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How regions are found and drawn. Each field is a query parameter and a field of the body; the query wins."""

    landmark_units: Annotated[
        Literal["pixels", "normalized"],
        Meta(description="`pixels` of the image, or `normalized` to 0..1 of its width and height."),
    ] = "pixels"
    show_labels: Annotated[bool, Meta(description="Write each region's name into the overlay.")] = False
    show_landmarks: Annotated[bool, Meta(description="Draw the landmarks into the overlay.")] = False
    region_opacity: Annotated[float, Meta(ge=0, le=1, description="Opacity of a region's fill, 0 to 1.")] = 0.35
    stroke_width: Annotated[
        Annotated[float, Meta(ge=0, le=64)] | None,
        Meta(description="Width of outlines, in pixels of the image; left out, what suits its size."),
    ] = None
    simplify: Annotated[
        float, Meta(ge=0, le=1000, description="How far a contour may leave the exact one, in pixels; 0 keeps all.")
    ] = 0.5
    verify: Annotated[
        Literal["structure", "pixels"],
        Meta(description="`structure` proves the file whole without decoding it; `pixels` decodes it as well."),
    ] = "structure"
    face: Annotated[
        int, Meta(ge=0, le=99, description="Which face, where no landmarks are sent: 0 is the largest, 1 the next.")
    ] = 0
    upright: Annotated[bool, Meta(description="Turn the result so that the eyes are level.")] = False
    crop: Annotated[Literal["none", "face"], Meta(description="`face` cuts the result to the face.")] = "none"
    margin: Annotated[
        float,
        Meta(ge=0, le=4, description="Room around a cut face on each side, as a share of its width and height."),
    ] = 0.25
    output_size: Annotated[
        Annotated[int, Meta(ge=16, le=4096)] | None,
        Meta(description="Longer side of the result, in pixels; left out, it is not scaled."),
    ] = None
    background: Annotated[
        Literal["none", "image"], Meta(description="`image` puts the photo under the regions of the overlay.")
    ] = "none"

    def plain(self) -> CropOptions:
        """Return the options alone: a body that was read into them holds the picture's text as well."""
        return CropOptions(**{name: getattr(self, name) for name in OPTION_NAMES})

    def framing(self) -> Framing:
        """Return the part that the result's frame is chosen by."""
        # Imported here: the command line makes its options from this table, and its help loads no picture libraries.
        from app.face.frame import Framing  # noqa: PLC0415

        return Framing(
            is_upright=self.upright,
            is_cropped=self.crop == "face",
            margin=self.margin,
            longer_side=self.output_size,
        )

    def style(self) -> OverlayStyle:
        """Return the part that the overlay is drawn by."""
        from app.face.rendering.svg import OverlayStyle  # noqa: PLC0415 - as above

        return OverlayStyle(
            show_labels=self.show_labels,
            show_landmarks=self.show_landmarks,
            region_opacity=self.region_opacity,
            stroke_width=self.stroke_width,
        )


OPTION_NAMES = tuple(field.name for field in msgspec.structs.fields(CropOptions))
LANDMARK_OPTION_NAMES = tuple(field.name for field in msgspec.structs.fields(LandmarkOptions))
