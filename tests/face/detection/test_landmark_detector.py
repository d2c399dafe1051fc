"""Detection on variants of the sample image, and on images without a face."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from app.face.detection.blazeface import Detection
from app.face.detection.landmark_detector import LandmarkDetector, undo_rotation
from app.face.errors import FaceIndexError, NoFaceError
from app.face.landmarks import MAX_FACES
from app.face.pipeline import no_step
from app.face.regions import REGIONS
from benchmarks import variants
from benchmarks.detection import MAX_ERROR

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from benchmarks.variants import Variant

IMAGES = sorted((Path(__file__).parents[3] / ".tools" / "images").glob("*.*"))
VARIANTS = {variant.name: variant for variant in variants.make_variants()}
BLACK, WHITE = 0, 255


@pytest.fixture(scope="module")
def detector(face_models: Path) -> LandmarkDetector:
    return LandmarkDetector(str(face_models))


@pytest.fixture(scope="module")
def portrait() -> Variant:
    return variants.read_sample()


@pytest.mark.parametrize("name", VARIANTS)
def test_landmarks_are_close_to_the_reference(detector: LandmarkDetector, name: str) -> None:
    variant = VARIANTS[name]
    (face,) = detector.detect(variant.image, no_step)
    assert face.landmarks_px.shape == (478, 2)
    assert variants.compute_error(face.landmarks_px, variant.landmarks_px) <= MAX_ERROR
    # Check the irises separately, because they are small and detected by another model.
    distances = np.hypot(*(face.landmarks_px - variant.landmarks_px)[468:].T)
    assert distances.mean() <= MAX_ERROR * np.hypot(*(variant.landmarks_px[33] - variant.landmarks_px[263]))
    assert len(face.faces) == 1
    assert face.presence > 0.99
    # The nose is nearest, and the irises are at the depth of their eyes.
    depths_px = face.depths_px
    assert depths_px is not None
    assert depths_px.shape == (478,)
    assert depths_px[1] < depths_px[[33, 263]].min() < depths_px[[234, 454]].max()
    for iris, eye in ((slice(468, 473), "right_eye"), (slice(473, 478), "left_eye")):
        (contour,) = [spec.landmarks for spec in REGIONS if spec.name == eye]
        assert depths_px[iris] == pytest.approx(depths_px[list(contour)].mean(), abs=1e-3)


@pytest.mark.parametrize("path", IMAGES or [None], ids=lambda path: path.name if path else "none")
@pytest.mark.parametrize("scale", [1, 2])
def test_images_without_a_face_are_rejected(detector: LandmarkDetector, path: Path | None, scale: int) -> None:
    if path is None:
        pytest.skip("no test images; run `tools/models.py --images`")
    image = cv2.imread(str(path))
    assert image is not None
    with pytest.raises(NoFaceError):
        detector.detect(cv2.resize(image, None, fx=scale, fy=scale).astype(np.uint8), no_step)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3), (300, 300), (900, 1300)])
@pytest.mark.parametrize("value", [BLACK, WHITE, None], ids=["black", "white", "noise"])
def test_uniform_images_and_noise_have_no_face(
    detector: LandmarkDetector, shape: tuple[int, int], value: int | None
) -> None:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (*shape, 3), np.uint8) if value is None else np.full((*shape, 3), value, np.uint8)
    with pytest.raises(NoFaceError):
        detector.detect(image, no_step)


def test_steps_are_reported_in_order(detector: LandmarkDetector, portrait: Variant) -> None:
    steps: Counter[str] = Counter()

    def count_step(name: str) -> AbstractContextManager[None]:
        steps[name] += 1
        return nullcontext()

    detector.detect(portrait.image, count_step)
    assert list(steps.items()) == [("detect", 1), ("mesh", 1), ("iris", 1)]


@pytest.mark.parametrize("turns", [0, 1])
def test_tiles_are_searched_for_small_faces_beside_a_large_one(
    detector: LandmarkDetector, portrait: Variant, turns: int
) -> None:
    steps: Counter[str] = Counter()

    def count_step(name: str) -> AbstractContextManager[None]:
        steps[name] += 1
        return nullcontext()

    image = np.full((1200, 1800, 3), 110, np.uint8)
    image[:1000, :1000] = cv2.resize(portrait.image, (1000, 1000))
    image[900:1100, 1500:1700] = cv2.resize(portrait.image, (200, 200), interpolation=cv2.INTER_AREA)
    (face,) = detector.detect(np.ascontiguousarray(np.rot90(image, turns)), count_step, quarter_turns=turns)
    assert [round(max(one.box[2:]) / 10) for one in face.faces] == [21, 4]
    assert steps["detect"] > 1


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, nullcontext(2.0)),
        (1, nullcontext(1.0)),
        (2, pytest.raises(FaceIndexError, match="0 to 1")),
        (99, pytest.raises(FaceIndexError, match="0 to 1")),
    ],
)
def test_faces_are_indexed_by_size(
    detector: LandmarkDetector, portrait: Variant, index: int, expected: AbstractContextManager[float]
) -> None:
    small, large = portrait, variants.scale(portrait, 2.0)
    side_by_side = np.zeros((1024, 1536, 3), np.uint8)
    side_by_side[200:712, :512] = small.image
    side_by_side[:, 512:] = large.image
    with expected as scale:
        (face,) = detector.detect(side_by_side, no_step, index)
        assert [round(one.box[2] / 94) for one in face.faces] == [2, 1]
        shift = np.array([512, 0] if scale == 2 else [0, 200])
        landmarks_px = (large if scale == 2 else small).landmarks_px + shift
        assert face.index == index
        assert variants.compute_error(face.landmarks_px, landmarks_px) <= MAX_ERROR


@pytest.mark.parametrize(("columns", "are_all_examined"), [(5, True), (6, False)])
def test_candidates_that_are_not_examined_are_reported(
    detector: LandmarkDetector, portrait: Variant, columns: int, *, are_all_examined: bool
) -> None:
    head = cv2.resize(portrait.image[:300, 60:360], (180, 180), interpolation=cv2.INTER_AREA)
    crowd = np.tile(head, (columns, columns, 1))
    faces = detector.detect(crowd, no_step, "all")
    assert len(faces) == min(columns**2, MAX_FACES)
    one = detector.detect(crowd, no_step, len(faces) - 1)
    assert {face.are_all_examined for face in faces + one} == {are_all_examined}


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_image_is_processed_upright(detector: LandmarkDetector, portrait: Variant, turns: int) -> None:
    """The image is rotated counter-clockwise, so that clockwise quarter turns make it upright."""
    image = np.ascontiguousarray(np.rot90(portrait.image[:400], turns))
    (face,) = detector.detect(image, no_step, quarter_turns=turns)
    x, y = portrait.landmarks_px.T
    expected = {1: (y, 512 - x), 2: (512 - x, 400 - y), 3: (400 - y, x)}[turns]
    assert variants.compute_error(face.landmarks_px, np.stack(expected, axis=1)) <= MAX_ERROR
    left, top, width, height = face.faces[0].box
    assert left < face.landmarks_px[1, 0] < left + width
    assert top < face.landmarks_px[1, 1] < top + height


def test_undo_rotation_transforms_boxes() -> None:
    detection = Detection((1.0, 2.0, 3.0, 4.0), np.array([[1, 2]], np.float32), 0.5)
    back = undo_rotation(detection, width=10, height=20, quarter_turns=1)
    assert back.box == (2.0, 6.0, 4.0, 3.0)
    assert back.keypoints.tolist() == [[2, 9]]


@pytest.mark.parametrize("turns", [0, 1])
def test_transparent_image_is_processed_on_grey(detector: LandmarkDetector, portrait: Variant, turns: int) -> None:
    large = variants.scale(portrait, 4.0)
    image = cv2.cvtColor(large.image, cv2.COLOR_BGR2BGRA)
    image[:512, :, 3] = 0
    opaque = large.image.copy()
    opaque[:512] = 127
    face, expected = (
        detector.detect(np.ascontiguousarray(np.rot90(pixels, turns)), no_step, quarter_turns=turns)[0]
        for pixels in (image, opaque)
    )
    assert variants.compute_error(face.landmarks_px, expected.landmarks_px) <= 0.003
