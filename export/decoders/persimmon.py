"""Persimmon (Adept, "Releasing Persimmon-8B", 2023): squared ReLU, heads that are normed, and turn in part."""

from __future__ import annotations

from dataclasses import replace

from export.config import DecoderConfig, Raw, read_sizes, require
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import DecoderLayer
from export.nn.dialect import Dialect
from export.nn.mlp import FeedForward
from export.nn.module import Module
from export.nn.norms import LayerNorm

DEFAULTS: Raw = {
    "vocab_size": 262_144,
    "hidden_size": 4096,
    "intermediate_size": 16_384,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "hidden_act": "relu2",
    "max_position_embeddings": 16_384,
    "layer_norm_eps": 1e-5,
}
_ROTARY_PART = 0.5


class Persimmon(Decoder):
    """`model_type` persimmon; its projections are single matrices, which the checkpoint keeps in one.

    Args:
        config: Sizes.
        norms_heads: Queries and keys are normed, each head by itself.
    """

    def __init__(self, config: DecoderConfig, *, norms_heads: bool) -> None:
        super().__init__(config)
        self._norms_heads = norms_heads

    @classmethod
    def read(cls, raw: Raw) -> Persimmon:
        """Return the decoder that a text config describes."""
        # sizes of Llama's kinds, which transformers' model does not read
        require(raw, [("head_dim", None), ("num_key_value_heads", raw.get("num_attention_heads"))])
        merged = {**DEFAULTS, **raw, "num_key_value_heads": None}
        sizes = {**merged, "rms_norm_eps": merged["layer_norm_eps"]}
        config = read_sizes(sizes, qkv_bias=True, default_rotary_part=_ROTARY_PART)
        return cls(replace(config, out_bias=True), norms_heads=bool(merged.get("qk_layernorm", True)))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a feed-forward, each behind a LayerNorm."""
        config = self.config
        attention = CachedAttention(
            config, dialect, number, self._head_norms(), out_name="dense", has_ordered_norms=True
        )
        norms = (LayerNorm(config.hidden_size, config.rms_norm_eps), LayerNorm(config.hidden_size, config.rms_norm_eps))
        return DecoderLayer(config, dialect, attention, FeedForward(config), norms)

    def norm(self, dialect: Dialect) -> Module:
        """Return the norm behind the last layer."""
        return LayerNorm(self.config.hidden_size, self.config.rms_norm_eps, name="final_layernorm")

    def _head_norms(self) -> tuple[Module, Module] | None:
        if not self._norms_heads:
            return None
        size, eps = self.config.head_size, self.config.rms_norm_eps
        order = self.config.rope.head_order(size)
        return LayerNorm(size, eps, name="q_layernorm", order=order), LayerNorm(
            size, eps, name="k_layernorm", order=order
        )
