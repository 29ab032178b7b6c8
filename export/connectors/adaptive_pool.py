"""Patches averaged to fewer, whose squares may overlap (torch's AdaptiveAvgPool2d), alone or before two matrices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.connectors.projector import Projector
from export.nn.module import Module


class AdaptivePool(Module):
    """Means over the cells of a grid; it has no weights.

    Args:
        grid: Patches along one side.
        side: Cells along one side.
    """

    def __init__(self, grid: int, side: int) -> None:
        super().__init__()
        self.shares = _shares(grid, side)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, side, side, D] from [I, grid, grid, D]."""
        shares = op.initializer(ir.tensor(self.shares), "shares")
        down = op.MatMul(shares, op.Transpose(x, perm=[0, 3, 1, 2]))  # [I, D, side, grid]
        cells = op.MatMul(shares, op.Transpose(down, perm=[0, 1, 3, 2]))  # columns first
        return op.Transpose(cells, perm=[0, 3, 2, 1])


class PooledProjector(Module):
    """Means over the cells of a grid, and LLaVA's two matrices over them (InfMLLM, arXiv 2311.06791: its pool-adapter).

    Args:
        grid: Patches along one side.
        side: Cells along one side.
        projector: Over the means.
    """

    def __init__(self, grid: int, side: int, projector: Projector) -> None:
        super().__init__("")
        self.pool = AdaptivePool(grid, side)
        self.projector = projector
        self.grid, self.side = grid, side

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, side * side, out] from [I, grid * grid, D], row by row."""
        means = self.pool(op, op.Reshape(x, op.Concat([0, self.grid, self.grid], op.Shape(x, start=2, end=3), axis=0)))
        flat = op.Concat([0, self.side**2], op.Shape(x, start=2, end=3), axis=0)
        return self.projector(op, op.Reshape(means, flat))


def _shares(side: int, smaller: int) -> npt.NDArray[np.float32]:
    """Return [smaller, side]: cell i is the mean of lines floor(i s / t) to ceil((i + 1) s / t), as torch has it."""
    shares = np.zeros((smaller, side), np.float32)
    for cell in range(smaller):
        start, end = cell * side // smaller, -(-(cell + 1) * side // smaller)
        shares[cell, start:end] = 1 / (end - start)
    return shares
