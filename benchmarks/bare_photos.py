"""The smallest honest program that does a folder of photos: the yardstick of `photos.py`, one process of several.

It reads, checks, finds regions and writes overlays, with the product's own steps and nothing around them: no pool, no
progress, no names chosen, nothing renamed, no error told.

Example: python -m benchmarks.bare_photos LIST OUT 0 2
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import msgspec
import numpy as np

from app.codec.decode import decode_image_with_alpha
from app.codec.sniff import sniff_image, verify_structure
from app.face.detection.landmark_detector import LandmarkDetector
from app.face.landmarks import points_to_landmarks_px
from app.face.pipeline import FaceRequest, no_step, process_face
from benchmarks.cases import models


class Point(msgspec.Struct):
    """A landmark."""

    x: float
    y: float


def main() -> None:
    """Do every so manieth photo of a list, from the given one on."""
    listed, out, first, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    cv2.setNumThreads(0)
    decoder = msgspec.json.Decoder(list[Point])
    finder = None
    for line in listed.read_text(encoding="utf-8").splitlines()[first::step]:
        photo = Path(line)
        data = photo.read_bytes()
        info = verify_structure(data, sniff_image(data, max_pixels=24_000_000))
        landmarks = photo.with_suffix(".landmarks.json")
        if landmarks.exists():
            points = np.array([(point.x, point.y) for point in decoder.decode(landmarks.read_bytes())])
            landmarks_px = points_to_landmarks_px(points, image_size=info.size)
        else:
            finder = finder or LandmarkDetector(models())
            landmarks_px = finder.detect(decode_image_with_alpha(data, info), no_step).landmarks_px
        face = process_face(FaceRequest(image_size=info.size, landmarks_px=landmarks_px))
        (out / photo.parent.name / f"{photo.stem}.svg").write_bytes(face.svg)


if __name__ == "__main__":
    main()
