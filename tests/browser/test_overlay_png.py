"""The overlay as a PNG looks like the SVG in Chromium."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import httpx
import numpy as np
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.conftest import Sample
    from tests.live.conftest import RunningService

CROP = "/api/v1/frontal/crop"
GREY = 128


def read(png: bytes) -> np.ndarray:
    """Decode a PNG, and draw it over grey."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    opacity = image[..., 3:] / 255 if image.shape[2] == 4 else 1.0
    return image[..., :3] * opacity + GREY * (1 - opacity)


@pytest.mark.parametrize(
    ("fields", "limit"),  # the mean difference of all pixels, of 255
    [
        ({}, 0.2),
        ({"show_landmarks": True, "region_opacity": 0.8, "stroke_width": 3}, 0.5),
        ({"crop": "face", "upright": True, "output_size": 700, "background": "image"}, 1.0),
        ({"segmentation_map": "labels", "upright": True}, 1.0),
        # Fonts differ, but the position of labels does not.
        ({"show_labels": True, "crop": "face", "output_size": 700}, 6.0),
    ],
)
def test_png_looks_like_the_svg(
    browser: Browser, served: RunningService, sample: Sample, fields: dict[str, Any], limit: float
) -> None:
    fields = {name: sample.labels if value == "labels" else value for name, value in fields.items()}
    svg, png = [
        httpx.post(
            served.api + CROP,
            content=sample.json(**fields),
            headers={"Content-Type": "application/json", "Accept": accept},
        ).raise_for_status()
        for accept in ("image/svg+xml", "image/png")
    ]
    image = read(png.content)
    page = browser.new_page(viewport={"width": image.shape[1], "height": image.shape[0]})
    page.set_content(
        f"<style>body {{ margin: 0; background: rgb({GREY} {GREY} {GREY}) }} svg {{ display: block }}</style>{svg.text}"
    )
    page.evaluate("() => Promise.all([...document.querySelectorAll('image')].map((image) => image.decode()))")
    drawn = read(page.screenshot())
    page.close()
    assert drawn.shape == image.shape
    assert np.abs(drawn - GREY).mean() > 0.5
    assert np.abs(image - drawn).mean() < limit
