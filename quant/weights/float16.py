"""fp16: weights and activations in float16 for CUDA and TensorRT, with what overflows or needs digits in float32.

Normalizations and the rotary angles keep float32, between explicit Casts, and so do layers that are not named. Every
operator gets inputs of one type. Inputs and outputs of the graph keep their types, the cache among them: it is cast
whole at every step, which costs a pass over it. What is made for CUDA or TensorRT is turned into float16 by
`graphs.lowering` instead, the cache with it.

A CPU has few float16 operators: ONNX Runtime computes the others in float32 between casts of its own, which is right
and slow, and which is how the graphs are tested here.
"""

from __future__ import annotations

import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.half import KEPT_OPERATORS, halve_inside
from graphs.layers import Linear, Table, find_linears, find_tables
from quant.weights.weight_pass import WeightPass

BITS = 16

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")


class Float16(WeightPass):
    """Turns a graph into float16; the named layers' weights with it.

    Args:
        layers: Weight name to `Form(16)`, the only form there is.
    """

    def check(self, name: str, form: Form) -> None:
        """Refuse anything but 16 bits."""
        if form != Form(BITS):
            raise QuantizationError(f"{name}: fp16 stores {BITS} bits a weight, not {form}")

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's linear layers and embedding tables."""
        return {layer.name for layer in _layers(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Give every node inputs of its type, and set the types of what it returns."""
        if any(node.op_type in _QUANTIZED for node in graph):
            raise QuantizationError("fp16 is for graphs of float32 alone; this one holds int8 layers already")
        unnamed = {layer.node for layer in _layers(graph) if layer.name not in self._forms}
        halve_inside(graph, unnamed | {node for node in graph if node.op_type in KEPT_OPERATORS})


def _layers(graph: ir.Graph) -> list[Linear | Table]:
    return [*find_linears(graph), *find_tables(graph)]
