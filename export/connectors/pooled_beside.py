"""Patches, and squares of them pooled, through one connector (LLaVA-NeXT-Video): an image reads the former, a frame the
latter."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module
from export.nn.squares import squares_shape, tokens_shape

Pooling = Literal["average", "max"]


class PooledBeside(Module):
    """What a connector makes of a tile's patches, and behind it what it makes of their squares.

    Args:
        projector: [..., F] to [..., D].
        grid: Patches a side of a tile.
        stride: Patches a side of a square.
        pooling: Of the patches of a square.
        size: F.
    """

    def __init__(self, projector: Module, grid: int, stride: int, pooling: Pooling, size: int) -> None:
        super().__init__("")
        self.projector = projector
        self.grid, self.stride, self.pooling, self.size = grid, stride, pooling, size

    def forward(self, op: OpBuilder, patches: ir.Value) -> ir.Value:
        """Return [I, P + squares, D] of [I, P, F]."""
        split = op.Reshape(patches, squares_shape(op, self.grid, self.stride, [self.stride, self.size]))
        pool = op.ReduceMean if self.pooling == "average" else op.ReduceMax
        pooled = op.Reshape(pool(split, [2, 4], keepdims=0), tokens_shape(op, self.grid, self.stride, [self.size]))
        return self.projector(op, op.Concat(patches, pooled, axis=1))
