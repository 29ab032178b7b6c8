"""Weight-only 4- and 8-bit linear layers as `com.microsoft::MatMulNBits`: the fast form where few rows meet a weight.

    MatMul(x, W)  ->  MatMulNBits(x, packed codes [N, blocks, block_size * bits / 8], scales [N, blocks])

With accuracy_level 4, ONNX Runtime rounds the activations of each block to int8 as well and multiplies integers; that
costs about half a percent of relative error and is what makes decoding fast. Without it the CPU has no kernel for
8 bits and falls to one 100 times slower, which `refuse_cliffs` refuses.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from quant.calibration import InputStatistics
from quant.graphs import CONTRIB, add_initializer, make_node, replace_node
from quant.layers import Float32, Linear, find_linears
from quant.rounding.block_codes import BlockCodes, pack
from quant.rounding.table import load_rounding
from quant.weights.weight_pass import Form, WeightPass

INT8_ACTIVATIONS = 4
"""accuracy_level at which the kernel multiplies int8 by int8."""

_SMALLEST_BLOCK = 16  # the operator's own limit
_FAST_2BIT_BLOCKS = (32, 64, 128)


def refuse_cliffs(name: str, form: Form, accuracy_level: int) -> int:
    """Return the block size of a form that the operator has and runs fast.

    Args:
        name: The layer's, for the message.
        form: Bits and block.
        accuracy_level: 4 rounds activations to int8; 0 keeps them float32.

    Raises:
        QuantizationError: The operator has no such form, or it is 100 times slower on a CPU than it looks.
    """
    bits, block_size = form.bits, form.block_size
    if bits not in (2, 4, 8):
        raise QuantizationError(f"{name}: MatMulNBits stores 2, 4 or 8 bits, not {bits}")
    if block_size is None or block_size < _SMALLEST_BLOCK or block_size & (block_size - 1):
        raise QuantizationError(f"{name}: block size {block_size}; it must be a power of two from {_SMALLEST_BLOCK}")
    if bits in (2, 8) and accuracy_level < INT8_ACTIVATIONS:
        raise QuantizationError(
            f"{name}: {bits}-bit weights with accuracy_level {accuracy_level} run about 100 times slower on a CPU "
            f"than with {INT8_ACTIVATIONS}: ONNX Runtime unpacks them to float32 at every call"
        )
    if bits == 2 and block_size not in _FAST_2BIT_BLOCKS:
        raise QuantizationError(
            f"{name}: 2-bit weights in blocks of {block_size} have no fast CPU kernel; "
            f"take one of {', '.join(map(str, _FAST_2BIT_BLOCKS))}"
        )
    return block_size


def reference(x: Float32, rows: Float32, form: Form, accuracy_level: int = INT8_ACTIVATIONS) -> Float32:
    """Return what the operator computes for x @ rows^T.

    Args:
        x: [..., K] float32.
        rows: [N, K] float32.
        form: Bits and block.
        accuracy_level: As in the operator.

    Returns:
        [..., N] float32. At accuracy_level 4 the activations of each block are rounded to int8 by their own largest
        magnitude, as MLAS does.
    """
    block_size = refuse_cliffs("reference", form, accuracy_level)
    weights = load_rounding(form.rounding)(rows, form.bits, block_size, None).weights(rows.shape[1])
    if accuracy_level >= INT8_ACTIVATIONS:
        x = _round_activations(x, block_size)
    return np.asarray(x @ weights.T, np.float32)


def _round_activations(x: Float32, block_size: int) -> Float32:
    missing = -x.shape[-1] % block_size
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    blocks = padded.reshape(*x.shape[:-1], -1, block_size)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step != 0))
    return np.asarray((codes * step).reshape(padded.shape)[..., : x.shape[-1]], np.float32)


class MatMulNBits(WeightPass):
    """Replaces the named linear layers by MatMulNBits.

    Args:
        layers: Weight name to bits, block size and rounding.
        inputs: For roundings that are calibrated.
        accuracy_level: 4 rounds activations to int8; 0 keeps them float32.
    """

    def __init__(
        self,
        layers: Mapping[str, Form],
        inputs: Mapping[str, InputStatistics] | None = None,
        *,
        accuracy_level: int = INT8_ACTIVATIONS,
    ) -> None:
        self._accuracy_level = accuracy_level
        super().__init__(layers, inputs)

    def check(self, name: str, form: Form) -> None:
        """Refuse forms that do not exist and known cliffs."""
        refuse_cliffs(name, form, self._accuracy_level)

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's linear layers."""
        return {linear.name for linear in find_linears(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Replace the layers; a weight that two of them read is packed once."""
        for linear in find_linears(graph):
            if linear.name in self._forms:
                self._rewrite(graph, linear, self._forms[linear.name])
                graph.opset_imports[CONTRIB] = 1

    def _rewrite(self, graph: ir.Graph, linear: Linear, form: Form) -> None:
        block_size = refuse_cliffs(linear.name, form, self._accuracy_level)
        attributes = {
            "K": linear.num_inputs,
            "N": linear.num_outputs,
            "bits": form.bits,
            "block_size": block_size,
            "accuracy_level": self._accuracy_level,
        }
        name = str(linear.node.outputs[0].name)
        codes = load_rounding(form.rounding)(linear.rows(), form.bits, block_size, self._inputs.get(linear.name))
        inputs = [linear.input, *_stored_weight(graph, linear, codes)]
        nodes = [make_node("MatMulNBits", inputs, f"{name}.product", attributes, CONTRIB)]
        if linear.bias is not None:
            nodes.append(make_node("Add", [nodes[0].outputs[0], linear.bias], f"{name}.biased"))
        replace_node(graph, linear.node, nodes)


def _stored_weight(graph: ir.Graph, linear: Linear, codes: BlockCodes) -> list[ir.Value]:
    """Return packed codes [N, blocks, bytes] and scales [N, blocks], stored once where several nodes read them."""
    packed = pack(codes.codes, codes.bits).reshape(*codes.scales.shape, -1)
    return [
        add_initializer(graph, f"{linear.name}.int{codes.bits}", packed),
        add_initializer(graph, f"{linear.name}.scale", codes.scales),
    ]
