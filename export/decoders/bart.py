"""BART's decoder (arXiv 1910.13461): learned positions, norms behind sums, and a memory that every layer attends to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.manifest import TensorSpec
from bundle.states import MemoryPlace, State
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.bart_encoder import FIRST_PLACE
from export.nn.cross_attention import MemoryAttention
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect
from export.nn.linear import Embedding
from export.nn.mlp import FeedForward
from export.nn.module import Module
from export.nn.norms import LayerNorm, Nothing
from export.nn.rotary import Angles

DEFAULTS: Raw = {
    "vocab_size": 50_265,
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "activation_function": "gelu",
    "max_position_embeddings": 1024,
}
EPS = 1e-5
"""Of PyTorch's LayerNorm, which no config of the model changes."""
MEMORY_ROWS = "memory_rows"
"""How many rows of what the encoder made a sequence can hold; the family adds it to the text config."""


class Entrance(Module):
    """Learned positions added to embeddings, and a norm of the sum.

    Args:
        config: Sizes.
        is_normed: There is such a norm.
    """

    def __init__(self, config: DecoderConfig, *, is_normed: bool = True) -> None:
        super().__init__("")
        self.embed_positions = Embedding(config.max_positions + FIRST_PLACE, config.hidden_size)
        self.layernorm_embedding = LayerNorm(config.hidden_size, EPS) if is_normed else None

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value) -> ir.Value:
        """Return [B, T, D] of x [B, T, D] at places [B, T]."""
        placed = op.Add(x, self.embed_positions(op, op.Add(position_ids, FIRST_PLACE)))
        return placed if self.layernorm_embedding is None else self.layernorm_embedding(op, placed)


class _Layer(Module):
    """Attention to what was said, attention to the memory, a feed-forward: each normed with its residual.

    Args:
        config: Sizes.
        dialect: How attention is written.
        number: Of the layer.
        norms_first: Norms stand before the three, and not behind the sums (mBART).
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect, number: int, *, norms_first: bool) -> None:
        super().__init__()
        self.self_attn = CachedAttention(config, dialect, number, out_name="out_proj")
        self.self_attn_layer_norm = LayerNorm(config.hidden_size, EPS)
        self.encoder_attn = MemoryAttention(config, bias=True, out_name="out_proj")
        self.encoder_attn_layer_norm = LayerNorm(config.hidden_size, EPS)
        self.feed_forward = FeedForward(config, name="")
        self.final_layer_norm = LayerNorm(config.hidden_size, EPS)
        self.norms_first = norms_first

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values of text, then those of the memory."""
        past, memory = CacheRows(*states[:2]), states[2:]
        given = self._before(op, self.self_attn_layer_norm, x)
        attended, present, queries = self.self_attn(op, given, around.first_angles, past, around.lengths)
        x = self._behind(op, self.self_attn_layer_norm, op.Add(x, attended))
        given = self._before(op, self.encoder_attn_layer_norm, x)
        seen = self.encoder_attn(op, given, *memory, around.more[0])
        x = self._behind(op, self.encoder_attn_layer_norm, op.Add(x, seen))
        given = self._before(op, self.final_layer_norm, x)
        x = self._behind(op, self.final_layer_norm, op.Add(x, self.feed_forward(op, given)))
        return Left(x, (present.key, present.value), queries)

    def _before(self, op: OpBuilder, norm: LayerNorm, x: ir.Value) -> ir.Value:
        return norm(op, x) if self.norms_first else x

    def _behind(self, op: OpBuilder, norm: LayerNorm, x: ir.Value) -> ir.Value:
        return x if self.norms_first else norm(op, x)


class Bart(Decoder):
    """`model_type` bart, its decoder.

    Class attributes:
        defaults: Of the text config.
        norms_first: As of its layers; another norm then stands behind the last.

    Args:
        config: Sizes.
        memory_rows: M, of one sequence.
        scale: Of rows of the table of tokens.
    """

    defaults: ClassVar[Raw] = DEFAULTS
    norms_first: ClassVar[bool] = False

    def __init__(self, config: DecoderConfig, memory_rows: int, scale: float = 1.0) -> None:
        super().__init__(config)
        self._memory_rows, self._scale = memory_rows, scale

    @classmethod
    def read(cls, raw: Raw) -> Self:
        """Return the decoder that a text config describes, with `MEMORY_ROWS` beside its own keys."""
        merged = {**cls.defaults, **raw}
        sizes = {
            **merged,
            "hidden_size": merged["d_model"],
            "num_hidden_layers": merged["decoder_layers"],
            "num_attention_heads": merged["decoder_attention_heads"],
            "intermediate_size": merged["decoder_ffn_dim"],
            "hidden_act": merged["activation_function"],
            "rms_norm_eps": EPS,
            "attention_bias": True,
        }
        scale = math.sqrt(merged["d_model"]) if merged.get("scale_embedding") else 1.0
        return cls(read_sizes(sizes, qkv_bias=True), int(merged.get(MEMORY_ROWS, 1)), scale)

    @property
    def embedding_scale(self) -> float:
        """The root of the width where the config says so."""
        return self._scale

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What each token sees of the memory."""
        return (TensorSpec(name=tensors.MEMORY_SEEN, dtype="int64", shape=("B", "T", 3)),)

    def entrance(self) -> Module:
        """Return learned positions and their norm."""
        return Entrance(self.config)

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return none: nothing turns."""
        return ()

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return both attentions and a feed-forward."""
        return _Layer(self.config, dialect, number, norms_first=self.norms_first)

    def norm(self, dialect: Dialect) -> Module:
        """Return nothing where the last layer ends with a norm."""
        if self.norms_first:
            return LayerNorm(self.config.hidden_size, EPS, name="layer_norm")
        return Nothing()

    def states_of(self, number: int) -> tuple[State, ...]:
        """Return keys and values of text, then those of the memory."""
        return (*super().states_of(number), *memory_states(self.config, number, self._memory_rows))


def memory_states(config: DecoderConfig, number: int, num_rows: int) -> tuple[State, State]:
    """Return the keys and values of a memory that a layer looks at, side by side in a row with those of all others.

    Args:
        config: Sizes.
        number: Of the layer.
        num_rows: M, of one sequence.
    """
    heads, size = config.num_kv_heads, config.head_size
    first = 2 * number * heads * size
    key = MemoryPlace(first_column=first, row_axis=3)
    value = MemoryPlace(first_column=first + heads * size, row_axis=2)
    return (
        _memory(f"cross_key_values.{number}.key", ("B", heads, size, num_rows), key),
        _memory(f"cross_key_values.{number}.value", ("B", heads, num_rows, size), value),
    )


def _memory(name: str, shape: tuple[int | str, ...], place: MemoryPlace) -> State:
    return State(input=name, kind="memory", dtype="float32", shape=shape, memory=place)
