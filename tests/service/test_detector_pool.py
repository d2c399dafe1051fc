"""Detection of landmarks for requests without them: results, metrics and errors."""

from __future__ import annotations

import base64
import logging
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import orjson
import pytest

from app.face.detection.landmark_detector import LandmarkDetector
from app.face.detection.model_files import IRIS_FILE, KNOWN_FILES
from app.face.errors import DetectionUnavailableError, FaceIndexError, ImageTooLargeError, NoFaceError
from app.face.frame import transform_points
from app.face.image_pyramid import blend_on_grey
from app.face.landmarks import compute_roll_deg
from app.face.pipeline import no_step
from app.service.crop import CropInput, CropService, ImageLimits
from app.service.detector_pool import DetectorPool
from app.service.landmarks import LandmarksInput, find_landmarks
from app.service.options import CropOptions, LandmarkOptions
from app.service.serialization import result_to_json
from benchmarks import variants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from app.face.pipeline import OnStep
    from tests.conftest import Sample

    MakeInput = Callable[..., CropInput]
    Scrape = Callable[[], dict[tuple[str, ...], float]]

ALLOWED = 0.04


@pytest.fixture
def service(face_models: Path) -> CropService:
    del face_models  # skips the test if the models are not installed
    return CropService(ImageLimits())


@pytest.fixture(scope="module")
def photo(sample: Sample) -> bytes:
    return sample.photo


def alone(image: bytes, **options: Any) -> CropInput:
    return CropInput(image=image, points=None, segmentation_map=None, options=CropOptions(**options))


def document(service: CropService, request: CropInput) -> dict[str, Any]:
    written: dict[str, Any] = orjson.loads(result_to_json(service.process(request)))
    return written


def to_pixels(landmarks: list[dict[str, float]]) -> np.ndarray:
    return np.array([(point["x"], point["y"]) for point in landmarks])


def turned(degrees: float) -> bytes:
    variant = variants.rotate(variants.read_sample(), degrees)
    return cv2.imencode(".png", variant.image)[1].tobytes()


def test_an_image_alone_is_enough(service: CropService, photo: bytes, make_input: MakeInput) -> None:
    detected, given = document(service, alone(photo)), document(service, make_input(image=photo))
    assert [region["name"] for region in detected["regions"]] == [region["name"] for region in given["regions"]]
    expected = variants.read_sample().landmarks_px
    assert variants.compute_error(to_pixels(detected["landmarks"]), expected) <= ALLOWED
    detection = detected["detection"]
    assert (detection["face"], len(detection["faces"]), detection["presence"]) == (0, 1, 1.0)
    assert detection["confidence"] == detection["faces"][0]["confidence"] > 0.5
    assert (given["landmarks"], given["detection"]) == (None, None)


def test_steps_and_faces_are_counted(service: CropService, photo: bytes, sample: Sample, scrape: Scrape) -> None:
    service.process(alone(photo, background="image"))
    both = np.hstack([cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)] * 2)
    service.process(alone(sample.encode(".png", both)))
    with pytest.raises(NoFaceError):
        service.process(alone(sample.jpeg))
    counted = scrape()
    steps = {key[1]: value for key, value in counted.items() if key[0] == "image_processing_duration_seconds_count"}
    # Without a face, tiles at two scales are searched as well.
    others = {"decode": 3, "detect": 5, "mesh": 2, "iris": 2, "warp": 1, "encode": 1, "contours": 2, "svg": 2}
    assert {step: count for step, count in steps.items() if count} == {"sniff": 3, **others}
    assert {result: counted["faces_detected_total", result] for result in ("one", "several", "none")} == {
        "one": 1,
        "several": 1,
        "none": 1,
    }


@pytest.mark.parametrize("options", [{}, {"upright": True}, {"upright": True, "crop": "face", "output_size": 300}])
def test_pixels_are_needed_only_for_steps_that_use_them(
    service: CropService, make_input: MakeInput, options: Any
) -> None:
    assert not service.check(make_input(**options)).needs_pixels
    assert service.check(make_input(background="image", **options)).needs_pixels
    assert service.check(alone(make_input().image, **options)).needs_pixels


@pytest.mark.parametrize("degrees", [-50, -20, 0, 30, 60])
@pytest.mark.parametrize("options", [{}, {"crop": "face", "margin": 0.0}, {"crop": "face", "output_size": 400}])
def test_upright_results_are_level_and_hold_the_face(
    service: CropService, degrees: float, options: dict[str, Any]
) -> None:
    written = document(service, alone(turned(degrees), upright=True, **options))
    assert abs(written["face"]["roll_deg"]) <= 0.5
    landmarks, size = to_pixels(written["landmarks"]), np.array(list(written["output"].values()))
    assert landmarks.min() >= -0.05, "to the tenth of a pixel that landmarks are rounded to"
    assert (landmarks <= size + 0.05).all()


