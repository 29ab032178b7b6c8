"""Idefics3's vision tower: SigLIP's layers, and positions that it looks up by bucket."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, VisionConfig
from export.nn.dialect import Dialect
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import Encoder, Looked, PatchEmbedding, SiglipEmbeddings
from graphs.labels import Label

VISION_DEFAULTS: Raw = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


def buckets(side: int, grid: int) -> npt.NDArray[np.int64]:
    """Return [side] the bucket, of a full tile's `grid`, of each patch along one side of a tile.

    The model buckets fractional coordinates k/grid, in float32, among the boundaries 1/grid, 2/grid, ...; rounding
    puts some k one bucket low for some grids (not for powers of two), and the weights were trained with that. Torch's
    own boundaries depend on the processor's vector width by one rounding, which moves a bucket for grids such as 19
    and 25; boundaries here are rounded once from float64, which agrees for the grids of published checkpoints.
    """
    step = 1.0 / grid
    own = 1.0 / side
    count = int(np.ceil((1.0 - step) / step))
    boundaries = (step + np.arange(count, dtype=np.float64) * step).astype(np.float32)
    coordinates = np.arange(side, dtype=np.float32) * np.float32(own)
    coordinates = np.minimum(coordinates, np.float32(1.0 - 1e-6))
    found: npt.NDArray[np.int64] = np.searchsorted(boundaries, coordinates, side="right").astype(np.int64)
    return found


def position_rows(grid: int) -> npt.NDArray[np.int64]:
    """Return [grid * grid] the row of the position table of each patch of a full tile."""
    along = buckets(grid, grid)
    return (along[:, None] * grid + along[None, :]).reshape(-1)


class AnySizeEmbeddings(Module):
    """Patches and positions of square tiles up to the full size, whose positions are spread over the table.

    Attributes:
        num_rows: Vectors of a full tile.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config, bias=True)
        self.num_rows = config.grid**2
        self.position_embedding = _PositionTable(config.grid, config.tower.hidden_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, patches, D]."""
        return self.position_embedding(op, self.patch_embedding(op, pixel_values), side_of(op, pixel_values, self))


def side_of(op: OpBuilder, pixel_values: ir.Value, embeddings: AnySizeEmbeddings) -> ir.Value:
    """Return [1] int64, patches along one side of the tiles of a run."""
    return op.Div(op.Shape(pixel_values, start=2, end=3), [embeddings.patch_embedding.side])


class _PositionTable(Module):
    """Learned positions of a full tile, looked up by where a patch lies in its own."""

    def __init__(self, grid: int, size: int) -> None:
        super().__init__()
        self.weight = Weight(grid * grid, size, label=Label("constant table"))
        self.grid = grid

    def forward(self, op: OpBuilder, x: ir.Value, side: ir.Value) -> ir.Value:
        """Return x [B, side * side, D] plus the row of each of its places."""
        grid = self.grid
        of_side = np.zeros((grid + 1, grid), np.int64)
        for size in range(1, grid + 1):
            of_side[size, :size] = buckets(size, grid)
        table = op.initializer(ir.tensor(of_side), "position_buckets")
        along = op.Slice(op.Gather(table, op.Squeeze(side, [0]), axis=0), [0], side, [0])
        rows = op.Add(op.Mul(op.Unsqueeze(along, [1]), grid), op.Unsqueeze(along, [0]))
        return op.Add(x, op.Gather(self.weight, op.Reshape(rows, [-1]), axis=0))


class Idefics3Tower(Module):
    """Patches of tiles to what the last layer makes of them.

    Args:
        config: Sizes.
        dialect: How attention is written.
        any_size: Tiles may be smaller than full ones; all of a run have one size.
    """

    def __init__(self, config: VisionConfig, dialect: Dialect, *, any_size: bool = False) -> None:
        super().__init__("model.vision_model")
        self.embeddings = (
            AnySizeEmbeddings(config) if any_size else SiglipEmbeddings(config, position_rows(config.grid))
        )
        self.encoder = Encoder(config.tower, dialect, rows=self.embeddings.num_rows)
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Looked]:
        """Return [I, patches, D] normed, and what the last attention was made of."""
        passed = self.encoder(op, self.embeddings(op, pixel_values))
        return self.post_layernorm(op, passed.states[-1]), passed.looks[-1]
