from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.face import label_map as module
from app.face.errors import LabelMapComplexityError, LabelMapError, LabelMapFormatError, LabelMapLabelsError
from app.face.frame import Size
from app.face.label_map import LabelMap, image_to_label_map, scale_labels
from app.face.regions import LABELS

Image = npt.NDArray[np.uint8]

small_sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
VALID: AbstractContextManager[Any] = nullcontext()


def of(*values: int) -> Image:
    return np.array([values], np.uint8)


def noise(*shape: int) -> Image:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("image", "expectation"),
    [
        pytest.param(of(0, 0, 1), VALID, id="one label"),
        pytest.param(np.arange(256, dtype=np.uint8).reshape(16, 16), VALID, id="all labels"),
        pytest.param(noise(300, 300), VALID, id="a little noise"),
        pytest.param(of(0, 0), pytest.raises(LabelMapLabelsError, match="background"), id="grey, background only"),
        pytest.param(np.zeros((3, 3, 3), np.uint8), pytest.raises(LabelMapLabelsError), id="colour, black only"),
        pytest.param(
            noise(600, 600),
            pytest.raises(LabelMapComplexityError, match="expected at most 200000 runs"),
            id="much noise",
        ),
        pytest.param(
            np.tile(np.array([[[0, 0, 0], [1, 2, 3]]], np.uint8), (600, 400, 1)),
            pytest.raises(LabelMapComplexityError, match="expected at most 200000 runs"),
            id="stripes of two colours",
        ),
        pytest.param(
            np.stack([np.zeros((2, 128))] * 2 + [np.arange(256).reshape(2, 128)], axis=2).astype(np.uint8),
            VALID,
            id="255 colours and black",
        ),
        pytest.param(
            np.stack([np.ones((2, 128))] * 2 + [np.arange(256).reshape(2, 128)], axis=2).astype(np.uint8),
            pytest.raises(LabelMapLabelsError, match="255 colours"),
            id="256 colours, none black",
        ),
        pytest.param(noise(1200, 1200, 3), pytest.raises(LabelMapLabelsError, match="255 colours"), id="a photo"),
        pytest.param(np.zeros((0, 3), np.uint8), pytest.raises(LabelMapFormatError), id="empty"),
        pytest.param(np.ones((3, 3), np.uint16), pytest.raises(LabelMapFormatError, match="8 bits"), id="16 bits"),
        pytest.param(np.ones((3, 3), np.bool_), pytest.raises(LabelMapFormatError, match="8 bits"), id="booleans"),
        pytest.param(np.ones((3, 3, 4), np.uint8), pytest.raises(LabelMapFormatError, match="three"), id="alpha"),
        pytest.param(np.ones((3, 3, 1), np.uint8), pytest.raises(LabelMapFormatError, match="three"), id="an axis"),
        pytest.param(np.ones(9, np.uint8), pytest.raises(LabelMapFormatError, match="three"), id="flat"),
    ],
)
def test_label_images_are_accepted_or_rejected(image: Any, expectation: AbstractContextManager[Any]) -> None:
    with expectation:
        label_map = image_to_label_map(image)
        assert label_map.labels.shape == image.shape[:2]
        assert label_map.labels.dtype == np.uint8


def test_grey_values_are_label_ids() -> None:
    label_map = image_to_label_map(np.array([[0, 1, 10], [11, 255, 4]], np.uint8))
    assert label_map.names == {1: "skin", 4: "right_eye", 10: "hair", 11: "label_11", 255: "label_255"}
    assert label_map.colours[4] == LABELS[4].colour
    assert all(len(colour) == 7 for colour in label_map.colours.values())


def test_colours_are_numbered_by_value() -> None:
    red, green, blue, black = (0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 0, 0)
    label_map = image_to_label_map(np.array([[red, black, green], [blue, blue, red]], np.uint8))
    assert label_map.labels.tolist() == [[3, 0, 2], [1, 1, 3]]
    assert label_map.names == label_map.colours == {1: "#0000ff", 2: "#00ff00", 3: "#ff0000"}


