"""Phi-1.5 and Phi-2 (arXiv 2309.05463): attention beside the feed-forward, and heads that turn in part."""

from __future__ import annotations

from dataclasses import replace

from export.config import Raw, read_sizes, require
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import ParallelLayer
from export.nn.dialect import Dialect
from export.nn.mlp import FeedForward
from export.nn.module import Module
from export.nn.norms import LayerNorm

DEFAULTS: Raw = {
    "vocab_size": 51_200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
}
_ROTARY_PART = 0.5


class Phi(Decoder):
    """`model_type` phi."""

    @classmethod
    def read(cls, raw: Raw) -> Phi:
        """Return the decoder that a text config describes."""
        require(raw, [("qk_layernorm", False)])
        merged = {**DEFAULTS, **raw}
        sizes = {**merged, "rms_norm_eps": merged["layer_norm_eps"]}
        return cls(replace(read_sizes(sizes, qkv_bias=True, default_rotary_part=_ROTARY_PART), out_bias=True))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and feed-forward of the same normed input."""
        config = self.config
        norm = LayerNorm(config.hidden_size, config.rms_norm_eps)
        attention = CachedAttention(config, dialect, number, out_name="dense")
        return ParallelLayer(norm, attention, FeedForward(config))

    def norm(self, dialect: Dialect) -> Module:
        """Return the norm behind the last layer."""
        return LayerNorm(self.config.hidden_size, self.config.rms_norm_eps, name="final_layernorm")
