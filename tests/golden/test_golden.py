"""Overlays of the sample image match the reviewed files; see ``regenerate.py``."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
NAMES = ["catalogue", "catalogue_labels", "custom_regions", "label_map", "upright_cropped", "upright_label_map"]

# Floating-point differences between machines may change the last decimal of a coordinate, or which points
# simplification keeps. Neither is visible.
COORDINATE_TOLERANCE_PX = 0.15
MOVED_SHAPES = 1
IMAGE_TOLERANCE = 0.002


@pytest.fixture(scope="module")
def golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("regenerate", HERE / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(svg: bytes) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 - our own document


def outline(element: ET.Element) -> list[tuple[Any, ...]]:
    """Return tag, text and attributes of each element, without coordinates."""
    moving = {"points", "d", "x", "y", "cx", "cy"}
    return [
        (part.tag, part.text, sorted((key, value) for key, value in part.attrib.items() if key not in moving))
        for part in element.iter()
    ]


def numbers(element: ET.Element) -> list[list[float]]:
    """Return the coordinates of each element that has any."""
    values = [" ".join(part.get(key, "") for key in ("points", "d", "x", "y", "cx", "cy")) for part in element.iter()]
    return [[float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", value)] for value in values if value.strip()]


def test_cases_match_the_files(golden: ModuleType) -> None:
    assert sorted(golden.CASES) == NAMES == sorted(path.stem for path in HERE.glob("*.svg"))


@pytest.mark.parametrize("name", NAMES)
def test_overlay_has_the_golden_structure(golden: ModuleType, name: str) -> None:
    assert outline(parse(golden.render_case(name))) == outline(parse((HERE / f"{name}.svg").read_bytes()))


@pytest.mark.parametrize("name", NAMES)
def test_overlay_has_the_golden_coordinates(golden: ModuleType, name: str) -> None:
    drawn = numbers(parse(golden.render_case(name)))
    expected = numbers(parse((HERE / f"{name}.svg").read_bytes()))
    assert len(drawn) == len(expected)
    same_length = [(new, old) for new, old in zip(drawn, expected, strict=True) if len(new) == len(old)]
    assert len(drawn) - len(same_length) <= MOVED_SHAPES
    for new, old in same_length:
        assert new == pytest.approx(old, abs=COORDINATE_TOLERANCE_PX)


@pytest.mark.parametrize("name", NAMES)
def test_overlay_looks_like_the_golden_overlay(golden: ModuleType, name: str) -> None:
    drawn = golden.rasterize(golden.render_case(name))
    expected = golden.rasterize((HERE / f"{name}.svg").read_bytes())
    visible = expected[..., 3].astype(bool) | drawn[..., 3].astype(bool)
    assert visible.mean() > 0.001
    assert np.abs(drawn - expected)[visible].mean() / 255 < IMAGE_TOLERANCE


def test_image_comparison_detects_a_moved_region(golden: ModuleType) -> None:
    svg = (HERE / "catalogue.svg").read_bytes()
    moved = re.sub(rb'(<g class="region" data-name="nose")', rb'\1 transform="translate(3)"', svg)
    assert moved != svg
    difference = np.abs(golden.rasterize(svg) - golden.rasterize(moved))
    visible = golden.rasterize(svg)[..., 3].astype(bool)
    assert difference[visible].mean() / 255 > IMAGE_TOLERANCE
