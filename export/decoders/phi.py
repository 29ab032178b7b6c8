"""Phi-1.5 and Phi-2 (arXiv 2309.05463): attention beside the feed-forward, and heads that turn in part."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig, Raw, read_sizes, require
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import ParallelLayer
from export.nn.dialect import Dialect
from export.nn.linear import Linear, activation
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


class _FeedForward(Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, rows=None)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, rows=None)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., D] from [..., D]."""
        return self.fc2(op, activation(op, self.hidden_act, self.fc1(op, x)))


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
        return ParallelLayer(norm, attention, _FeedForward(config))

    def norm(self, dialect: Dialect) -> Module:
        """Return the norm behind the last layer."""
        return LayerNorm(self.config.hidden_size, self.config.rms_norm_eps, name="final_layernorm")
