"""BlazeFace: a picture to boxes of faces, each with six keypoints.

Layout of anchors, scales and thresholds are those of MediaPipe's graphs ``face_detection_short_range`` and
``face_detection_full_range`` (Google, Apache-2.0). Their short range model sees faces from a fifteenth of the picture
up; the full range one smaller ones too, at four times the cost.

Points here are on the continuous plane of the picture: its pixel (0, 0) covers 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from app.face.landmarks import FloatArray

ByteArray = npt.NDArray[np.uint8]

RIGHT_EYE_KEYPOINT: Final = 0
LEFT_EYE_KEYPOINT: Final = 1
KEYPOINTS: Final = 6

_VALUES: Final = 4 + 2 * KEYPOINTS
_MAX_OVERLAP: Final = 0.3
_MAX_LOGIT: Final = 100.0
_FOLDED_DIMENSIONS: Final = 4


class Detection(NamedTuple):
    """A face as the detector sees it.

    Attributes:
        box: ``(x, y, width, height)`` in pixels, from the brows to below the chin.
        keypoints: ``(6, 2)``: right eye, left eye, nose, mouth, right and left tragion, in pixels.
        confidence: 0 to 1.
    """

    box: tuple[float, float, float, float]
    keypoints: FloatArray
    confidence: float


@dataclass(frozen=True, slots=True)
class Range:
    """What tells the two models apart.

    Attributes:
        side: Width and height of the model's input.
        cells: Cells along a side of each grid of anchors, and anchors a cell.
        boxes_output: Name of the layer that gives boxes and keypoints.
        scores_output: Name of the layer that gives scores.
        min_confidence: Below it there is no face.
    """

    side: int
    cells: tuple[tuple[int, int], ...]
    boxes_output: str
    scores_output: str
    min_confidence: float


SHORT_RANGE: Final = Range(128, ((16, 2), (8, 6)), "regressors", "classificators", 0.5)
# The names are the fused layers' own, so long since the model was cut before its last reshaping (tools/models.py).
_FULL_LAYER: Final = "model_1/model/depthwise_conv2d_{0}/BiasAdd;model_1/model/depthwise_conv2d_{0}/depthwise;"
_FULL_NAME: Final = _FULL_LAYER + "model_1/model/depthwise_conv2d_{0}/BiasAdd/ReadVariableOp/resource1"
FULL_RANGE: Final = Range(192, ((48, 1),), _FULL_NAME.format(41), _FULL_NAME.format(40), 0.6)


def read_net(path: str) -> cv2.dnn.Net:
    """Read a model.

    OpenCV 5.0's newer engine, its default, gives only one of a model's outputs a pass. A model that is handed over as
    bytes goes to that engine whatever is asked for, so that it has to be a path.
    """
    return cv2.dnn.readNetFromTFLite(path, engine=cv2.dnn.ENGINE_CLASSIC)


def run_net(net: cv2.dnn.Net, outputs: Sequence[str]) -> list[npt.NDArray[np.float32]]:
    """Run a model on the input that it was given, and return the outputs of these names."""
    return [np.asarray(output, np.float32) for output in net.forward(outputs)]


class FaceDetector:
    """One of the two models, ready to run; not for several threads at a time.

    Args:
        model: Path of the model.
        kind: Which of the two it is.
    """

    def __init__(self, model: str, kind: Range) -> None:
        self._net = read_net(model)
        self._kind = kind
        self._anchors = make_anchors(kind.cells)

    def detect(self, image_bgr: ByteArray) -> list[Detection]:
        """Find faces.

        Args:
            image_bgr: ``(H, W, 3)`` picture of any size.

        Returns:
            The faces, the surest first.
        """
        side = self._kind.side
        picture, scale, left, top = fit_square(image_bgr, side)
        self._net.setInput(cv2.dnn.blobFromImage(picture, 1 / 127.5, mean=(127.5, 127.5, 127.5), swapRB=True))
        outputs = run_net(self._net, [self._kind.boxes_output, self._kind.scores_output])
        values, logits = (_to_rows(output, len(self._anchors)) for output in outputs)
        scores = logits_to_confidence(logits[:, 0])
        is_face = scores >= self._kind.min_confidence
        points = values[is_face].astype(np.float64).reshape(-1, _VALUES // 2, 2)
        anchors = self._anchors[is_face] * side
        # Middle and keypoints are given from the anchor; the second pair is the box's width and height.
        points[:, 0] += anchors
        points[:, 2:] += anchors[:, None]
        points -= (left, top)
        points[:, 1] += (left, top)
        return merge_detections(points / scale, scores[is_face])


def logits_to_confidence(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Bring scores of a model to 0..1.

    Example:
        >>> logits_to_confidence(np.array([-1000.0, 0.0])).round(9).tolist()
        [0.0, 0.5]
    """
    exponents = np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT).astype(np.float64)
    confidences: npt.NDArray[np.float64] = 1 / (1 + np.exp(-exponents))
    return confidences