@pytest.mark.parametrize(
    "options",
    [
        {"upright": True},
        {"upright": True, "crop": "face"},
        {"crop": "face", "output_size": 777, "margin": 1.0},
        {"output_size": 640},
    ],
)
@pytest.mark.parametrize("source", ["detected", "sent", "labels", "regions"])
def test_regions_transformed_back_are_those_of_the_plain_result(
    service: CropService, sample: Sample, make_input: MakeInput, source: str, options: dict[str, Any]
) -> None:
    maps: dict[str, Any] = {"labels": sample.labels, "regions": {"mouth": [61, 0, 291, 17]}}
    image = turned(25) if source == "detected" else sample.photo

    def ask(**more: Any) -> dict[str, Any]:
        if source == "detected":
            return document(service, alone(image, simplify=0, **more))
        return document(service, make_input(image=image, segmentation_map=maps.get(source), simplify=0, **more))

    plain, framed = ask(), ask(**options)
    inverse = np.array(framed["inverse_transform"])
    assert [region["name"] for region in framed["regions"]] == [region["name"] for region in plain["regions"]]
    for region, expected in zip(framed["regions"], plain["regions"], strict=True):
        for ring, ring_expected in zip(region["contours"], expected["contours"], strict=True):
            assert np.abs(transform_points(np.array(ring), inverse) - ring_expected).max() < 1


