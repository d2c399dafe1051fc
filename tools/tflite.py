"""Conversion of TensorFlow Lite models for cv2: dense weights, and without the operators that cv2 does not support.

Field numbers and codes are those of TensorFlow Lite's schema (``schema_v3c.fbs``). The FlatBuffer is changed in place:
vectors are shortened, references are redirected, and dense weights are appended.
"""

import struct

import numpy as np
import numpy.typing as npt

DEPTH_TO_SPACE, RESHAPE, DENSIFY = 5, 22, 124

_OPERATOR_CODES, _SUBGRAPHS, _BUFFERS = 1, 2, 4  # of a model
_DEPRECATED_CODE, _CODE = 0, 3  # of an operator code
_TENSORS, _OUTPUTS, _OPERATORS = 0, 2, 3  # of a subgraph
_SHAPE, _BUFFER, _SPARSITY = 0, 2, 6  # of a tensor
_CODE_INDEX, _OPERATOR_INPUTS, _OPERATOR_OUTPUTS = 0, 1, 2  # of an operator
_TRAVERSAL, _BLOCKS, _DIMENSIONS = 0, 1, 2  # of sparsity parameters
_FORMAT, _SEGMENTS_TYPE, _SEGMENTS, _INDICES_TYPE, _INDICES = 0, 2, 3, 4, 5  # of a dimension
_INDEX_TYPES = {1: "<i4", 2: "<u2", 3: "<u1"}
_ALIGNMENT = 16


class ModelError(Exception):
    """Raised if the model does not have the supported structure."""


class _Flat:
    """A FlatBuffer, with tables whose fields have numbers, and vectors."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def number(self, position: int, form: str = "<I") -> int:
        return int(struct.unpack_from(form, self.data, position)[0])

    def put(self, position: int, value: int) -> None:
        struct.pack_into("<I", self.data, position, value)

    def follow(self, position: int) -> int:
        return position + self.number(position)

    def find(self, table: int, field: int) -> int:
        """Return the position of a field; 0 if the table omits it."""
        names = table - self.number(table, "<i")
        slot = 4 + 2 * field
        offset = self.number(names + slot, "<H") if slot < self.number(names, "<H") else 0
        return table + offset if offset else 0

    def value(self, table: int, field: int, form: str = "<I") -> int:
        """Return a number; 0 if the table omits it."""
        position = self.find(table, field)
        return self.number(position, form) if position else 0

    def vector(self, table: int, field: int) -> tuple[int, int]:
        """Return the position of a vector's first element, and its length."""
        position = self.find(table, field)
        if not position:
            return 0, 0
        start = self.follow(position)
        return start + 4, self.number(start)

    def tables(self, table: int, field: int) -> list[int]:
        start, count = self.vector(table, field)
        return [self.follow(start + 4 * index) for index in range(count)]

    def array(self, table: int, field: int, dtype: str = "<i4") -> npt.NDArray[np.integer]:
        start, count = self.vector(table, field)
        return np.frombuffer(bytes(self.data[start : start + count * np.dtype(dtype).itemsize]), dtype)

    def append_vector(self, field_position: int, content: bytes) -> None:
        """Append a vector of bytes, and let a field refer to it."""
        self.data += bytes(-(len(self.data) + 4) % _ALIGNMENT)
        self.put(field_position, len(self.data) - field_position)
        self.data += struct.pack("<I", len(content)) + content


