"""A gated convolution over the last few tokens, which keeps its last inputs as a state of fixed size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.linear import Linear
from export.nn.module import Module, Weight

_TO_THE_END = 2**31 - 1


class Taps(Weight):
    """A depthwise convolution's kernel, [taps, D] here and [D, 1, taps] in the checkpoint."""

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape can fill this weight."""
        taps, size = (int(each) for each in self.shape)
        return stored == (size, 1, taps)

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [taps, D]."""
        (stored,) = parts
        return np.ascontiguousarray(stored[:, 0].T)


def shifted_sum(op: OpBuilder, inputs: ir.Value, kernel: ir.Value, taps: int) -> ir.Value:
    """Return a depthwise causal convolution [B, T, D] as a sum of shifted rows.

    A Conv would want channels before tokens, so a transposition of all of them before and behind. ONNX Runtime's
    CausalConvWithState, which can have channels last, takes four times as long for 512 tokens (decision 54).

    Args:
        op: The builder.
        inputs: [B, taps - 1 + T, D], those of tokens before the run first.
        kernel: [taps, D].
        taps: Tokens that it spans.
    """
    parts = [
        op.Mul(op.Slice(inputs, [tap], [tap - taps + 1 or _TO_THE_END], [1]), op.Slice(kernel, [tap], [tap + 1], [0]))
        for tap in range(taps)
    ]
    summed = parts[0]
    for part in parts[1:]:
        summed = op.Add(summed, part)
    return summed


def last_inputs(op: OpBuilder, inputs: ir.Value, taps: int) -> ir.Value:
    """Return what of [B, taps - 1 + T, D] the next run's convolution begins with, [B, taps - 1, D]."""
    return op.Slice(inputs, [1 - taps], [_TO_THE_END], [1])


class ShortConvolution(Module):
    """out(c * conv(b * x)), where b, c and x are of one projection (LFM2, arXiv 2511.23404, section 2.1).

    The state is the last `taps - 1` inputs of the convolution, [B, taps - 1, D], zeros before a sequence begins. A
    token's sum is made of the same products in the same order whether what stood before it came in the same run or in
    the state, so how a prompt is cut does not show.

    Args:
        size: D.
        taps: Tokens that the convolution spans, 2 at least.
        bias: Whether projections and convolution add one.
    """

    def __init__(self, size: int, taps: int, *, bias: bool) -> None:
        super().__init__()
        self.in_proj = Linear(size, 3 * size, rows=None, bias=bias)
        self.weight = Taps(taps, size, name="conv.weight")
        self.bias = Weight(size, name="conv.bias") if bias else None
        self.out_proj = Linear(size, size, rows=None, bias=bias)
        self.taps = taps

    def forward(self, op: OpBuilder, x: ir.Value, before: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return [B, T, D] of x [B, T, D], and the state behind it."""
        gate, gate_behind, values = op.Split(self.in_proj(op, x), axis=2, num_outputs=3, _outputs=3)
        inputs = op.Concat(before, op.Mul(gate, values), axis=1)
        summed = shifted_sum(op, inputs, self.weight, self.taps)
        if self.bias is not None:
            summed = op.Add(summed, self.bias)
        return self.out_proj(op, op.Mul(gate_behind, summed)), last_inputs(op, inputs, self.taps)
