"""Reads each model and runs it on a picture without a face; in a process of its own, which a damaged one may crash.

It prints ``begin <what>`` before each step, and ``trouble <what>: <why>`` where one fails.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from app.face.detection.blazeface import FULL_RANGE, SHORT_RANGE, FaceDetector
from app.face.detection.landmark_detector import LandmarkDetector
from app.face.detection.mesh import FaceMesh, SquareRoi
from app.face.detection.model_files import MODEL_FILES, FaceModels
from app.face.errors import NoFaceError

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDE = 256


def main(folder: str) -> None:
    """Run the models of a folder."""
    paths = {field.name: str(Path(folder) / getattr(MODEL_FILES, field.name)) for field in fields(FaceModels)}
    # A slope of grey: no model takes it for a face, and none can answer it from a constant.
    picture = np.repeat(np.linspace(0, 255, SIDE, dtype=np.uint8)[None, :, None], SIDE, axis=0).repeat(3, axis=2)
    for name, kind in (("short_range", SHORT_RANGE), ("full_range", FULL_RANGE)):
        with _step(Path(paths[name]).name):
            FaceDetector(paths[name], kind).detect(picture)
    with _step(f"{Path(paths['mesh']).name}, {Path(paths['iris']).name}"):
        mesh = FaceMesh(paths["mesh"], paths["iris"])
        points, _ = mesh.find_mesh(picture, SquareRoi(SIDE / 2, SIDE / 2, SIDE / 2, 0.0))
        if not np.isfinite(mesh.find_irises(picture, points)).all():
            raise ValueError("what it gives are no numbers")
    with _step("detection"):
        try:
            found = LandmarkDetector(FaceModels(**paths)).detect(picture, lambda _: nullcontext())
        except NoFaceError:
            return
        raise ValueError(f"{len(found.faces)} faces in a picture without one")


@contextmanager
def _step(what: str) -> Iterator[None]:
    print("begin", what, flush=True)  # noqa: T201 - read by the process that started this one
    try:
        yield
    except (cv2.error, ValueError, IndexError) as fault:
        reason = getattr(fault, "err", "") or str(fault)
        print(f"trouble {what}:", " ".join(reason.split())[:200], flush=True)  # noqa: T201 - likewise
