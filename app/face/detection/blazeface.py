"""BlazeFace: an image to face boxes, each with six keypoints.

Anchor layout, scales and thresholds are those of MediaPipe's graphs ``face_detection_short_range`` and
``face_detection_full_range`` (Google, Apache-2.0). The short-range model detects faces from a fifteenth of the image
size; the full-range model also detects smaller ones, at three times the cost.

Points are on the continuous plane of the image: pixel (0, 0) covers 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from app.face.detection.model import Model
from app.face.frame import ByteArray
from app.face.image_pyramid import shrink
from app.face.landmarks import FloatArray

RIGHT_EYE_KEYPOINT: Final = 0
LEFT_EYE_KEYPOINT: Final = 1
KEYPOINTS: Final = 6

MIN_HINT: Final = 0.04
"""Confidence from which an anchor is a hint of a face, even if it is too low for a detection. On the 93 photos of the
benchmark, 0.05 misses no face that a search of all tiles finds, but 0.1 misses a frontal face of 57 px."""

_VALUES: Final = 4 + 2 * KEYPOINTS
_MAX_IOU: Final = 0.3
_MAX_LOGIT: Final = 100.0


class Detection(NamedTuple):
    """A detected face."""

    box: tuple[float, float, float, float]  # `(x, y, width, height)` in pixels, from the brows to below the chin
    keypoints: FloatArray  # `(6, 2)` in pixels: right eye, left eye, nose, mouth, right and left tragion
    confidence: float  # 0 to 1


class Scan(NamedTuple):
    """Detections in an image, and hints of faces that may be too small to be detected at this scale."""

    hints: npt.NDArray[np.float64]  # `(N, 2)` in pixels: anchors with a confidence of at least `MIN_HINT`
    detections: list[Detection]  # by descending confidence


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """Parameters of a BlazeFace model."""

    side: int  # width and height of the input
    grids: tuple[tuple[int, int], ...]  # cells per side, and anchors per cell, of each anchor grid
    boxes_output: str  # name of the output with boxes and keypoints
    scores_output: str  # name of the output with scores
    min_confidence: float


SHORT_RANGE: Final = DetectorConfig(128, ((16, 2), (8, 6)), "regressors", "classificators", 0.5)
FULL_RANGE: Final = DetectorConfig(192, ((48, 1),), "Identity", "Identity_1", 0.5)


class FaceDetector:
    """One of the two BlazeFace models. Not thread-safe."""

    def __init__(self, model: str, config: DetectorConfig) -> None:
        self._model = Model(model, (config.boxes_output, config.scores_output), low=-1.0)
        self._config = config
        self._anchors = make_anchors(config.grids)

    def detect(self, image_bgr: ByteArray) -> list[Detection]:
        """Detect faces in an image of any size, and return them by descending confidence."""
        return self.scan(image_bgr).detections

    def scan(self, image_bgr: ByteArray) -> Scan:
        """Detect faces in an image of any size, and return hints of further faces."""
        side = self._config.side
        square, scale, left, top = letterbox(image_bgr, side)
        values, logits = (output[0] for output in self._model.run(square))
        scores = sigmoid(logits[:, 0])
        is_face = scores >= self._config.min_confidence
        points = values[is_face].astype(np.float64).reshape(-1, _VALUES // 2, 2)
        anchors = self._anchors[is_face] * side
        # Centre and keypoints are relative to the anchor; the second pair is the width and height of the box.
        points[:, 0] += anchors
        points[:, 2:] += anchors[:, None]
        points -= (left, top)
        points[:, 1] += (left, top)
        hints = (self._anchors[scores >= MIN_HINT] * side - (left, top)) / scale
        return Scan(hints, weighted_non_max_suppression(points / scale, scores[is_face]))


def sigmoid(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Convert logits to confidences, 0 to 1.

    Example:
        >>> sigmoid(np.array([-1000.0, 0.0])).round(9).tolist()
        [0.0, 0.5]
    """
    exponents = np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT).astype(np.float64)
    confidences: npt.NDArray[np.float64] = 1 / (1 + np.exp(-exponents))
    return confidences


