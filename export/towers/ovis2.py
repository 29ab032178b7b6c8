"""Ovis2's tower, which is AIMv2's (arXiv 2411.14402): RMS norms, gated feed-forwards, patches normed before places."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, TowerConfig, VisionConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList
from export.nn.norms import RMSNorm
from export.nn.vit import PatchEmbedding, PositionTable, tower_heads

VISION_DEFAULTS: Raw = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 14,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


@dataclass(frozen=True)
class Ovis2TowerConfig:
    """Sizes of the tower.

    Attributes:
        vision: Of patches and layers; its eps is the RMS norms'.
        qkv_bias: All four matrices of attention have biases.
        mlp_bias: All three matrices of the feed-forward have.
    """

    vision: VisionConfig
    qkv_bias: bool
    mlp_bias: bool

    @classmethod
    def read(cls, raw: Raw) -> Ovis2TowerConfig:
        """Return the tower of a vision config."""
        full = {**VISION_DEFAULTS, **raw}
        return cls(
            VisionConfig.read({**full, "layer_norm_eps": full["rms_norm_eps"]}, VISION_DEFAULTS),
            qkv_bias=bool(full.get("qkv_bias", False)),
            mlp_bias=bool(full.get("mlp_bias", False)),
        )

    @property
    def tower(self) -> TowerConfig:
        """Of layers."""
        return self.vision.tower

    @property
    def hidden_size(self) -> int:
        """Width of a patch."""
        return self.tower.hidden_size

    @property
    def intermediate_size(self) -> int:
        """Width inside a feed-forward."""
        return self.tower.intermediate_size

    @property
    def hidden_act(self) -> str:
        """Of the feed-forward's gate."""
        return self.tower.hidden_act

    @property
    def num_rows(self) -> int:
        """Patches of a tile."""
        return self.vision.grid**2


class _Embeddings(Module):
    def __init__(self, config: Ovis2TowerConfig, dialect: Dialect) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config.vision, bias=True)
        self.rms_norm = RMSNorm(config.hidden_size, config.tower.layer_norm_eps, dialect)
        self.position_embedding = PositionTable(config.num_rows, config.hidden_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.position_embedding(op, self.rms_norm(op, self.patch_embedding(op, pixel_values)))


class _Attention(Module):
    def __init__(self, config: Ovis2TowerConfig, dialect: Dialect) -> None:
        super().__init__()
        size, rows, bias = config.hidden_size, config.num_rows, config.qkv_bias
        self.q_proj = Linear(size, size, rows=rows, bias=bias)
        self.k_proj = Linear(size, size, rows=rows, bias=bias)
        self.v_proj = Linear(size, size, rows=rows, bias=bias)
        self.out_proj = Linear(size, size, rows=rows, bias=bias)
        self.heads = tower_heads(config.tower)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        query, key, value = self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x)
        return self.out_proj(op, self.dialect.attention(op, query, key, value, self.heads, None))


class _Layer(Module):
    def __init__(self, config: Ovis2TowerConfig, dialect: Dialect) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.tower.layer_norm_eps
        self.rms_norm1, self.rms_norm2 = RMSNorm(size, eps, dialect), RMSNorm(size, eps, dialect)
        self.attention = _Attention(config, dialect)
        self.ffn = GatedMLP(config, rows=config.num_rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        x = op.Add(x, self.attention(op, self.rms_norm1(op, x)))
        return op.Add(x, self.ffn(op, self.rms_norm2(op, x)))


class _Layers(Module):
    def __init__(self, config: Ovis2TowerConfig, dialect: Dialect) -> None:
        super().__init__()
        self.layers = ModuleList([_Layer(config, dialect) for _ in range(config.tower.num_layers)])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for layer in self.layers:
            x = layer(op, x)
        return x


class Ovis2Tower(Module):
    """Pixels to normed hidden states.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: Ovis2TowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config, dialect)
        self.encoder = _Layers(config, dialect)
        self.rms_norm = RMSNorm(config.hidden_size, config.tower.layer_norm_eps, dialect)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, patches, D] from [I, 3, height, width]."""
        return self.rms_norm(op, self.encoder(op, self.embeddings(op, pixel_values)))
