"""How the operations that ONNX can spell in two ways are written.

Every module calls its dialect for them and is otherwise the same in both. *contrib* uses ONNX Runtime's own operators,
*portable* only standard ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from graphs.store import CONTRIB

_GROUP_QUERY_HEAD_MULTIPLE = 8
"""Of head sizes, refused otherwise when the graph runs (ONNX Runtime 1.31, group_query_attention_helper)."""


@dataclass(frozen=True)
class Heads:
    """Sizes of one attention: H query heads, K key/value heads (H for an encoder), C per head, score scale."""

    num: int
    num_kv: int
    size: int
    scale: float


@dataclass(frozen=True)
class CacheRows:
    """One layer's cache before the step, [B, K, S, C] each."""

    key: ir.Value
    value: ir.Value


@dataclass(frozen=True)
class Lengths:
    """What the attention of every layer needs to know of the rows; filled by `Dialect.lengths`."""

    values: tuple[ir.Value, ...]


class Dialect(ABC):
    """One way to write a graph."""

    name: ClassVar[str]
    opset_imports: ClassVar[Mapping[str, int]]

    @abstractmethod
    def attention(
        self, op: OpBuilder, query: ir.Value, key: ir.Value, value: ir.Value, heads: Heads, bias: ir.Value | None
    ) -> ir.Value:
        """Return an encoder's attention [B, T, H*C] from [B, T, H*C] each; `bias` [B, 1, T, T] is added to scores."""

    @abstractmethod
    def lengths(self, op: OpBuilder, inputs_embeds: ir.Value, past_lengths: ir.Value, cache: ir.Value) -> Lengths:
        """Return what `cached_attention` needs, once for all layers of a length group; `cache` is any of its, for S."""

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
    ) -> tuple[ir.Value, CacheRows]:
        """Write the new rows into the cache and attend causally over it (docs/bundle-format.md).

        Args:
            op: The builder.
            query: [B, T, H*C], rotated.
            key: [B, T, K*C], rotated.
            value: [B, T, K*C].
            past: The layer's cache.
            lengths: Of this graph.
            heads: Of this layer.
        Returns:
            [B, T, H*C], and the cache with the new rows.
        """

    def rotary(self, op: OpBuilder, x: ir.Value, cos: ir.Value, sin: ir.Value, num_heads: int) -> ir.Value:
        """Return x [B, T, heads*C] with the halves of every head turned by the angles of cos and sin [B, T, C/2]."""
        return op.RotaryEmbedding(x, cos, sin, num_heads=num_heads)

    def rms_norm(self, op: OpBuilder, x: ir.Value, weight: ir.Value, eps: float) -> ir.Value:
        """Return x / sqrt(mean(x^2) + eps) * weight over the last axis."""
        return op.RMSNormalization(x, weight, axis=-1, epsilon=eps)


class Contrib(Dialect):
    """ONNX Runtime's operators: MultiHeadAttention, GroupQueryAttention."""

    name = "contrib"
    opset_imports: ClassVar[Mapping[str, int]] = {"": 23, CONTRIB: 1}

    def attention(
        self, op: OpBuilder, query: ir.Value, key: ir.Value, value: ir.Value, heads: Heads, bias: ir.Value | None
    ) -> ir.Value:
        """Return attention by com.microsoft.MultiHeadAttention."""
        return op.MultiHeadAttention(
            query,
            key,
            value,
            None,
            None,
            bias,
            num_heads=heads.num,
            scale=heads.scale,
            _domain=CONTRIB,
            _version=1,
        )

    def lengths(self, op: OpBuilder, inputs_embeds: ir.Value, past_lengths: ir.Value, cache: ir.Value) -> Lengths:
        """Return seqlens_k [B] (last valid row of each sequence) and total_sequence_length [] as int32."""
        totals = op.Add(past_lengths, op.Shape(inputs_embeds, start=1, end=2))
        last_rows = op.Cast(op.Sub(totals, 1), to=ir.DataType.INT32)
        longest = op.Cast(op.ReduceMax(totals, keepdims=0), to=ir.DataType.INT32)
        return Lengths((last_rows, longest))

    def cached_attention(
        self,
        op: OpBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: CacheRows,
        lengths: Lengths,
        heads: Heads,
    ) -> tuple[ir.Value, CacheRows]:
        """Return attention by com.microsoft.GroupQueryAttention, which writes the cache itself."""
        if heads.size % _GROUP_QUERY_HEAD_MULTIPLE:
            raise UnsupportedConfigError(
                f"head size {heads.size}: ONNX Runtime's GroupQueryAttention takes multiples of "
                f"{_GROUP_QUERY_HEAD_MULTIPLE}, so the contrib dialect cannot express this decoder"
            )
        attended, present_key, present_value = op.GroupQueryAttention(
            query,
            key,
            value,
            past.key,
            past.value,
            *lengths.values,
            num_heads=heads.num,
            kv_num_heads=heads.num_kv,
            scale=heads.scale,
            do_rotary=0,
            _domain=CONTRIB,
            _version=1,
            _outputs=3,
        )
        return attended, CacheRows(present_key, present_value)