def make_anchors(grids: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Make the middles of all anchors.

    Args:
        grids: Cells along a side, and anchors a cell, for each grid.

    Returns:
        ``(N, 2)`` in 0..1, row by row, all anchors of a cell together.

    Example:
        >>> make_anchors([(2, 1)]).tolist()
        [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    middles = []
    for cells, anchors in grids:
        along = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)
        middles.append(np.repeat(grid, anchors, axis=0))
    return np.concatenate(middles)


def fit_square(image: ByteArray, side: int) -> tuple[ByteArray, float, float, float]:
    """Scale a picture into the middle of a black square, its proportions kept.

    Args:
        image: ``(H, W, 3)`` picture.
        side: Side of the square in pixels.

    Returns:
        The square, the scale, and where the picture begins in it: left and top.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    # Averaged where it shrinks: sampled, a large photo turns into noise.
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    left, top = (side - new_width) // 2, (side - new_height) // 2
    square = np.zeros((side, side, 3), np.uint8)
    square[top : top + new_height, left : left + new_width] = cv2.resize(
        image, (new_width, new_height), interpolation=method
    )
    return square, scale, float(left), float(top)


def _to_rows(output: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """Bring an output to one row an anchor.

    The full range model ends in a map ``(1, 4 x values, cells, cells)`` that holds four anchors a cell; unfolded,
    each becomes a cell of a grid twice as fine.
    """
    rows = output
    if output.ndim == _FOLDED_DIMENSIONS:
        cells = output.shape[2]
        rows = output.reshape(2, 2, -1, cells, cells).transpose(3, 0, 4, 1, 2)
    return rows.reshape(count, -1)


def merge_detections(points: npt.NDArray[np.float64], scores: npt.NDArray[np.floating]) -> list[Detection]:
    """Merge what overlaps into one detection each, weighted by score.

    Args:
        points: ``(N, 8, 2)``: middle, size and keypoints of each candidate.
        scores: ``(N,)`` confidences.

    Returns:
        The merged detections, the surest first.
    """
    order = np.argsort(-scores, kind="stable")
    points, scores = points[order], scores[order]
    merged: list[Detection] = []
    while len(scores):
        overlaps = compute_overlaps(points[0], points) > _MAX_OVERLAP
        overlaps[0] = True  # a box of no area overlaps nothing, not even itself
        weights = scores[overlaps] / scores[overlaps].sum()
        middle, size, *keypoints = np.tensordot(weights, points[overlaps], axes=1)
        x, y = (middle - size / 2).tolist()
        width, height = size.tolist()
        if width > 0 and height > 0:
            merged.append(Detection((x, y, width, height), np.array(keypoints, np.float32), float(scores[0])))
        points, scores = points[~overlaps], scores[~overlaps]
    return merged


def compute_overlaps(one: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute how much boxes overlap: the area that both have by the area that either has.

    Args:
        one: ``(K, 2)`` with middle and size as the first two rows.
        others: ``(N, K, 2)`` likewise.

    Returns:
        ``(N,)`` ratios, 0 to 1.
    """
    lows, highs = others[:, 0] - others[:, 1] / 2, others[:, 0] + others[:, 1] / 2
    low, high = one[0] - one[1] / 2, one[0] + one[1] / 2
    common = np.clip(np.minimum(highs, high) - np.maximum(lows, low), 0, None).prod(axis=1)
    either = others[:, 1].clip(0).prod(axis=1) + one[1].clip(0).prod() - common
    ratios: npt.NDArray[np.float64] = common / np.maximum(either, np.finfo(np.float64).tiny)
    return ratios


def move_detection(detection: Detection, x: float, y: float) -> Detection:
    """Take a detection from a part of a picture that begins at ``(x, y)`` to the whole of it."""
    left, top, width, height = detection.box
    keypoints = detection.keypoints + np.array([x, y], np.float32)
    return Detection((left + x, top + y, width, height), keypoints, detection.confidence)


def drop_doubles(detections: Sequence[Detection]) -> list[Detection]:
    """Keep the surest of detections that overlap.

    Args:
        detections: Of several parts of one picture, on its plane.

    Returns:
        Those that are kept, the surest first.
    """
    left = sorted(detections, key=lambda found: found.confidence, reverse=True)
    kept: list[Detection] = []
    while left:
        kept.append(left[0])
        boxes = np.array([found.box for found in left]).reshape(-1, 2, 2)
        boxes[:, 0] += boxes[:, 1] / 2
        overlaps = compute_overlaps(boxes[0], boxes)
        left = [found for found, overlap in zip(left[1:], overlaps[1:], strict=True) if overlap <= _MAX_OVERLAP]
    return kept
