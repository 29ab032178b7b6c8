"""Qwen3 (arXiv 2505.09388): a Llama that norms the queries and keys of every head."""

from __future__ import annotations

from export.config import Raw, read_sizes
from export.decoders import qwen2
from export.decoders.decoder import Decoder
from export.decoders.qwen2 import refuse_windows
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import DecoderLayer
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.norms import RMSNorm

DEFAULTS: Raw = {**qwen2.DEFAULTS, "head_dim": 128}


class Qwen3(Decoder):
    """`model_type` qwen3."""

    @classmethod
    def read(cls, raw: Raw) -> Qwen3:
        """Return the decoder that a text config describes."""
        refuse_windows(raw)
        # transformers reads no mlp_bias
        merged = {**DEFAULTS, **raw, "mlp_bias": False}
        return cls(read_sizes(merged, qkv_bias=bool(merged.get("attention_bias", False))))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention with norms of queries and keys, and a gated feed-forward."""
        config = self.config
        query_norm, key_norm = (RMSNorm(config.head_size, config.rms_norm_eps, dialect) for _ in range(2))
        attention = CachedAttention(config, dialect, number, (query_norm, key_norm))
        return DecoderLayer(config, dialect, attention, GatedMLP(config))
