"""Gated DeltaNet (Yang et al., arXiv 2412.06464) as Qwen3.5 has it: a state in the place of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear, activation
from export.nn.module import Module, Weight
from export.nn.norms import RMSNorm
from export.nn.recurrence import DeltaHeads, DeltaTokens
from export.nn.short_convolution import Taps, last_inputs, shifted_sum

_LENGTH_EPS = 1e-6
"""Added to the square of the length by which queries and keys are divided (transformers, `l2norm`)."""


class _Decay(Weight):
    """-exp(A_log): what a token forgets at most; the checkpoint stores A_log."""

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return the rate."""
        rate: npt.NDArray[np.float32] = -np.exp(super().from_stored(parts))
        return rate


class GatedDeltaNet(Module):
    """Queries, keys and values over the last few tokens, a state that they read and write, and a gate behind it.

    States are the convolution's last inputs [B, taps - 1, N] and the rule's memory [B, H, C, E].

    Args:
        config: Width and the norm's epsilon.
        dialect: How the recurrence is written.
        heads: Of the rule.
        taps: Tokens that the convolution spans.
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect, heads: DeltaHeads, taps: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.in_proj_qkv = Linear(size, heads.mixed_width, rows=None, bias=False)
        self.in_proj_z = Linear(size, heads.values_width, rows=None, bias=False)
        self.in_proj_b = Linear(size, heads.num_values, rows=None, role="gate", bias=False)
        self.in_proj_a = Linear(size, heads.num_values, rows=None, role="gate", bias=False)
        self.kernel = Taps(taps, heads.mixed_width, name="conv1d.weight")
        self.dt_bias = Weight(heads.num_values)
        self.rate = _Decay(heads.num_values, name="rate", source="A_log")
        self.norm = RMSNorm(heads.value_size, config.rms_norm_eps, dialect)
        self.out_proj = Linear(heads.values_width, size, rows=None, bias=False)
        self.heads = heads
        self.taps = taps
        self.dialect = dialect

    def forward(
        self, op: OpBuilder, x: ir.Value, before: ir.Value, memory: ir.Value
    ) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
        """Return [B, T, D] of x [B, T, D], and both states behind it."""
        heads, inputs = self.heads, op.Concat(before, self.in_proj_qkv(op, x), axis=1)
        mixed = activation(op, "silu", shifted_sum(op, inputs, self.kernel, self.taps))
        both, value = op.Split(mixed, [2 * heads.keys_width, heads.values_width], axis=2, _outputs=2)
        query, key = op.Split(self._unit(op, both), axis=2, num_outputs=2, _outputs=2)
        decay = op.Mul(op.Softplus(op.Add(self.in_proj_a(op, x), self.dt_bias)), self.rate)
        update = op.Sigmoid(self.in_proj_b(op, x))
        tokens = DeltaTokens(query, key, value, decay, update)
        made, after = self.dialect.recurrence.delta_rule(op, tokens, memory, heads)
        normed = self.norm(op, op.Reshape(made, [0, 0, heads.num_values, heads.value_size]))
        gated = op.Mul(op.Reshape(normed, [0, 0, heads.values_width]), activation(op, "silu", self.in_proj_z(op, x)))
        return self.out_proj(op, gated), (last_inputs(op, inputs, self.taps), after)

    def _unit(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return x [B, T, heads*C], each head divided by its length: by its mean square, and by what C makes of it."""
        size = self.heads.key_size
        weight = op.initializer(ir.tensor(np.full(size, size**-0.5, np.float32)), "unit")
        normed = self.dialect.rms_norm(op, op.Reshape(x, [0, 0, -1, size]), weight, _LENGTH_EPS / size)
        return op.Reshape(normed, [0, 0, 2 * self.heads.keys_width])
