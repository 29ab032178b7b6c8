"""Mono-InternVL's decoder (arXiv 2410.08202, section 3.1): an InternLM2 with weights of their own for tokens of images.

Every layer has a feed-forward for text and one for images, of which a token meets one by what it stands for. Version
1.5 (arXiv 2507.12566) has such pairs in attention as well: queries, keys, values and the output projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.manifest import TensorSpec
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import Around, DecoderLayer, Left
from export.nn.dialect import CacheRows, Dialect, Lengths
from export.nn.linear import Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.rotary import Angles

_DEFAULTS: Raw = {
    "vocab_size": 103_168,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "bias": True,
}
ATTENTION_EXPERTS = "visual_attention_experts"
"""Key of `llm_config`: attention has experts too."""


def as_llama(raw: Raw) -> Raw:
    """Return an InternLM2's config in Llama's words: `bias` is attention's, feed-forwards have none."""
    merged = {**_DEFAULTS, **raw}
    return {**merged, "attention_bias": bool(merged["bias"]), "mlp_bias": False, "head_dim": None}


class _Attention(CachedAttention):
    """Attention whose four matrices are there twice, for text and for images."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, number: int) -> None:
        super().__init__(config, dialect, number)
        width, size, biased = config.hidden_size, config.head_size, config.qkv_bias
        self.q_proj_ve = Linear(width, config.num_heads * size, rows=None, bias=biased)
        self.k_proj_ve = Linear(width, config.num_kv_heads * size, rows=None, bias=biased)
        self.v_proj_ve = Linear(width, config.num_kv_heads * size, rows=None, bias=biased)
        self.o_proj_ve = Linear(config.num_heads * size, width, rows=None, bias=config.out_bias)

    def forward(
        self,
        op: OpBuilder,
        x: ir.Value,
        angles: Angles | None,
        past: CacheRows,
        lengths: Lengths,
        is_image: ir.Value | None = None,
    ) -> tuple[ir.Value, CacheRows, ir.Value]:
        """Return [B, T, D], the cache with T more rows per sequence, and the last queries, as text and images want."""
        if is_image is None:
            raise ValueError("attention with experts wants to know which tokens stand for images")
        pairs = (self.q_proj, self.q_proj_ve), (self.k_proj, self.k_proj_ve), (self.v_proj, self.v_proj_ve)
        query, key, value = (_by_kind(self.dialect, op, x, is_image, *pair) for pair in pairs)
        attended, present, queries = self.attend(op, (query, key, value), angles, past, lengths)
        return _by_kind(self.dialect, op, attended, is_image, self.o_proj, self.o_proj_ve), present, queries


class _Layer(DecoderLayer):
    """Pre-norm attention and feed-forward, the latter or both by what a token stands for.

    Args:
        config: Sizes.
        dialect: How it is written.
        number: Of the layer.
        in_attention: There are matrices for images in attention.
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect, number: int, *, in_attention: bool) -> None:
        attention = (_Attention if in_attention else CachedAttention)(config, dialect, number)
        super().__init__(config, dialect, attention, GatedMLP(config))
        self.mlp_ve = GatedMLP(config)
        self.in_attention, self.dialect = in_attention, dialect

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values."""
        (is_image,) = around.more
        told = [is_image] if self.in_attention else []
        seen = around.first_angles, CacheRows(*states), around.lengths
        attended, present, queries = self.self_attn(op, self.input_layernorm(op, x), *seen, *told)
        x = op.Add(x, attended)
        fed = _by_kind(self.dialect, op, self.post_attention_layernorm(op, x), is_image, self.mlp, self.mlp_ve)
        return Left(op.Add(x, fed), (present.key, present.value), queries)


def _by_kind(
    dialect: Dialect, op: OpBuilder, x: ir.Value, is_image: ir.Value, text: Module, images: Module
) -> ir.Value:
    return dialect.by_kind(op, x, is_image, lambda rows: text(op, rows), lambda rows: images(op, rows))


class InternLM2VE(Decoder):
    """InternLM2 with visual experts.

    Args:
        config: Sizes.
        in_attention: There are experts in attention.
    """

    def __init__(self, config: DecoderConfig, *, in_attention: bool) -> None:
        super().__init__(config)
        self._in_attention = in_attention

    @classmethod
    def read(cls, raw: Raw) -> InternLM2VE:
        """Return the decoder that a text config describes."""
        words = as_llama(raw)
        sizes = read_sizes(words, qkv_bias=bool(words["attention_bias"]))
        return cls(sizes, in_attention=bool(raw.get(ATTENTION_EXPERTS, False)))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Which tokens stand for images."""
        return (TensorSpec(name=tensors.IS_IMAGE, dtype="bool", shape=("B", "T")),)

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return a layer of two kinds of weights."""
        return _Layer(self.config, dialect, number, in_attention=self._in_attention)