class Portable(Dialect):
    """Standard operators only, for TensorRT as well as ONNX Runtime."""

    name = "portable"
    opset_imports: ClassVar[Mapping[str, int]] = {"": 24}

    def attention(
        self, op: OpBuilder, query: ir.Value, key: ir.Value, value: ir.Value, heads: Heads, bias: ir.Value | None
    ) -> ir.Value:
        """Return attention by the standard Attention."""
        masks = [] if bias is None else [bias]
        return op.Attention(
            query, key, value, *masks, q_num_heads=heads.num, kv_num_heads=heads.num_kv, scale=heads.scale
        )

    def lengths(self, op: OpBuilder, inputs_embeds: ir.Value, past_lengths: ir.Value, cache: ir.Value) -> Lengths:
        """Return the first row to write [B] int64, and which rows each new token sees [B, 1, T, S] bool.

        The mask is spelled out, for TensorRT's parser drops Attention's `nonpad_kv_seqlen` without a word and reads
        `is_causal` as counted from row 0 of the cache, where the first new token is not (TensorRT-RTX 1.7.1; 10.15
        documents the former).
        """
        tokens = op.Range(0, op.Squeeze(op.Shape(inputs_embeds, start=1, end=2), [0]), 1)
        rows = op.Range(0, op.Squeeze(op.Shape(cache, start=2, end=3), [0]), 1)
        last_rows = op.Add(op.Unsqueeze(past_lengths, [1]), tokens)
        return Lengths((past_lengths, op.LessOrEqual(rows, op.Unsqueeze(last_rows, [1, 3]))))

    def cached_attention(
        self,
        op: OpBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: CacheRows,
        lengths: Lengths,
        heads: Heads,
    ) -> tuple[ir.Value, CacheRows]:
        """Return attention by TensorScatter into the cache and the standard Attention over it, both of opset 24."""
        first_rows, is_seen = lengths.values
        # axis 2 is what it is, but TensorRT 10.15 documents -2 alone
        keys = op.TensorScatter(past.key, _split(op, key, heads.num_kv, heads.size), first_rows, axis=-2)
        values = op.TensorScatter(past.value, _split(op, value, heads.num_kv, heads.size), first_rows, axis=-2)
        attended = op.Attention(_split(op, query, heads.num, heads.size), keys, values, is_seen, scale=heads.scale)
        merged = op.Reshape(op.Transpose(attended, perm=[0, 2, 1, 3]), [0, 0, heads.num * heads.size])
        return merged, CacheRows(keys, values)


def _split(op: OpBuilder, x: ir.Value, num_heads: int, size: int) -> ir.Value:
    """Return [B, heads, T, C] from [B, T, heads*C]."""
    return op.Transpose(op.Reshape(x, [0, 0, num_heads, size]), perm=[0, 2, 1, 3])


DIALECTS: Mapping[str, type[Dialect]] = {"contrib": Contrib, "portable": Portable}
