"""A learned row behind a tile's features, which a prompt layout puts behind each line of patches (LLaVA-NeXT)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module, Weight


class LineEnd(Module):
    """A vision graph, and one learned row behind what it gives of each tile.

    Args:
        vision: Pixels to [I, P, D]; without a name, so that its parts keep theirs.
        size: D.
        name: Where the checkpoint keeps the row.
    """

    def __init__(self, vision: Module, size: int, *, name: str) -> None:
        super().__init__("")
        self.vision = vision
        self.row = Weight(size, name=name)
        self.size = size

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, P + 1, D]."""
        features = self.vision(op, pixel_values)
        images = op.Shape(features, start=0, end=1)
        ends = op.Expand(self.row, op.Concat(images, [1, self.size], axis=0))
        return op.Concat(features, ends, axis=1)
