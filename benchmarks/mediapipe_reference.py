"""Run MediaPipe's FaceMesh on a folder of images; benchmarks start it in a virtual environment with `mediapipe`.

With one argument, it prints JSON: the landmarks by file name (null if no face was detected), and the CPU time per call
on the first image and of decoding it, in milliseconds.

With `--boxes`, a JSON file with a box per file name, it prints the landmarks of the face in that box (null if none was
detected) by configuration and file name: `default` (468 points), `attention` (478 points, `refine_landmarks`), and
`tracked`, the default after it has tracked the face for a few frames of a still image.

Example: python benchmarks/mediapipe_reference.py FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import cv2
import mediapipe as mp

CALLS = 30
WARM_UP = 5
FRAMES = 4
MAX_FACES = 8
MIN_IOU = 0.25


def read_rgb(path: Path) -> Any:
    """Read an image."""
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f"{path}: expected an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def to_pixels(face: Any, image: Any) -> list[tuple[float, float]]:
    """Return the landmarks of a face in pixels."""
    height, width = image.shape[:2]
    return [(round(p.x * width, 3), round(p.y * height, 3)) for p in face.landmark]


def run_on_first_faces(folder: Path) -> dict[str, Any]:
    """Return the landmarks of the first face of every image, and the time per call."""
    mesh = mp.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True)
    found: dict[str, list[tuple[float, float]] | None] = {}
    times_ms: list[float] = []
    decode_ms: list[float] = []
    for path in sorted(folder.iterdir()):
        image = read_rgb(path)
        faces = mesh.process(image).multi_face_landmarks
        found[path.stem] = to_pixels(faces[0], image) if faces else None
        for call in range(0 if times_ms else WARM_UP + CALLS):
            before = time.process_time()
            mesh.process(image)
            between = time.process_time()
            cv2.imread(str(path))
            if call >= WARM_UP:
                times_ms.append(1000 * (between - before))
                decode_ms.append(1000 * (time.process_time() - between))
    figures = {"cpu_ms": statistics.median(times_ms), "decode_cpu_ms": statistics.median(decode_ms)}
    return {"landmarks": found, **figures}


def run_on_boxes(folder: Path, boxes: dict[str, list[float]]) -> dict[str, Any]:
    """Return the landmarks of the face in each box, by configuration and file name."""
    face_mesh = mp.solutions.face_mesh.FaceMesh
    static = {
        "default": face_mesh(static_image_mode=True, max_num_faces=MAX_FACES),
        "attention": face_mesh(static_image_mode=True, max_num_faces=MAX_FACES, refine_landmarks=True),
    }
    found: dict[str, dict[str, Any]] = {name: {} for name in (*static, "tracked")}
    for stem, box in boxes.items():
        image = read_rgb(folder / f"{stem}.png")
        for name, mesh in static.items():
            found[name][stem] = choose(mesh.process(image).multi_face_landmarks, image, box)
        with face_mesh(static_image_mode=False, max_num_faces=MAX_FACES) as tracker:
            for _ in range(FRAMES):
                faces = tracker.process(image).multi_face_landmarks
            found["tracked"][stem] = choose(faces, image, box)
    return found


def choose(faces: Any, image: Any, box: list[float]) -> list[tuple[float, float]] | None:
    """Return the landmarks of the face that overlaps a box most."""
    best, most = None, MIN_IOU
    for points in (to_pixels(face, image) for face in faces or ()):
        xs, ys = zip(*points, strict=True)
        width = min(box[2], max(xs)) - max(box[0], min(xs))
        height = min(box[3], max(ys)) - max(box[1], min(ys))
        shared = max(0.0, width) * max(0.0, height)
        areas = (box[2] - box[0]) * (box[3] - box[1]) + (max(xs) - min(xs)) * (max(ys) - min(ys))
        if shared >= most * (areas - shared):
            best, most = points, shared / (areas - shared)
    return best


def main() -> None:
    """Process every image of the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of images")
    parser.add_argument("--boxes", type=Path, help="JSON file: for each file name without suffix, x0, y0, x1, y1")
    options = parser.parse_args()
    if options.boxes:
        found = run_on_boxes(options.folder, json.loads(options.boxes.read_text(encoding="utf-8")))
    else:
        found = run_on_first_faces(options.folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
