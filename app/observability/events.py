"""The lines that tell a person at a terminal what happens to an image; quiet elsewhere unless asked for.

They are debugging aids: in a cluster the access line and the metrics say the same at a tenth of the cost, so the
``images`` component starts at WARNING there (see `rich_logging.configure_logging`).
"""

from __future__ import annotations

import logging
from typing import Literal

from app.observability.rich_logging import get_logger

_images = get_logger("images")

ImageEvent = Literal["verified", "segmentation", "extracted"]
_TEXT: dict[ImageEvent, str] = {
    "verified": "🖼️ Image verified: %d×%d %s",
    "segmentation": "🗺️ Segmentation map decoded: %d×%d, %d labels",
    "extracted": "✅ Extracted %d regions",
}


def log_image_processing(event: ImageEvent, *values: object) -> None:
    """Tell of one step; ``values`` are sizes, counts and formats, never what is in the picture.

    Example:
        >>> log_image_processing("verified", 512, 512, "PNG")
    """
    if _images.isEnabledFor(logging.INFO):
        _images.info(_TEXT[event], *values, extra={"event": event})
