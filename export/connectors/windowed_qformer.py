"""A Q-Former in every window of a grid: a window's queries, learned and from its own patches, look at that alone."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.connectors.pixel_shuffle import pixel_shuffle
from export.connectors.qformer import Former, QFormerConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.squares import squares_shape, tokens_shape

_EPS = 1e-6
"""Of the norm before the windows, which no config of the model changes."""
_HALF = 2


@dataclass(frozen=True)
class Windows:
    """How a grid of patches is cut.

    Attributes:
        grid: Patches along one side of a tile, a multiple of `side`.
        side: Patches along one side of a window, twice as many as `query_side`.
        query_side: Queries along one side of a window.
    """

    grid: int
    side: int
    query_side: int

    @property
    def tokens_side(self) -> int:
        """Queries along one side of a tile."""
        return self.grid // self.side * self.query_side


class WindowedQFormer(Module):
    """A tile's patches to a quarter as many rows of the decoder's width (Granite 4 Vision, transformers).

    Args:
        config: Sizes of the Q-Former, whose width is the patches'.
        windows: How the grid is cut.
        out_size: The decoder's width.
        corner: Which patch of each square of four a query begins with, row by row; None: their mean.
        dialect: How attention is written.
    """

    def __init__(
        self, config: QFormerConfig, windows: Windows, out_size: int, corner: int | None, dialect: Dialect
    ) -> None:
        super().__init__()
        size = config.layers.hidden_size
        self.norm = LayerNorm(size, _EPS)
        self.query = Weight(1, windows.query_side**2, size)
        self.image_positions = Weight(1, windows.side**2, size)
        self.qformer = Former(config, dialect, windows.grid**2)
        self.out_linear = Linear(size, out_size, rows=config.num_queries)
        self.windows, self.size, self.corner = windows, size, corner

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, tokens_side^2, out_size] from [I, grid^2, size], row by row."""
        x, windows = self.norm(op, x), self.windows
        seen = op.Add(self._cut(op, x, windows.grid, windows.side), self.image_positions)
        fewer = self._cut(op, self._fewer(op, x), windows.tokens_side, windows.query_side)
        found = self.qformer(op, op.Add(fewer, self.query), seen)
        return self.out_linear(op, self._joined(op, found))

    def _cut(self, op: OpBuilder, x: ir.Value, grid: int, side: int) -> ir.Value:
        """Return the windows [I * windows, side^2, size] of [I, grid^2, size]."""
        return op.Reshape(pixel_shuffle(op, x, grid, self.size, side), [-1, side * side, self.size])

    def _joined(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, tokens_side^2, size] of windows [I * windows, query_side^2, size]."""
        side, across = self.windows.query_side, self.windows.grid // self.windows.side
        lines = op.Reshape(x, [-1, across, across, side, side * self.size])
        return op.Reshape(op.Transpose(lines, perm=[0, 1, 3, 2, 4]), [-1, self.windows.tokens_side**2, self.size])

    def _fewer(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return one [I, (grid/2)^2, size] of each square of four patches."""
        grid = self.windows.grid
        squares = op.Reshape(x, squares_shape(op, grid, _HALF, [_HALF, self.size]))
        if self.corner is None:
            kept = op.ReduceMean(squares, [2, 4], keepdims=0)
        else:
            row, column = divmod(self.corner, _HALF)
            kept = op.Gather(op.Gather(squares, column, axis=4), row, axis=2)
        return op.Reshape(kept, tokens_shape(op, grid, _HALF, [self.size]))
