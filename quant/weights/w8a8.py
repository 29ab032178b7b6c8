"""W8A8: int8 weights with one scale per output, int8 activations with one scale per token, found as the graph runs.

A scale per *tensor* (DynamicQuantizeMatMul, DynamicQuantizeLinear) would let one loud row of a batch coarsen every
other row, so that an answer depended on who shares the batch. A scale per row cannot: a row's result is the same bits
alone or batched.

    x ── Abs ── ReduceMax ── Max(eps) = m ;  x / m = u          (once for all linears that read x)
    u ── QuantizeLinear(1/127) ── DequantizeLinear ─┐
             W int8 ── DequantizeLinear(per column) ┴─ MatMul ── * m ── y

ONNX Runtime turns each QuantizeLinear, DequantizeLinear pair and its MatMul into one MatMulIntegerToFloat, but only
where no other layer reads the same codes: a shared QuantizeLinear leaves the product in float32, and equal ones are
merged before the fusion. So every layer has a step and a zero point of its own, equal in value. Writing
MatMulIntegerToFloat on shared int8 codes instead runs 16 times slower on x86, which has no kernel for it.

Only standard operators with zero points of 0 appear, so both dialects can hold it. On x86 without VNNI instructions
ONNX Runtime's int8 kernel may saturate its 16-bit partial sums; the canary of a bundle shows that at load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import Float32, Linear, find_linears
from graphs.store import add_initializer, make_node, replace_node
from quant.weights.weight_pass import WeightPass

LEVELS = 127
"""Codes run from -127 to 127; -128 is left out so that the grid is symmetric."""

_STEP = np.float32(1 / LEVELS)
_EPSILON = np.float32(1e-12)  # keeps an all-zero row from dividing by zero; far below any activation
OLDEST_OPSET = 18
"""ReduceMax takes its axes as an input from here on."""


def quantize_rows(rows: Float32) -> tuple[NDArray[np.int8], Float32]:
    """Return codes [N, K] int8 and scales [N] float32 with rows ~ codes * scales[:, None].

    Args:
        rows: [N, K] float32, one row per output.
    """
    scales = np.maximum(np.abs(rows).max(axis=1), _EPSILON).astype(np.float32) / np.float32(LEVELS)
    codes = np.rint(rows / scales[:, None]).astype(np.int8)
    return codes, scales


def reference(x: Float32, rows: Float32) -> Float32:
    """Return what the graph computes for x @ rows^T, in numpy with exact integer sums.

    Args:
        x: [..., K] float32.
        rows: [N, K] float32.

    Returns:
        [..., N] float32.
    """
    weight_codes, weight_scales = quantize_rows(rows)
    peak = np.maximum(np.abs(x).max(axis=-1, keepdims=True), _EPSILON)
    codes = np.rint((x / peak) / _STEP).astype(np.int32)
    product = (codes @ weight_codes.T.astype(np.int32)).astype(np.float32) * (_STEP * weight_scales)
    return np.asarray(product * peak, np.float32)


class PerTokenInt8(WeightPass):
    """Replaces the named linear layers by their per-token W8A8 form.

    Args:
        layers: Weight name to `Form(8)`, the only form there is.
    """

    def check(self, name: str, form: Form) -> None:
        """Refuse anything but 8 bits with one scale per output."""
        if form != Form(8):
            raise QuantizationError(f"{name}: W8A8 stores 8 bits with one scale per output, not {form}")

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's linear layers."""
        return {linear.name for linear in find_linears(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Replace the layers; the peaks of an input that several of them read are found once."""
        opset = graph.opset_imports.get("", 0)
        if opset < OLDEST_OPSET:
            raise QuantizationError(f"W8A8 needs opset {OLDEST_OPSET} or newer, the graph has {opset}: export it again")
        scaled: dict[ir.Value, ScaledInput] = {}
        for linear in find_linears(graph):
            if linear.name not in self._forms:
                continue
            if linear.input not in scaled:
                scaled[linear.input] = _scale_input(graph, linear)
            _rewrite(graph, linear, scaled[linear.input])


@dataclass(frozen=True)
class ScaledInput:
    """An activation brought to [-1, 1] row by row.

    Attributes:
        unit: x / peak.
        peak: [..., 1], the largest magnitude of each row.
    """

    unit: ir.Value
    peak: ir.Value


def _scale_input(graph: ir.Graph, linear: Linear) -> ScaledInput:
    """Insert the scaling of a layer's input before the layer."""
    last_axis = add_initializer(graph, "w8a8.last_axis", np.array([-1], np.int64))
    epsilon = add_initializer(graph, "w8a8.epsilon", np.array(_EPSILON))
    name = f"{linear.input.name}.w8a8"
    size = make_node("Abs", [linear.input], f"{name}.abs")
    top = make_node("ReduceMax", [size.outputs[0], last_axis], f"{name}.top", {"keepdims": 1})
    peak = make_node("Max", [top.outputs[0], epsilon], f"{name}.peak")
    unit = make_node("Div", [linear.input, peak.outputs[0]], f"{name}.unit")
    graph.insert_before(linear.node, [size, top, peak, unit])
    return ScaledInput(unit.outputs[0], peak.outputs[0])


def _rewrite(graph: ir.Graph, linear: Linear, scaled: ScaledInput) -> None:
    name = str(linear.node.outputs[0].name)
    step = add_initializer(graph, f"{name}.input_step", np.array(_STEP))
    zero = add_initializer(graph, f"{name}.input_zero", np.array(0, np.int8))
    codes = make_node("QuantizeLinear", [scaled.unit, step, zero], f"{name}.codes")
    grid = make_node("DequantizeLinear", [codes.outputs[0], step, zero], f"{name}.grid")
    weight = make_node("DequantizeLinear", int8_weight(graph, linear), f"{name}.weight", {"axis": 1})
    product = make_node("MatMul", [grid.outputs[0], weight.outputs[0]], f"{name}.product")
    nodes = [codes, grid, weight, product, make_node("Mul", [product.outputs[0], scaled.peak], f"{name}.scaled")]
    if linear.bias is not None:
        nodes.append(make_node("Add", [nodes[-1].outputs[0], linear.bias], f"{name}.biased"))
    replace_node(graph, linear.node, nodes)


def int8_weight(graph: ir.Graph, linear: Linear) -> list[ir.Value]:
    """Return the codes [K, N], scales [N] and zero points [N] of a layer, stored once where several nodes read it."""
    codes, scale, zero = (f"{linear.name}.{part}" for part in ("int8", "scale", "zero"))
    if codes not in graph.initializers:
        values, scales = quantize_rows(linear.rows())
        add_initializer(graph, codes, values.T)
        add_initializer(graph, scale, scales)
        add_initializer(graph, zero, np.zeros(len(scales), np.int8))
    return [graph.initializers[name] for name in (codes, scale, zero)]