def make_readable(data: bytes) -> bytes:
    """Make every sparse tensor dense, and remove a DEPTH_TO_SPACE with its RESHAPE from each output.

    The caller of the model must apply the removed operators to its outputs.

    Args:
        data: content of the model file.

    Returns:
        The converted content.

    Raises:
        ModelError: the model does not have the supported structure.
    """
    flat = _Flat(data)
    model = flat.follow(0)
    codes = [
        max(flat.value(code, _CODE, "<i"), flat.value(code, _DEPRECATED_CODE, "<B"))
        for code in flat.tables(model, _OPERATOR_CODES)
    ]
    (graph,) = flat.tables(model, _SUBGRAPHS)
    operators = [(codes[flat.value(operator, _CODE_INDEX)], operator) for operator in flat.tables(graph, _OPERATORS)]
    sparse: dict[int, int] = {}
    for code, operator in operators:
        if code == DENSIFY:
            source = int(flat.array(operator, _OPERATOR_INPUTS)[0])
            sparse[int(flat.array(operator, _OPERATOR_OUTPUTS)[0])] = source
            _densify(flat, model, flat.tables(graph, _TENSORS)[source])
    cut = _cut_outputs(flat, graph, operators)
    kept = [operator for code, operator in operators if code != DENSIFY and operator not in cut]
    for operator in kept:
        start, count = flat.vector(operator, _OPERATOR_INPUTS)
        for position in range(start, start + 4 * count, 4):
            flat.put(position, sparse.get(flat.number(position), flat.number(position)))
    start, _ = flat.vector(graph, _OPERATORS)
    flat.put(start - 4, len(kept))
    for index, operator in enumerate(kept):
        flat.put(start + 4 * index, operator - start - 4 * index)
    return bytes(flat.data)


def _densify(flat: _Flat, model: int, tensor: int) -> None:
    """Append the dense values of a sparse tensor of 16-bit values; only its last dimension may be sparse."""
    sparsity = flat.follow(flat.find(tensor, _SPARSITY))
    *outer, last = flat.tables(sparsity, _DIMENSIONS)
    shape = flat.array(tensor, _SHAPE)
    is_in_order = np.array_equal(flat.array(sparsity, _TRAVERSAL), np.arange(len(shape)))
    is_outer_dense = not any(flat.value(dimension, _FORMAT, "<B") for dimension in outer)
    if not (is_in_order and is_outer_dense) or len(flat.array(sparsity, _BLOCKS)):
        raise ModelError("expected tensors that are sparse only in their last dimension")
    segments = _read_indices(flat, last, _SEGMENTS_TYPE, _SEGMENTS)
    indices = _read_indices(flat, last, _INDICES_TYPE, _INDICES)
    buffer = flat.tables(model, _BUFFERS)[flat.value(tensor, _BUFFER)]
    values = flat.array(buffer, 0, "<u1")[: 2 * len(indices)].view("<u2")
    dense = np.zeros((int(np.prod(shape[:-1])), int(shape[-1])), "<u2")
    dense[np.repeat(np.arange(len(dense)), np.diff(segments)), indices] = values
    flat.append_vector(flat.find(buffer, 0), dense.tobytes())


def _read_indices(flat: _Flat, dimension: int, type_field: int, field: int) -> npt.NDArray[np.int64]:
    kind = flat.value(dimension, type_field, "<B")
    if kind not in _INDEX_TYPES:
        raise ModelError("expected tensors that are sparse only in their last dimension")
    return flat.array(flat.follow(flat.find(dimension, field)), 0, _INDEX_TYPES[kind]).astype(np.int64)


def _cut_outputs(flat: _Flat, graph: int, operators: list[tuple[int, int]]) -> set[int]:
    """Replace each output with the input of its DEPTH_TO_SPACE, and return the removed operators."""
    producers = {
        int(tensor): (code, operator)
        for code, operator in operators
        for tensor in flat.array(operator, _OPERATOR_OUTPUTS)
    }
    cut: set[int] = set()
    start, count = flat.vector(graph, _OUTPUTS)
    for position in range(start, start + 4 * count, 4):
        tensor = flat.number(position)
        for expected in (RESHAPE, DEPTH_TO_SPACE):
            code, operator = producers[tensor]
            if code != expected:
                raise ModelError("expected outputs that come from a DEPTH_TO_SPACE and a RESHAPE")
            cut.add(operator)
            tensor = int(flat.array(operator, _OPERATOR_INPUTS)[0])
        flat.put(position, tensor)
    return cut
