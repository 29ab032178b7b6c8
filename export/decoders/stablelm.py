"""StableLM (arXiv 2402.17834): a Llama with LayerNorms, whose heads turn in part; with experts, DynMoE's host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from export.config import DecoderConfig, Raw, read_sizes, require
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import DecoderLayer, ParallelLayer
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.top_any import TopAnyMixture, experts_by_layer

DEFAULTS: Raw = {
    "vocab_size": 50_304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
}
_ROTARY_PART = 0.25


class StableLM(Decoder):
    """`model_type` stablelm.

    Args:
        config: Sizes.
        is_parallel: Attention and feed-forward read the same normed input.
        experts: How many a layer has in the place of its feed-forward, by number of the layer.
    """

    def __init__(self, config: DecoderConfig, *, is_parallel: bool, experts: Mapping[int, int] | None = None) -> None:
        super().__init__(config)
        self._is_parallel = is_parallel
        self._experts = experts or {}

    @classmethod
    def read(cls, raw: Raw) -> StableLM:
        """Return the decoder that a text config describes."""
        require(raw, [("qk_layernorm", False), ("head_dim", None)])
        merged = {**DEFAULTS, **raw}
        sizes = {**merged, "rms_norm_eps": merged["layer_norm_eps"]}
        has_bias = bool(merged.get("use_qkv_bias", False))
        config = read_sizes(sizes, qkv_bias=has_bias, default_rotary_part=_ROTARY_PART)
        # transformers reads neither key
        config = replace(config, out_bias=False, mlp_bias=False)
        is_parallel = bool(merged.get("use_parallel_residual", False))
        return cls(config, is_parallel=is_parallel, experts=experts_by_layer(raw, config.num_layers))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a gated feed-forward."""
        config, attention = self.config, CachedAttention(self.config, dialect, number)
        num = self._experts.get(number)
        feed_forward = GatedMLP(config) if num is None else TopAnyMixture(config, num, dialect)
        if self._is_parallel:
            return ParallelLayer(self.norm(dialect), attention, feed_forward)
        norms = self.norm(dialect), self.norm(dialect)
        return DecoderLayer(config, dialect, attention, feed_forward, norms)

    def norm(self, dialect: Dialect) -> Module:
        """Return a norm of hidden states."""
        return LayerNorm(self.config.hidden_size, self.config.rms_norm_eps)
