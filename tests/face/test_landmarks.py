import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.errors import (
    LandmarkCountError,
    LandmarkDegenerateError,
    LandmarkError,
    LandmarkNotFiniteError,
    LandmarkRangeError,
    LandmarkShapeError,
)
from app.face.frame import Size
from app.face.landmarks import (
    LEFT_EYE_OUTER_CORNER,
    RIGHT_EYE_OUTER_CORNER,
    compute_bbox,
    compute_interocular_px,
    compute_roll_deg,
    points_to_landmarks_px,
)

FRAME = Size(640, 480)
VALID: AbstractContextManager[Any] = nullcontext()


def points(count: int = 478, columns: int = 2, **replaced: object) -> list[list[Any]]:
    """Return valid points, with some rows replaced: ``points(row_3=[1, 2])``."""
    rows: list[Any] = [[100.0 + index % 7, 50.0 + index % 5, -0.01][:columns] for index in range(count)]
    for name, row in replaced.items():
        rows[int(name.removeprefix("row_"))] = row
    return rows


@pytest.mark.parametrize(
    ("rows", "expectation"),
    [
        pytest.param(points(478), VALID, id="with irises"),
        pytest.param(points(468), VALID, id="without irises"),
        pytest.param(points(478, 3), VALID, id="with depth"),
        pytest.param([[1, 2]] * 478, VALID, id="whole numbers"),
        pytest.param(np.ones((478, 2), np.float32), VALID, id="float32 array"),
        pytest.param([[0, 0, float("nan")]] * 468, VALID, id="depth is ignored"),
        pytest.param(points(row_3=[-160, -120]), VALID, id="outside up to the margin, left and top"),
        pytest.param(points(row_3=[800, 600]), VALID, id="outside up to the margin, right and bottom"),
        pytest.param(points(0), pytest.raises(LandmarkCountError, match=r"got 0$"), id="none"),
        pytest.param(points(1), pytest.raises(LandmarkCountError, match=r"468 or 478 points, got 1$"), id="one"),
        pytest.param(points(470), pytest.raises(LandmarkCountError, match=r"got 470$"), id="470"),
        pytest.param(points(479), pytest.raises(LandmarkCountError), id="one too many"),
        pytest.param(np.zeros((468, 1)), pytest.raises(LandmarkShapeError, match=r"got 468 x 1$"), id="one column"),
        pytest.param(np.zeros((468, 4)), pytest.raises(LandmarkShapeError, match=r"got 468 x 4$"), id="four columns"),
        pytest.param(np.zeros(956), pytest.raises(LandmarkShapeError, match=r"got 956$"), id="flat"),
        pytest.param(np.zeros((1, 468, 2)), pytest.raises(LandmarkShapeError, match=r"1 x 468 x 2$"), id="nested"),
        pytest.param(5, pytest.raises(LandmarkShapeError, match="single number"), id="a number"),
        pytest.param(
            points(row_9=[1]), pytest.raises(LandmarkShapeError, match="rows of different lengths"), id="ragged"
        ),
        pytest.param([["1", "2"]] * 468, pytest.raises(LandmarkShapeError), id="text"),
        pytest.param([[True, False]] * 468, pytest.raises(LandmarkShapeError), id="booleans"),
        pytest.param([[None, None]] * 468, pytest.raises(LandmarkShapeError), id="null"),
        pytest.param([[1j, 1]] * 468, pytest.raises(LandmarkShapeError), id="complex"),
        pytest.param([[10**400, 1]] * 468, pytest.raises(LandmarkShapeError), id="a number of 400 digits"),
        pytest.param(
            points(row_7=[1.0, float("nan")], row_9=[float("inf"), 1.0]),
            pytest.raises(
                LandmarkNotFiniteError,
                match=r"^landmarks: expected finite numbers, got NaN, .* values at 2 points, first at index 7$",
            ),
            id="not a number",
        ),
        pytest.param(points(row_0=[float("-inf"), 1.0]), pytest.raises(LandmarkNotFiniteError), id="infinite"),
        pytest.param(points(row_477=[1e308, 1.0]), pytest.raises(LandmarkNotFiniteError, match="477"), id="1e308"),
        pytest.param(points(row_3=[1e39, 1.0]), pytest.raises(LandmarkNotFiniteError), id="too large for float32"),
        pytest.param(points(row_3=[1e38, 1.0]), pytest.raises(LandmarkRangeError), id="fits float32"),
        pytest.param(
            points(row_3=[800.5, 1.0], row_4=[1.0, 601.0], row_5=[1.0, -121.0]),
            pytest.raises(
                LandmarkRangeError,
                match=r"^landmarks: expected .* 25% .* outside the image, got 3 .*, first at index 3$",
            ),
            id="outside",
        ),
    ],
)
def test_points_are_accepted_or_rejected(rows: Any, expectation: AbstractContextManager[Any]) -> None:
    with expectation:
        landmarks_px = points_to_landmarks_px(rows, image_size=FRAME)
        assert landmarks_px.shape == (len(rows), 2)
        assert landmarks_px.dtype == np.float32
        assert landmarks_px.flags.c_contiguous


def test_messages_contain_no_coordinates() -> None:
    with pytest.raises(LandmarkRangeError) as caught:
        points_to_landmarks_px(points(row_3=[98765.25, 1.0]), image_size=FRAME)
    assert "98765" not in str(caught.value)


def test_normalized_points_are_scaled_per_axis() -> None:
    landmarks_px = points_to_landmarks_px([[0.25, 0.5, 9.0]] * 468, image_size=FRAME, is_normalized=True)
    assert landmarks_px.tolist() == [[160.0, 240.0]] * 468


