"""Recall and false positives of the face detection on photos of many people.

`python tools/photos.py` downloads the photos; `python -m benchmarks.faces` prints the table. The faces in
`benchmarks/faces.json` were marked by hand. A face is found if a detected box overlaps its box with an intersection
over union of at least `MIN_IOU`. A detected box is a false positive if it overlaps no marked face by even a quarter of
that, so that an inexact box counts as missed but not as invented.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.face.detection.landmark_detector import LandmarkDetector
from app.face.errors import NoFaceError
from app.face.pipeline import no_step
from app.service.detector_pool import PACKAGE_MODELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DATA = Path(__file__).with_suffix(".json")
FOLDER = Path(__file__).parent.parent / ".tools" / "photos"
MIN_IOU = 0.4
FALSE_IOU = MIN_IOU / 4
MIN_SIDE = 30
"""Frontal faces whose shorter side has at least this many pixels should be found."""
SIZES = (20, 30, 60, 120)
"""Upper bounds of the groups of sizes, in pixels."""

Box: TypeAlias = tuple[float, float, float, float]
"""``(x0, y0, x1, y1)`` in pixels."""


@dataclass
class Score:
    """Counts of one detector.

    Attributes:
        found: faces that were found, by group.
        marked: faces that were marked, by group.
        false_positives: detected boxes without a face.
    """

    found: Counter[str] = field(default_factory=Counter)
    marked: Counter[str] = field(default_factory=Counter)
    false_positives: int = 0

    def add(self, photo: dict[str, Any], detected: Sequence[Box]) -> None:
        """Count the faces of one photo."""
        faces = [tuple(face["box"]) for face in photo["faces"]]
        matches = match(faces, detected)
        for face, is_found in zip(photo["faces"], matches, strict=True):
            for group in groups_of(face, len(faces)):
                self.marked[group] += 1
                self.found[group] += is_found
        known = [*faces, *(tuple(box) for box in photo.get("ignored", ()))]
        self.false_positives += sum(max((iou(box, one) for one in known), default=0.0) < FALSE_IOU for box in detected)


def groups_of(face: dict[str, Any], count: int) -> Iterable[str]:
    """Return the groups that a face counts in."""
    yield "all"
    yield face["kind"]
    yield "only face in its photo" if count == 1 else "several faces"
    x0, y0, x1, y1 = face["box"]
    side = min(x1 - x0, y1 - y0)
    if face["kind"] == "frontal" and side >= MIN_SIDE:
        yield f"frontal, at least {MIN_SIDE} px"
    limit = next((limit for limit in SIZES if side < limit), None)
    yield f"below {limit} px" if limit else f"at least {SIZES[-1]} px"
    yield from face.get("group", ())


def match(faces: Sequence[Box], detected: Sequence[Box]) -> list[bool]:
    """Return for each face whether a detected box matches it; a box matches one face, the best pairs first."""
    pairs = sorted(
        ((iou(face, box), i, j) for i, face in enumerate(faces) for j, box in enumerate(detected)), reverse=True
    )
    used: set[int] = set()
    matches = [False] * len(faces)
    for overlap, i, j in pairs:
        if overlap >= MIN_IOU and not matches[i] and j not in used:
            matches[i] = True
            used.add(j)
    return matches


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def detect(detector: LandmarkDetector, file: Path) -> list[Box]:
    """Return the boxes that the service detects in an image file, as stored, without its EXIF orientation."""
    image = cv2.imread(str(file), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise SystemExit(f"{file}: expected an image that OpenCV can read")
    try:
        faces = detector.detect(image.astype(np.uint8, copy=False), no_step).faces
    except NoFaceError:
        return []
    return [(x, y, x + width, y + height) for x, y, width, height in (face.box for face in faces)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description="Measure recall and false positives of the face detection.",
        epilog="example: python tools/photos.py && python -m benchmarks.faces",
    )
    parser.add_argument("--photos", type=Path, default=FOLDER, help="folder of the photos (default: %(default)s)")
    folder = parser.parse_args(arguments).photos
    photos = {folder / name: photo for name, photo in json.loads(DATA.read_bytes())["photos"].items()}
    available = {file: photo for file, photo in photos.items() if file.is_file()}
    if not available:
        sys.exit(f"{folder}: expected the photos of {DATA.name}, got none; run `python tools/photos.py`")
    cv2.setNumThreads(1)
    detector, score = LandmarkDetector(str(PACKAGE_MODELS)), Score()
    times_ms = []
    for file, photo in track(available.items(), "Detecting faces", console=Console(stderr=True)):
        started_s, false_before = time.thread_time(), score.false_positives
        detected = detect(detector, file)
        times_ms.append(1000 * (time.thread_time() - started_s))
        score.add(photo, detected)
        if score.false_positives > false_before:
            print(f"false positive in {file.relative_to(folder)}", file=sys.stderr)
    table = Table("faces", "found", "marked", "recall", title=f"{len(available)} of {len(photos)} photos")
    for group, count in sorted(score.marked.items(), key=lambda item: -item[1]):
        table.add_row(group, str(score.found[group]), str(count), f"{score.found[group] / count:.2f}")
    Console().print(table, f"false positives: {score.false_positives}")
    Console().print(
        f"CPU time per photo with decoding: median {median(times_ms):.0f} ms, maximum {max(times_ms):.0f} ms"
    )


if __name__ == "__main__":
    main()
