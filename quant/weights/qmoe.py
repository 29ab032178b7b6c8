"""Routed experts in 2, 4 or 8 bits as `com.microsoft::QMoE`: a token still meets the weights of the chosen alone.

    MoE(x, logits, first, -, second)  ->  QMoE(x, logits, codes and scales of both, router_weights = softmax(logits))

QMoE weighs the chosen experts by a softmax over *their* scores, which is 1 for one expert. A mixture that weighs by
the share among all experts therefore hands the shares in as `router_weights`, and `logits` only choose; where shares
are normalised, the operator divides them by their sum over the chosen, which is the softmax over these.

The operator rounds activations to int8, block by block, and multiplies integers, at 1.0 to 1.7 % of relative error. It
also has a form with one scale a row, which restores the chosen experts to float32 at every call: exact, and for one
token 3 to 12 times slower than blocks in 4 and 8 bits, 30 to 75 times in 2 (docs/decisions/0006), so it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from graphs.experts import GATE_ROWS, UP_ROWS, Experts, find_experts, moe_attributes
from graphs.layers import Float32
from graphs.store import CONTRIB, add_initializer, make_node, replace_node
from quant.rounding.block_codes import BlockCodes, UInt8, pack
from quant.rounding.table import load_rounding
from quant.weights.matmul_nbits import INT8_ACTIVATIONS, round_activations
from quant.weights.weight_pass import WeightPass

BITS = (2, 4, 8)
BLOCK_SIZES = (32, 64, 128)
_TABLE_BITS = 2
"""Whose products are looked up."""
_ROUTER_WEIGHTS = 14
"""Place of `router_weights` among the operator's inputs (ONNX Runtime 1.31, ContribOperators.md)."""


@dataclass(frozen=True)
class QuantizedMatrices:
    """One matrix [N, K] of every expert.

    Attributes:
        codes: Of each expert.
        num_inputs: K.
    """

    codes: tuple[BlockCodes, ...]
    num_inputs: int

    @property
    def packed(self) -> UInt8:
        """Return [E, N, K * bits / 8] uint8."""
        return np.stack([pack(each.codes, each.bits) for each in self.codes])

    @property
    def scales(self) -> Float32:
        """Return [E, N, blocks] float32."""
        return np.stack([each.scales for each in self.codes])

    @property
    def restored(self) -> Float32:
        """Return [E, N, K] float32, what the codes stand for."""
        return np.stack([each.weights(self.num_inputs) for each in self.codes])


def quantize(matrices: Float32, form: Form) -> QuantizedMatrices:
    """Return the matrices [E, N, K] of one layer's experts in codes.

    Raises:
        QuantizationError: The rounding stores more than symmetric codes, which the operator cannot hold.
    """
    rounding = load_rounding(form.rounding)
    codes = tuple(rounding(rows, form.bits, _block_size(form), None) for rows in matrices)
    if any(each.zero_points is not None or each.offsets is not None or each.rest is not None for each in codes):
        raise QuantizationError(f"the rounding {form.rounding} has zero points, offsets or two planes; QMoE has none")
    return QuantizedMatrices(codes, matrices.shape[2])


def _block_size(form: Form) -> int:
    """Return the block of a form.

    Raises:
        QuantizationError: The operator lacks it, or is far slower in it.
    """
    if form.block_size not in BLOCK_SIZES:
        raise QuantizationError(
            f"{'one scale a row' if form.block_size is None else f'blocks of {form.block_size}'}; QMoE is fast in "
            f"blocks of {', '.join(map(str, BLOCK_SIZES))}, and slower than float32 where it restores whole rows"
        )
    return form.block_size


def reference(
    x: Float32,
    logits: Float32,
    first: Float32,
    second: Float32,
    form: Form,
    *,
    per_token: int = 1,
    is_normalised: bool = False,
) -> Float32:
    """Return what the operator computes, [rows, D] float32, by a loop over rows and the experts of each.

    Args:
        x: [rows, D] float32.
        logits: [rows, E] float32.
        first: [E, 2I, D] float32, rows of gate and up alternating.
        second: [E, D, I] float32.
        form: Bits, block and rounding.
        per_token: As of `graphs.experts.Experts`.
        is_normalised: As of `graphs.experts.Experts`.
    """
    first, second = (quantize(matrices, form).restored for matrices in (first, second))
    out = np.zeros_like(x)
    for row, scores in enumerate(logits):
        shares = np.exp(scores - scores.max())
        chosen = np.argsort(-scores, kind="stable")[:per_token]
        whole = shares[chosen].sum() if is_normalised else shares.sum()
        for expert in chosen:
            hidden = first[expert] @ _seen(x[row], form)
            gate, up = hidden[GATE_ROWS], hidden[UP_ROWS]
            inner = np.asarray(gate / (1 + np.exp(-gate)) * up, np.float32)
            out[row] += shares[expert] / whole * (second[expert] @ _seen(inner, form))
    return out


def _seen(x: Float32, form: Form) -> Float32:
    """Return the activations as the product sees them.

    For 2 bits the operator looks sums of activations up in tables of int8 steps, which costs 1.5 % and is not repeated
    here.
    """
    return x if form.bits == _TABLE_BITS else round_activations(x, _block_size(form))


class QuantizedExperts(WeightPass):
    """Replaces the named MoE nodes by QMoE.

    Args:
        layers: Name of the experts (`graphs.experts.Experts.name`) to bits, block size and rounding.
    """

    def check(self, name: str, form: Form) -> None:
        """Refuse forms that the operator lacks, and roundings that are calibrated."""
        if form.bits not in BITS:
            raise QuantizationError(f"{name}: QMoE stores {', '.join(map(str, BITS))} bits, not {form.bits}")
        try:
            _block_size(form)
        except QuantizationError as error:
            raise QuantizationError(f"{name}: {error}") from error
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
        if size % _block_size(form):
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
    node = make_node("QMoE", [*inputs, shares.outputs[0]], f"{name}.experts", _attributes(experts, form), CONTRIB)
    replace_node(graph, experts.node, [shares, node])


def _stored(graph: ir.Graph, name: str, matrices: Float32, form: Form) -> tuple[ir.Value, ir.Value]:
    quantized = quantize(matrices, form)
    return (
        add_initializer(graph, f"{name}.int{form.bits}", quantized.packed),
        add_initializer(graph, f"{name}.scale", quantized.scales),
    )


def _attributes(experts: Experts, form: Form) -> dict[str, int | float | str]:
    return {
        **moe_attributes(experts.per_token, is_normalised=experts.is_normalised),
        "expert_weight_bits": form.bits,
        "block_size": _block_size(form),
        "accuracy_level": INT8_ACTIVATIONS,
    }
