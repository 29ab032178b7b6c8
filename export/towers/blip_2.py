"""BLIP-2's tower, which is EVA-CLIP's (arXiv 2211.07636): a class token, packed projections, a norm behind all."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, TowerConfig, VisionConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear, PackedLinear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import EncoderMLP, PatchEmbedding, tower_heads

VISION_DEFAULTS: Raw = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
_PACKED = ("qkv.weight", "qkv.bias")


class _Embeddings(Module):
    """A class token, then patches, and positions for both."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, self.num_rows = config.tower.hidden_size, config.grid**2 + 1
        self.class_embedding = Weight(1, 1, width)
        self.patch_embedding = PatchEmbedding(config, bias=True)
        self.position_embedding = Weight(1, self.num_rows, width)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, 1 + patches, D]."""
        patches = self.patch_embedding(op, pixel_values)
        first = op.Expand(self.class_embedding, op.Concat(op.Shape(patches, start=0, end=1), [1, 1], axis=0))
        return op.Add(op.Concat(first, patches, axis=1), self.position_embedding)


class _Attention(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size, self.heads = config.hidden_size, tower_heads(config)
        self.query, self.key, self.value = (
            PackedLinear(size, part, f"{name}_proj", _PACKED, rows=rows) for part, name in enumerate("qkv")
        )
        self.projection = Linear(size, size, rows=rows)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        query, key, value = self.query(op, x), self.key(op, x), self.value(op, x)
        return self.projection(op, self.dialect.attention(op, query, key, value, self.heads, None))


class _Layer(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = _Attention(config, dialect, rows=rows)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = EncoderMLP(config, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        x = op.Add(x, self.self_attn(op, self.layer_norm1(op, x)))
        return op.Add(x, self.mlp(op, self.layer_norm2(op, x)))


class _Layers(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.layers = ModuleList([_Layer(config, dialect, rows=rows) for _ in range(config.num_layers)])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for layer in self.layers:
            x = layer(op, x)
        return x


class Blip2Tower(Module):
    """Pixels to normed hidden states, of the class token as well.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: VisionConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config)
        self.num_rows = self.embeddings.num_rows
        self.encoder = _Layers(config.tower, dialect, rows=self.num_rows)
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, 1 + patches, D] from [I, 3, height, width]."""
        return self.post_layernorm(op, self.encoder(op, self.embeddings(op, pixel_values)))
