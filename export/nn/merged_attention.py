"""Attention of one softmax over what was said and over a memory (T5Gemma 2, arXiv 2512.14856)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.attention import CachedAttention
from export.nn.cross_attention import by_query, memory_bias
from export.nn.dialect import CacheRows, Dialect, Lengths
from export.nn.module import Module
from export.nn.rotary import Angles
from export.nn.vit import MASKED
from quant.kv.policy import WINDOW_TOKENS

_TO_THE_END = 2**31 - 1


@dataclass(frozen=True)
class Memory:
    """What a layer looks at beside the cache.

    Attributes:
        keys: [B, K, C, M].
        values: [B, K, M, C].
        seen: As `bundle.tensors.MEMORY_SEEN`.
    """

    keys: ir.Value
    values: ir.Value
    seen: ir.Value


class MergedAttention(CachedAttention):
    """Queries over the cache and a memory at once: their scores share a softmax, and keys of the memory do not turn.

    The cache's part is what its operator gives, times the share that its scores have of the sum; to know that, they are
    computed once more. Rows of the cache stand where their number says.

    Args:
        config: Sizes.
        dialect: How attention over the cache is written.
        layer: Its number.
        norms: Of queries and of keys, each over the numbers of one head.
        scale: Of scores.
        window: Rows that a token sees of the cache, itself among them; None: all before it.
    """

    def __init__(
        self,
        config: DecoderConfig,
        dialect: Dialect,
        layer: int,
        norms: tuple[Module, Module],
        *,
        scale: float,
        window: int | None,
    ) -> None:
        super().__init__(config, dialect, layer, norms, scale=scale)
        self.window = window

    def forward(  # type: ignore[override]  # it looks at a memory as well
        self,
        op: OpBuilder,
        x: ir.Value,
        angles: Angles,
        past: CacheRows,
        lengths: Lengths,
        memory: Memory,
        places: ir.Value,
    ) -> tuple[ir.Value, CacheRows, ir.Value]:
        """Return [B, T, D] of tokens at places [B, T], the cache with T more rows, and the last queries [B, W, H*C]."""
        key, value = self.keys_and_values(op, x)
        query, key = self.turned(op, (self.q_proj(op, x), key), angles)
        attended, present = self.dialect.cached_attention(op, query, key, value, past, lengths, self.heads)
        rows = self.dialect.rows(op, lengths, past.key)
        row, place = op.Unsqueeze(rows, [0, 1]), op.Unsqueeze(places, [2])
        is_seen = op.LessOrEqual(row, place)
        if self.window is not None:
            is_seen = op.And(is_seen, op.Greater(row, op.Sub(place, self.window)))
        shared = self.heads.num // self.heads.num_kv
        bias = by_query(op, op.Where(is_seen, 0.0, MASKED), shared)
        kept = op.Slice(present.key, [0], op.Shape(rows), [2])
        both = self._merged(op, (query, attended), (kept, bias), memory)
        return self.o_proj(op, both), present, op.Slice(query, [-WINDOW_TOKENS], [_TO_THE_END], [1])

    def _merged(
        self, op: OpBuilder, own: tuple[ir.Value, ir.Value], rows: tuple[ir.Value, ir.Value], memory: Memory
    ) -> ir.Value:
        """Return [B, T, H*C] over both.

        Args:
            op: The builder.
            own: Queries, and what they found in the cache alone, [B, T, H*C] each.
            rows: Keys of the cache [B, K, R, C], and what is added to their scores.
            memory: What else they look at.
        """
        heads, (kept, bias) = self.heads, rows
        shared, count = heads.num // heads.num_kv, op.Shape(kept, start=2, end=3)
        query, found = (self._grouped(op, each, shared) for each in own)
        scores = op.Mul(op.MatMul(query, op.Transpose(kept, perm=[0, 1, 3, 2])), heads.scale)
        across = op.Mul(op.MatMul(query, memory.keys), heads.scale)
        across = op.Add(across, memory_bias(op, memory.seen, memory.keys, shared))
        weights = op.Softmax(op.Concat(op.Add(scores, bias), across, axis=-1), axis=-1)
        share = op.ReduceSum(op.Slice(weights, [0], count, [3]), [3], keepdims=1)
        of_memory = op.MatMul(op.Slice(weights, count, [_TO_THE_END], [3]), memory.values)
        both = op.Reshape(op.Add(op.Mul(found, share), of_memory), [0, heads.num_kv, -1, shared, heads.size])
        return op.Reshape(op.Transpose(both, perm=[0, 2, 1, 3, 4]), [0, 0, heads.num * heads.size])

    def _grouped(self, op: OpBuilder, x: ir.Value, shared: int) -> ir.Value:
        """Return [B, K, T*shared, C] of [B, T, H*C]: queries that share a key head are rows of one product."""
        num_kv, size = self.heads.num_kv, self.heads.size
        apart = op.Transpose(op.Reshape(x, [0, 0, num_kv, shared, size]), perm=[0, 2, 1, 3, 4])
        return op.Reshape(apart, [0, num_kv, -1, size])
