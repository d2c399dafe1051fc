"""Tasks that run on the event loop of a worker: none costs much more than the default regions."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from app.codec.sniff import ImageInfo
from app.face.frame import Size
from app.observability.recording import deferred
from app.service.crop import CheckedInput, SentFace
from app.service.options import CropOptions
from app.service.serialization import result_to_json
from app.tasks.worker import _is_quick

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.service.crop import CropService
    from tests.conftest import Sample

    Landmarks = np.ndarray[Any, np.dtype[np.float32]]

SIDE = 512
POINTS = 478
EYES = (33, 263)
# The most expensive known light task takes 6 times as long as the default regions; with labels, 25 times.
MAX_RATIO = 10
CANDIDATES = 300
ROUNDS = 4

numbers = np.arange(POINTS)
SHAPES: dict[str, Callable[[np.random.Generator], Any]] = {
    "noise": lambda rng: rng.random((POINTS, 2)),
    "zigzag": lambda rng: np.stack([numbers / POINTS, numbers % 2 * rng.random()], axis=1),
    "growing zigzag": lambda _: np.stack([numbers / POINTS, numbers % 2 * numbers / POINTS], axis=1),
    "comb": lambda _: np.stack([numbers // 2 * 2 / POINTS, (numbers + 1) // 2 % 2], axis=1),
    "spiral": lambda _: (0.5 + numbers / POINTS / 2 * np.array([np.cos(numbers), np.sin(numbers)])).T,
    "line": lambda _: np.stack([numbers / POINTS] * 2, axis=1),
    "point": lambda _: np.full((POINTS, 2), 0.3),
}
RINGS: dict[str, Callable[[random.Random, int], list[int]]] = {
    "random": lambda rng, size: rng.choices(range(POINTS), k=size),
    "in turn": lambda rng, size: [(rng.randrange(3) + index) % POINTS for index in range(size)],
    "there and back": lambda _, size: [min(index, size - index) % POINTS for index in range(size)],
    "two points": lambda _, size: [index % 2 for index in range(size)],
    "one point": lambda _, size: [7] * size,
}
OPTIONS: dict[str, tuple[Any, ...]] = {
    "simplify": (0.0, 0.1, 0.5, 2.0, 10.0, 100.0, 1000.0),
    "show_labels": (False, False, True),
    "show_landmarks": (False, True),
    "upright": (False, True),
    "crop": ("none", "face"),
    "output_size": (None, 16, 4096),
    "stroke_width": (None, 3.3),
}


def make_checked(landmarks: Landmarks, regions: dict[str, list[int]] | None, side: int, **options: Any) -> CheckedInput:
    info = ImageInfo("jpeg", Size(side, side), exif_orientation=6)
    return CheckedInput(
        image=b"",
        image_info=info,
        faces=(SentFace(landmarks),),
        region_landmarks=regions,
        options=CropOptions(**options),
    )


def draw_candidate(rng: random.Random) -> CheckedInput:
    """Generate a task with about as many indices as a light task may have."""
    side = rng.choice((SIDE, 65_535))
    points = SHAPES[rng.choice(list(SHAPES))](np.random.default_rng(rng.randrange(99)))
    landmarks = (side * points).astype(np.float32)
    landmarks[list(EYES)] = [(0.3 * side, 0.5 * side), (0.7 * side, 0.5 * side)]
    count = rng.choice((1, 2, 3, 4, 8, 16, 32, 64))
    size = min(1024, max(3, rng.choice((3, 2048, 3072)) // count - 32))
    ring = RINGS[rng.choice(list(RINGS))]
    names = rng.choice(("r", "\u00e4" * 60, "x" * 60))
    regions = {f"{names}{number:02d}": ring(rng, size) for number in range(count)}
    options = {name: rng.choice(values) for name, values in OPTIONS.items()}
    return make_checked(landmarks, rng.choice((regions, regions, regions, None)), side, **options)


def test_no_task_on_the_event_loop_costs_much_more_than_the_default_regions(
    crop_service: CropService, check: Callable[..., CheckedInput]
) -> None:
    def measure(checked: CheckedInput) -> float:
        times = []
        for _ in range(ROUNDS):
            start = time.thread_time()
            with deferred():
                result_to_json(crop_service.run(checked))
            times.append(time.thread_time() - start)
        return min(times)

    rng = random.Random(7)
    candidates = [draw_candidate(rng) for _ in range(CANDIDATES)]
    light = [checked for checked in candidates if _is_quick(checked)]
    assert len(light) > CANDIDATES / 5
    usual = check()
    assert _is_quick(usual)
    costs = {measure(checked): checked for checked in light}
    worst = max(costs)
    assert worst < MAX_RATIO * measure(usual), (costs[worst].options, costs[worst].region_landmarks)


@pytest.mark.parametrize(
    ("regions", "is_quick"),
    [
        (None, True),
        ({"nose": [1, 2, 3]}, True),
        ({f"r{number}": list(range(32)) for number in range(32)}, True),
        ({f"r{number}": list(range(64)) for number in range(64)}, False),
        ({"nose": list(range(478)) * 2}, True),
        ({f"r{number}": list(range(478)) * 2 for number in range(4)}, False),
    ],
)
def test_many_large_or_labelled_regions_do_not_run_on_the_event_loop(
    check: Callable[..., CheckedInput], regions: dict[str, list[int]] | None, *, is_quick: bool
) -> None:
    assert _is_quick(check(segmentation_map=regions)) is is_quick
    assert not _is_quick(check(segmentation_map=regions, show_labels=True))


def test_several_faces_do_not_run_on_the_event_loop(check: Callable[..., CheckedInput], sample: Sample) -> None:
    for faces, is_quick in ((1, True), (2, False)):
        assert _is_quick(check(points=np.stack([sample.pairs] * faces), face="all")) is is_quick


@pytest.mark.parametrize("options", [{"verify": "pixels"}, {"background": "image"}])
def test_work_on_pixels_does_not_run_on_the_event_loop(
    check: Callable[..., CheckedInput], options: dict[str, Any]
) -> None:
    assert not _is_quick(check(**options))
