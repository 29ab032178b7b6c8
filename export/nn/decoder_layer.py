"""What the layers of every decoder take and give, and the layer that most of them are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.dialect import CacheRows, Dialect, Lengths
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.nn.rotary import Angles


@dataclass(frozen=True)
class Around:
    """What a layer knows of a run beside its hidden states.

    Attributes:
        angles: Of the rotary embeddings that the decoder turns by; most have one for all layers, some none.
        lengths: Of the layer's length group.
        more: The decoder's own inputs, in the order of `Decoder.inputs`.
        shared: What the decoder makes once for all layers (`Decoder.shared`).
    """

    angles: tuple[Angles, ...]
    lengths: Lengths
    more: tuple[ir.Value, ...] = ()
    shared: tuple[ir.Value, ...] = ()

    @property
    def first_angles(self) -> Angles | None:
        """Of most layers; None where nothing turns."""
        return self.angles[0] if self.angles else None


@dataclass(frozen=True)
class Left:
    """What a layer leaves behind.

    Attributes:
        hidden: [B, T, D].
        states: As it took them, changed.
        queries: Its last queries [B, W, H*C], rotated; None of a layer without attention over rows.
    """

    hidden: ir.Value
    states: tuple[ir.Value, ...]
    queries: ir.Value | None


def with_deep_features(op: OpBuilder, left: Left, around: Around, columns: tuple[int, int] | None) -> Left:
    """Return what a layer left, features of images added, as DeepStack does (Meng et al., arXiv 2406.04334).

    Args:
        op: The builder.
        left: By the layer.
        around: Whose first further input is `deep_features`, where the layer has columns.
        columns: Half-open range of `deep_features` that is the layer's; None: it takes none.
    """
    if columns is None:
        return left
    first, end = columns
    own = op.Slice(around.more[0], [first], [end], [2])
    return Left(op.Add(left.hidden, own), left.states, left.queries)


class DecoderLayer(Module):
    """Pre-norm attention and feed-forward, each with its residual.

    Args:
        config: Sizes of the norms.
        dialect: How they are written.
        attention: As `export.nn.attention.CachedAttention`.
        feed_forward: [B, T, D] -> [B, T, D].
        norms: Before attention and before the feed-forward; None: RMSNorms.
    """

    def __init__(
        self,
        config: DecoderConfig,
        dialect: Dialect,
        attention: Module,
        feed_forward: Module,
        norms: tuple[Module, Module] | None = None,
    ) -> None:
        super().__init__()
        first, second = norms or (RMSNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(2))
        self.input_layernorm = first
        self.self_attn = attention
        self.post_attention_layernorm = second
        self.mlp = feed_forward

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values."""
        normed, past = self.input_layernorm(op, x), CacheRows(*states)
        attended, present, queries = self.self_attn(op, normed, around.first_angles, past, around.lengths)
        x = op.Add(x, attended)
        x = op.Add(x, self.mlp(op, self.post_attention_layernorm(op, x)))
        return Left(x, (present.key, present.value), queries)


class ParallelLayer(Module):
    """Attention and feed-forward of one normed input, both added to it (Wang and Komatsuzaki, GPT-J-6B, 2021).

    Args:
        norm: Of the input.
        attention: As `export.nn.attention.CachedAttention`.
        feed_forward: [B, T, D] -> [B, T, D].
    """

    def __init__(self, norm: Module, attention: Module, feed_forward: Module) -> None:
        super().__init__()
        self.input_layernorm = norm
        self.self_attn = attention
        self.mlp = feed_forward

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values."""
        normed, past = self.input_layernorm(op, x), CacheRows(*states)
        attended, present, queries = self.self_attn(op, normed, around.first_angles, past, around.lengths)
        x = op.Add(x, op.Add(attended, self.mlp(op, normed)))
        return Left(x, (present.key, present.value), queries)
