"""HunyuanOCR's vision tower (arXiv 2511.19575): SigLIP's layers over images of any shape, positions resampled."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, require
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.patches import Grid, StillPatches, usual_patches
from export.nn.position_grid import PositionGrid
from export.nn.vit import Encoder

DEFAULTS: Raw = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_channels": 3,
    "hidden_act": "gelu",
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 1,
    "max_image_size": 2048,
    "interpolate_mode": "bilinear",
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class HunYuanTowerConfig:
    """Sizes of the tower.

    Attributes:
        layers: Of its encoder.
        patch_px: Side of a patch.
        merged: Side of the square of patches that becomes one token.
        table_side: Of the square of learned positions.
    """

    layers: TowerConfig
    patch_px: int
    merged: int
    table_side: int

    @classmethod
    def read(cls, raw: Raw) -> HunYuanTowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: Heads that do not make up the width, or a size that is not built.
        """
        full = {**DEFAULTS, **raw}
        require(full, [("num_channels", 3), ("temporal_patch_size", 1), ("interpolate_mode", "bilinear")])
        layers = TowerConfig.read({**full, "layer_norm_eps": full["rms_norm_eps"]}, {})
        head = layers.hidden_size // layers.num_heads
        if full.get("head_dim", head) != head:
            raise UnsupportedConfigError(
                f"vision_config.head_dim {full['head_dim']}: built are heads that make up the width, of {head} numbers"
            )
        patch = full["patch_size"]
        return cls(layers, patch, full["spatial_merge_size"], full["max_image_size"] // patch)

    @property
    def usual_rows(self) -> int:
        """Patches of a usual image."""
        return usual_patches(self.patch_px)


class _Embeddings(Module):
    def __init__(self, config: HunYuanTowerConfig) -> None:
        super().__init__()
        self.patch_embedding = StillPatches(config.layers.hidden_size, config.patch_px)
        # the table's first row is a class token's, which the tower has none of
        self.position_embedding = PositionGrid(
            config.table_side, config.layers.hidden_size, aligns_corners=False, first_row=1
        )

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        x, grid = self.patch_embedding(op, pixel_values)
        return self.position_embedding(op, x, grid), grid


class HunYuanTower(Module):
    """Pixels to patches, and layers over them, without a norm behind the last.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: HunYuanTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config)
        self.encoder = Encoder(config.layers, dialect, rows=config.usual_rows)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D] of N patches, row by row, and their grid, from [I, 3, height, width]."""
        x, grid = self.embeddings(op, pixel_values)
        return self.encoder(op, x).states[-1], grid
