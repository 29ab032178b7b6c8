"""A graph of Gathers, serialized by hand: what runs graphs builds none, and this one depends on a cache's states.

Field numbers are those of onnx.proto (ONNX 1.20).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_IR_VERSION, _OPSET = 10, 21
_INT_ATTRIBUTE = 2
_ELEMENTS = {
    "float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11,
}  # fmt: skip
"""numpy name -> onnx.TensorProto.DataType."""


@dataclass(frozen=True)
class Gathered:
    """One tensor that is read along an axis in another order.

    Attributes:
        source: Name of the input.
        target: Name of the output, of the input's shape.
        order: Name of the input that holds the order, int64.
        dtype: numpy name.
        shape: Sizes.
        axis: That is read in that order.
    """

    source: str
    target: str
    order: str
    dtype: str
    shape: tuple[int, ...]
    axis: int


def gather_graph(tensors: Sequence[Gathered]) -> bytes:
    """Return a serialized graph with one Gather per tensor."""
    lengths = {each.order: each.shape[each.axis] for each in tensors}
    parts = [_message(1, _node(each)) for each in tensors]
    parts.append(_message(2, b"rows"))
    parts += [_message(11, _value(name, "int64", (length,))) for name, length in lengths.items()]
    parts += [_message(11, _value(each.source, each.dtype, each.shape)) for each in tensors]
    parts += [_message(12, _value(each.target, each.dtype, each.shape)) for each in tensors]
    opset = _message(1, b"") + _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _message(7, b"".join(parts)) + _message(8, opset)


def _node(tensor: Gathered) -> bytes:
    axis = _message(1, b"axis") + _number(3, tensor.axis) + _number(20, _INT_ATTRIBUTE)
    names = _message(1, tensor.source.encode()) + _message(1, tensor.order.encode())
    return names + _message(2, tensor.target.encode()) + _message(4, b"Gather") + _message(5, axis)


def _value(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(_message(1, _number(1, size)) for size in shape)
    tensor = _number(1, _ELEMENTS[dtype]) + _message(2, sizes)
    return _message(1, name.encode()) + _message(2, _message(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
