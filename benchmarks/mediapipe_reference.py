"""Run MediaPipe's FaceMesh on a folder of images; `detection` starts it in a virtual environment with `mediapipe`.

It prints JSON: the landmarks by file name (null if no face was detected), and the CPU time per call on the first image
and of decoding it, in milliseconds.

Example: python benchmarks/mediapipe_reference.py FOLDER
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import cv2
import mediapipe as mp

CALLS = 30
WARM_UP = 5


def main() -> None:
    """Process every image of the folder."""
    mesh = mp.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True)
    found: dict[str, list[tuple[float, float]] | None] = {}
    times_ms: list[float] = []
    decode_ms: list[float] = []
    for path in sorted(Path(sys.argv[1]).iterdir()):
        image_bgr = cv2.imread(str(path))
        if image_bgr is None:
            raise ValueError(f"{path}: expected an image")
        image = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)
        height, width = image.shape[:2]
        faces = mesh.process(image).multi_face_landmarks
        found[path.stem] = [(p.x * width, p.y * height) for p in faces[0].landmark] if faces else None
        for call in range(0 if times_ms else WARM_UP + CALLS):
            before = time.process_time()
            mesh.process(image)
            between = time.process_time()
            cv2.imread(str(path))
            if call >= WARM_UP:
                times_ms.append(1000 * (between - before))
                decode_ms.append(1000 * (time.process_time() - between))
    figures = {"cpu_ms": statistics.median(times_ms), "decode_cpu_ms": statistics.median(decode_ms)}
    print(json.dumps({"landmarks": found, **figures}))


if __name__ == "__main__":
    main()
