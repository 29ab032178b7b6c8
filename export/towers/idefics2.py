"""Idefics2's vision tower: SigLIP's layers on images of any shape, whose positions are looked up by bucket."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, VisionConfig
from export.nn.dialect import Dialect
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.patches import Grid, StillPatches, usual_patches
from export.nn.vit import Encoder
from export.towers.idefics3 import buckets
from graphs.labels import Label

VISION_DEFAULTS: Raw = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_LONGEST_SIDE = 2
"""Of an image, over that of the table; published models have images of the table's side at most."""


class BucketedPositions(Module):
    """Learned positions of a square, of which a patch takes the one at its share of height and width.

    Which those are is a table of whole numbers: shares of a side as floats would be rounded by every device in its way.

    Args:
        grid: Side of the square.
        size: D.
    """

    def __init__(self, grid: int, size: int) -> None:
        super().__init__()
        self.weight = Weight(grid * grid, size, label=Label("constant table"))
        self.grid = grid

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return x [I, N, D], row by row, plus the position of each patch."""
        longest = longest_side(self.grid)
        of_side = np.zeros((longest + 1, longest), np.int64)
        for side in range(1, longest + 1):
            of_side[side, :side] = buckets(side, self.grid)
        table = op.initializer(ir.tensor(of_side), "position_buckets")
        down, across = (
            op.Slice(op.Gather(table, op.Squeeze(side, [0]), axis=0), [0], side, [0])
            for side in (grid.height, grid.width)
        )
        rows = op.Add(op.Mul(op.Unsqueeze(down, [1]), self.grid), op.Unsqueeze(across, [0]))
        return op.Add(x, op.Gather(self.weight, op.Reshape(rows, [-1]), axis=0))


def longest_side(grid: int) -> int:
    """Return how many patches an image may have on a side."""
    return _LONGEST_SIDE * grid


class _Embeddings(Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = StillPatches(config.tower.hidden_size, config.patch_size_px)
        self.position_embedding = BucketedPositions(config.grid, config.tower.hidden_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        x, grid = self.patch_embedding(op, pixel_values)
        return self.position_embedding(op, x, grid)


class Idefics2Tower(Module):
    """Patches of images of one size, whichever it is, to what the last layer makes of them.

    Args:
        config: The tower.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
        is_normed: What the last layer makes is normed; else it is read as it is.
    """

    def __init__(self, config: VisionConfig, dialect: Dialect, name: str, *, is_normed: bool = True) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config)
        self.encoder = Encoder(config.tower, dialect, rows=usual_patches(config.patch_size_px))
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps) if is_normed else None

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, D] from [I, 3, height, width]; what is less than a patch at the edges is not seen."""
        last = self.encoder(op, self.embeddings(op, pixel_values)).states[-1]
        return last if self.post_layernorm is None else self.post_layernorm(op, last)
