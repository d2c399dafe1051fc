"""Inputs of the use case, built around the sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from app.service.crop import CropInput
from app.service.options import CropOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Sample


@pytest.fixture
def make_input(sample: Sample) -> Callable[..., CropInput]:
    """Give ``make_input(image=…, points=…, segmentation_map=…, **options)``, each the sample's unless given."""

    def make(
        *, image: bytes | None = None, points: Any = None, segmentation_map: Any = None, **options: Any
    ) -> CropInput:
        return CropInput(
            image=sample.jpeg if image is None else image,
            points=np.array(sample.pairs if points is None else points, np.float64),
            segmentation_map=segmentation_map,
            options=CropOptions(**options),
        )

    return make
