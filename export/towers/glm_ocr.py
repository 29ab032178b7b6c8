"""GLM-OCR's vision tower (zai-org/GLM-OCR): images of any shape, patches turned by row and column, normed heads."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, require
from export.nn.dialect import Dialect, Heads
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList
from export.nn.norms import RMSNorm
from export.nn.patches import Grid, PackedAttention, VideoPatches, patch_angles, usual_patches
from export.nn.rotary import Angles

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
class GlmOcrTowerConfig:
    """Sizes of the tower.

    Attributes:
        num_layers: Depth.
        hidden_size: D.
        intermediate_size: Of the gated feed-forward.
        hidden_act: Of its gate.
        num_heads: H.
        patch_px: Side of a patch.
        num_frames: Frames that a patch spans; a still image is as many times itself.
        merged: Side of the square of patches that becomes one token.
        out_size: The decoder's width.
        norm_eps: Of its norms.
        mlp_bias: Attention and feed-forward have biases.
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
    norm_eps: float
    mlp_bias: bool

    @classmethod
    def read(cls, raw: Raw) -> GlmOcrTowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: A size or a rotary embedding that is not built.
        """
        full = {**DEFAULTS, **raw}
        require(full, [("in_channels", 3)])
        theta = (full.get("rope_parameters") or {}).get("rope_theta", _THETA)
        if theta != _THETA:
            raise UnsupportedConfigError(f"vision_config.rope_parameters.rope_theta {theta}: built is {_THETA:g}")
        return cls(
            num_layers=full["depth"],
            hidden_size=full["hidden_size"],
            intermediate_size=full["intermediate_size"],
            hidden_act=full["hidden_act"],
            num_heads=full["num_heads"],
            patch_px=full["patch_size"],
            num_frames=full["temporal_patch_size"],
            merged=full["spatial_merge_size"],
            out_size=full["out_hidden_size"],
            norm_eps=full["rms_norm_eps"],
            mlp_bias=bool(full["attention_bias"]),
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


class _Block(Module):
    def __init__(self, config: GlmOcrTowerConfig, dialect: Dialect) -> None:
        super().__init__()
        self.norm1, self.norm2 = (RMSNorm(config.hidden_size, config.norm_eps, dialect) for _ in range(2))
        of_query, of_key = (RMSNorm(config.heads.size, config.norm_eps, dialect) for _ in range(2))
        self.attn = PackedAttention(
            config.hidden_size,
            config.heads,
            dialect,
            rows=config.usual_rows,
            bias=config.mlp_bias,
            norms=(of_query, of_key),
        )
        self.mlp = GatedMLP(config, rows=config.usual_rows)

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        x = op.Add(x, self.attn(op, self.norm1(op, x), angles))
        return op.Add(x, self.mlp(op, self.norm2(op, x)))


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
        self.blocks = ModuleList([_Block(config, dialect) for _ in range(config.num_layers)])
        self.post_layernorm = RMSNorm(config.hidden_size, config.norm_eps, dialect)
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D] of N patches, row by row, and their grid, from [I, 3, height, width]."""
        x, grid = self.patch_embed(op, pixel_values)
        angles = patch_angles(op, x, grid, self.config.heads.size)
        for block in self.blocks:
            x = block(op, x, angles)
        return self.post_layernorm(op, x), grid
