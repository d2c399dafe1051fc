"""Faces found on the sample, on what became of it, and nowhere else."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from app.face.detect import FaceBox, FaceFinder, FoundFace, turn_back
from app.face.errors import FaceIndexError, NoFaceError
from app.face.pipeline import no_step
from benchmarks import variants
from benchmarks.faces import ALLOWED

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from app.face.detect import FaceModels
    from benchmarks.variants import Variant

PICTURES = sorted((Path(__file__).parents[2] / ".tools" / "pictures").glob("*.*"))
VARIANTS = {variant.name: variant for variant in variants.make_variants()}
BLACK, WHITE = 0, 255


@pytest.fixture(scope="module")
def finder(face_models: FaceModels) -> FaceFinder:
    return FaceFinder(face_models)


@pytest.fixture(scope="module")
def portrait() -> Variant:
    return variants.read_sample()


@pytest.mark.parametrize("name", VARIANTS)
def test_landmarks_are_near_those_given(finder: FaceFinder, name: str) -> None:
    variant = VARIANTS[name]
    found = finder.find(variant.image, no_step)
    assert found.landmarks_px.shape == (478, 2)
    assert variants.compute_error(found.landmarks_px, variant.landmarks_px) <= ALLOWED
    # The irises are found by themselves, and are small: a mesh that fits says nothing of them.
    distances = np.hypot(*(found.landmarks_px - variant.landmarks_px)[468:].T)
    assert distances.mean() <= ALLOWED * np.hypot(*(variant.landmarks_px[33] - variant.landmarks_px[263]))
    assert len(found.faces) == 1
    assert found.presence > 0.99


@pytest.mark.parametrize("path", PICTURES or [None], ids=lambda path: path.name if path else "none")
@pytest.mark.parametrize("scale", [1, 2])
def test_no_face_is_found_where_there_is_none(finder: FaceFinder, path: Path | None, scale: int) -> None:
    if path is None:
        pytest.skip("no pictures; tools/models.py --pictures gets them")
    image = cv2.imread(str(path))
    assert image is not None
    with pytest.raises(NoFaceError):
        finder.find(cv2.resize(image, None, fx=scale, fy=scale).astype(np.uint8), no_step)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3), (300, 300), (900, 1300)])
@pytest.mark.parametrize("value", [BLACK, WHITE, None], ids=["black", "white", "noise"])
def test_nothing_is_found_in_nothing(finder: FaceFinder, shape: tuple[int, int], value: int | None) -> None:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (*shape, 3), np.uint8) if value is None else np.full((*shape, 3), value, np.uint8)
    with pytest.raises(NoFaceError):
        finder.find(image, no_step)


def test_every_step_is_told(finder: FaceFinder, portrait: Variant) -> None:
    steps: Counter[str] = Counter()

    def note(name: str) -> AbstractContextManager[None]:
        steps[name] += 1
        return nullcontext()

    finder.find(portrait.image, note)
    assert list(steps.items()) == [("detect", 1), ("mesh", 1), ("iris", 1)]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, nullcontext(2.0)),
        (1, nullcontext(1.0)),
        (2, pytest.raises(FaceIndexError, match="0 to 1")),
        (99, pytest.raises(FaceIndexError, match="0 to 1")),
    ],
)
def test_of_several_faces_one_is_chosen_by_size(
    finder: FaceFinder, portrait: Variant, index: int, expected: AbstractContextManager[float]
) -> None:
    small, large = portrait, variants.scale(portrait, 2.0)
    side_by_side = np.zeros((1024, 1536, 3), np.uint8)
    side_by_side[200:712, :512] = small.image
    side_by_side[:, 512:] = large.image
    with expected as scale:
        found = finder.find(side_by_side, no_step, index)
        assert [round(face.box[2] / 94) for face in found.faces] == [2, 1]
        shift = np.array([512, 0] if scale == 2 else [0, 200])
        landmarks_px = (large if scale == 2 else small).landmarks_px + shift
        assert found.index == index
        assert variants.compute_error(found.landmarks_px, landmarks_px) <= ALLOWED


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_photo_on_its_side_is_looked_at_upright(finder: FaceFinder, portrait: Variant, turns: int) -> None:
    """Counter-clockwise the photo is stored, clockwise it has to be turned to be looked at."""
    image = np.ascontiguousarray(np.rot90(portrait.image[:400], turns))
    found = finder.find(image, no_step, quarter_turns=turns)
    x, y = portrait.landmarks_px.T
    expected = {1: (y, 512 - x), 2: (512 - x, 400 - y), 3: (400 - y, x)}[turns]
    assert variants.compute_error(found.landmarks_px, np.stack(expected, axis=1)) <= ALLOWED
    left, top, width, height = found.faces[0].box
    assert left < found.landmarks_px[1, 0] < left + width
    assert top < found.landmarks_px[1, 1] < top + height


def test_turning_back_moves_boxes() -> None:
    found = FoundFace(np.array([[1, 2]], np.float32), 1.0, 0, (FaceBox((1.0, 2.0, 3.0, 4.0), 0.5),))
    back = turn_back(found, width=10, height=20, quarter_turns=1)
    assert back.landmarks_px.tolist() == [[2, 9]]
    assert back.faces[0].box == (2.0, 6.0, 4.0, 3.0)
