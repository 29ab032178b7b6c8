"""Llama (arXiv 2302.13971): rotary positions, grouped queries, a gated feed-forward."""

from __future__ import annotations

from export.config import Raw, read_sizes
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import DecoderLayer
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module

DEFAULTS: Raw = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}


class Llama(Decoder):
    """`model_type` llama."""

    @classmethod
    def read(cls, raw: Raw) -> Llama:
        """Return the decoder that a text config describes."""
        return cls(read_sizes({**DEFAULTS, **raw}, qkv_bias=bool(raw.get("attention_bias", False))))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a gated feed-forward."""
        attention = CachedAttention(self.config, dialect, number)
        return DecoderLayer(self.config, dialect, attention, GatedMLP(self.config))
