"""OPT (arXiv 2205.01068): learned positions, LayerNorms, biases, and a feed-forward of two matrices."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, Raw, read_sizes, require
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import DecoderLayer
from export.nn.dialect import Dialect
from export.nn.linear import Embedding
from export.nn.mlp import FeedForward
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.rotary import Angles

DEFAULTS: Raw = {
    "vocab_size": 50_272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "num_attention_heads": 12,
    "activation_function": "relu",
}
_EPS = 1e-5
"""Of PyTorch's LayerNorm, which no config of the model changes."""
_FIRST_ROW = 2
"""Of the table of positions, for position 0 (transformers, `OPTLearnedPositionalEmbedding`)."""


class _Places(Module):
    """Learned positions, added to embeddings."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__("")
        self.embed_positions = Embedding(config.max_positions + _FIRST_ROW, config.hidden_size)

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value) -> ir.Value:
        """Return x [B, T, D] plus the rows of its places [B, T]."""
        return op.Add(x, self.embed_positions(op, op.Add(position_ids, _FIRST_ROW)))


class OPT(Decoder):
    """`model_type` opt."""

    @classmethod
    def read(cls, raw: Raw) -> OPT:
        """Return the decoder that a text config describes.

        Raises:
            UnsupportedConfigError: A switch of its smallest size, or one that no published size has.
        """
        require(
            raw,
            [
                ("do_layer_norm_before", True),
                ("_remove_final_layer_norm", False),
                ("enable_bias", True),
                ("layer_norm_elementwise_affine", True),
            ],
        )
        merged = {**DEFAULTS, **raw}
        inner = merged.get("word_embed_proj_dim")
        if inner not in (None, merged["hidden_size"]):
            raise UnsupportedConfigError(
                f"text_config.word_embed_proj_dim {inner}: embeddings of another width than hidden_size "
                f"{merged['hidden_size']} are not built"
            )
        sizes = {
            **merged,
            "intermediate_size": merged["ffn_dim"],
            "hidden_act": merged["activation_function"],
            "rms_norm_eps": _EPS,
            "attention_bias": True,
        }
        return cls(read_sizes(sizes, qkv_bias=True))

    def entrance(self) -> Module:
        """Return learned positions."""
        return _Places(self.config)

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return none: nothing turns."""
        return ()

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a feed-forward."""
        config = self.config
        attention = CachedAttention(config, dialect, number, out_name="out_proj")
        norms = self._norm("self_attn_layer_norm"), self._norm("final_layer_norm")
        return DecoderLayer(config, dialect, attention, FeedForward(config, name=""), norms)

    def norm(self, dialect: Dialect) -> Module:
        """Return the norm behind the last layer."""
        return self._norm("final_layer_norm")

    def _norm(self, name: str) -> Module:
        return LayerNorm(self.config.hidden_size, _EPS, name=name)
