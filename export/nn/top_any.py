"""Experts that pass a threshold, as many as do for each token (DynMoE, arXiv 2405.14297, section 3.1)."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, Raw, require, sub_config
from export.nn.chosen_experts import applied
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList, Weight

_MOST_LOG_SCALE = math.log(100)
"""Of what cosines are multiplied by before the sigmoid (LINs-lab/DynMoE, `GAMoEGateT`)."""
_SHORTEST = 1e-12
"""Length that a vector is divided by at least."""
_TOP_ANY = -1


class TopAnyRouter(Module):
    """What each expert counts for: the same for all that pass, which sum to 1; the nearest where none does.

    An expert passes where the sigmoid of its scaled cosine with the token exceeds that of its scaled threshold.
    """

    def __init__(self, size: int, num_experts: int) -> None:
        super().__init__()
        self.sim_matrix = Weight(size, num_experts)
        self.gates = Weight(num_experts)
        self.experts_mask = Weight(num_experts)
        self.temperature = Weight(1)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, T, E] of x [B, T, D]."""
        scale = op.Exp(op.Min(self.temperature, op.Constant(value=ir.tensor(np.array([_MOST_LOG_SCALE], np.float32)))))
        cosines = op.MatMul(_unit(op, x, -1), _unit(op, self.sim_matrix, 0))
        scores = op.Mul(op.Sigmoid(op.Mul(cosines, scale)), self.experts_mask)
        passes = op.Greater(scores, op.Sigmoid(op.Mul(self.gates, scale)))
        chosen = op.Cast(passes, to=ir.DataType.FLOAT)
        num = op.ReduceSum(chosen, [-1], keepdims=1)
        numbers = op.Constant(value=ir.tensor(np.arange(int(self.gates.shape[0]))))
        is_nearest = op.Equal(op.ArgMax(scores, axis=-1, keepdims=1), numbers)
        alone = op.And(is_nearest, op.Equal(num, 0.0))
        return op.Div(op.Where(alone, 1.0, chosen), op.Max(num, 1.0))


class TopAnyMixture(Module):
    """Experts, each a gated feed-forward, in the place of one.

    Args:
        config: Sizes of each.
        num_experts: E.
        dialect: How experts are met.
    """

    def __init__(self, config: DecoderConfig, num_experts: int, dialect: Dialect) -> None:
        super().__init__()
        self.router = TopAnyRouter(config.hidden_size, num_experts)
        self.experts = ModuleList([GatedMLP(config) for _ in range(num_experts)])
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D]."""
        return self.dialect.by_expert(op, x, self.router(op, x), [applied(op, expert) for expert in self.experts])


def experts_by_layer(raw: Raw, num_layers: int) -> dict[int, int]:
    """Return how many experts layers of a text config have, by number; nothing where it has no `moe`.

    Raises:
        UnsupportedConfigError: Other experts than those of thresholds, or layers that are not there.
    """
    if not raw.get("moe"):
        return {}
    moe = sub_config(raw, "moe")
    require(moe, [("moe_enable", True), ("top_k_experts", _TOP_ANY), ("use_residual", False)])
    layers, counts = moe.get("moe_layers_idx"), moe.get("num_experts")
    if not (isinstance(layers, list) and isinstance(counts, list) and len(layers) == len(counts)):
        raise UnsupportedConfigError(
            f"text_config.moe: num_experts {counts!r} for moe_layers_idx {layers!r}; wanted are lists of one length"
        )
    if not set(layers) <= set(range(num_layers)) or not all(isinstance(num, int) and num > 0 for num in counts):
        raise UnsupportedConfigError(
            f"text_config.moe: {counts} experts in layers {layers}; wanted are layers 0 to {num_layers - 1}, and 1 "
            "expert or more of each"
        )
    return dict(zip(layers, counts, strict=True))


def _unit(op: OpBuilder, x: ir.Value, axis: int) -> ir.Value:
    """Return x with vectors along an axis of length 1."""
    return op.Div(x, op.Max(op.ReduceL2(x, [axis], keepdims=1), _SHORTEST))
