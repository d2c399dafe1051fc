"""Label images to labels: what a pixel's value means, and labels at the photo's size."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from app.face.contours import LabelArray
from app.face.errors import LabelMapComplexityError, LabelMapFormatError, LabelMapLabelsError
from app.face.frame import Size
from app.face.regions import LABELS, PALETTE

MAX_LABELS: Final = 255
"""Labels are kept in a byte, and 0 is background."""

MAX_RUNS: Final = 200_000
"""Most stretches of one label along the rows of a map. Each may become a contour of its own, which as a Python object
takes a hundred times a pixel's memory; a map of 24 million pixels of a face has less than half as many."""

_BAND_PIXELS: Final = 1 << 20
"""Pixels of a colour map looked at together: bounds the memory for a map that is nothing but noise."""

_COLOUR_BITS: Final = np.uint32(0xFFFFFF)


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """Labels and what they mean.

    Attributes:
        labels: ``(H, W)`` uint8 label ids, 0 for background.
        names: Name by label id, for each label in the map, ascending.
        colours: ``#rrggbb`` by label id, likewise.
    """

    labels: LabelArray
    names: dict[int, str]
    colours: dict[int, str]


def image_to_label_map(image: npt.NDArray[np.uint8]) -> LabelMap:
    """Read labels from a decoded label image.

    A grey image holds label ids; ``LABELS`` names 1 to 10, others are ``label_<id>``. In a colour image each colour
    is a label, black is background, and ids from 1 are given by ascending RGB value; a label's name is its colour.

    Args:
        image: ``(H, W)`` label ids, or ``(H, W, 3)`` in BGR order.

    Returns:
        The labels, with a name and a colour for each.

    Raises:
        LabelMapFormatError: The array has neither form.
        LabelMapLabelsError: There is no label but background, or there are more than 255 colours.
        LabelMapComplexityError: There are more than ``MAX_RUNS`` runs of one label.
    """
    if image.dtype != np.uint8 or not image.size:
        raise LabelMapFormatError("a label map must have pixels of 8 bits a channel")
    match image.shape:
        case (_, _):
            label_map = _read_ids(image)
        case (_, _, 3):
            label_map = _read_colours(image)
        case _:
            raise LabelMapFormatError("a label map must have one or three channels")
    if not label_map.names:
        raise LabelMapLabelsError("the label map holds nothing but background")
    return label_map


def _read_ids(image: LabelArray) -> LabelMap:
    flat = image.reshape(-1)
    is_change = flat[1:] != flat[:-1]
    _check_runs(int(np.count_nonzero(is_change)) + 1)
    # Each label begins a run somewhere, and runs are few: far cheaper to look at than all pixels.
    ids = [label_id for label_id in np.unique(flat[_find_starts(is_change)]).tolist() if label_id]
    names = {label_id: LABELS[label_id].name if label_id in LABELS else f"label_{label_id}" for label_id in ids}
    colours = {
        label_id: LABELS[label_id].colour if label_id in LABELS else PALETTE[label_id % len(PALETTE)]
        for label_id in ids
    }
    return LabelMap(image, names, colours)


def _find_starts(is_change: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Find where runs begin, from whether each pixel but the first differs from the one before."""
    return np.concatenate(([0], np.flatnonzero(is_change) + 1))


def _check_runs(runs: int) -> None:
    if runs > MAX_RUNS:
        raise LabelMapComplexityError(
            f"segmentation_map: expected at most {MAX_RUNS} runs of one label along the rows, got {runs} or more"
        )


def _read_colours(image: npt.NDArray[np.uint8]) -> LabelMap:
    height, width = image.shape[:2]
    labels = np.empty((height, width), np.uint8)
    flat = labels.reshape(-1)
    # Ids are first given in the order in which colours turn up, and put into their final order in one go at the end.
    found: dict[int, int] = {0: 0}
    position = runs = 0
    for colours, lengths in _iterate_runs(image):
        for colour in np.unique(colours).tolist():
            found.setdefault(colour, len(found))
        if len(found) - 1 > MAX_LABELS:
            raise LabelMapLabelsError(f"the label map has more than {MAX_LABELS} colours besides black")
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
    return LabelMap(cv2.LUT(labels, order).astype(np.uint8, copy=False), names, dict(names))


def _iterate_runs(image: npt.NDArray[np.uint8]) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]]:
    """Yield colours (``0xRRGGBB``) and lengths of the runs of equal pixels, a band of rows at a time."""
    height, width = image.shape[:2]
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        # Four bytes a pixel can be read as one number; on a little-endian machine BGR comes out as 0xRRGGBB.
        pixels = cv2.cvtColor(image[top : top + rows], cv2.COLOR_BGR2BGRA).view("<u4").reshape(-1)
        starts = _find_starts(pixels[1:] != pixels[:-1])
        yield pixels[starts] & _COLOUR_BITS, np.diff(starts, append=len(pixels))


def scale_labels(labels: LabelArray, size: Size) -> LabelArray:
    """Bring labels to another size, each pixel taking the nearest label.

    Where the size is a whole multiple, each label becomes a block of exactly that many pixels.

    Args:
        labels: ``(H, W)`` uint8 label ids.
        size: Size of the photo in pixels.

    Returns:
        ``(size.height, size.width)`` label ids; the array itself where the size is the same.
    """
    height, width = labels.shape
    if (width, height) == tuple(size):
        return labels
    # The EXACT variant takes the pixel under each centre; plain INTER_NEAREST would shift by up to half a pixel.
    return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8, copy=False)
