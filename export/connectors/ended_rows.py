"""Squares of patches through two convolutions, a learned vector behind each row, and two around all (HunyuanOCR)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.connectors.patch_merger import merged_squares
from export.nn.dialect import Dialect
from export.nn.linear import Linear, activation
from export.nn.module import Module, Weight
from export.nn.norms import RMSNorm
from export.nn.patches import Grid
from graphs.labels import Label


class _OfSquares(Weight):
    """A convolution over squares that do not overlap, as a matrix over squares whose channels lie last."""

    def __init__(self, in_size: int, out_size: int, side: int, *, rows: int) -> None:
        super().__init__(in_size * side**2, out_size, transposed=True, label=Label("linear", rows))
        self._stored = (out_size, in_size, side, side)

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape can fill this weight."""
        return stored == self._stored

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [side * side * in, out]."""
        (stored,) = parts
        return np.ascontiguousarray(stored.transpose(2, 3, 1, 0).reshape(-1, self._stored[0]))


class _Convolution(Module):
    def __init__(self, in_size: int, out_size: int, side: int, *, rows: int) -> None:
        super().__init__()
        self.weight = _OfSquares(in_size, out_size, side, rows=rows)
        self.bias = Weight(out_size)

    def forward(self, op: OpBuilder, squares: ir.Value) -> ir.Value:
        return op.Add(op.MatMul(squares, self.weight), self.bias)


class EndedRows(Module):
    """A norm, squares of patches as vectors, one more behind each row, a matrix, one before and behind all, a norm.

    Args:
        sizes: Of a patch, and of the decoder.
        factor: Side of a square.
        hidden_act: Between the two convolutions.
        eps: Of both norms.
        dialect: How norms are written.
        rows: Squares of a usual image.
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self,
        sizes: tuple[int, int],
        factor: int,
        hidden_act: str,
        eps: float,
        dialect: Dialect,
        *,
        rows: int,
        name: str,
    ) -> None:
        super().__init__(name)
        size, out_size = sizes
        self.wide = 4 * size
        self.before_rms = RMSNorm(size, eps, dialect)
        self.proj_conv = _Convolution(size, 2 * size, factor, rows=rows)
        self.proj_out = _Convolution(2 * size, self.wide, 1, rows=rows)
        self.image_newline = Weight(self.wide)
        self.mlp = Linear(self.wide, out_size, rows=rows)
        self.image_begin, self.image_end = Weight(out_size), Weight(out_size)
        self.after_rms = RMSNorm(out_size, eps, dialect)
        self.sizes, self.factor, self.hidden_act = sizes, factor, hidden_act

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return [I, h * (w + 1) + 2, out_size] of h x w squares, from [I, N, in_size], row by row."""
        squares = merged_squares(op, self.before_rms(op, x), grid, self.sizes[0], self.factor)
        inner = activation(op, self.hidden_act, self.proj_conv(op, squares))
        rows = self.mlp(op, self._ended(op, self.proj_out(op, inner), grid))
        images = op.Shape(rows, start=0, end=1)
        shape = op.Concat(images, [1, self.sizes[1]], axis=0)
        begin, end = (op.Expand(each, shape) for each in (self.image_begin, self.image_end))
        return self.after_rms(op, op.Concat(begin, rows, end, axis=1))

    def _ended(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return [I, h * (w + 1), wide] of squares [I, h * w, wide]."""
        down, across = op.Div(grid.height, self.factor), op.Div(grid.width, self.factor)
        images = op.Shape(x, start=0, end=1)
        places = op.Reshape(x, op.Concat(images, down, across, [self.wide], axis=0))
        ends = op.Expand(self.image_newline, op.Concat(images, down, [1, self.wide], axis=0))
        return op.Reshape(op.Concat(places, ends, axis=2), op.Concat(images, [-1, self.wide], axis=0))
