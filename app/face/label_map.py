"""Label maps: the meaning of pixel values, and scaling to the size of the image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from app.face.contours import LabelArray
from app.face.errors import LabelMapComplexityError, LabelMapFormatError, LabelMapLabelsError
from app.face.frame import ByteArray, Size
from app.face.regions import LABELS, PALETTE

MAX_LABELS: Final = 255
"""Maximum number of labels: a label is one byte, and 0 is background."""

MAX_RUNS: Final = 200_000
"""Maximum number of runs of equal labels along the rows. Each run may become a contour, whose Python object takes a
hundred times the memory of a pixel. A face of 24 million pixels has less than half as many runs."""

_BAND_PIXELS: Final = 1 << 20
"""Pixels of a coloured label map that are processed at once, which bounds the memory for noise."""

_COLOUR_BITS: Final = np.uint32(0xFFFFFF)


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """Label ids of an image, with their names and colours."""

    labels: LabelArray  # `(H, W)`, 0 for background
    names: dict[int, str]  # by label id, for each label in the map, ascending
    colours: dict[int, str]  # `#rrggbb`, in the same order
    has_colours: bool = False  # whether the image has colours, to which ids were assigned


def image_to_label_map(image: ByteArray) -> LabelMap:
    """Convert the pixels of a label map, ``(H, W)`` label ids or ``(H, W, 3)`` BGR, to a label map.

    The values of a grey image are label ids: ``LABELS`` names 1 to 10, others are named ``label_<id>``. An image whose
    channels are equal is a grey one. In any other image each colour is a label named after it, and black is background.
    Ids from 1 follow ascending RGB values.

    Raises:
        LabelMapFormatError: the array has another type or shape.
        LabelMapLabelsError: there are no labels except for background, or more than 255 colours.
        LabelMapComplexityError: there are more than ``MAX_RUNS`` runs of one label.
    """
    if image.dtype != np.uint8 or not image.size:
        raise LabelMapFormatError("segmentation_map: expected 8 bits per channel, got another depth or no pixels")
    match image.shape:
        case (_, _):
            label_map = _read_ids(image)
        case (_, _, 3):
            is_grey = _has_equal_channels(image)
            label_map = _read_ids(np.ascontiguousarray(image[:, :, 0])) if is_grey else _read_colours(image)
        case _:
            raise LabelMapFormatError("segmentation_map: expected one or three channels, got another shape")
    if not label_map.names:
        raise LabelMapLabelsError("segmentation_map: expected at least one label, got only background")
    return label_map


def _has_equal_channels(image: ByteArray) -> bool:
    for band in _iterate_bands(image):
        blue, green, red = cv2.split(band)
        if not (np.array_equal(blue, green) and np.array_equal(green, red)):
            return False
    return True


def _read_ids(image: LabelArray) -> LabelMap:
    flat = image.reshape(-1)
    is_change = flat[1:] != flat[:-1]
    _check_runs(int(np.count_nonzero(is_change)) + 1)
    # Every label starts a run, and there are far fewer runs than pixels.
    ids = [label_id for label_id in np.unique(flat[_find_starts(is_change)]).tolist() if label_id]
    names = {label_id: LABELS[label_id].name if label_id in LABELS else f"label_{label_id}" for label_id in ids}
    colours = {
        label_id: LABELS[label_id].colour if label_id in LABELS else PALETTE[label_id % len(PALETTE)]
        for label_id in ids
    }
    return LabelMap(image, names, colours)


def _find_starts(is_change: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return the start of each run; ``is_change`` marks pixels, after the first, that differ from their predecessor."""
    return np.concatenate(([0], np.flatnonzero(is_change) + 1))


def _check_runs(runs: int) -> None:
    if runs > MAX_RUNS:
        raise LabelMapComplexityError(
            f"segmentation_map: expected at most {MAX_RUNS} runs of one label along the rows, got {runs} or more"
        )


def _read_colours(image: ByteArray) -> LabelMap:
    height, width = image.shape[:2]
    labels = np.empty((height, width), np.uint8)
    flat = labels.reshape(-1)
    # Ids are assigned in order of appearance first, and remapped to their final order at the end.
    found: dict[int, int] = {0: 0}
    position = runs = 0
    for colours, lengths in _iterate_runs(image):
        for colour in np.unique(colours).tolist():
            found.setdefault(colour, len(found))
        if len(found) - 1 > MAX_LABELS:
            raise LabelMapLabelsError(
                f"segmentation_map: expected at most {MAX_LABELS} colours in addition to black, got more"
            )
        runs += len(colours)
        _check_runs(runs)
        known = sorted(found)
        first_seen = np.array([found[colour] for colour in known], np.uint8)
        ids = np.repeat(first_seen[np.searchsorted(known, colours)], lengths)
        flat[position : position + len(ids)] = ids
        position += len(ids)
    present = sorted(colour for colour in found if colour)
    order = np.zeros(256, np.uint8)
    order[[found[colour] for colour in present]] = np.arange(1, len(present) + 1)
    names = {label_id: f"#{colour:06x}" for label_id, colour in enumerate(present, start=1)}
    return LabelMap(cv2.LUT(labels, order).astype(np.uint8, copy=False), names, dict(names), has_colours=True)


def _iterate_runs(image: ByteArray) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]]:
    """Yield colours (``0xRRGGBB``) and lengths of the runs of equal pixels, one band of rows at a time."""
    for band in _iterate_bands(image):
        # The four bytes of a pixel, read as one little-endian integer, are 0xRRGGBB plus alpha.
        pixels = cv2.cvtColor(band, cv2.COLOR_BGR2BGRA).view("<u4").reshape(-1)
        starts = _find_starts(pixels[1:] != pixels[:-1])
        yield pixels[starts] & _COLOUR_BITS, np.diff(starts, append=len(pixels))


def _iterate_bands(image: ByteArray) -> Iterator[ByteArray]:
    height, width = image.shape[:2]
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield image[top : top + rows]


def scale_labels(labels: LabelArray, size: Size) -> LabelArray:
    """Scale labels to the size of the image by nearest neighbour.

    If the size is a whole multiple, each label becomes a block of exactly that many pixels.
    """
    height, width = labels.shape
    if (width, height) == tuple(size):
        return labels
    # The EXACT variant samples the pixel under each centre; plain INTER_NEAREST shifts by up to half a pixel.
    return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8, copy=False)
