"""Routed experts in 2, 4 or 8 bits as `com.microsoft::QMoE`: a token still meets the weights of one expert alone.

    MoE(x, logits, first, -, second)  ->  QMoE(x, logits, codes and scales of both, router_weights = softmax(logits))

QMoE weighs the chosen experts by a softmax over *their* scores, which is 1 for one expert. A mixture that weighs by
the share among all experts therefore hands the shares in as `router_weights`, and `logits` only choose.

With blocks the operator rounds activations to int8 and multiplies integers, at 1.0 to 1.7 % of relative error; with one
scale a row it restores the chosen expert to float32 at every call, which is exact and slower: three times for 4 and
8 bits and 100 times for 2 (one token, 256 wide, x86-64), so that 2 bits a row are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from quant.experts import Experts, find_experts
from quant.graphs import CONTRIB, add_initializer, make_node, replace_node
from quant.layers import Float32
from quant.rounding.block_codes import UInt8, pack
from quant.rounding.table import load_rounding
from quant.weights.matmul_nbits import INT8_ACTIVATIONS, round_activations
from quant.weights.weight_pass import Form, WeightPass

BITS = (2, 4, 8)
BLOCK_SIZES = (32, 64, 128)
_LOWEST_BITS = 2
_ROUTER_WEIGHTS = 14
"""Place of `router_weights` among the operator's inputs (ONNX Runtime 1.31, ContribOperators.md)."""


@dataclass(frozen=True)
class QuantizedMatrices:
    """One matrix of every expert.

    Attributes:
        packed: [E, N, K * bits / 8] uint8.
        scales: [E, N, blocks] float32, or [E, N] for one scale a row.
        restored: [E, N, K] float32, what the codes stand for.
    """

    packed: UInt8
    scales: Float32
    restored: Float32


def quantize(matrices: Float32, form: Form) -> QuantizedMatrices:
    """Return the matrices [E, N, K] of one layer's experts in codes.

    Raises:
        QuantizationError: The rounding stores more than symmetric codes, which the operator cannot hold.
    """
    width = matrices.shape[2]
    rounding = load_rounding(form.rounding)
    each = [rounding(rows, form.bits, form.block_size or width, None) for rows in matrices]
    if any(codes.zero_points is not None or codes.offsets is not None or codes.rest is not None for codes in each):
        raise QuantizationError(f"the rounding {form.rounding} has zero points, offsets or two planes; QMoE has none")
    scales = np.stack([codes.scales for codes in each])
    return QuantizedMatrices(
        packed=np.stack([pack(codes.codes, form.bits) for codes in each]),
        scales=scales[:, :, 0] if form.block_size is None else scales,
        restored=np.stack([codes.weights(width) for codes in each]),
    )


def reference(x: Float32, logits: Float32, first: Float32, second: Float32, form: Form) -> Float32:
    """Return what the operator computes, [rows, D] float32, by a loop over rows.

    Args:
        x: [rows, D] float32.
        logits: [rows, E] float32.
        first: [E, 2I, D] float32, rows of gate and up alternating.
        second: [E, D, I] float32.
        form: Bits, block and rounding.
    """
    first, second = (quantize(matrices, form).restored for matrices in (first, second))
    out = np.empty_like(x)
    for row, scores in enumerate(logits):
        shares = np.exp(scores - scores.max())
        expert = int(scores.argmax())
        hidden = first[expert] @ _seen(x[row], form)
        gate, up = hidden[0::2], hidden[1::2]
        inner = np.asarray(gate / (1 + np.exp(-gate)) * up, np.float32)
        out[row] = shares[expert] / shares.sum() * (second[expert] @ _seen(inner, form))
    return out


def _seen(x: Float32, form: Form) -> Float32:
    """Return the activations as the product sees them.

    For 2 bits the operator looks sums of activations up in tables of int8 steps, which costs 1.5 % and is not repeated
    here.
    """
    if form.block_size is None or form.bits == _LOWEST_BITS:
        return x
    return round_activations(x, form.block_size)


class QuantizedExperts(WeightPass):
    """Replaces the named MoE nodes by QMoE.

    Args:
        layers: Name of the experts (`quant.experts.Experts.name`) to bits, block size (None: per row) and rounding.
    """

    def check(self, name: str, form: Form) -> None:
        """Refuse forms that the operator lacks, and roundings that are calibrated."""
        if form.bits not in BITS or form.block_size not in (None, *BLOCK_SIZES):
            raise QuantizationError(
                f"{name}: {form.bits} bits in blocks of {form.block_size}; QMoE stores {', '.join(map(str, BITS))} "
                f"bits in blocks of {', '.join(map(str, BLOCK_SIZES))}, or with one scale a row"
            )
        if form.bits == _LOWEST_BITS and form.block_size is None:
            raise QuantizationError(
                f"{name}: {form.bits}-bit experts with one scale a row run about 100 times slower on a CPU than in "
                f"blocks of {', '.join(map(str, BLOCK_SIZES))}: ONNX Runtime unpacks them to float32 at every call"
            )
        rounding = load_rounding(form.rounding)
        if form.bits not in rounding.widths:
            widths = ", ".join(map(str, rounding.widths))
            raise QuantizationError(
                f"{name}: the rounding {form.rounding} makes codes of {widths} bits, not {form.bits}"
            )
        if rounding.needs_gram:
            raise QuantizationError(f"{name}: {form.rounding} is calibrated, and no statistics exist of single experts")

    def layers_of(self, graph: ir.Graph) -> set[str]:
        """Return the names of the graph's routed experts."""
        return {experts.name for experts in find_experts(graph)}

    def rewrite(self, graph: ir.Graph) -> None:
        """Replace the nodes."""
        for experts in find_experts(graph):
            if experts.name in self._forms:
                _rewrite(graph, experts, self._forms[experts.name])


def _rewrite(graph: ir.Graph, experts: Experts, form: Form) -> None:
    for size in (experts.num_inputs, experts.width):
        if form.block_size is not None and size % form.block_size:
            raise QuantizationError(
                f"{experts.name}: blocks of {form.block_size} do not divide {size}; the operator takes whole ones only"
            )
    name = str(experts.node.outputs[0].name)
    shares = make_node("Softmax", [experts.logits], f"{name}.shares", {"axis": -1})
    stored = [
        value
        for weight, matrices in zip((experts.first, experts.second), experts.matrices(), strict=True)
        for value in (*_stored(graph, str(weight.name), matrices, form), None)
    ]
    inputs: list[ir.Value | None] = [experts.input, experts.logits, *stored]
    inputs += [None] * (_ROUTER_WEIGHTS - len(inputs))
    node = make_node("QMoE", [*inputs, shares.outputs[0]], f"{name}.experts", _attributes(form), CONTRIB)
    replace_node(graph, experts.node, [shares, node])


def _stored(graph: ir.Graph, name: str, matrices: Float32, form: Form) -> tuple[ir.Value, ir.Value]:
    quantized = quantize(matrices, form)
    return (
        add_initializer(graph, f"{name}.int{form.bits}", quantized.packed),
        add_initializer(graph, f"{name}.scale", quantized.scales),
    )


def _attributes(form: Form) -> dict[str, int | float | str]:
    blocks = {} if form.block_size is None else {"block_size": form.block_size, "accuracy_level": INT8_ACTIVATIONS}
    return {
        "k": 1,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 0,
        "expert_weight_bits": form.bits,
        **blocks,
    }
