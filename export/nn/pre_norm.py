"""Transformer layers that are normed first, under the names of ViT's and FLAVA's checkpoints."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import TowerConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear, activation
from export.nn.module import Module, ModuleList
from export.nn.norms import LayerNorm
from export.nn.vit import tower_heads


class PreNormLayer(Module):
    """Attention and MLP, each with its residual, over `rows` vectors of one image or text.

    Args:
        config: The tower.
        dialect: How attention is written.
        rows: Vectors of one image or of the longest text.
        qkv_bias: Queries, keys and values have biases.
    """

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int, qkv_bias: bool) -> None:
        super().__init__()
        size, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.layernorm_before = LayerNorm(size, eps)
        self.query = Linear(size, size, rows=rows, bias=qkv_bias, name="attention.attention.query")
        self.key = Linear(size, size, rows=rows, bias=qkv_bias, name="attention.attention.key")
        self.value = Linear(size, size, rows=rows, bias=qkv_bias, name="attention.attention.value")
        self.attention_dense = Linear(size, size, rows=rows, name="attention.output.dense")
        self.layernorm_after = LayerNorm(size, eps)
        self.intermediate = Linear(size, inner, rows=rows, name="intermediate.dense")
        self.dense = Linear(inner, size, rows=rows, name="output.dense")
        self.hidden_act = config.hidden_act
        self.heads = tower_heads(config)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Return [B, T, D] from [B, T, D]; `bias` as for `Dialect.attention`."""
        normed = self.layernorm_before(op, x)
        query, key, value = self.query(op, normed), self.key(op, normed), self.value(op, normed)
        attended = self.dialect.attention(op, query, key, value, self.heads, bias)
        x = op.Add(x, self.attention_dense(op, attended))
        inner = activation(op, self.hidden_act, self.intermediate(op, self.layernorm_after(op, x)))
        return op.Add(x, self.dense(op, inner))


class PreNormEncoder(Module):
    """A stack of layers; arguments as of `PreNormLayer`."""

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int, qkv_bias: bool) -> None:
        super().__init__("encoder")
        layers = [PreNormLayer(config, dialect, rows=rows, qkv_bias=qkv_bias) for _ in range(config.num_layers)]
        self.layer = ModuleList(layers)

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        """Return [B, T, D] from [B, T, D]."""
        for layer in self.layer:
            x = layer(op, x, bias)
        return x
