"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import app.face

MODULES = sorted(module.name for module in pkgutil.iter_modules(app.face.__path__, "app.face."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module, extraglobs={"np": np}).failed == 0
