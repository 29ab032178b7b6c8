"""int8-static: int8 weights with one scale per output, int8 activations with one calibrated scale per tensor.

    x ── QuantizeLinear(s) ── DequantizeLinear ─┐
             W int8 ── DequantizeLinear(per column) ┴─ MatMul ── y

The activation's step s is the largest magnitude that calibration saw, over 127; what is louder at run time is cut to
it. Nothing is found as the graph runs, so a row's answer never depends on its batch, and a row costs less than under
`w8a8`, at the price of one step for loud and quiet rows alike. Channel outliers want SmoothQuant first.

All zero points are 0 and all scales are constants, as TensorRT's explicit quantization wants. ONNX Runtime fuses each
layer into one MatMulIntegerToFloat, provided that it has a step and a zero point of its own (see `w8a8`).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import Float32, Linear, find_linears
from graphs.store import add_initializer, make_node, replace_node
from quant.calibration.statistics import InputStatistics
from quant.weights.layer_codes import LEVELS, quantize_rows, round_rows
from quant.weights.w8a8 import int8_weight
from quant.weights.weight_pass import WeightPass

_EPSILON = np.float32(1e-12)  # the step of an input that calibration saw only zeros of


def input_step(inputs: InputStatistics) -> np.float32:
    """Return the step of a layer's activations."""
    return np.float32(max(float(inputs.peaks.max()), float(_EPSILON)) / LEVELS)


def reference(x: Float32, rows: Float32, inputs: InputStatistics) -> Float32:
    """Return what the graph computes for x @ rows^T, in numpy with exact integer sums.

    Args:
        x: [..., K] float32.
        rows: [N, K] float32.
        inputs: Of the layer.

    Returns:
        [..., N] float32.
    """
    weight_codes, weight_scales = quantize_rows(rows)
    step = input_step(inputs)
    codes = np.clip(np.rint(x / step), -LEVELS - 1, LEVELS).astype(np.int32)
    product = (codes @ weight_codes.T.astype(np.int32)).astype(np.float32)
    return np.asarray(product * (step * weight_scales), np.float32)


class StaticInt8(WeightPass):
    """Replaces the named linear layers by int8 products with calibrated activation steps.

    Args:
        layers: Weight name to `Form(8)`, the only form there is.
        inputs: Weight name to calibration statistics, of which peaks are read; every layer needs them.
    """

    def check(self, name: str, form: Form) -> None:
        """Refuse anything but 8 bits with one scale per output, and layers that were not calibrated."""
        if form != Form(8):
            raise QuantizationError(f"{name}: int8-static stores 8 bits with one scale per output, not {form}")
        if name not in self._inputs:
            raise QuantizationError(
                f"{name}: int8-static needs to know the layer's inputs, and calibration saw none; "
                "give samples with --calibration FILE.jsonl, or take int8, which needs none"
            )

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's linear layers."""
        return {linear.name for linear in find_linears(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Replace the layers."""
        for linear in find_linears(graph):
            if linear.name in self._forms:
                _rewrite(graph, linear, input_step(self._inputs[linear.name]))


def _rewrite(graph: ir.Graph, linear: Linear, input_step: np.float32) -> None:
    name = str(linear.node.outputs[0].name)
    step = add_initializer(graph, f"{name}.input_step", np.array(input_step))
    zero = add_initializer(graph, f"{name}.input_zero", np.array(0, np.int8))
    codes = make_node("QuantizeLinear", [linear.input, step, zero], f"{name}.codes")
    grid = make_node("DequantizeLinear", [codes.outputs[0], step, zero], f"{name}.grid")
    codes_of_rows = round_rows(linear.rows(), Form(8), None)
    weight = make_node(
        "DequantizeLinear", int8_weight(graph, linear.name, codes_of_rows), f"{name}.weight", {"axis": 1}
    )
    nodes = [codes, grid, weight, make_node("MatMul", [grid.outputs[0], weight.outputs[0]], f"{name}.product")]
    if linear.bias is not None:
        nodes.append(make_node("Add", [nodes[-1].outputs[0], linear.bias], f"{name}.biased"))
    replace_node(graph, linear.node, nodes)
