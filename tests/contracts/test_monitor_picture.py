"""The picture of the monitor that documents show is whole, small, and fetches nothing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

PICTURE = Path(__file__).parents[2] / "docs" / "monitor.svg"


@pytest.fixture(scope="module")
def svg() -> str:
    return PICTURE.read_text(encoding="utf-8")


def test_picture_is_small_and_fetches_nothing(svg: str) -> None:
    assert len(svg.encode()) < 150_000
    assert set(re.findall(r"\w+://[^\s\"'<)]+", svg)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|<script|<image|href=|url\((?!#)", svg)


def test_picture_is_of_the_view_as_it_is(svg: str) -> None:
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
