"""PaddleOCR-VL's vision tower (arXiv 2510.14528): SigLIP's layers over images of any shape, with angles.

VideoLLaMA 3's (arXiv 2501.13106, section 3.1) has the angles alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, TowerConfig, require
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList
from export.nn.norms import LayerNorm
from export.nn.patches import Grid, StillPatches, patch_angles, usual_patches
from export.nn.position_grid import PositionGrid
from export.nn.rotary import Angles
from export.nn.vit import EncoderMLP, tower_heads

DEFAULTS: Raw = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "spatial_merge_size": 2,
}
_THETA = 10_000.0


@dataclass(frozen=True)
class PaddleOCRTowerConfig:
    """Sizes of the tower.

    Attributes:
        layers: Of its encoder.
        patch_px: Side of a patch.
        merged: Side of the square of patches that becomes one token.
        table_side: Of the square of learned positions; None: there are none.
        theta: Base of the angles' frequencies.
    """

    layers: TowerConfig
    patch_px: int
    merged: int
    table_side: int | None
    theta: float = _THETA

    @classmethod
    def read(cls, raw: Raw) -> PaddleOCRTowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: A size that is not built.
        """
        full = {**DEFAULTS, **raw}
        require(full, [("num_channels", 3)])
        patch = full["patch_size"]
        return cls(TowerConfig.read(raw, DEFAULTS), patch, full["spatial_merge_size"], full["image_size"] // patch)

    @property
    def usual_rows(self) -> int:
        """Patches of a usual image."""
        return usual_patches(self.patch_px)


class _Embeddings(Module):
    def __init__(self, config: PaddleOCRTowerConfig) -> None:
        super().__init__()
        self.patch_embedding = StillPatches(config.layers.hidden_size, config.patch_px)
        self.position_embedding: Module | None = None
        if config.table_side is not None:
            self.position_embedding = PositionGrid(config.table_side, config.layers.hidden_size, aligns_corners=False)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        x, grid = self.patch_embedding(op, pixel_values)
        return (x if self.position_embedding is None else self.position_embedding(op, x, grid)), grid


class _Attention(Module):
    def __init__(self, config: PaddleOCRTowerConfig, dialect: Dialect) -> None:
        super().__init__()
        size, rows = config.layers.hidden_size, config.usual_rows
        self.q_proj = Linear(size, size, rows=rows)
        self.k_proj = Linear(size, size, rows=rows)
        self.v_proj = Linear(size, size, rows=rows)
        self.out_proj = Linear(size, size, rows=rows)
        self.heads = tower_heads(config.layers)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        query = self.dialect.rotary(op, self.q_proj(op, x), angles.cos, angles.sin, self.heads.num)
        key = self.dialect.rotary(op, self.k_proj(op, x), angles.cos, angles.sin, self.heads.num)
        attended = self.dialect.attention(op, query, key, self.v_proj(op, x), self.heads, None)
        return self.out_proj(op, attended)


class _Layer(Module):
    def __init__(self, config: PaddleOCRTowerConfig, dialect: Dialect) -> None:
        super().__init__()
        size, eps = config.layers.hidden_size, config.layers.layer_norm_eps
        self.layer_norm1 = LayerNorm(size, eps)
        self.self_attn = _Attention(config, dialect)
        self.layer_norm2 = LayerNorm(size, eps)
        self.mlp = EncoderMLP(config.layers, rows=config.usual_rows)

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        x = op.Add(x, self.self_attn(op, self.layer_norm1(op, x), angles))
        return op.Add(x, self.mlp(op, self.layer_norm2(op, x)))


class _Encoder(Module):
    def __init__(self, config: PaddleOCRTowerConfig, dialect: Dialect) -> None:
        super().__init__()
        self.layers = ModuleList([_Layer(config, dialect) for _ in range(config.layers.num_layers)])

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        for layer in self.layers:
            x = layer(op, x, angles)
        return x


class PaddleOCRTower(Module):
    """Pixels to patches, and layers over them.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: PaddleOCRTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config, dialect)
        self.post_layernorm = LayerNorm(config.layers.hidden_size, config.layers.layer_norm_eps)
        self.head_size, self.theta = tower_heads(config.layers).size, config.theta

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D] of N patches, row by row, and their grid, from [I, 3, height, width]."""
        x, grid = self.embeddings(op, pixel_values)
        x = self.encoder(op, x, patch_angles(op, x, grid, self.head_size, self.theta))
        return self.post_layernorm(op, x), grid
