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
from export.towers.idefics3 import boundaries
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
_LAST = float(np.float32(1.0 - 1e-6))
"""Largest share of a side at which a patch may begin, fixed in the model."""


class BucketedPositions(Module):
    """Learned positions of a square, of which a patch takes the one at its share of height and width.

    Args:
        grid: Side of the table.
        size: D.
    """

    def __init__(self, grid: int, size: int) -> None:
        super().__init__()
        self.weight = Weight(grid * grid, size, label=Label("constant table"))
        self.grid = grid

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return x [I, N, D], row by row, plus the position of each patch."""
        edges = op.initializer(ir.tensor(boundaries(self.grid)), "position_boundaries")
        down, across = self._buckets(op, grid.height, edges), self._buckets(op, grid.width, edges)
        rows = op.Add(op.Mul(op.Unsqueeze(down, [1]), self.grid), op.Unsqueeze(across, [0]))
        return op.Add(x, op.Gather(self.weight, op.Reshape(rows, [-1]), axis=0))

    def _buckets(self, op: OpBuilder, side: ir.Value, edges: ir.Value) -> ir.Value:
        """Return [n] int64 the bucket of each of the n patches along a side, n being [1] int64."""
        step = op.Div(1.0, op.Cast(side, to=ir.DataType.FLOAT))
        numbers = op.Cast(op.Range(0, op.Squeeze(side, [0]), 1), to=ir.DataType.FLOAT)
        shares = op.Unsqueeze(op.Min(op.Mul(numbers, step), _LAST), [1])
        passed = op.Cast(op.GreaterOrEqual(shares, edges), to=ir.DataType.INT64)
        return op.ReduceSum(passed, [1], keepdims=0)


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
    """

    def __init__(self, config: VisionConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config)
        self.encoder = Encoder(config.tower, dialect, rows=usual_patches(config.patch_size_px))
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, D] normed, from [I, 3, height, width]; what is less than a patch at the edges is not seen."""
        return self.post_layernorm(op, self.encoder(op, self.embeddings(op, pixel_values)).states[-1])
