"""Weight-only int4 in standard operators, for the portable dialect: 4-bit codes in blocks, read by a DequantizeLinear.

    MatMul(x, W)  ->  MatMul(x, DequantizeLinear(int4 [K, N], scales [K / block, N], axis 0, block_size))

Steps are -8 .. 7 about a zero point of 0, and scales are positive, as TensorRT's rules for explicit quantization ask
(its documented ones: nothing here has run on it). So the roundings are those that make such grids; their codes are
those of the plain roundings wherever a block's scale was positive anyway.

ONNX Runtime on a CPU fuses each pair into MatMulNBits when it loads the graph, at its default optimization level and
with int8 activations (`session.qdq_matmulnbits_accuracy_level` is 4 unless set). No session option is needed. It fuses
no codes and no scales that two products read, so a weight that two layers share is stored for each.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.layers import Float32, Linear, find_linears
from graphs.store import add_new_initializer, make_node, replace_node
from quant.calibration.statistics import InputStatistics
from quant.rounding.block_codes import zero_code
from quant.weights import matmul_nbits
from quant.weights.float_inputs import FloatInputs
from quant.weights.layer_codes import LayerCodes, refuse_rounding, round_layer
from quant.weights.weight_pass import WeightPass

BITS = 4
BLOCK_SIZES = (32, 64, 128)
OLDEST_OPSET = 21
"""DequantizeLinear takes blocks and int4 from here on."""

_POSITIVE = {"rtn": "rtn-positive", "gptq": "gptq-positive"}


def reference(x: Float32, rows: Float32, form: Form, inputs: InputStatistics | None = None) -> Float32:
    """Return what ONNX Runtime computes for x @ rows^T once it has fused the nodes, in numpy.

    Args:
        x: [..., K] float32.
        rows: [N, K] float32.
        form: 4 bits, block and rounding.
        inputs: For roundings that are calibrated.

    Returns:
        [..., N] float32.
    """
    return matmul_nbits.reference(x, rows, positive(form), inputs=inputs)


def positive(form: Form) -> Form:
    """Return the form with the rounding that makes positive scales."""
    return replace(form, rounding=_POSITIVE[form.rounding])


class DequantizedInt4(WeightPass):
    """Replaces the named linear layers by a product with dequantized int4 blocks.

    Args:
        layers: Weight name to 4 bits, a block size that divides K, and a rounding: rtn or gptq.
        inputs: For gptq.
    """

    def check(self, name: str, form: Form) -> None:
        """Refuse other widths, blocks and roundings."""
        if form.bits != BITS or form.block_size not in BLOCK_SIZES:
            raise QuantizationError(f"{name}: the int4 form stores {BITS} bits in blocks of {BLOCK_SIZES}, not {form}")
        if form.rounding not in _POSITIVE:
            raise QuantizationError(
                f"{name}: the rounding {form.rounding} has zero points or negative scales, which TensorRT refuses; "
                f"take one of {', '.join(_POSITIVE)}"
            )
        refuse_rounding(name, positive(form), self._inputs)

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's linear layers."""
        return {linear.name for linear in find_linears(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Replace the layers; a weight that two of them read is rounded once."""
        opset = graph.opset_imports.get("", 0)
        if opset < OLDEST_OPSET:
            raise QuantizationError(f"int4 needs opset {OLDEST_OPSET} or newer, the graph has {opset}: export it again")
        rounded: dict[str, LayerCodes] = {}
        beside = FloatInputs()
        for linear in find_linears(graph):
            form = self._forms.get(linear.name)
            if form is not None and form.block_size is not None:
                if linear.name not in rounded:
                    refuse_part_blocks(linear, form.block_size)
                    rounded[linear.name] = round_layer(linear, positive(form), form.block_size, self._inputs)
                _replace(graph, linear, rounded[linear.name], beside)


def refuse_part_blocks(linear: Linear, block_size: int) -> None:
    """Refuse a block that does not divide the layer's inputs: TensorRT's documents know whole blocks only.

    Raises:
        QuantizationError: It does not; the message names those that do.
    """
    if linear.num_inputs % block_size:
        fitting = [str(size) for size in BLOCK_SIZES if linear.num_inputs % size == 0]
        raise QuantizationError(
            f"{linear.name}: blocks of {block_size} do not divide its {linear.num_inputs} inputs; "
            f"{'take ' + ' or '.join(fitting) if fitting else 'none does: keep it in another form'}"
        )


def _replace(graph: ir.Graph, linear: Linear, layer: LayerCodes, beside: FloatInputs) -> None:
    """Put codes [K, N] int4, scales [K / block, N] and their nodes in the place of a layer's node."""
    name, codes, x = str(linear.node.outputs[0].name), layer.codes, linear.input
    steps = (codes.codes.astype(np.int8) - zero_code(BITS)).T.astype(ml_dtypes.int4)
    stored = [
        add_new_initializer(graph, f"{linear.name}.int4", steps),
        add_new_initializer(graph, f"{linear.name}.scale", codes.scales.T),
    ]
    attributes = {"axis": 0, "block_size": codes.block_size}
    nodes, terms = [], []
    if len(layer.channels):
        apart = beside.apart(graph, linear, layer.channels)
        nodes, x = beside.product(graph, linear, apart, layer.float_rows), apart.quiet
        terms.append(nodes[-1].outputs[0])
    weight = make_node("DequantizeLinear", stored, f"{name}.weight", attributes)
    nodes += [weight, make_node("MatMul", [x, weight.outputs[0]], f"{name}.product")]
    for at, term in enumerate([*terms, *([] if linear.bias is None else [linear.bias])]):
        nodes.append(make_node("Add", [nodes[-1].outputs[0], term], f"{name}.sum{at}"))
    replace_node(graph, linear.node, nodes)
