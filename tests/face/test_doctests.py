"""Docstring examples of the face package."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import app.face

MODULES = sorted(module.name for module in pkgutil.walk_packages(app.face.__path__, "app.face."))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module, extraglobs={"np": np}).failed == 0
