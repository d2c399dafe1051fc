"""Conversion of models for cv2, with a small model that is written here."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[2] / "tools")
    from tflite import DENSIFY, DEPTH_TO_SPACE, RESHAPE, ModelError, _Flat, make_readable

CONV = 3
SPARSE_CSR = 1
UINT8_INDICES = 3
VALUES = np.array([1.5, -2.0, 0.25], np.float16)
DENSE = [[0, 1.5, 0, 0], [0, 0, 0, 0], [-2.0, 0, 0, 0.25]]


class Writer:
    """Writer of a FlatBuffer: each table is followed by the objects that it refers to."""

    def __init__(self) -> None:
        self.data = bytearray(8)

    def table(self, **fields: Any) -> int:
        """Write a table with the fields ``f0``, ``f1`` …; numbers are stored in it, other values after it."""
        numbers = {int(name[1:]): value for name, value in fields.items()}
        count = max(numbers, default=-1) + 1
        names = len(self.data)
        self.data += struct.pack("<HH", 4 + 2 * count, 4 + 4 * len(numbers))
        slots = {number: 4 + 4 * place for place, number in enumerate(sorted(numbers))}
        self.data += b"".join(struct.pack("<H", slots.get(number, 0)) for number in range(count))
        self.data += bytes(-len(self.data) % 4)
        start = len(self.data)
        self.data += struct.pack("<i", start - names) + bytes(4 * len(numbers))
        for number in sorted(numbers):
            value, place = numbers[number], start + slots[number]
            if isinstance(value, int):
                struct.pack_into("<i", self.data, place, value)
            else:
                self.refer(place, value)
        return start

    def refer(self, place: int, value: Any) -> None:
        if isinstance(value, dict):
            target = self.table(**value)
        elif isinstance(value, np.ndarray):
            self.data += bytes(-len(self.data) % 4)
            target = len(self.data)
            self.data += struct.pack("<I", len(value)) + value.tobytes()
            self.data += bytes(-len(self.data) % 4)
        else:
            target = len(self.data)
            self.data += struct.pack("<I", len(value)) + bytes(4 * len(value))
            for index, item in enumerate(value):
                self.refer(target + 4 + 4 * index, item)
        struct.pack_into("<I", self.data, place, target - place)


def ints(*values: int) -> np.ndarray:
    return np.array(values, "<i4")


def indices(*values: int) -> dict[str, Any]:
    return {"f0": np.array(values, np.uint8)}


def make_model(*, last_format: int = SPARSE_CSR, first_format: int = 0, output: Sequence[int] = (3, 1, 2)) -> bytes:
    """Write a model: sparse weights 0 made dense 1, into a convolution 2, and the operators ``output`` to its output.

    Args:
        last_format: format of the weights' last dimension.
        first_format: format of their first dimension.
        output: operators of the output, by position in the list of codes.
    """
    last = {"f0": last_format, "f1": 4, "f2": UINT8_INDICES, "f3": indices(0, 1, 1, 3)}
    last |= {"f4": UINT8_INDICES, "f5": indices(1, 0, 3)}
    sparsity = {"f0": ints(0, 1), "f2": [{"f0": first_format, "f1": 3}, last]}
    tensors: list[dict[str, Any]] = [{"f0": ints(3, 4), "f2": 1, "f6": sparsity}]
    tensors += [{"f0": ints(3, 4)} for _ in range(len(output) + 1)]
    operators = [{"f0": 0, "f1": ints(0), "f2": ints(1)}]
    operators += [{"f0": code, "f1": ints(place + 1), "f2": ints(place + 2)} for place, code in enumerate(output)]
    graph = {"f0": tensors, "f1": ints(0), "f2": ints(len(output) + 1), "f3": operators}
    codes = [{"f3": code} for code in (DENSIFY, DEPTH_TO_SPACE, RESHAPE, CONV)]
    buffers = [{}, {"f0": np.frombuffer(VALUES.tobytes(), np.uint8)}]
    writer = Writer()
    root = writer.table(f1=codes, f2=[graph], f4=buffers)
    struct.pack_into("<I", writer.data, 0, root)
    return bytes(writer.data)


def test_weights_become_dense_and_the_end_is_cut() -> None:
    flat = _Flat(make_readable(make_model()))
    model = flat.follow(0)
    (graph,) = flat.tables(model, 2)
    (convolution,) = flat.tables(graph, 3)
    assert flat.array(convolution, 1).tolist() == [0], "the weights themselves, and not what they became"
    assert flat.array(graph, 2).tolist() == flat.array(convolution, 2).tolist() == [2]
    start, size = flat.vector(flat.tables(model, 4)[1], 0)
    assert start % 16 == 0
    weights = np.frombuffer(bytes(flat.data[start : start + size]), np.float16)
    assert weights.reshape(3, 4).tolist() == DENSE


@pytest.mark.parametrize(
    "data",
    [
        make_model(first_format=SPARSE_CSR),
        make_model(output=(3,)),
        make_model(output=(3, 2)),
        make_model(output=(3, 1)),
        make_model(output=(3, 2, 1)),
    ],
)
def test_models_of_another_form_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        make_readable(data)
