"""The options of a crop request: one structure that checks them, documents them and names their defaults."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from app.face.errors import OptionUnavailableError
from app.face.overlay import OverlayStyle


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
    upright: Annotated[bool, Meta(description="Level the eyes. Not available yet.")] = False
    crop: Annotated[Literal["none", "face"], Meta(description="Cut to the face. Not available yet.")] = "none"
    margin: Annotated[float, Meta(ge=0, le=4, description="Room around a cut face. Not available yet.")] = 0.25
    background: Annotated[
        Literal["none", "image"], Meta(description="Put the photo under the overlay. Not available yet.")
    ] = "none"

    def require_available(self) -> None:
        """Refuse what is not built.

        Raises:
            OptionUnavailableError: upright, crop, margin or background is set.
        """
        unavailable = [
            name for name in ("upright", "crop", "margin", "background") if getattr(self, name) != _DEFAULTS[name]
        ]
        if unavailable:
            names = ", ".join(unavailable)
            raise OptionUnavailableError(f"not available in this version: {names}; leave out or set to the default")

    def plain(self) -> CropOptions:
        """Return the options alone: a body that was read into them holds the picture's text as well."""
        return CropOptions(**{name: getattr(self, name) for name in OPTION_NAMES})

    def style(self) -> OverlayStyle:
        """Return the part that the overlay is drawn by."""
        return OverlayStyle(
            show_labels=self.show_labels,
            show_landmarks=self.show_landmarks,
            region_opacity=self.region_opacity,
            stroke_width=self.stroke_width,
        )


_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(CropOptions)}
OPTION_NAMES = tuple(_DEFAULTS)
