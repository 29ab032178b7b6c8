"""A Llama whose tokens see the whole text, as an encoder of it (LLM2Vec, arXiv 2404.05961, section 2.1)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Embedding, Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList
from export.nn.norms import RMSNorm
from export.nn.rotary import Angles, rotary_angles
from export.nn.shared_heads import for_each_query
from export.nn.vit import attention_bias


class _Attention(Module):
    """Grouped queries over the whole text."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, rows: int) -> None:
        super().__init__()
        size, num, num_kv = config.head_size, config.num_heads, config.num_kv_heads
        self.q_proj = Linear(config.hidden_size, num * size, rows=rows, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, num_kv * size, rows=rows, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, num_kv * size, rows=rows, bias=config.qkv_bias)
        self.o_proj = Linear(num * size, config.hidden_size, rows=rows, bias=config.out_bias)
        self.heads = Heads(num, num, size, float(size) ** -0.5)
        self.num_kv, self.dialect = num_kv, dialect

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles, bias: ir.Value) -> ir.Value:
        query = self.dialect.rotary(op, self.q_proj(op, x), angles.cos, angles.sin, self.heads.num)
        key = self.dialect.rotary(op, self.k_proj(op, x), angles.cos, angles.sin, self.num_kv)
        shared = self.heads.num, self.num_kv, self.heads.size
        key, value = (for_each_query(op, each, *shared) for each in (key, self.v_proj(op, x)))
        return self.o_proj(op, self.dialect.attention(op, query, key, value, self.heads, bias))


class BidirectionalLayer(Module):
    """Attention as far as a bias lets it see, and a gated feed-forward.

    Args:
        config: Sizes.
        dialect: How attention is written.
        rows: Tokens of the longest text, or of an image.
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect, rows: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dialect)
        self.self_attn = _Attention(config, dialect, rows)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dialect)
        self.mlp = GatedMLP(config, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles, bias: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D]; `bias` as for `Dialect.attention`."""
        x = op.Add(x, self.self_attn(op, self.input_layernorm(op, x), angles, bias))
        return op.Add(x, self.mlp(op, self.post_attention_layernorm(op, x)))


class BidirectionalLlama(Module):
    """Token ids to normed hidden states.

    Args:
        config: Sizes.
        dialect: How attention is written.
        rows: Tokens of the longest text.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect, *, rows: int, name: str) -> None:
        super().__init__(name)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = ModuleList([BidirectionalLayer(config, dialect, rows) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dialect)
        self.config = config

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T] ids and mask; a text starts at position 0."""
        bias = attention_bias(op, attention_mask, is_causal=False)
        places = op.Unsqueeze(op.Range(0, op.Squeeze(op.Shape(input_ids, start=1, end=2), [0]), 1), [0])
        position_ids = op.Expand(places, op.Shape(input_ids))
        angles = rotary_angles(op, position_ids, self.config.rope, self.config.head_size)
        x = self.embed_tokens(op, input_ids)
        for layer in self.layers:
            x = layer(op, x, angles, bias)
        return self.norm(op, x)
