"""The weight-carrying layers of an ONNX graph: linear maps and embedding tables, found whatever their spelling.

Four spellings of y = x @ W are one `Linear` here: `MatMul(x, W)`, `MatMul(x, Transpose(W))`, `Gemm(x, W, b)` and
`Gemm(x, W, b, transB=1)`, where W is a 2-D float32 initializer. Everything else (convolutions, norms, products of
two activations) is no layer and keeps its float32 arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundle.errors import QuantizationError

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """One y = x @ W (+ b) of a graph.

    Attributes:
        node: The MatMul or Gemm.
        weight: The initializer that holds W, as [K, N], or as [N, K] where `is_transposed`.
        is_transposed: The graph turns the initializer before it multiplies.
        bias: The third input of a Gemm; None for a MatMul (an Add after it stays an Add).
        num_inputs: K.
        num_outputs: N.
    """

    node: ir.Node
    weight: ir.Value
    is_transposed: bool
    bias: ir.Value | None
    num_inputs: int
    num_outputs: int

    @property
    def input(self) -> ir.Value:
        """Return x."""
        return _present(self.node.inputs[0], self.name)

    @property
    def name(self) -> str:
        """Return the weight's name in the checkpoint, which names the layer in plans and reports."""
        return str(self.weight.name)

    def rows(self) -> Float32:
        """Return W^T, [N, K] float32: one row per output, a view of the mapped file where the layout allows."""
        stored = _read(self.weight)
        return stored if self.is_transposed else stored.T


@dataclass(frozen=True)
class Table:
    """One embedding look-up.

    Attributes:
        node: The Gather along axis 0.
        weight: The initializer, [V, D] float32.
        num_rows: V.
        width: D.
    """

    node: ir.Node
    weight: ir.Value
    num_rows: int
    width: int

    @property
    def ids(self) -> ir.Value:
        """Return the row numbers looked up."""
        return _present(self.node.inputs[1], self.name)

    @property
    def name(self) -> str:
        """Return the weight's name in the checkpoint."""
        return str(self.weight.name)

    def is_looked_up_by(self, input_name: str) -> bool:
        """Return whether the row numbers are an input of the graph, as it is."""
        return str(self.ids.name) == input_name

    def rows(self) -> Float32:
        """Return the table, [V, D] float32."""
        return _read(self.weight)


def _read(weight: ir.Value) -> Float32:
    """Return an initializer's numbers without copying a mapped file."""
    if weight.const_value is None:
        raise QuantizationError(f"{weight.name} holds no numbers")
    array: Float32 = weight.const_value.numpy()
    return array


def _present(value: ir.Value | None, layer: str) -> ir.Value:
    if value is None:
        raise QuantizationError(f"the layer of {layer} lacks an input; export the checkpoint again")
    return value


def find_linears(graph: ir.Graph) -> list[Linear]:
    """Return the linear layers of a graph in node order."""
    return [linear for node in graph if (linear := _as_linear(node)) is not None]


def find_tables(graph: ir.Graph) -> list[Table]:
    """Return the embedding look-ups of a graph in node order."""
    return [table for node in graph if (table := _as_table(node)) is not None]


def _as_linear(node: ir.Node) -> Linear | None:
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    found = _as_weight(node.inputs[1])
    if found is None or (node.op_type == "Gemm" and not _is_plain_gemm(node)):
        return None
    weight, is_transposed = found
    if node.op_type == "Gemm" and _attribute(node, "transB", 0):
        is_transposed = not is_transposed
    first, second = _matrix_shape(weight)
    num_inputs, num_outputs = (second, first) if is_transposed else (first, second)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return Linear(node, weight, is_transposed, bias, num_inputs, num_outputs)


def _as_weight(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """Return the float matrix behind a value and whether a Transpose stands between them."""
    if value is None:
        return None
    if _is_float_matrix(value):
        return value, False
    producer = value.producer()
    if producer is None or producer.op_type != "Transpose" or producer.inputs[0] is None:
        return None
    permutation = producer.attributes.get("perm")
    if permutation is not None and list(permutation.as_ints()) != [1, 0]:
        return None
    return (producer.inputs[0], True) if _is_float_matrix(producer.inputs[0]) else None


def _as_table(node: ir.Node) -> Table | None:
    if node.domain != "" or node.op_type != "Gather" or _attribute(node, "axis", 0) != 0:
        return None
    weight = node.inputs[0]
    if weight is None or not _is_float_matrix(weight):
        return None
    return Table(node, weight, *_matrix_shape(weight))


def _is_float_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        value.is_initializer() and tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2
    )


def _matrix_shape(weight: ir.Value) -> tuple[int, int]:
    shape = weight.const_value.shape if weight.const_value is not None else ()
    first, second = (int(size) for size in shape)
    return first, second


def _is_plain_gemm(node: ir.Node) -> bool:
    scaled = any(node.attributes[name].as_float() != 1.0 for name in ("alpha", "beta") if name in node.attributes)
    return not scaled and not _attribute(node, "transA", 0)


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return int(node.attributes[name].as_int()) if name in node.attributes else default
