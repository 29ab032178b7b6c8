"""KOSMOS-2's decoder (arXiv 2306.14824), Magneto (2210.06423): norms within attention and feed-forward, sine places."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, Raw, read_sizes, require
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import DecoderLayer
from export.nn.dialect import Dialect
from export.nn.linear import Linear, activation
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.rotary import Angles
from export.nn.sine_places import sine_places

DEFAULTS: Raw = {
    "vocab_size": 65_037,
    "max_position_embeddings": 2048,
    "embed_dim": 2048,
    "layers": 24,
    "ffn_dim": 8192,
    "attention_heads": 32,
    "activation_function": "gelu",
    "layer_norm_eps": 1e-5,
    "scale_embedding": True,
    "pad_token_id": 1,
}


class _Entrance(Module):
    """Embeddings and features scaled, and the sines and cosines of their places added.

    Args:
        size: D, even.
        scale: Of both.
        first: Place of the first token.
    """

    def __init__(self, size: int, scale: float, first: int) -> None:
        super().__init__("")
        self.size, self.scale, self.first = size, scale, first

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value) -> ir.Value:
        """Return [B, T, D] from x [B, T, D] at places [B, T]."""
        places = sine_places(op, op.Add(position_ids, self.first), self.size)
        return op.Add(op.Mul(x, self.scale), places)


class _FeedForward(Module):
    """fc2(norm(act(fc1(x))))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__("ffn")
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, rows=None)
        self.norm = LayerNorm(config.intermediate_size, config.rms_norm_eps, name="ffn_layernorm")
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, rows=None)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.fc2(op, self.norm(op, activation(op, self.hidden_act, self.fc1(op, x))))


class Kosmos2Text(Decoder):
    """`model_type` kosmos_2_text_model.

    Args:
        config: Sizes.
        scale: Of embeddings and features.
        first: Place of the first token.
    """

    def __init__(self, config: DecoderConfig, scale: float, first: int) -> None:
        super().__init__(config)
        self._scale, self._first = scale, first

    @classmethod
    def read(cls, raw: Raw) -> Kosmos2Text:
        """Return the decoder that a text config describes.

        Raises:
            UnsupportedConfigError: It looks across at another encoder, or its width is odd.
        """
        require(raw, [("add_cross_attention", False)])
        merged = {**DEFAULTS, **raw}
        size = merged.get("hidden_size", merged["embed_dim"])
        if size % 2:
            raise UnsupportedConfigError(f"text_config.embed_dim {size}: sines and cosines want an even width")
        sizes = {
            **merged,
            "hidden_size": size,
            "num_hidden_layers": merged["layers"],
            "num_attention_heads": merged["attention_heads"],
            "intermediate_size": merged["ffn_dim"],
            "hidden_act": merged["activation_function"],
            "rms_norm_eps": merged["layer_norm_eps"],
            "attention_bias": True,
        }
        scale = math.sqrt(size) if merged["scale_embedding"] else 1.0
        return cls(read_sizes(sizes, qkv_bias=True), scale, int(merged["pad_token_id"]) + 1)

    def entrance(self) -> Module:
        """Return scale and places."""
        return _Entrance(self.config.hidden_size, self._scale, self._first)

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return none: nothing turns."""
        return ()

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a feed-forward, each with a norm within."""
        config = self.config
        inner = self._norm("inner_attn_ln")
        attention = CachedAttention(config, dialect, number, out_name="out_proj", out_norm=inner)
        norms = self._norm("self_attn_layer_norm"), self._norm("final_layer_norm")
        return DecoderLayer(config, dialect, attention, _FeedForward(config), norms)

    def norm(self, dialect: Dialect) -> Module:
        """Return the norm behind the last layer."""
        return self._norm("layer_norm")

    def _norm(self, name: str) -> Module:
        return LayerNorm(self.config.hidden_size, self.config.rms_norm_eps, name=name)
