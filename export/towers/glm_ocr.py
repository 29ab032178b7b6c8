"""GLM-OCR's vision tower (zai-org/GLM-OCR): images of any shape, patches turned by row and column, normed heads."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList
from export.nn.norms import RMSNorm
from export.nn.patches import Grid, PackedAttention, VideoPatches, patch_angles
from export.towers.patch_layers import PatchBlock, PatchTowerConfig, patch_tower_sizes

DEFAULTS: Raw = {
    "depth": 24,
    "hidden_size": 1024,
    "hidden_act": "silu",
    "attention_bias": True,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "rms_norm_eps": 1e-5,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 1536,
    "intermediate_size": 4096,
}
_THETA = 10_000.0


@dataclass(frozen=True)
class GlmOcrTowerConfig(PatchTowerConfig):
    """Sizes of the tower.

    Attributes:
        norm_eps: Of its norms.
        mlp_bias: Attention and feed-forward have biases.
    """

    norm_eps: float
    mlp_bias: bool

    @classmethod
    def read(cls, raw: Raw) -> GlmOcrTowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: A size or a rotary embedding that is not built.
        """
        full = {**DEFAULTS, **raw}
        theta = (full.get("rope_parameters") or {}).get("rope_theta", _THETA)
        if theta != _THETA:
            raise UnsupportedConfigError(f"vision_config.rope_parameters.rope_theta {theta}: built is {_THETA:g}")
        sizes = patch_tower_sizes(full)
        return cls(**sizes, norm_eps=full["rms_norm_eps"], mlp_bias=bool(full["attention_bias"]))


def _block(config: GlmOcrTowerConfig, dialect: Dialect) -> PatchBlock:
    size, head, eps = config.hidden_size, config.heads.size, config.norm_eps
    attention = PackedAttention(
        size,
        config.heads,
        dialect,
        rows=config.usual_rows,
        bias=config.mlp_bias,
        norms=(RMSNorm(head, eps, dialect), RMSNorm(head, eps, dialect)),
    )
    norms = RMSNorm(size, eps, dialect), RMSNorm(size, eps, dialect)
    return PatchBlock(norms, attention, GatedMLP(config, rows=config.usual_rows))


class GlmOcrTower(Module):
    """Pixels to patches, layers over them, and a norm.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: GlmOcrTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.patch_embed = VideoPatches(config.hidden_size, config.patch_px, config.num_frames, bias=True)
        self.blocks = ModuleList([_block(config, dialect) for _ in range(config.num_layers)])
        self.post_layernorm = RMSNorm(config.hidden_size, config.norm_eps, dialect)
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D] of N patches, row by row, and their grid, from [I, 3, height, width]."""
        x, grid = self.patch_embed(op, pixel_values)
        angles = patch_angles(op, x, grid, self.config.heads.size)
        for block in self.blocks:
            x = block(op, x, angles)
        return self.post_layernorm(op, x), grid
