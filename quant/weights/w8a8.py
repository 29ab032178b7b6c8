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

A layer whose input has channels far louder than the rest multiplies those in float beside (`float_inputs`).

Only standard operators with zero points of 0 appear, so both dialects can hold it. Where a processor sums products of
codes in 16 bits, the runtime makes the weights' codes unsigned (docs/decisions/0062).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import Float32, Linear, find_linears
from graphs.store import add_initializer, make_node, replace_node
from quant.calibration.statistics import InputStatistics
from quant.weights.float_inputs import FloatInputs
from quant.weights.layer_codes import LEVELS, ROW_ROUNDINGS, RowCodes, refuse_rounding, round_rows
from quant.weights.weight_pass import WeightPass

_PLAIN = Form(8)
_STEP = np.float32(1 / LEVELS)
_EPSILON = np.float32(1e-12)  # keeps an all-zero row from dividing by zero; far below any activation
OLDEST_OPSET = 18
"""ReduceMax takes its axes as an input from here on."""


def reference(x: Float32, rows: Float32, form: Form = _PLAIN, inputs: InputStatistics | None = None) -> Float32:
    """Return what the graph computes for x @ rows^T, in numpy with exact integer sums.

    Args:
        x: [..., K] float32.
        rows: [N, K] float32.
        form: 8 bits; its rounding, and how many inputs stay in float.
        inputs: For "gptq" and float inputs.

    Returns:
        [..., N] float32.
    """
    weight = round_rows(rows, form, inputs)
    quiet = np.array(x, np.float32)
    quiet[..., weight.channels] = 0
    peak = np.maximum(np.abs(quiet).max(axis=-1, keepdims=True), _EPSILON)
    codes = np.rint((quiet / peak) / _STEP).astype(np.int32)
    product = (codes @ weight.codes.T.astype(np.int32)).astype(np.float32) * (_STEP * weight.scales) * peak
    if len(weight.channels):
        product = product + x[..., weight.channels] @ weight.float_rows.astype(np.float16).astype(np.float32).T
    return np.asarray(product, np.float32)


class PerTokenInt8(WeightPass):
    """Replaces the named linear layers by their per-token W8A8 form.

    Args:
        layers: Weight name to 8 bits without blocks, rounded by one of `ROW_ROUNDINGS`, perhaps with float inputs.
        inputs: For "gptq" and float inputs.
    """

    def check(self, name: str, form: Form) -> None:
        """Refuse anything but 8 bits with one scale per output."""
        if form.bits != _PLAIN.bits or form.block_size is not None or form.rounding not in ROW_ROUNDINGS:
            raise QuantizationError(f"{name}: W8A8 stores 8 bits with one scale per output, not {form}")
        refuse_rounding(name, form, self._inputs)

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's linear layers."""
        return {linear.name for linear in find_linears(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Replace the layers; the peaks of an input that several of them read are found once."""
        opset = graph.opset_imports.get("", 0)
        if opset < OLDEST_OPSET:
            raise QuantizationError(f"W8A8 needs opset {OLDEST_OPSET} or newer, the graph has {opset}: export it again")
        scaled: dict[ir.Value, ScaledInput] = {}
        beside = FloatInputs()
        has_chosen_rows = any(node.op_type == "NonZero" for node in graph)
        for linear in find_linears(graph):
            form = self._forms.get(linear.name)
            if form is None:
                continue
            weight = round_rows(linear.rows(), form, self._inputs.get(linear.name))
            x, nodes = linear.input, []
            if len(weight.channels):
                apart = beside.apart(graph, linear, weight.channels)
                x, nodes = apart.quiet, beside.product(graph, linear, apart, weight.float_rows)
            if x not in scaled:
                scaled[x] = _scale_input(graph, linear, x, has_chosen_rows=has_chosen_rows)
            _rewrite(graph, linear, scaled[x], weight, nodes)


@dataclass(frozen=True)
class ScaledInput:
    """An activation brought to [-1, 1] row by row.

    Attributes:
        unit: x / peak.
        peak: [..., 1], the largest magnitude of each row.
    """

    unit: ir.Value
    peak: ir.Value


def _scale_input(graph: ir.Graph, linear: Linear, x: ir.Value, *, has_chosen_rows: bool) -> ScaledInput:
    """Insert the scaling of a layer's input, x, before the layer.

    Rows that a graph chooses may be none, of which ReduceMax gives [0, K] for [0, 1] (ONNX Runtime 1.31, CPU).
    """
    last_axis = add_initializer(graph, "w8a8.last_axis", np.array([-1], np.int64))
    epsilon = add_initializer(graph, "w8a8.epsilon", np.array(_EPSILON))
    name = f"{x.name}.w8a8"
    size = make_node("Abs", [x], f"{name}.abs")
    found = [make_node("ReduceMax", [size.outputs[0], last_axis], f"{name}.top", {"keepdims": 1})]
    if has_chosen_rows:
        found.append(make_node("Slice", [found[0].outputs[0], *_first_column(graph), last_axis], f"{name}.column"))
    peak = make_node("Max", [found[-1].outputs[0], epsilon], f"{name}.peak")
    unit = make_node("Div", [x, peak.outputs[0]], f"{name}.unit")
    graph.insert_before(linear.node, [size, *found, peak, unit])
    return ScaledInput(unit.outputs[0], peak.outputs[0])


def _first_column(graph: ir.Graph) -> list[ir.Value]:
    ends = (("w8a8.first", 0), ("w8a8.second", 1))
    return [add_initializer(graph, name, np.array([at], np.int64)) for name, at in ends]


def _rewrite(graph: ir.Graph, linear: Linear, scaled: ScaledInput, weight: RowCodes, beside: Sequence[ir.Node]) -> None:
    """Put the quantized product, what is computed beside it, and a bias in the place of a layer's node."""
    name = str(linear.node.outputs[0].name)
    step = add_initializer(graph, f"{name}.input_step", np.array(_STEP))
    zero = add_initializer(graph, f"{name}.input_zero", np.array(0, np.int8))
    codes = make_node("QuantizeLinear", [scaled.unit, step, zero], f"{name}.codes")
    grid = make_node("DequantizeLinear", [codes.outputs[0], step, zero], f"{name}.grid")
    matrix = make_node("DequantizeLinear", int8_weight(graph, linear.name, weight), f"{name}.weight", {"axis": 1})
    product = make_node("MatMul", [grid.outputs[0], matrix.outputs[0]], f"{name}.product")
    nodes = [codes, grid, matrix, product, make_node("Mul", [product.outputs[0], scaled.peak], f"{name}.scaled")]
    if beside:
        nodes += [*beside, make_node("Add", [nodes[-1].outputs[0], beside[-1].outputs[0]], f"{name}.whole")]
    if linear.bias is not None:
        nodes.append(make_node("Add", [nodes[-1].outputs[0], linear.bias], f"{name}.biased"))
    replace_node(graph, linear.node, nodes)


def int8_weight(graph: ir.Graph, layer: str, weight: RowCodes) -> list[ir.Value]:
    """Return the codes [K, N], scales [N] and zero points [N] of a layer, stored once where several nodes read it."""
    codes, scale, zero = (f"{layer}.{part}" for part in ("int8", "scale", "zero"))
    if codes not in graph.initializers:
        add_initializer(graph, codes, weight.codes.T)
        add_initializer(graph, scale, weight.scales)
        add_initializer(graph, zero, np.zeros(len(weight.scales), np.int8))
    return [graph.initializers[name] for name in (codes, scale, zero)]