def make_anchors(grids: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Return the centres ``(N, 2)`` of all anchors in 0..1, row by row, with all anchors of a cell together.

    Each grid consists of the number of cells per side and of anchors per cell.

    Example:
        >>> make_anchors([(2, 1)]).tolist()
        [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    centres = []
    for cells, anchors in grids:
        along = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)
        centres.append(np.repeat(grid, anchors, axis=0))
    return np.concatenate(centres)


def letterbox(image: ByteArray, side: int) -> tuple[ByteArray, float, float, float]:
    """Scale an image into the centre of a black square, and keep its aspect ratio.

    Return the square, the scale, and the left and top of the image in the square.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (side - new_width) // 2, (side - new_height) // 2
    # Halve the image first, because sampling turns a large image into noise. OpenCV averages blocks of 2 by 2 pixels
    # several times as fast as others.
    while max(image.shape[:2]) >= 2 * side and min(image.shape[:2]) > 1:
        image = shrink(image, 2)
    square = np.zeros((side, side, 3), np.uint8)
    square[top : top + new_height, left : left + new_width] = cv2.resize(image, (new_width, new_height))
    return square, scale, float(left), float(top)


def weighted_non_max_suppression(points: npt.NDArray[np.float64], scores: npt.NDArray[np.floating]) -> list[Detection]:
    """Merge overlapping candidates into their mean, weighted by score, and return them by descending confidence.

    Each of the candidates ``(N, 8, 2)`` consists of centre, size and keypoints.
    """
    order = np.argsort(-scores, kind="stable")
    points, scores = points[order], scores[order]
    merged: list[Detection] = []
    while len(scores):
        overlaps = compute_iou(points[0], points) > _MAX_IOU
        overlaps[0] = True  # a box without area does not even overlap itself
        weights = scores[overlaps] / scores[overlaps].sum()
        centre, size, *keypoints = np.tensordot(weights, points[overlaps], axes=1)
        x, y = (centre - size / 2).tolist()
        width, height = size.tolist()
        if width > 0 and height > 0:
            merged.append(Detection((x, y, width, height), np.array(keypoints, np.float32), float(scores[0])))
        points, scores = points[~overlaps], scores[~overlaps]
    return merged


def compute_iou(one: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the intersection over union of a box with other boxes: ``(N,)`` ratios, 0 to 1.

    The first two rows of ``(K, 2)`` and ``(N, K, 2)`` are the centre and the size of a box.
    """
    lows, highs = others[:, 0] - others[:, 1] / 2, others[:, 0] + others[:, 1] / 2
    low, high = one[0] - one[1] / 2, one[0] + one[1] / 2
    intersection = np.clip(np.minimum(highs, high) - np.maximum(lows, low), 0, None).prod(axis=1)
    union = others[:, 1].clip(0).prod(axis=1) + one[1].clip(0).prod() - intersection
    ratios: npt.NDArray[np.float64] = intersection / np.maximum(union, np.finfo(np.float64).tiny)
    return ratios


def translate_detection(detection: Detection, x: float, y: float) -> Detection:
    """Translate a detection by ``(x, y)``, for example from a tile to the whole image."""
    left, top, width, height = detection.box
    keypoints = detection.keypoints + np.array([x, y], np.float32)
    return Detection((left + x, top + y, width, height), keypoints, detection.confidence)


def merge_detections(detections: Sequence[Detection]) -> list[Detection]:
    """Merge overlapping detections of several models or tiles into their mean, by descending confidence."""
    if not detections:
        return []
    sizes = np.array([detection.box[2:] for detection in detections])
    centres = np.array([detection.box[:2] for detection in detections]) + sizes / 2
    keypoints = np.array([detection.keypoints for detection in detections], np.float64)
    points = np.concatenate([centres[:, None], sizes[:, None], keypoints], axis=1)
    return weighted_non_max_suppression(points, np.array([detection.confidence for detection in detections]))


def non_max_suppression(boxes: Sequence[tuple[float, float, float, float]], scores: Sequence[float]) -> list[int]:
    """Return the indices of the boxes that overlap no box of a higher score, by descending score."""
    return [int(index) for index in cv2.dnn.NMSBoxes(list(boxes), list(scores), 0.0, _MAX_IOU)]
