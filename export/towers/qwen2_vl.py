"""Qwen2-VL's vision tower (arXiv 2409.12191, section 2.1): images of any shape, patches turned by row and column."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, require
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, activation
from export.nn.module import Module, ModuleList
from export.nn.norms import LayerNorm
from export.nn.patches import Grid, PackedAttention, VideoPatches, patch_angles, usual_patches
from export.nn.rotary import Angles

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


@dataclass(frozen=True)
class Qwen2VLTowerConfig:
    """Sizes of the tower.

    Attributes:
        num_layers: Depth.
        hidden_size: D.
        intermediate_size: Of the feed-forward.
        hidden_act: Between its matrices.
        num_heads: H.
        patch_px: Side of a patch.
        num_frames: Frames that the checkpoint's patches span; a still image is as many times itself.
        merged: Side of the square of patches that becomes one token.
        out_size: The decoder's width.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    hidden_act: str
    num_heads: int
    patch_px: int
    num_frames: int
    merged: int
    out_size: int

    @classmethod
    def read(cls, raw: Raw) -> Qwen2VLTowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: A size that is not built.
        """
        full = {**DEFAULTS, **raw}
        require(full, [("in_channels", 3)])
        return cls(
            num_layers=full["depth"],
            hidden_size=full["embed_dim"],
            intermediate_size=int(full["embed_dim"] * full["mlp_ratio"]),
            hidden_act=full["hidden_act"],
            num_heads=full["num_heads"],
            patch_px=full["patch_size"],
            num_frames=full["temporal_patch_size"],
            merged=full["spatial_merge_size"],
            out_size=full["hidden_size"],
        )

    @property
    def heads(self) -> Heads:
        """Of every layer."""
        size = self.hidden_size // self.num_heads
        return Heads(self.num_heads, self.num_heads, size, float(size) ** -0.5)

    @property
    def usual_rows(self) -> int:
        """Patches of a usual image."""
        return usual_patches(self.patch_px)


class _MLP(Module):
    def __init__(self, config: Qwen2VLTowerConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, rows=config.usual_rows)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, rows=config.usual_rows)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.fc2(op, activation(op, self.hidden_act, self.fc1(op, x)))


class _Block(Module):
    def __init__(self, config: Qwen2VLTowerConfig, dialect: Dialect) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, _EPS)
        self.norm2 = LayerNorm(config.hidden_size, _EPS)
        self.attn = PackedAttention(config.hidden_size, config.heads, dialect, rows=config.usual_rows)
        self.mlp = _MLP(config)

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        x = op.Add(x, self.attn(op, self.norm1(op, x), angles))
        return op.Add(x, self.mlp(op, self.norm2(op, x)))


class Qwen2VLTower(Module):
    """Pixels to patches, and layers over them.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: Qwen2VLTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.patch_embed = VideoPatches(config.hidden_size, config.patch_px, config.num_frames)
        self.blocks = ModuleList([_Block(config, dialect) for _ in range(config.num_layers)])
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D] of N patches, row by row, and their grid, from [I, 3, height, width]."""
        x, grid = self.patch_embed(op, pixel_values)
        angles = patch_angles(op, x, grid, self.config.heads.size)
        for block in self.blocks:
            x = block(op, x, angles)
        return x, grid
