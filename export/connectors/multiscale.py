"""Patches at several scales, from one pass through the tower, in the decoder's width (ADEM-VL)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from export.connectors.adaptive_pool import AdaptivePool
from export.nn.linear import Linear, activation
from export.nn.module import Module, ModuleList


class _Bottleneck(Module):
    """Two matrices, SiLU between, narrower inside than at both ends."""

    def __init__(self, sizes: tuple[int, int, int], rows: int, name: str) -> None:
        super().__init__(name)
        given, inner, wanted = sizes
        self.fc1 = Linear(given, inner, rows=rows)
        self.fc2 = Linear(inner, wanted, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.fc2(op, activation(op, "silu", self.fc1(op, x)))


class Multiscale(Module):
    """Features [I, 1 + P, V], class token first, to rows [I, 1 + M, D] (arXiv 2410.17779, the authors' `Projector`s).

    Each scale is the patches averaged to a grid; all scales are projected by one bottleneck, the class token by
    another.

    Args:
        grid: Patches along one side.
        sides: Of the grids that patches are averaged to, in the order of rows.
        sizes: V, the width inside, and D.
        share: That rows but the first are multiplied by.
    """

    def __init__(self, grid: int, sides: Sequence[int], sizes: tuple[int, int, int], share: float) -> None:
        super().__init__("")
        self.pools = ModuleList([AdaptivePool(grid, side) for side in sides])
        self.of_patches = _Bottleneck(sizes, sum(side**2 for side in sides), "adapter_proj")
        self.of_class = _Bottleneck(sizes, 1, "adapter_proj_cls")
        self.grid, self.size, self.share = grid, sizes[0], share

    def forward(self, op: OpBuilder, features: ir.Value) -> ir.Value:
        """Return [I, 1 + M, D]."""
        first = op.Slice(features, [0], [1], [1])
        patches = op.Slice(features, [1], [1 + self.grid**2], [1])
        square = op.Reshape(patches, [0, self.grid, self.grid, self.size])
        scales = [op.Reshape(pool(op, square), [0, -1, self.size]) for pool in self.pools]
        rows = op.Mul(self.of_patches(op, op.Concat(*scales, axis=1)), self.share)
        return op.Concat(self.of_class(op, first), rows, axis=1)