def test_background_is_the_image_in_the_output_frame(service: CropService, sample: Sample) -> None:
    points = np.array(sample.pairs, np.float64)
    request = CropInput(
        image=sample.photo,
        points=points,
        segmentation_map=None,
        options=CropOptions(background="image", crop="face", margin=0.0),
    )
    written = document(service, request)
    svg = base64.b64decode(written["svg"]).decode()
    width, height = written["output"].values()
    start = rf'<image class="photo" width="{width}" height="{height}"'
    found = re.search(rf'{start} href="data:image/jpeg;base64,([^"]+)"', svg)
    assert found is not None
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(found[1]), np.uint8), cv2.IMREAD_COLOR)
    photo = cv2.imdecode(np.frombuffer(sample.photo, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert photo is not None
    left, top = (-np.array(written["transform"])[:, 2]).astype(int)
    assert np.abs(shown.astype(int) - photo[top : top + height, left : left + width]).mean() < 4


def test_background_has_the_limits_of_an_image(make_input: MakeInput, sample: Sample) -> None:
    service = CropService(ImageLimits(max_image_pixels=512 * 512))
    with pytest.raises(ImageTooLargeError, match="output_size"):
        service.process(make_input(image=sample.jpeg, background="image", output_size=513))
    assert service.process(make_input(image=sample.jpeg, output_size=513)).face.frame.size == (513, 513)
    assert service.process(make_input(image=sample.jpeg, background="image", output_size=512)).face.svg


def test_alpha_grey_and_16_bits_are_supported(service: CropService, sample: Sample, photo: bytes) -> None:
    pixels = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    clear = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)
    clear[300:, :, 3] = 0
    for pixels_of_kind, kind in ((grey, "jpeg"), (grey.astype(np.uint16) * 257, "jpeg"), (clear, "png")):
        written = document(service, alone(sample.encode(".png", pixels_of_kind), background="image"))
        error = variants.compute_error(to_pixels(written["landmarks"]), variants.read_sample().landmarks_px)
        assert error <= ALLOWED
        assert f"data:image/{kind};base64," in base64.b64decode(written["svg"]).decode()


@pytest.mark.parametrize(
    ("orientation", "roll_deg"), [(1, 0), (2, 0), (3, 180), (4, 180), (5, -90), (6, -90), (7, 90), (8, 90)]
)
def test_rotated_images_are_detected_upright(face_models: Path, orientation: int, roll_deg: int) -> None:
    del face_models
    is_mirrored = orientation in {2, 4, 5, 7}
    upright = variants.read_sample().image
    stored = np.ascontiguousarray(np.rot90(np.fliplr(upright) if is_mirrored else upright, -(roll_deg // 90)))
    (detected,) = DetectorPool().detect(stored, no_step, 0, orientation)
    assert abs((compute_roll_deg(detected.landmarks_px) - roll_deg + 180) % 360 - 180) < 10
    # Sides are those of the image as displayed, so the axis between the eyes is reversed in a mirrored one.
    across, down = detected.landmarks_px[263] - detected.landmarks_px[33]
    difference = np.degrees(np.arctan2(down, across)) - roll_deg + (180 if is_mirrored else 0)
    assert abs((difference + 180) % 360 - 180) < 10


def test_transparent_images_are_blended_with_grey() -> None:
    photo = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [10, 20, 30, 128]]], np.uint8)
    assert blend_on_grey(photo)[0, :2].tolist() == [[10, 20, 30], [127, 127, 127]]
    assert blend_on_grey(photo)[0, 2].tolist() == pytest.approx([68, 73, 78], abs=2)
    assert blend_on_grey(photo[:, :, :3]) is not None


@pytest.mark.parametrize("spoil", ["none", "one missing", "one damaged"])
def test_error_without_models_contains_the_remedy(
    face_models: Path, tmp_path: Path, photo: bytes, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    if spoil != "none":
        for name in KNOWN_FILES:
            (folder / name).symlink_to(face_models / name)
        (folder / IRIS_FILE).unlink()
    if spoil == "one damaged":
        (folder / IRIS_FILE).write_bytes(b"TFL3 no model")
    service = CropService(ImageLimits(), DetectorPool(folder))
    with pytest.raises(DetectionUnavailableError, match="make models") as caught:
        service.process(alone(photo))
    assert "MODELS_DIR" in str(caught.value)
    # Only loggers of the service have the levels of LOG_LEVELS.
    logged = [(record.name, record.levelno) for record in caplog.records]
    assert logged == [("facial.images", logging.ERROR)] * (spoil == "one damaged")
    points = variants.read_sample().landmarks_px
    with_points = CropInput(image=photo, points=points, segmentation_map=None, options=CropOptions(upright=True))
    assert service.process(with_points).face.regions, "everything else works"


def test_threads_share_a_detector_unless_they_use_it_concurrently(
    face_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del face_models
    loaded: list[LandmarkDetector] = []

    def load(folder: str) -> LandmarkDetector:
        loaded.append(LandmarkDetector(folder))
        return loaded[-1]

    monkeypatch.setattr("app.service.detector_pool.LandmarkDetector", load)
    detectors, sample = DetectorPool(), variants.read_sample()
    both_detect = threading.Barrier(2, timeout=30)

    @contextmanager
    def meet(_step: str) -> Iterator[None]:
        both_detect.wait()
        yield

    def detect(on_step: OnStep = no_step) -> None:
        detectors.detect(sample.image, on_step, 0, 1)

    for _ in range(2):
        single = threading.Thread(target=detect)
        single.start()
        single.join()
    assert len(loaded) == 1
    together = [threading.Thread(target=detect, args=(meet,)) for _ in range(2)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert len(loaded) == 2


def test_concurrent_threads_find_the_same_landmarks(face_models: Path) -> None:
    del face_models
    detectors, sample = DetectorPool(), variants.read_sample()
    found: list[Any] = []

    def detect() -> None:
        found.extend(detectors.detect(sample.image, no_step, 0, 1)[0].landmarks_px for _ in range(3))

    threads = [threading.Thread(target=detect) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    assert all(np.array_equal(one, found[0]) for one in found)


def test_digest_depends_on_detection_and_on_the_face(service: CropService, make_input: MakeInput, photo: bytes) -> None:
    requests = (make_input(image=photo), alone(photo), alone(photo, face=1), alone(photo, upright=True))
    assert len({service.check(request).digest() for request in requests}) == 4


def test_landmarks_alone(service: CropService, photo: bytes) -> None:
    def find(options: LandmarkOptions) -> Any:
        return orjson.loads(find_landmarks(service, LandmarksInput(image=photo, options=options)))

    pixels = find(LandmarkOptions())
    expected = variants.read_sample().landmarks_px
    assert variants.compute_error(to_pixels(pixels["landmarks"]), expected) <= ALLOWED
    shares = find(LandmarkOptions(landmark_units="normalized"))
    for axis in "xyz":
        assert [512 * one[axis] for one in shares["landmarks"]] == pytest.approx(
            [one[axis] for one in pixels["landmarks"]], abs=0.051
        )
    assert shares["face"] == pixels["face"]
    with pytest.raises(FaceIndexError):
        find(LandmarkOptions(face=1))


def test_cv2_uses_one_thread_per_process() -> None:
    """Parallelism comes from processes; threads of OpenCV would compete with them for the cores."""
    command = "import app.main, cv2; print(cv2.getNumThreads())"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_loading_models_writes_nothing_to_stderr(face_models: Path) -> None:
    """LiteRT announces its first delegate there, which is no line of the log format."""
    del face_models
    command = (
        "import os, numpy as np; from app.service.detector_pool import *\n"
        "from app.face.pipeline import no_step\n"
        "try: DetectorPool().detect(np.zeros((64, 64, 3), np.uint8), no_step, 0, 1)\n"
        "except NoFaceError: print('no face')\n"
        "with without_litert_notices(): os.write(2, b'INFO: notice\\nline\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("no face\n", "line\n")
