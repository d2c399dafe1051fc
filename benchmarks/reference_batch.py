"""Reference program of `batch`: process a list of images without any overhead.

It performs the same steps as `facial-service process` with the same code: read, verify, trace the regions, write the
overlays. It has no pool, progress bar, path templates, temporary files or error handling. Several processes share a
list.

Example: python -m benchmarks.reference_batch LIST OUTPUT_FOLDER 0 2
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import msgspec
import numpy as np

from app import PACKAGE_MODELS
from app.codec.decode import decode_image_with_alpha
from app.codec.sniff import sniff_image, verify_structure
from app.face.detection.landmark_detector import LandmarkDetector
from app.face.landmarks import points_to_landmarks_px
from app.face.pipeline import FaceRequest, no_step, process_faces


class Point(msgspec.Struct):
    """A landmark."""

    x: float
    y: float


def main() -> None:
    """Process every n-th image of a list, beginning at an index; n is the number of processes."""
    image_list, output, first, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    cv2.setNumThreads(0)
    decoder = msgspec.json.Decoder(list[Point])
    detector = None
    for line in image_list.read_text(encoding="utf-8").splitlines()[first::step]:
        image_path = Path(line)
        data = image_path.read_bytes()
        info = verify_structure(data, sniff_image(data, max_pixels=24_000_000))
        landmarks_path = image_path.with_suffix(".landmarks.json")
        if landmarks_path.exists():
            points = np.array([(point.x, point.y) for point in decoder.decode(landmarks_path.read_bytes())])
            landmarks_px = points_to_landmarks_px(points, image_size=info.size)
        else:
            detector = detector or LandmarkDetector(str(PACKAGE_MODELS))
            landmarks_px = detector.detect(decode_image_with_alpha(data, info), no_step)[0].landmarks_px
        (face,) = process_faces([FaceRequest(image_size=info.size, landmarks_px=landmarks_px)])
        (output / image_path.parent.name / f"{image_path.stem}.svg").write_bytes(face.svg)


if __name__ == "__main__":
    main()
