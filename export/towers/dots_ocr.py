"""dots.ocr's vision tower (arXiv 2512.02498): images of any shape, gates in its feed-forwards, norms around patches."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, require
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList
from export.nn.norms import RMSNorm
from export.nn.patches import Grid, PackedAttention, StillPatches, patch_angles
from export.towers.patch_layers import PatchBlock, PatchTowerConfig

DEFAULTS: Raw = {
    "embed_dim": 1536,
    "hidden_size": 1536,
    "intermediate_size": 4224,
    "num_hidden_layers": 42,
    "num_attention_heads": 12,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "rms_norm_eps": 1e-5,
    "use_bias": False,
    "post_norm": True,
}


@dataclass(frozen=True)
class DotsTowerConfig(PatchTowerConfig):
    """Sizes of the tower.

    Attributes:
        eps: Of its norms, but for the merger's.
        mlp_bias: All matrices of its layers have biases.
        norms_last: A norm stands behind the last layer.
    """

    eps: float
    mlp_bias: bool
    norms_last: bool

    @classmethod
    def read(cls, raw: Raw) -> DotsTowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: A setting that is not built.
        """
        full = {**DEFAULTS, **raw}
        require(full, [("num_channels", 3), ("temporal_patch_size", 1), ("is_causal", False)])
        return cls(
            num_layers=full["num_hidden_layers"],
            hidden_size=full["embed_dim"],
            intermediate_size=full["intermediate_size"],
            hidden_act="silu",
            num_heads=full["num_attention_heads"],
            patch_px=full["patch_size"],
            num_frames=1,
            merged=full["spatial_merge_size"],
            out_size=full["hidden_size"],
            eps=float(full["rms_norm_eps"]),
            mlp_bias=bool(full["use_bias"]),
            norms_last=bool(full["post_norm"]),
        )


class _Patchifier(Module):
    def __init__(self, config: DotsTowerConfig, dialect: Dialect) -> None:
        super().__init__("patch_embed.patchifier")
        self.proj = StillPatches(config.hidden_size, config.patch_px)
        self.norm = RMSNorm(config.hidden_size, config.eps, dialect)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        x, grid = self.proj(op, pixel_values)
        return self.norm(op, x), grid


def _block(config: DotsTowerConfig, dialect: Dialect) -> PatchBlock:
    norms = RMSNorm(config.hidden_size, config.eps, dialect), RMSNorm(config.hidden_size, config.eps, dialect)
    rows = config.usual_rows
    attention = PackedAttention(config.hidden_size, config.heads, dialect, rows=rows, bias=config.mlp_bias)
    return PatchBlock(norms, attention, GatedMLP(config, rows=rows))


class DotsTower(Module):
    """Pixels to patches, and layers over them.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: DotsTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.patchifier = _Patchifier(config, dialect)
        self.blocks = ModuleList([_block(config, dialect) for _ in range(config.num_layers)])
        self.post_trunk_norm = RMSNorm(config.hidden_size, config.eps, dialect) if config.norms_last else None
        self.head_size = config.heads.size

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D] of N patches, row by row, and their grid, from [I, 3, height, width]."""
        x, grid = self.patchifier(op, pixel_values)
        angles = patch_angles(op, x, grid, self.head_size)
        for block in self.blocks:
            x = block(op, x, angles)
        return (x if self.post_trunk_norm is None else self.post_trunk_norm(op, x)), grid
