"""Squares of patches with their places in a tile, led through two matrices, and those of earlier layers beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.connectors.pixel_shuffle import pixel_shuffle
from export.connectors.shuffled_projector import ShuffledProjector
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList
from export.nn.norms import LayerNorm

_EPS = 1e-5
"""Of PyTorch's LayerNorm, which no config of the model changes."""
_SLOWEST = 10_000.0


def place_vectors(grid: int, size: int) -> npt.NDArray[np.float32]:
    """Return [grid * grid, size] sines and cosines of each place's column, then of its row, row by row."""
    frequencies = _SLOWEST ** -(np.arange(size // 4) / (size // 4))
    places = np.arange(grid * grid)
    halves = [
        part
        for axis in (places % grid, places // grid)
        for turn in [np.outer(axis, frequencies)]
        for part in _waves(turn)
    ]
    return np.concatenate(halves, axis=1).astype(np.float32)


def _waves(turned: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return np.sin(turned), np.cos(turned)


class _Path(Module):
    """The way of one size of squares: a matrix, and a projector for each earlier layer of the tower."""

    def __init__(self, grid: int, in_size: int, out_size: int, factor: int, num_deep: int) -> None:
        super().__init__("coarse")
        rows = (grid // factor) ** 2
        self.projection = Linear(in_size * factor**2, out_size, rows=rows, bias=False)
        sizes = (grid, in_size, out_size, factor, "gelu")
        self.deepstack_mergers = ModuleList([ShuffledProjector(*sizes, name=str(n)) for n in range(num_deep)])
        self.grid, self.in_size, self.factor = grid, in_size, factor
        self.places = place_vectors(grid // factor, out_size)

    def forward(self, op: OpBuilder, x: ir.Value, deep: Sequence[ir.Value]) -> tuple[ir.Value, list[ir.Value]]:
        squares = self.projection(op, pixel_shuffle(op, x, self.grid, self.in_size, self.factor))
        places = op.initializer(ir.tensor(self.places), "places")
        pairs = zip(self.deepstack_mergers, deep, strict=True)
        return op.Add(squares, places), [merger(op, each) for merger, each in pairs]


class DoclingConnector(Module):
    """A tile's patches to rows of the decoder's width, those of earlier layers behind them in each row.

    Args:
        grid: Patches along one side of a tile, a multiple of `factor`.
        in_size: Width of a patch.
        out_size: The decoder's.
        factor: Side of a square.
        num_deep: Earlier layers of the tower.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, grid: int, in_size: int, out_size: int, factor: int, num_deep: int, *, name: str) -> None:
        super().__init__(name)
        self.ln_in = LayerNorm(in_size, _EPS)
        self.coarse = _Path(grid, in_size, out_size, factor, num_deep)
        self.ln_mid = LayerNorm(out_size, _EPS)
        self.mlp_fc2 = Linear(out_size, out_size, rows=(grid // factor) ** 2, bias=False)
        self.ln_out = LayerNorm(out_size, _EPS)

    def forward(self, op: OpBuilder, x: ir.Value, deep: Sequence[ir.Value]) -> ir.Value:
        """Return [I, (grid/factor)^2, (1 + num_deep) * out_size] from [I, grid*grid, in_size] of each layer."""
        placed, features = self.coarse(op, self.ln_in(op, x), deep)
        first = self.ln_out(op, self.mlp_fc2(op, op.Gelu(self.ln_mid(op, placed))))
        return op.Concat(first, *features, axis=2) if features else first
