"""Two convolutions that halve height and width each, then one matrix (GOT-OCR 2)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.linear import Linear
from export.nn.module import Module, Weight

_SIDE, _STEP = 3, 2


def halved(size: int) -> int:
    """Return how many rows or columns one convolution leaves: half of them, rounded up."""
    return (size + 1) // _STEP


class HalvingProjector(Module):
    """A square of channels to a quarter of its sides, as rows of the decoder's width (GOT, arXiv 2409.01704, 3.2).

    Args:
        grid: Rows and columns of the square.
        channels: Of the square.
        out_size: The decoder's width.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, grid: int, channels: int, out_size: int, *, name: str) -> None:
        super().__init__(name)
        self.conv_upsampler1 = _Halving(channels, 2 * channels)
        self.conv_upsampler2 = _Halving(2 * channels, out_size)
        self.num_tokens = halved(halved(grid)) ** 2
        self.multimodal_projector = Linear(out_size, out_size, rows=self.num_tokens)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, num_tokens, out_size] from [I, channels, grid, grid], row by row."""
        small = self.conv_upsampler2(op, self.conv_upsampler1(op, x))
        return self.multimodal_projector(op, op.Transpose(op.Reshape(small, [0, 0, -1]), perm=[0, 2, 1]))


class _Halving(Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = Weight(out_channels, in_channels, _SIDE, _SIDE)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Conv(x, self.weight, kernel_shape=[_SIDE, _SIDE], strides=[_STEP, _STEP], pads=[_SIDE // 2] * 4)
