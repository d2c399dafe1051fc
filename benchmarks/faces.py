"""Recall, false positives and landmark error of the face detection on photos of many people, by group.

`python tools/photos.py` downloads the photos; `python -m benchmarks.faces` prints the tables. The faces in
`benchmarks/faces.json` were marked by hand. A face is found if a detected box overlaps its box with an intersection
over union of at least `MIN_IOU`. A detected box is a false positive if it overlaps no marked face by even a quarter of
that, so that an inexact box counts as missed but not as invented.

With `--landmarks`, both the service and MediaPipe's FaceMesh process the same crop around each marked face. The error
of a face is the mean distance between their landmarks, relative to the distance between the outer eye corners in
FaceMesh's. The crops are also shifted and scaled by a few percent. How far the landmarks of one program move is its
repeatability: a smaller error than FaceMesh's own is not meaningful.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app import PACKAGE_MODELS
from app.face.detection.landmark_detector import LandmarkDetector
from app.face.errors import NoFaceError
from app.face.pipeline import no_step
from benchmarks.detection import run_reference_program
from benchmarks.variants import compute_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

DATA = Path(__file__).with_suffix(".json")
FOLDER = Path(__file__).parent.parent / ".tools" / "photos"
MIN_IOU = 0.4
FALSE_IOU = MIN_IOU / 4
MIN_SIDE = 30
"""Frontal faces whose shorter side has at least this many pixels should be found."""
SIZES = (20, 30, 60, 120)
"""Upper bounds of the groups of sizes, in pixels."""
MARGIN = 1.0
"""Margin of a crop on each side of a marked box, relative to the longer side of the box."""
SHIFTS = ((0.0, 0.0, 1.0), (0.04, 0.0, 1.0), (0.0, 0.04, 1.0), (0.0, 0.0, 1.05))
"""``(x, y, scale)`` of each crop of a face; the offsets are relative to the longer side of the box."""
CONFIGURATIONS = ("default", "attention", "tracked")
MAX_ERROR = 0.05
WORST = 5

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
            for group in groups_of(face, len(faces), is_held_out=photo.get("held_out", False)):
                self.marked[group] += 1
                self.found[group] += is_found
        known = [*faces, *(tuple(box) for box in photo.get("ignored", ()))]
        self.false_positives += sum(max((iou(box, one) for one in known), default=0.0) < FALSE_IOU for box in detected)


def groups_of(face: dict[str, Any], count: int, *, is_held_out: bool) -> Iterable[str]:
    """Return the groups that a face counts in."""
    yield "all"
    yield face["kind"]
    yield "only face in its photo" if count == 1 else "several faces"
    if is_required(face):
        yield f"frontal, at least {MIN_SIDE} px"
    yield size_group(face)
    yield from face.get("group", ())
    if is_held_out:
        yield f"held out, frontal, at least {MIN_SIDE} px" if is_required(face) else "held out, others"


def get_side(face: dict[str, Any]) -> float:
    """Return the shorter side of a marked box."""
    x0, y0, x1, y1 = face["box"]
    return float(min(x1 - x0, y1 - y0))


def is_required(face: dict[str, Any]) -> bool:
    """Return whether a face should be found: frontal or half profile, and not small."""
    return face["kind"] == "frontal" and get_side(face) >= MIN_SIDE


def size_group(face: dict[str, Any]) -> str:
    """Return the group of sizes of a face."""
    limit = next((limit for limit in SIZES if get_side(face) < limit), None)
    return f"below {limit} px" if limit else f"at least {SIZES[-1]} px"


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


def read_image(file: Path) -> npt.NDArray[np.uint8]:
    """Read an image as stored, without its EXIF orientation."""
    image = cv2.imread(str(file), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise SystemExit(f"{file}: expected an image that OpenCV can read")
    return image.astype(np.uint8, copy=False)


def detect(detector: LandmarkDetector, file: Path) -> list[Box]:
    """Return the boxes that the service detects in an image file, as stored, without its EXIF orientation."""
    try:
        faces = detector.detect(read_image(file), no_step)[0].faces
    except NoFaceError:
        return []
    return [(x, y, x + width, y + height) for x, y, width, height in (face.box for face in faces)]


@dataclass
class Crop:
    """A crop of a photo around a marked face.

    Attributes:
        offset: left and top of the crop in the photo, in pixels.
        box: the marked box in the crop.
        landmarks: ``(N, 2)`` landmarks by program, in pixels of the photo; None if the face was not found.
    """

    offset: tuple[int, int]
    box: Box
    landmarks: dict[str, npt.NDArray[np.float64] | None] = field(default_factory=dict)

    def add(self, program: str, landmarks_px: Sequence[Sequence[float]] | npt.NDArray[np.floating] | None) -> None:
        """Add landmarks in pixels of the crop."""
        self.landmarks[program] = None if landmarks_px is None else np.array(landmarks_px, np.float64) + self.offset


@dataclass
class MarkedFace:
    """A marked face and its crops: the crop itself, then the shifted and scaled ones."""

    name: str
    face: dict[str, Any]
    crops: list[Crop]

    def compute_error(self, configuration: str) -> float | None:
        """Return the error of the service in comparison with FaceMesh; None if one of them did not find the face."""
        return compare(self.crops[0].landmarks["service"], self.crops[0].landmarks[configuration])

    def compute_movement(self, program: str) -> float | None:
        """Return how far the landmarks of a program move if the crop is shifted or scaled."""
        first, *others = (crop.landmarks[program] for crop in self.crops)
        moved = [movement for other in others if (movement := compare(other, first)) is not None]
        return mean(moved) if moved else None

    def groups(self) -> Iterable[str]:
        """Return the groups whose errors include this face: only its kind or size if it is not required."""
        if not is_required(self.face):
            yield self.face["kind"] if self.face["kind"] != "frontal" else size_group(self.face)
            return
        group = self.face.get("group", ())
        yield f"frontal and half profile, at least {MIN_SIDE} px"
        yield size_group(self.face)
        if "half profile" not in group:
            yield "frontal"
        if not {"glasses", "sunglasses"} & set(group):
            yield "no glasses"
        yield from group


def compare(landmarks_px: npt.NDArray[np.float64] | None, expected_px: npt.NDArray[np.float64] | None) -> float | None:
    """Return the mean distance between the landmarks that both have, relative to that between the eyes."""
    if landmarks_px is None or expected_px is None:
        return None
    return compute_error(landmarks_px[: len(expected_px)], expected_px)


def measure_landmarks(photos: Mapping[str, dict[str, Any]], folder: Path) -> list[MarkedFace]:
    """Return all marked faces with the landmarks of the service and of FaceMesh."""
    detector = LandmarkDetector(str(PACKAGE_MODELS))
    faces: list[MarkedFace] = []
    crops: dict[str, Crop] = {}
    with tempfile.TemporaryDirectory() as target:
        for name, photo in track(photos.items(), "Cropping faces", console=Console(stderr=True)):
            image = read_image(folder / name) if photo["faces"] else np.zeros((1, 1, 3), np.uint8)
            for position, face in enumerate(photo["faces"]):
                marked = MarkedFace(f"{name} face {position}", face, [])
                for shift in SHIFTS:
                    crop, pixels = crop_around(image, face["box"], *shift)
                    crop.add("service", find_landmarks(detector, pixels, crop.box))
                    stem = f"{len(crops):05}"
                    cv2.imwrite(f"{target}/{stem}.png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
                    crops[stem] = crop
                    marked.crops.append(crop)
                faces.append(marked)
        boxes = Path(target, "boxes.json")
        boxes.write_text(json.dumps({stem: crop.box for stem, crop in crops.items()}), encoding="utf-8")
        print("Running FaceMesh; this takes about a minute", file=sys.stderr)
        for configuration, found in run_reference_program(target, "--boxes", str(boxes)).items():
            for stem, landmarks in found.items():
                crops[stem].add(configuration, landmarks)
    return faces


def crop_around(
    image: npt.NDArray[np.uint8], box: Box, x: float, y: float, scale: float
) -> tuple[Crop, npt.NDArray[np.uint8]]:
    """Crop a square with a margin around a box, shifted and scaled, as far as the image reaches."""
    side = max(box[2] - box[0], box[3] - box[1])
    centre_x, centre_y = (box[0] + box[2]) / 2 + x * side, (box[1] + box[3]) / 2 + y * side
    reach = scale * (0.5 + MARGIN) * side
    left, top = max(0, int(centre_x - reach)), max(0, int(centre_y - reach))
    pixels = np.ascontiguousarray(image[top : int(centre_y + reach), left : int(centre_x + reach)])
    return Crop((left, top), (box[0] - left, box[1] - top, box[2] - left, box[3] - top)), pixels


def find_landmarks(
    detector: LandmarkDetector, image: npt.NDArray[np.uint8], box: Box
) -> npt.NDArray[np.floating] | None:
    """Return the landmarks of the face in a marked box."""
    try:
        faces = detector.detect(image, no_step, "all")
    except NoFaceError:
        return None
    boxes = [(x, y, x + width, y + height) for x, y, width, height in (face.box for face in faces[0].faces)]
    best = max(faces, key=lambda face: iou(box, boxes[face.index]))
    return best.landmarks_px if iou(box, boxes[best.index]) >= MIN_IOU else None


def print_landmarks(faces: Sequence[MarkedFace]) -> None:
    """Print the errors and the repeatability by group, and the faces with the largest errors."""
    groups: dict[str, list[MarkedFace]] = defaultdict(list)
    for face in faces:
        for group in face.groups():
            groups[group].append(face)
    required = groups[f"frontal and half profile, at least {MIN_SIDE} px"]
    for configuration in CONFIGURATIONS:
        table = Table("faces", "compared", "mean", "95th percentile", "maximum", title=f"FaceMesh, {configuration}")
        for group, members in sorted(groups.items(), key=lambda item: -len(item[1])):
            errors = [error for face in members if (error := face.compute_error(configuration)) is not None]
            if errors:
                row = (mean(errors), float(np.percentile(errors, 95)), max(errors))
                table.add_row(group, f"{len(errors)} of {len(members)}", *(f"{value:.1%}" for value in row))
        Console().print(table)
        ranked = sorted(required, key=lambda face: -(face.compute_error(configuration) or 0.0))
        above = sum((face.compute_error(configuration) or 0.0) > MAX_ERROR for face in required)
        print(f"above {MAX_ERROR:.0%}: {above} of {len(required)}; largest:")
        for face in ranked[:WORST]:
            print(f"  {face.compute_error(configuration) or 0.0:.1%} {face.name}")
    for program in ("service", *CONFIGURATIONS):
        moved = [movement for face in required if (movement := face.compute_movement(program)) is not None]
        print(f"repeatability of {program}: mean {mean(moved):.2%}, 95th percentile {np.percentile(moved, 95):.2%}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description="Measure recall, false positives and landmark error of the face detection.",
        epilog="example: python tools/photos.py && python -m benchmarks.faces",
    )
    parser.add_argument("--photos", type=Path, default=FOLDER, help="folder of the photos (default: %(default)s)")
    parser.add_argument("--landmarks", action="store_true", help="compare the landmarks with MediaPipe's FaceMesh")
    options = parser.parse_args(arguments)
    folder = options.photos
    photos = json.loads(DATA.read_bytes())["photos"]
    available = {name: photo for name, photo in photos.items() if (folder / name).is_file()}
    if not available:
        sys.exit(f"{folder}: expected the photos of {DATA.name}, got none; run `python tools/photos.py`")
    cv2.setNumThreads(1)
    if options.landmarks:
        print_landmarks(measure_landmarks(available, folder))
    else:
        print_recall(available, len(photos), folder)


def print_recall(available: Mapping[str, dict[str, Any]], count: int, folder: Path) -> None:
    """Print recall by group, false positives, and the time per photo."""
    detector, score = LandmarkDetector(str(PACKAGE_MODELS)), Score()
    times_ms = []
    for name, photo in track(available.items(), "Detecting faces", console=Console(stderr=True)):
        started_s, false_before = time.thread_time(), score.false_positives
        detected = detect(detector, folder / name)
        times_ms.append(1000 * (time.thread_time() - started_s))
        score.add(photo, detected)
        if score.false_positives > false_before:
            print(f"false positive in {name}", file=sys.stderr)
    table = Table("faces", "found", "marked", "recall", title=f"{len(available)} of {count} photos")
    for group, marked in sorted(score.marked.items(), key=lambda item: -item[1]):
        table.add_row(group, str(score.found[group]), str(marked), f"{score.found[group] / marked:.2f}")
    Console().print(table, f"false positives: {score.false_positives}")
    Console().print(
        f"CPU time per photo with decoding: median {median(times_ms):.0f} ms, maximum {max(times_ms):.0f} ms"
    )


if __name__ == "__main__":
    main()
