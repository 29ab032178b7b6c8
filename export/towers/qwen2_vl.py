"""Qwen2-VL's vision tower (arXiv 2409.12191, section 2.1): images of any shape, patches turned by row and column."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw
from export.nn.dialect import Dialect
from export.nn.module import Module, ModuleList
from export.nn.norms import LayerNorm
from export.nn.patches import Grid, PackedAttention, VideoPatches, patch_angles
from export.towers.patch_layers import PatchBlock, PatchMLP, PatchTowerConfig, patch_tower_sizes

DEFAULTS: Raw = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 3584,
    "hidden_act": "quick_gelu",
    "mlp_ratio": 4,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_EPS = 1e-6


def tower_config(raw: Raw) -> PatchTowerConfig:
    """Return the tower of a vision config.

    Raises:
        UnsupportedConfigError: A size that is not built.
    """
    full = {**DEFAULTS, **raw}
    width = {"hidden_size": full["embed_dim"], "intermediate_size": int(full["embed_dim"] * full["mlp_ratio"])}
    return PatchTowerConfig(**patch_tower_sizes({**full, **width, "out_hidden_size": full["hidden_size"]}))


def _block(config: PatchTowerConfig, dialect: Dialect) -> PatchBlock:
    norms = LayerNorm(config.hidden_size, _EPS), LayerNorm(config.hidden_size, _EPS)
    attention = PackedAttention(config.hidden_size, config.heads, dialect, rows=config.usual_rows)
    return PatchBlock(norms, attention, PatchMLP(config, "fc1", "fc2"))


class Qwen2VLTower(Module):
    """Pixels to patches, and layers over them.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: PatchTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.patch_embed = VideoPatches(config.hidden_size, config.patch_px, config.num_frames)
        self.blocks = ModuleList([_block(config, dialect) for _ in range(config.num_layers)])
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D] of N patches, row by row, and their grid, from [I, 3, height, width]."""
        x, grid = self.patch_embed(op, pixel_values)
        angles = patch_angles(op, x, grid, self.config.heads.size)
        for block in self.blocks:
            x = block(op, x, angles)
        return x, grid
