"""Mixture of experts: a shared expert plus the most probable one of several routed experts.

    out = shared(x) + p_e * expert_e(x),   p = softmax(router(x)) over all experts, e = argmax p

The factor is the chosen expert's share among *all* experts (MoTE, arXiv 2506.14435, section 3.1), not 1 as a softmax
over the chosen one alone would give.
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
from export.nn.linear import Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList, Weight
from graphs.experts import GATE_ROWS, SWIGLU, UP_ROWS, operands
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
        self.num_experts = experts.num


class _Experts(Module):
    """The routed experts as one com.microsoft.MoE.

    It takes the router's logits, applies the softmax over all experts itself, and weighs the chosen one by its share
    when told not to normalise the weights of the chosen to 1 (ONNX Runtime 1.31, CPU; QMoE differs, see quant).
    """

    def __init__(self, config: DecoderConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        sizes = experts.num, experts.width, config.hidden_size
        self.gate_up_proj = StackedWeight(
            sizes[0],
            (2 * sizes[1], sizes[2]),
            {"gate_proj.weight": GATE_ROWS, "up_proj.weight": UP_ROWS},
            "gate_up_proj",
        )
        self.down_proj = StackedWeight(sizes[0], (sizes[2], sizes[1]), {"down_proj.weight": slice(None)}, "down_proj")
        self.num_experts = experts.num
        if config.hidden_act not in ("silu", "swish"):
            raise UnsupportedConfigError(f"hidden_act {config.hidden_act!r}: experts are built with silu only")

    def forward(self, op: OpBuilder, x: ir.Value, logits: ir.Value) -> ir.Value:
        """Return [B, T, D], from x [B, T, D] and the router's logits [B, T, E]."""
        flat = op.Reshape(logits, [-1, self.num_experts])
        inputs = operands(x, flat, self.gate_up_proj, self.down_proj)
        return op.MoE(*inputs, **SWIGLU, _domain=CONTRIB, _version=1)


class FusedMixture(_Mixture):
    """A mixture that runs the chosen expert of each token and no other."""

    def __init__(self, config: DecoderConfig, experts: ExpertsConfig) -> None:
        super().__init__(config, experts)
        self.experts = _Experts(config, experts)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D]."""
        return op.Add(self.shared_expert(op, x), self.experts(op, x, self.router(op, x)))


class DenseMixture(_Mixture):
    """A mixture in standard operators: every expert runs for every token, and all but one are multiplied by 0."""

    def __init__(self, config: DecoderConfig, experts: ExpertsConfig) -> None:
        super().__init__(config, experts)
        one = replace(config, intermediate_size=experts.width)
        self.experts = ModuleList([GatedMLP(one) for _ in range(experts.num)])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D]."""
        shares = op.Softmax(self.router(op, x), axis=-1)
        numbers = op.Constant(value=ir.tensor(np.arange(self.num_experts)))
        chosen = op.Equal(numbers, op.ArgMax(shares, axis=-1, keepdims=1))
        gates = op.Split(
            op.Where(chosen, shares, 0.0), axis=-1, num_outputs=self.num_experts, _outputs=self.num_experts
        )
        out = self.shared_expert(op, x)
        for gate, expert in zip(gates, self.experts, strict=True):
            out = op.Add(out, op.Mul(gate, expert(op, x)))
        return out


MIXTURES: Mapping[str, type[_Mixture]] = {"contrib": FusedMixture, "portable": DenseMixture}
"""How each dialect writes a mixture; standard operators have none that computes the chosen experts alone."""
