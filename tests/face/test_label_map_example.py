"""The label map in ``examples/`` matches the output of its script."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from app.face.frame import Size

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_label_map", EXAMPLES / "make_label_map.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_script_reproduces_the_labels(
    script: ModuleType, label_image: npt.NDArray[np.uint8], landmarks_px: npt.NDArray[np.float32], frame: Size
) -> None:
    height, width = label_image.shape
    made = script.make_labels(landmarks_px, image_size=frame, size=Size(width, height))
    assert (made == label_image).all()
    assert (width, height) != frame
    assert np.unique(made).tolist() == list(range(11))


def test_skin_excludes_eyes_brows_nose_and_mouth(label_image: npt.NDArray[np.uint8]) -> None:
    skin = np.pad((label_image == 1).astype(np.uint8), 1)
    assert cv2.connectedComponents(skin)[0] - 1 == 1
    assert cv2.connectedComponents(1 - skin, connectivity=4)[0] - 2 == 6


def test_hair_is_above_the_forehead_and_no_feature_is_hidden(label_image: npt.NDArray[np.uint8]) -> None:
    rows = {label: np.flatnonzero((label_image == label).any(axis=1)) for label in (1, 10)}
    assert rows[10][0] < rows[1][0] < rows[10][-1] < rows[1][-1]
    counts = np.bincount(label_image.ravel(), minlength=11)
    assert (counts[2:10] > 40).all()


@pytest.mark.parametrize("side", ["64x48", "1000x700"])
def test_script_writes_a_map_of_the_requested_size(
    script: ModuleType, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "labels.png"
    monkeypatch.setattr(sys, "argv", ["make_label_map.py", "--size", side, "--output", str(output)])
    script.main()
    written = cv2.imread(str(output), cv2.IMREAD_UNCHANGED)
    assert written is not None
    assert f"{written.shape[1]}x{written.shape[0]}" == side
    assert written.dtype == np.uint8
    assert side.replace("x", " x ") in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--size", "big"], ["--size", "0x5"], ["--image", "nowhere.png"]])
def test_script_reports_invalid_arguments(
    script: ModuleType,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_label_map.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 2
    assert arguments[1] in capfd.readouterr().err