def number_colours(image: Image) -> LabelMap:
    """Number colours one pixel at a time."""
    values = [[(int(r) << 16) + (int(g) << 8) + int(b) for b, g, r in row] for row in image]
    ids = {value: index for index, value in enumerate(sorted({0, *(value for row in values for value in row)}))}
    names = {index: f"#{value:06x}" for value, index in ids.items() if index}
    return LabelMap(np.array([[ids[value] for value in row] for row in values], np.uint8), names, names)


@given(hnp.arrays(np.uint8, small_sides.map(lambda sides: (*sides, 3)), elements=st.sampled_from([0, 1, 128, 255])))
def test_colours_match_the_pixelwise_reference(image: Image) -> None:
    assume((image != image[:, :, :1]).any())  # an image with equal channels is a grey one
    with pytest.MonkeyPatch.context() as patch:
        # Small bands, so that a small image has several.
        patch.setattr(module, "_BAND_PIXELS", 10)
        label_map = image_to_label_map(image)
    expected = number_colours(image)
    assert (label_map.labels == expected.labels).all()
    assert label_map.names == expected.names


@given(hnp.arrays(np.uint8, st.one_of(small_sides, small_sides.map(lambda sides: (*sides, 3)))))
def test_all_labels_of_any_image_have_a_name(image: Image) -> None:
    try:
        label_map = image_to_label_map(image)
    except LabelMapError:
        return
    assert sorted(label_map.names) == [label for label in np.unique(label_map.labels).tolist() if label]
    assert list(label_map.colours) == list(label_map.names)


def test_array_views_are_read_correctly() -> None:
    wide = np.zeros((4, 9, 3), np.uint8)
    wide[:, ::2] = (1, 2, 3)
    assert image_to_label_map(wide[:, 1:6]).labels.tolist() == [[0, 1, 0, 1, 0]] * 4
    assert image_to_label_map(wide[:, 1:6, 0]).labels.tolist() == [[0, 1, 0, 1, 0]] * 4


@given(hnp.arrays(np.uint8, small_sides), st.integers(1, 5), st.integers(1, 5))
def test_scaling_by_integers_makes_exact_blocks(labels: Image, across: int, down: int) -> None:
    height, width = labels.shape
    scaled = scale_labels(labels, Size(width * across, height * down))
    assert (scaled == labels.repeat(down, axis=0).repeat(across, axis=1)).all()


@given(hnp.arrays(np.uint8, small_sides), small_sides)
def test_scaling_takes_the_label_under_each_pixel_centre(labels: Image, sides: tuple[int, int]) -> None:
    height, width = sides
    scaled = scale_labels(labels, Size(width, height))
    assert scaled.shape == (height, width)
    assert scaled.dtype == np.uint8
    for y, x in np.ndindex(height, width):
        source_y, source_x = ((2 * y + 1) * labels.shape[0], 2 * height), ((2 * x + 1) * labels.shape[1], 2 * width)
        # Exactly between two pixels, either is the nearest.
        rows = {source_y[0] // source_y[1], (source_y[0] - 1) // source_y[1]}
        columns = {source_x[0] // source_x[1], (source_x[0] - 1) // source_x[1]}
        assert scaled[y, x] in {labels[row, column] for row in rows for column in columns}


def test_labels_of_the_same_size_are_not_copied() -> None:
    labels = np.ones((4, 6), np.uint8)
    assert scale_labels(labels, Size(6, 4)) is labels


def test_equal_channels_are_read_as_grey() -> None:
    ids = np.array([[0, 2, 5], [255, 5, 11]], np.uint8)
    colour, grey = image_to_label_map(np.dstack([ids] * 3)), image_to_label_map(ids)
    np.testing.assert_array_equal(colour.labels, ids)
    assert (colour.names, colour.colours, colour.has_colours) == (grey.names, grey.colours, False)
    assert colour.labels.flags.c_contiguous


def test_one_pixel_of_another_colour_makes_a_colour_image() -> None:
    image = np.full((5, module._BAND_PIXELS, 3), 5, np.uint8)  # several bands
    image[-1, -1] = 5, 5, 6
    label_map = image_to_label_map(image)
    assert label_map.names == label_map.colours == {1: "#050505", 2: "#060505"}
    assert label_map.has_colours
