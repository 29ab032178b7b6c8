"""No tower: patches, which go into a connector with their positions (Mono-InternVL), or into the decoder (Fuyu)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import VisionConfig
from export.nn.module import Module, Weight
from export.nn.patches import FlattenedPatches
from export.nn.vit import PatchEmbedding

_TO_THE_END = 2**31 - 1


class _Embeddings(Module):
    """Patches and positions; the place of a class token, which nothing reads, is the first of the table."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config, bias=True)
        self.position_embedding = Weight(1, config.grid**2 + 1, config.tower.hidden_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        places = op.Slice(self.position_embedding, [1], [_TO_THE_END], [1])
        return op.Add(self.patch_embedding(op, pixel_values), places)


class BarePatches(Module):
    """Patches of tiles of one size, and nothing behind them.

    Args:
        config: Sizes.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: VisionConfig, name: str) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, D] from [I, 3, height, width]."""
        return self.embeddings(op, pixel_values)


class LinearPatches(Module):
    """Patches of images of any shape, by one matrix, and nothing behind it (Fuyu).

    Args:
        size: D.
        side: Of a patch in pixels.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, size: int, side: int, name: str) -> None:
        super().__init__("")
        self.patches = FlattenedPatches(size, side, name=name)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, D], row by row, from [I, 3, height, width]."""
        patches, _ = self.patches(op, pixel_values)
        return patches
