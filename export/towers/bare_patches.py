"""No tower: patches of an image with their positions, as they go into a connector (Mono-InternVL)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import VisionConfig
from export.nn.module import Module, Weight
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
