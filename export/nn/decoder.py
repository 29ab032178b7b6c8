"""The Llama-shaped causal decoder: rotary positions, grouped-query attention over a fixed cache, gated MLP."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.dialect import CacheRows, Dialect, Heads, Lengths
from export.nn.linear import Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList
from export.nn.moe import MIXTURES
from export.nn.norms import RMSNorm
from export.nn.rotary import Angles, rotary_angles
from graphs.segments import hidden_name, keys_name, queries_name
from quant.kv.policy import WINDOW_TOKENS

_TO_THE_END = 2**31 - 1


class CachedAttention(Module):
    """Grouped-query attention (Ainslie et al., arXiv 2305.13245) that appends to a cache."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, layer: int) -> None:
        super().__init__()
        self.layer = layer
        size, heads, kv_heads = config.head_size, config.num_heads, config.num_kv_heads
        self.q_proj = Linear(config.hidden_size, heads * size, rows=None, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, kv_heads * size, rows=None, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, kv_heads * size, rows=None, bias=config.qkv_bias)
        self.o_proj = Linear(heads * size, config.hidden_size, rows=None, bias=config.out_bias)
        self.heads = Heads(heads, kv_heads, size, float(size) ** -0.5)
        self.dialect = dialect

    def forward(
        self, op: OpBuilder, x: ir.Value, angles: Angles, past: CacheRows, lengths: Lengths
    ) -> tuple[ir.Value, CacheRows, ir.Value]:
        """Return [B, T, D], the cache with T more rows per sequence, and the last queries [B, W, H*C]."""
        query = self.dialect.rotary(op, self.q_proj(op, x), angles.cos, angles.sin, self.heads.num)
        key = self.dialect.rotary(op, self.k_proj(op, x), angles.cos, angles.sin, self.heads.num_kv)
        query.name, key.name = queries_name(self.layer), keys_name(self.layer)
        value = self.v_proj(op, x)
        attended, present = self.dialect.cached_attention(op, query, key, value, past, lengths, self.heads)
        return self.o_proj(op, attended), present, op.Slice(query, [-WINDOW_TOKENS], [_TO_THE_END], [1])


class DecoderLayer(Module):
    """Pre-norm attention and MLP, each with its residual."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dialect)
        self.self_attn = CachedAttention(config, dialect, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dialect)
        self.mlp = _feed_forward(config, dialect)

    def forward(
        self, op: OpBuilder, x: ir.Value, angles: Angles, past: CacheRows, lengths: Lengths
    ) -> tuple[ir.Value, CacheRows, ir.Value]:
        """Return [B, T, D], the layer's cache and its last queries."""
        attended, present, queries = self.self_attn(op, self.input_layernorm(op, x), angles, past, lengths)
        x = op.Add(x, attended)
        return op.Add(x, self.mlp(op, self.post_attention_layernorm(op, x))), present, queries


def _feed_forward(config: DecoderConfig, dialect: Dialect) -> Module:
    return GatedMLP(config) if config.experts is None else MIXTURES[dialect.name](config, config.experts)


class DecoderStack(Module):
    """All layers and the final norm; `name` is where the checkpoint keeps them."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.layers = ModuleList([DecoderLayer(config, dialect, layer) for layer in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dialect)

    def forward(
        self,
        op: OpBuilder,
        x: ir.Value,
        angles: Angles,
        past: list[CacheRows],
        lengths: list[Lengths],
        rows: ir.Value,
    ) -> tuple[ir.Value, list[CacheRows], list[ir.Value]]:
        """Return the normed hidden states of `rows` [B, N, D], every layer's cache and its last queries.

        `lengths` are each layer's.
        """
        presents, queries = [], []
        for number, (layer, cache, of_layer) in enumerate(zip(self.layers, past, lengths, strict=True), 1):
            x, present, last_queries = layer(op, x, angles, cache, of_layer)
            x.name = hidden_name(number)
            presents.append(present)
            queries.append(last_queries)
        wanted = op.GatherND(x, op.Unsqueeze(rows, [2]), batch_dims=1)
        return self.norm(op, wanted), presents, queries


class CausalDecoder(Module):
    """embeddings -> logits with the cache: the graph `decoder.onnx`.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps the stack, e.g. "model.text_model".
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect, name: str) -> None:
        super().__init__()
        self.stack = DecoderStack(config, dialect, name)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, rows=None, role="head", bias=False)
        self.config = config
        self.dialect = dialect

    def forward(
        self,
        op: OpBuilder,
        inputs_embeds: ir.Value,
        position_ids: ir.Value,
        past_lengths: ir.Value,
        logits_indices: ir.Value,
        *cache: ir.Value,
    ) -> tuple[ir.Value, ...]:
        """Return logits [B, N, V], each layer's last queries, and the presents, key and value of each layer in turn."""
        angles = rotary_angles(op, position_ids, self.config.rope, self.config.head_size)
        past = [CacheRows(key, value) for key, value in zip(cache[::2], cache[1::2], strict=True)]
        of_layer = self.config.length_groups
        of_group = [
            self.dialect.lengths(
                op, inputs_embeds, op.Gather(past_lengths, group, axis=0), past[of_layer.index(group)].key
            )
            for group in range(self.config.num_length_groups)
        ]
        lengths = [of_group[group] for group in of_layer]
        hidden, presents, queries = self.stack(op, inputs_embeds, angles, past, lengths, logits_indices)
        rows = (rows for present in presents for rows in (present.key, present.value))
        return self.lm_head(op, hidden), *queries, *rows
