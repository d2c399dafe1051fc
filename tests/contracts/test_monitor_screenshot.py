"""The screenshot of the monitor is complete, small, and has no external resources."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

SCREENSHOT = Path(__file__).parents[2] / "docs" / "monitor.svg"


@pytest.fixture(scope="module")
def svg() -> str:
    return SCREENSHOT.read_text(encoding="utf-8")


def test_screenshot_is_small_and_has_no_external_resources(svg: str) -> None:
    assert len(svg.encode()) < 150_000
    assert set(re.findall(r"\w+://[^\s\"'<)]+", svg)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|<script|<image|href=|url\((?!#)", svg)


def test_screenshot_shows_every_panel(svg: str) -> None:
    text = " ".join("".join(ET.fromstring(svg).itertext()).replace("\xa0", " ").split())  # noqa: S314 - our own file
    for words in (
        "READY",
        "Requests",
        "Errors",
        "Routes",
        "Tasks",
        "Processes",
        "Image steps",
        "status 422",
        "worker-0",
    ):
        assert words in text
    assert "nan" not in text.lower()
