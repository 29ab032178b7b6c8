"""How the operations that ONNX can spell in two ways are written.

Every module calls its dialect for them and is otherwise the same in both. *contrib* uses ONNX Runtime's own operators,
*portable* only standard ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.recurrence import Recurrence

MASKED = -1e30
"""Added to the score of a row that is not seen: exp of it is 0, and no sum with a score overflows."""


@dataclass(frozen=True)
class Heads:
    """Sizes of one attention: H query heads, K key/value heads (H for an encoder), C per head, score scale.

    Scores s become c tanh(s / c) before rows are masked, c being `softcap` (Gemma 2, arXiv 2408.00118, section 2); 0:
    they stay.
    """

    num: int
    num_kv: int
    size: int
    scale: float
    softcap: float = 0.0


@dataclass(frozen=True)
class CacheRows:
    """One layer's cache before the step, [B, K, S, C] each."""

    key: ir.Value
    value: ir.Value


@dataclass(frozen=True)
class Sight:
    """How far a new token sees: itself and all rows before it, unless said otherwise.

    Attributes:
        window: Rows that it sees of those, itself among them; None: all.
        around: [2, B, T] as of `bundle.tensors.SEEN_AROUND`; None: nothing else.
        skips_text: Of what lies around it and behind, it sees tokens alone that see around themselves as well.
        is_behind: What is around lies before the token, sampled ones too: it is no more than far back.
    """

    window: int | None = None
    around: ir.Value | None = None
    skips_text: bool = False
    is_behind: bool = False


@dataclass(frozen=True)
class Lengths:
    """What the attention of every layer needs to know of the rows; filled by `Dialect.lengths`."""

    values: tuple[ir.Value, ...]
    sight: Sight


class Dialect(ABC):
    """One way to write a graph."""

    name: ClassVar[str]
    opset_imports: ClassVar[Mapping[str, int]]
    recurrence: ClassVar[Recurrence]

    @abstractmethod
    def attention(
        self, op: OpBuilder, query: ir.Value, key: ir.Value, value: ir.Value, heads: Heads, bias: ir.Value | None
    ) -> ir.Value:
        """Return an encoder's attention [B, T, H*C] from [B, T, H*C] each; `bias` [B, 1, T, T] is added to scores."""

    @abstractmethod
    def lengths(
        self, op: OpBuilder, inputs_embeds: ir.Value, past_lengths: ir.Value, cache: ir.Value, sight: Sight
    ) -> Lengths:
        """Return what `cached_attention` needs, once for all layers of a length group that see as far.

        Args:
            op: The builder.
            inputs_embeds: [B, T, D].
            past_lengths: [B] int64.
            cache: Any of the group's, for S.
            sight: Of those layers.
        """

    @abstractmethod
    def cached_attention(
        self,
        op: OpBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: CacheRows,
        lengths: Lengths,
        heads: Heads,
        bias: ir.Value | None = None,
    ) -> tuple[ir.Value, CacheRows]:
        """Write the new rows into the cache and attend over it as far as a layer sees (docs/bundle-format.md).

        Args:
            op: The builder.
            query: [B, T, H*C], rotated.
            key: [B, T, K*C], rotated.
            value: [B, T, K*C].
            past: The layer's cache.
            lengths: Of this graph.
            heads: Of this layer.
            bias: [B, H, T, n] added to scores, n as of `rows`; None: nothing is.
        Returns:
            [B, T, H*C], and the cache with the new rows.
        """

    @abstractmethod
    def attention_over(
        self, op: OpBuilder, query: ir.Value, rows: CacheRows, lengths: Lengths, heads: Heads
    ) -> ir.Value:
        """Attend over the cache of another layer, which holds the new rows already, as far as this one sees.

        Args:
            op: The builder.
            query: [B, T, H*C], rotated.
            rows: What that layer gave.
            lengths: Of its length group.
            heads: Of this layer.
        Returns:
            [B, T, H*C].
        """

    @abstractmethod
    def rows(self, op: OpBuilder, lengths: Lengths, cache: ir.Value) -> ir.Value:
        """Return the numbers [n] int64 of the rows that `cached_attention` compares with, from 0 on."""

    def rotary(self, op: OpBuilder, x: ir.Value, cos: ir.Value, sin: ir.Value, num_heads: int) -> ir.Value:
        """Return x [B, T, heads*C] with the halves of every head turned by the angles of cos and sin [B, T, C/2]."""
        return op.RotaryEmbedding(x, cos, sin, num_heads=num_heads)

    def by_kind(
        self,
        op: OpBuilder,
        x: ir.Value,
        is_image: ir.Value,
        of_text: Callable[[ir.Value], ir.Value],
        of_image: Callable[[ir.Value], ir.Value],
    ) -> ir.Value:
        """Return [B, T, N], each row made by the function of its token's kind; here of both, all rows by both.

        Args:
            op: The builder.
            x: [B, T, D].
            is_image: [B, T] bool, tokens that stand for rows of images.
            of_text: Rows [..., D] to rows [..., N], each by itself.
            of_image: The same.
        """
        return op.Where(op.Unsqueeze(is_image, [-1]), of_image(x), of_text(x))

    def by_expert(
        self, op: OpBuilder, x: ir.Value, weights: ir.Value, experts: Sequence[Callable[[ir.Value], ir.Value]]
    ) -> ir.Value:
        """Return [B, T, D], the sum of what experts make of x, each times its weight; here of all experts.

        Args:
            op: The builder.
            x: [B, T, D].
            weights: [B, T, E], 0 of an expert that a token does not meet.
            experts: E functions of rows [..., D] to rows [..., D], each by itself.
        """
        num = len(experts)
        of_each = op.Split(weights, axis=-1, num_outputs=num, _outputs=num) if num > 1 else [weights]
        made = [op.Mul(weight, expert(x)) for weight, expert in zip(of_each, experts, strict=True)]
        return op.Sum(*made)

    def rms_norm(self, op: OpBuilder, x: ir.Value, weight: ir.Value, eps: float) -> ir.Value:
        """Return x / sqrt(mean(x^2) + eps) * weight over the last axis."""
        return op.RMSNormalization(x, weight, axis=-1, epsilon=eps)
