"""Mixtures of experts: the most probable ones of several routed experts, and where there is one a shared expert.

    out = shared(x) + scale * sum over the chosen e of w_e * expert_e(x)

What an expert counts for, w_e, is its share in the softmax of the router's scores over all experts (MoTE, arXiv
2506.14435, section 3.1), or over the chosen ones alone (Aria, arXiv 2410.05993, section 2.1). The scale is
1 of most models (`routed_scaling_factor` of DeepSeek-V2, arXiv 2405.04434).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, ExpertsConfig
from export.nn.chosen_experts import chosen_shares
from export.nn.linear import Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList, Weight
from graphs.experts import GATE_ROWS, UP_ROWS, moe_attributes, operands
from graphs.labels import Label
from graphs.store import CONTRIB


class StackedWeight(Weight):
    """One matrix of every expert, [E, N, K]; from E or more matrices of the checkpoint.

    Args:
        experts: E.
        matrix: (N, K) of one expert's.
        sources: Keys below `experts.{e}.` in the checkpoint, each with the rows of the matrix that it fills.
        name: Of the initializer.
    """

    def __init__(self, experts: int, matrix: tuple[int, int], sources: Mapping[str, slice], name: str) -> None:
        super().__init__(experts, *matrix, name=name, label=Label("experts"))
        self._sources = tuple(f"{expert}.{source}" for expert in range(experts) for source in sources)
        self._rows = tuple(sources.values())

    @property
    def source_keys(self) -> tuple[str, ...]:
        """The matrices of the experts, one expert after the other."""
        (own,) = super().source_keys
        return tuple(own.rpartition(".")[0] + "." + source for source in self._sources)

    @property
    def is_linear(self) -> bool:
        """True: each matrix is a linear layer of the checkpoint."""
        return True

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether one of the matrices has that shape."""
        _, rows, width = (int(size) for size in self.shape)
        return stored == (rows // len(self._rows), width)

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [E, N, K]."""
        stacked = np.empty(tuple(int(size) for size in self.shape), np.float32)
        for number, part in enumerate(parts):
            expert, place = divmod(number, len(self._rows))
            stacked[expert, self._rows[place]] = part
        return stacked


class _Mixture(Module):
    def __init__(self, config: DecoderConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        self.shared_expert = GatedMLP(config)
        self.router = Linear(config.hidden_size, experts.num, rows=None, role="router", bias=False)
        self.sizes = experts


class _Experts(Module):
    """The routed experts as one com.microsoft.MoE.

    It takes the router's logits, applies the softmax over all experts itself, and weighs the chosen by their shares
    when told not to normalise them to a sum of 1 (ONNX Runtime 1.31, CPU; QMoE differs, see quant).
    """

    def __init__(self, config: DecoderConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        num, width, size = experts.num, experts.width, config.hidden_size
        rows = {"gate_proj.weight": GATE_ROWS, "up_proj.weight": UP_ROWS}
        self.gate_up_proj = StackedWeight(num, (2 * width, size), rows, "gate_up_proj")
        self.down_proj = StackedWeight(num, (size, width), {"down_proj.weight": slice(None)}, "down_proj")
        self.sizes = experts
        if config.hidden_act not in ("silu", "swish"):
            raise UnsupportedConfigError(f"hidden_act {config.hidden_act!r}: experts are built with silu only")

    def forward(self, op: OpBuilder, x: ir.Value, logits: ir.Value) -> ir.Value:
        """Return [B, T, D], from x [B, T, D] and the router's logits [B, T, E]."""
        flat = op.Reshape(logits, [-1, self.sizes.num])
        inputs = operands(x, flat, self.gate_up_proj, self.down_proj)
        how = moe_attributes(self.sizes.per_token, is_normalised=self.sizes.is_normalised)
        return _scaled(op, op.MoE(*inputs, **how, _domain=CONTRIB, _version=1), self.sizes.scale)


def _scaled(op: OpBuilder, x: ir.Value, scale: float) -> ir.Value:
    return x if scale == 1.0 else op.Mul(x, scale)


class FusedMixture(_Mixture):
    """A mixture that runs the chosen experts of each token and no others."""

    def __init__(self, config: DecoderConfig, experts: ExpertsConfig) -> None:
        super().__init__(config, experts)
        self.experts = _Experts(config, experts)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D]."""
        return op.Add(self.shared_expert(op, x), self.experts(op, x, self.router(op, x)))


class DenseMixture(_Mixture):
    """A mixture in standard operators: every expert runs for every token, and those not chosen are multiplied by 0."""

    def __init__(self, config: DecoderConfig, experts: ExpertsConfig) -> None:
        super().__init__(config, experts)
        one = replace(config, intermediate_size=experts.width)
        self.experts = ModuleList([GatedMLP(one) for _ in range(experts.num)])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D]."""
        num = self.sizes.num
        shares = chosen_shares(
            op, self.router(op, x), num, self.sizes.per_token, is_normalised=self.sizes.is_normalised
        )
        weights = op.Split(_scaled(op, shares, self.sizes.scale), axis=-1, num_outputs=num, _outputs=num)
        out = self.shared_expert(op, x)
        for weight, expert in zip(weights, self.experts, strict=True):
            out = op.Add(out, op.Mul(weight, expert(op, x)))
        return out


MIXTURES: Mapping[str, type[_Mixture]] = {"contrib": FusedMixture, "portable": DenseMixture}
"""How each dialect writes a mixture; standard operators have none that computes the chosen experts alone."""
