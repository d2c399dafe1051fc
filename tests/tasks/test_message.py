"""Wire format of tasks: round trips, and rejection of everything that is not a task."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec.sniff import ImageInfo
from app.face.frame import Size
from app.observability import rich_logging
from app.service.crop import CheckedInput, SentFace
from app.service.options import CropOptions
from app.tasks.message import VERSION, MessageError, NewerTaskError, decode_task, encode_task
from app.tasks.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Sample

RECORD = Record(task_id="0" * 32, submitted_at=1.5, digest="abc")

sizes = st.integers(1, 40_000)
infos = st.builds(
    ImageInfo,
    format=st.sampled_from(["png", "jpeg", "webp"]),
    size=st.builds(Size, sizes, sizes),
    exif_orientation=st.integers(1, 8),
)
options = st.builds(
    CropOptions,
    show_labels=st.booleans(),
    region_opacity=st.floats(0, 1),
    stroke_width=st.none() | st.floats(0, 64),
    simplify=st.floats(0, 1000),
    verify=st.sampled_from(["structure", "pixels"]),
    landmark_units=st.sampled_from(["pixels", "normalized"]),
)
regions = st.dictionaries(st.text(min_size=1), st.lists(st.integers(0, 477), max_size=9), max_size=9)
landmarks = st.builds(
    lambda count, seed: np.random.default_rng(seed).uniform(-100, 5000, (count, 2)).astype(np.float32),
    st.sampled_from([468, 478]),
    st.integers(0, 99),
)


@st.composite
def checked_inputs(draw: st.DrawFn) -> CheckedInput:
    has_map = draw(st.booleans())
    points = draw(st.none() | st.lists(landmarks, min_size=1, max_size=3))
    return CheckedInput(
        image=draw(st.binary(max_size=500)),
        image_info=draw(infos),
        faces=None
        if points is None
        else tuple(SentFace(face, face[:, 0].copy() if draw(st.booleans()) else None) for face in points),
        label_image=draw(st.binary(max_size=500)) if has_map else None,
        label_info=draw(infos) if has_map else None,
        region_landmarks=None if has_map else draw(st.none() | regions),
        options=draw(options),
        are_units_guessed=draw(st.booleans()),
    )


def plain(checked: CheckedInput) -> dict[str, Any]:
    """Convert an input to a form that can be compared, including the order of regions."""
    return {
        "image": bytes(checked.image),
        "image_info": checked.image_info,
        "faces": None
        if checked.faces is None
        else [[None if array is None else (array.tolist(), array.dtype) for array in face] for face in checked.faces],
        "label_image": None if checked.label_image is None else bytes(checked.label_image),
        "label_info": checked.label_info,
        "are_units_guessed": checked.are_units_guessed,
        "regions": None
        if checked.region_landmarks is None
        else [(name, list(indices)) for name, indices in checked.region_landmarks.items()],
        "options": checked.options,
        "digest": checked.digest(),
    }


@given(checked=checked_inputs(), revision=st.integers(0, 2**63))
def test_a_round_trip_changes_nothing(checked: CheckedInput, revision: int) -> None:
    task = decode_task(encode_task(RECORD, revision, checked))
    assert plain(task.checked) == plain(checked)
    assert (task.record, task.revision, task.request_id, task.trace_id) == (RECORD, revision, None, None)


def test_the_ids_of_the_request_are_included(check: Callable[..., CheckedInput]) -> None:
    tokens = rich_logging.request_id.set("order-17"), rich_logging.trace_id.set("ab" * 16)
    try:
        task = decode_task(encode_task(RECORD, 1, check()))
    finally:
        rich_logging.request_id.reset(tokens[0])
        rich_logging.trace_id.reset(tokens[1])
    assert (task.request_id, task.trace_id) == ("order-17", "ab" * 16)


def test_images_are_views(sample: Sample, check: Callable[..., CheckedInput]) -> None:
    data = encode_task(RECORD, 1, check(segmentation_map=sample.labels))
    task = decode_task(data)
    for image in (task.checked.image, task.checked.label_image):
        assert isinstance(image, memoryview)
        assert image.obj is data


def test_a_message_is_little_longer_than_its_content(sample: Sample, check: Callable[..., CheckedInput]) -> None:
    data = encode_task(RECORD, 1, check(segmentation_map=sample.labels))
    assert len(data) < len(sample.jpeg) + len(sample.labels) + 478 * 8 + 1024


@pytest.fixture(scope="module")
def whole(sample: Sample, check: Callable[..., CheckedInput]) -> bytes:
    return encode_task(RECORD, 7, check(segmentation_map=sample.labels, show_labels=True))


@given(data=st.data())
def test_a_truncated_message_is_no_task(whole: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 5000))
    with pytest.raises(MessageError):
        decode_task(whole[:length])


@given(garbage=st.binary(max_size=300))
def test_garbage_is_no_task(garbage: bytes) -> None:
    with pytest.raises((MessageError, NewerTaskError)):
        decode_task(garbage)


@given(garbage=st.binary(max_size=300))
def test_garbage_after_a_length_is_no_task(garbage: bytes) -> None:
    with pytest.raises((MessageError, NewerTaskError)):
        decode_task(struct.pack(">I", len(garbage)) + garbage)


@given(data=st.data())
def test_changed_bytes_result_in_a_task_or_one_error(whole: bytes, data: st.DataObject) -> None:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        # Mostly in the header, except for the landmarks in its middle.
        changed[data.draw(st.integers(0, 700) | st.integers(4000, 4400))] = data.draw(st.integers(0, 255))
    try:
        task = decode_task(bytes(changed))
    except (MessageError, NewerTaskError):
        return
    assert isinstance(task.record, Record)
    assert len(task.checked.image) + len(task.checked.label_image or b"") <= len(whole)
    assert task.checked.faces is not None
    assert task.checked.faces[0].landmarks_px.shape[1] == 2


def rewrite(whole: bytes, **changes: Any) -> bytes:
    """Return a message with changed fields of its header."""
    (length,) = struct.unpack_from(">I", whole)
    header = msgspec.msgpack.encode({**msgspec.msgpack.decode(whole[4 : 4 + length]), **changes})
    return struct.pack(">I", len(header)) + header + whole[4 + length :]


@pytest.mark.parametrize(
    "changes",
    [
        {"version": VERSION + 1},
        {"version": VERSION + 1, "options": {"upright": "always", "an_option_to_come": 1}},
        {"version": VERSION + 1, "photo": {"size": 1}, "landmarks": None},
    ],
)
def test_a_later_version_is_recognized_whatever_it_changed(whole: bytes, changes: dict[str, Any]) -> None:
    with pytest.raises(NewerTaskError, match=f"version {VERSION}"):
        decode_task(rewrite(whole, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": "1"},
        {"options": {"an_option_to_come": 1}},
        {"options": {"region_opacity": 7}},
        {"record": b"{}"},
        {"record": b"no JSON"},
        {"record": b'{"task_id":"\xff","submitted_at":1}'},
        {"landmarks": b"1234567"},
        {"landmarks": b"1234"},
        {"other_faces": [[b"1234", None]]},
        {"other_faces": [[b"12345678", b"1"]]},
        {"other_faces": [[None, None]]},
        {"photo": [-5, 4, 4, "png", 1]},
        {"photo": [2**63, 4, 4, "png", 1]},
        {"label_map": None},
    ],
)
def test_a_header_that_is_wrong_is_no_task(whole: bytes, changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        decode_task(rewrite(whole, **changes))


def test_negative_sizes_are_no_task(whole: bytes, sample: Sample) -> None:
    total = len(sample.jpeg) + len(sample.labels)
    images = {"photo": [-9, 512, 512, "jpeg", 1], "label_map": [total + 9, 512, 512, "png", 1]}
    with pytest.raises(MessageError):
        decode_task(rewrite(whole, **images))
