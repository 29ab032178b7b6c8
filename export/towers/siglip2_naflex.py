"""SigLIP 2's vision tower for images of any shape (arXiv 2502.14786, section 2.4, NaFlex): patches alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, require
from export.nn.antialiased_positions import AntialiasedPositions
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.patches import FlattenedPatches, Grid
from export.nn.vit import Encoder

DEFAULTS: Raw = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_patches": 256,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


@dataclass(frozen=True)
class NaflexConfig:
    """Sizes of the tower.

    Attributes:
        layers: Of its encoder.
        patch_px: Side of a patch.
        table_side: Of the square of learned positions.
    """

    layers: TowerConfig
    patch_px: int
    table_side: int

    @classmethod
    def read(cls, raw: Raw) -> NaflexConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: Positions that are no square, or a size that is not built.
        """
        full = {**DEFAULTS, **raw}
        require(full, [("num_channels", 3)])
        side = isqrt(full["num_patches"])
        if side * side != full["num_patches"]:
            raise UnsupportedConfigError(
                f"vision_config.num_patches {full['num_patches']} is the square of no whole number; positions are a "
                "square table"
            )
        return cls(TowerConfig.read(raw, DEFAULTS), full["patch_size"], side)


class _Embeddings(Module):
    def __init__(self, config: NaflexConfig) -> None:
        super().__init__()
        self.patch_embedding = FlattenedPatches(config.layers.hidden_size, config.patch_px)
        self.position_embedding = AntialiasedPositions(config.table_side, config.layers.hidden_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        x, grid = self.patch_embedding(op, pixel_values)
        return self.position_embedding(op, x, grid), grid


class NaflexTower(Module):
    """Pixels to patches, and layers over them.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
        rows: Patches of a usual image.
    """

    def __init__(self, config: NaflexConfig, dialect: Dialect, name: str, *, rows: int) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config)
        self.encoder = Encoder(config.layers, dialect, rows=rows)
        self.post_layernorm = LayerNorm(config.layers.hidden_size, config.layers.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D] of N patches, row by row, and their grid, from [I, 3, height, width]."""
        x, grid = self.embeddings(op, pixel_values)
        return self.post_layernorm(op, self.encoder(op, x).states[-1]), grid
