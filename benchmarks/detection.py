"""Accuracy and cost of the landmark detection, compared with MediaPipe's FaceMesh.

`python -m benchmarks.detection` updates the table in docs/faces.md. It installs MediaPipe into a separate virtual
environment, `.tools/mediapipe`.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from rich.progress import track

from app import PACKAGE_MODELS
from app.face.detection.blazeface import FULL_RANGE, SHORT_RANGE, letterbox
from app.face.detection.landmark_detector import LandmarkDetector
from app.face.detection.mesh import IRIS_SIDE, MESH_SIDE, crop_roi, make_mesh_roi
from app.face.detection.model import Model
from app.face.detection.model_files import FULL_RANGE_FILE, IRIS_FILE, MESH_FILE, SHORT_RANGE_FILE
from app.face.errors import NoFaceError
from app.face.pipeline import no_step
from benchmarks.inputs import cpu_ms
from benchmarks.variants import Variant, compute_error, make_variants, read_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "faces.md"
ENVIRONMENT = HERE.parent / ".tools" / "mediapipe"
MEDIAPIPE = "mediapipe==0.10.21"
ROUNDS = 41
MEDIAPIPE_LIMIT = 0.03
"""Variants on which MediaPipe's error is larger do not count."""
MAX_ERROR = 0.04
"""Largest mean error that is allowed on any variant that counts."""

_BLOCK = re.compile(r"(<!-- accuracy -->\n).*?(<!-- end -->)", re.DOTALL)


def detect_pair() -> tuple[Callable[[], object], Callable[[], object]]:
    """Return two functions that process the sample: the detector, and the bare crops and model runs."""
    cv2.setNumThreads(0)  # as in the service, which runs several processes instead
    sample = read_sample()
    detector = LandmarkDetector(str(PACKAGE_MODELS))
    short, full = (
        (Model(str(PACKAGE_MODELS / name), (config.boxes_output, config.scores_output), low=-1.0), config.side)
        for name, config in ((SHORT_RANGE_FILE, SHORT_RANGE), (FULL_RANGE_FILE, FULL_RANGE))
    )
    mesh = Model(str(PACKAGE_MODELS / MESH_FILE), ("conv2d_21", "conv2d_31")), MESH_SIDE
    iris = Model(str(PACKAGE_MODELS / IRIS_FILE), ("output_iris",)), IRIS_SIDE
    square = make_mesh_roi(sample.landmarks_px)

    def run_service() -> object:
        return detector.detect(sample.image, no_step)

    def run_reference() -> object:
        found: list[Any] = [model.run(letterbox(sample.image, side)[0]) for model, side in (short, full)]
        for model, side in (mesh, mesh, iris, iris):
            found.append(model.run(crop_roi(sample.image, square, side)))
        return found

    return run_service, run_reference


def detect_ms() -> dict[str, float]:
    """CPU time of detecting the sample's landmarks, compared with bare model runs and with MediaPipe's FaceMesh."""
    run_service, run_reference = detect_pair()
    rounds = [(cpu_ms(run_service), cpu_ms(run_reference)) for _ in track(range(ROUNDS), "detect_ms")]
    ours, reference = (statistics.median(column) for column in zip(*rounds, strict=True))
    mediapipe_ms = float(run_mediapipe([read_sample()])["cpu_ms"])
    return {
        "cpu_ms": round(ours, 3),
        "reference_cpu_ms": round(reference, 3),
        "ratio": round(statistics.median(one / other for one, other in rounds), 4),
        "mediapipe_cpu_ms": round(mediapipe_ms, 3),
        "ratio_to_mediapipe": round(ours / mediapipe_ms, 4),
        "rounds": len(rounds),
    }


def run_mediapipe(variants: Sequence[Variant]) -> dict[str, Any]:
    """Run MediaPipe's FaceMesh on images; the landmarks are keyed by index."""
    files = (cv2.imencode(".png", variant.image)[1].tobytes() for variant in variants)
    return run_mediapipe_on_files({f"{position:03}.png": file for position, file in enumerate(files)})


def run_mediapipe_on_files(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Run MediaPipe's FaceMesh on image files, by name; the landmarks are keyed by name without suffix.

    The result also has the CPU times of FaceMesh and of decoding in full, for the first file.

    Raises:
        subprocess.CalledProcessError: MediaPipe cannot be installed, or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, file in files.items():
            Path(folder, name).write_bytes(file)
        return run_reference_program(folder)


def run_reference_program(*arguments: str) -> dict[str, Any]:
    """Run `mediapipe_reference.py` in the virtual environment with MediaPipe, and return what it prints."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", MEDIAPIPE], check=True)
    command = [str(python), str(HERE / "mediapipe_reference.py"), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    output: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return output


def measure() -> list[tuple[str, float | None, float | None]]:
    """Return the name of each variant, MediaPipe's error and the service's error; None if no face was detected."""
    variants = list(make_variants())
    theirs = run_mediapipe(variants)["landmarks"]
    detector = LandmarkDetector(str(PACKAGE_MODELS))
    rows = []
    for position, variant in enumerate(track(variants, "accuracy")):
        found = theirs[f"{position:03}"]
        their_error = None if found is None else compute_error(np.array(found), variant.landmarks_px)
        try:
            our_error = compute_error(detector.detect(variant.image, no_step)[0].landmarks_px, variant.landmarks_px)
        except NoFaceError:
            our_error = None
        rows.append((variant.name.removeprefix("unchanged, "), their_error, our_error))
    return rows


def accuracy() -> dict[str, float]:
    """Mean error over all variants, and the largest on variants where MediaPipe's error is at most 3 %."""
    rows = measure()
    write_table(rows)
    counted = [
        ours if ours is not None else 1.0
        for _, theirs, ours in rows
        if theirs is not None and theirs <= MEDIAPIPE_LIMIT
    ]
    return {
        "worst": round(max(counted), 4),
        "mean": round(statistics.mean(ours for _, _, ours in rows if ours is not None), 4),
        "mediapipe_mean": round(statistics.mean(theirs for _, theirs, _ in rows if theirs is not None), 4),
        "found": sum(ours is not None for _, _, ours in rows),
        "mediapipe_found": sum(theirs is not None for _, theirs, _ in rows),
        "pictures": len(rows),
    }


def write_table(rows: Sequence[tuple[str, float | None, float | None]]) -> None:
    """Write the errors into the documentation."""
    lines = ["| sample image | MediaPipe | facial-service |", "| --- | --- | --- |"]
    lines += [f"| {name} | {_percent(theirs)} | {_percent(ours)} |" for name, theirs, ours in rows]
    table = "\n".join(lines) + "\n"
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(_BLOCK.sub(lambda match: match[1] + table + match[2], text), encoding="utf-8")


def _percent(error: float | None) -> str:
    return "not found" if error is None else f"{error:.1%}"


def main() -> None:
    """Measure, update the table, and exit with 1 if the error exceeds the limit."""
    figures = accuracy()
    print(json.dumps(figures, indent=2))
    if figures["worst"] > MAX_ERROR:
        sys.exit(f"over budget: {figures['worst']:.1%} is more than {MAX_ERROR:.0%}")


if __name__ == "__main__":
    main()