@pytest.mark.parametrize(
    ("point", "expectation"),
    [
        ([1.25, -0.25], VALID),
        ([1.26, 0.5], pytest.raises(LandmarkRangeError)),
        ([1e308, 0.5], pytest.raises(LandmarkNotFiniteError)),
    ],
)
def test_normalized_points_have_the_same_range(point: list[float], expectation: AbstractContextManager[Any]) -> None:
    with expectation:
        assert len(points_to_landmarks_px([point] * 468, image_size=FRAME, is_normalized=True)) == 468


@pytest.mark.parametrize(
    ("margin", "expectation"), [(0.0, pytest.raises(LandmarkRangeError, match="0%")), (0.1, VALID)]
)
def test_margin_is_configurable(margin: float, expectation: AbstractContextManager[Any]) -> None:
    with expectation:
        assert len(points_to_landmarks_px(points(row_8=[641, 50]), image_size=FRAME, margin=margin)) == 478


def test_input_array_is_not_modified() -> None:
    rows = np.full((468, 2), 0.5)
    points_to_landmarks_px(rows, image_size=FRAME, is_normalized=True)[:] = 7
    assert (rows == 0.5).all()


numbers = st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none(), st.booleans())


@given(
    count=st.sampled_from([0, 1, 467, 468, 478]),
    row=st.lists(numbers, max_size=4),
    odd=st.one_of(st.none(), st.lists(numbers, max_size=4), numbers),
)
def test_any_input_returns_valid_landmarks_or_raises_landmark_error(count: int, row: list[Any], odd: Any) -> None:
    rows: list[Any] = [row] * count
    if odd is not None and count:
        rows[count // 2] = odd
    try:
        landmarks_px = points_to_landmarks_px(rows, image_size=FRAME)
    except LandmarkError:
        return
    assert np.isfinite(landmarks_px).all()
    assert (landmarks_px >= (-160, -120)).all()
    assert (landmarks_px <= (800, 600)).all()


@given(
    st.lists(st.tuples(st.floats(-100, 700), st.floats(-100, 500)), min_size=4, max_size=4),
    st.booleans(),
)
def test_valid_points_are_returned_unchanged(some: list[tuple[float, float]], is_normalized: bool) -> None:
    rows = np.array(some * 117)
    given_rows = rows / FRAME if is_normalized else rows
    landmarks_px = points_to_landmarks_px(given_rows, image_size=FRAME, is_normalized=is_normalized)
    np.testing.assert_allclose(landmarks_px, rows, rtol=1e-6, atol=1e-4)


def with_eyes(right: tuple[float, float], left: tuple[float, float]) -> npt.NDArray[np.float32]:
    landmarks_px = np.zeros((478, 2), np.float32)
    landmarks_px[RIGHT_EYE_OUTER_CORNER], landmarks_px[LEFT_EYE_OUTER_CORNER] = right, left
    return landmarks_px


@pytest.mark.parametrize(
    ("right", "left", "roll_deg"),
    [
        pytest.param((100, 100), (200, 100), 0.0, id="level"),
        pytest.param((100, 100), (200, 200), 45.0, id="left eye lower: clockwise"),
        pytest.param((100, 200), (200, 100), -45.0, id="left eye higher"),
        pytest.param((100, 100), (100, 200), 90.0, id="lying"),
        pytest.param((100, 200), (100, 100), -90.0, id="lying on the other side"),
        pytest.param((200, 100), (100, 100), 180.0, id="upside down"),
        pytest.param((200, -0.0), (100, -0.0), 180.0, id="upside down, a negative zero"),
        pytest.param((200, 0.0), (100, -0.0), 180.0, id="upside down, zeros of either sign"),
        pytest.param((100, 100), (101, 100), 0.0, id="one pixel apart"),
    ],
)
def test_roll_is_the_direction_from_right_to_left_eye(
    right: tuple[float, float], left: tuple[float, float], roll_deg: float
) -> None:
    assert compute_roll_deg(with_eyes(right, left)) == pytest.approx(roll_deg)


@pytest.mark.parametrize("left", [(100.0, 100.0), (100.5, 100.5), (100.9, 100.0)])
def test_roll_of_coinciding_eyes_is_rejected(left: tuple[float, float]) -> None:
    with pytest.raises(LandmarkDegenerateError, match="at least 1 pixel apart, got less"):
        compute_roll_deg(with_eyes((100, 100), left))


@given(st.floats(-179.9, 180), st.floats(2, 500))
def test_roll_and_distance_match_the_eye_positions(roll_deg: float, distance: float) -> None:
    roll = math.radians(roll_deg)
    landmarks_px = with_eyes((0, 0), (distance * math.cos(roll), distance * math.sin(roll)))
    assert compute_interocular_px(landmarks_px) == pytest.approx(distance, rel=1e-5)
    difference = (compute_roll_deg(landmarks_px) - roll_deg + 180) % 360 - 180
    assert difference == pytest.approx(0, abs=1e-4)


def test_sample_is_nearly_level(landmarks_px: npt.NDArray[np.float32]) -> None:
    assert 0 < compute_roll_deg(landmarks_px) < 6
    assert 55 < compute_interocular_px(landmarks_px) < 65


@given(st.lists(st.tuples(st.integers(-999, 999), st.integers(-999, 999)), min_size=1, max_size=30))
def test_bbox_is_the_smallest_box(corners: list[tuple[int, int]]) -> None:
    x, y, width, height = compute_bbox(np.array(corners, np.float32))
    xs, ys = [corner[0] for corner in corners], [corner[1] for corner in corners]
    assert (x, y, x + width, y + height) == (min(xs), min(ys), max(xs), max(ys))
