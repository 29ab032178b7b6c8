"""The dialect of standard operators alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.dialect import MASKED, CacheRows, Dialect, Heads, Lengths, Sight
from export.nn.recurrence import ByScan, Recurrence
from export.nn.seen_rows import is_seen


class Portable(Dialect):
    """Standard operators only, for TensorRT as well as ONNX Runtime."""

    name = "portable"
    opset_imports: ClassVar[Mapping[str, int]] = {"": 24}
    recurrence: ClassVar[Recurrence] = ByScan()

    def attention(
        self, op: OpBuilder, query: ir.Value, key: ir.Value, value: ir.Value, heads: Heads, bias: ir.Value | None
    ) -> ir.Value:
        """Return attention by the standard Attention."""
        masks = [] if bias is None else [bias]
        return op.Attention(
            query, key, value, *masks, q_num_heads=heads.num, kv_num_heads=heads.num_kv, scale=heads.scale
        )

    def lengths(
        self, op: OpBuilder, inputs_embeds: ir.Value, past_lengths: ir.Value, cache: ir.Value, sight: Sight
    ) -> Lengths:
        """Return the first row to write [B] int64, and which rows each new token sees [B, 1, T, S] bool.

        The mask is spelled out, for TensorRT's parser drops Attention's `nonpad_kv_seqlen` without a word and reads
        `is_causal` as counted from row 0 of the cache, where the first new token is not (TensorRT-RTX 1.7.1; 10.15
        documents the former).
        """
        tokens = op.Range(0, op.Squeeze(op.Shape(inputs_embeds, start=1, end=2), [0]), 1)
        rows = op.Range(0, op.Squeeze(op.Shape(cache, start=2, end=3), [0]), 1)
        own = op.Add(op.Unsqueeze(past_lengths, [1]), tokens)
        return Lengths((past_lengths, is_seen(op, rows, own, sight)), sight)

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
        """Return attention by TensorScatter into the cache and the standard Attention over it, both of opset 24."""
        first_rows, _ = lengths.values
        # axis 2 is what it is, but TensorRT 10.15 documents -2 alone
        keys = op.TensorScatter(past.key, _split(op, key, heads.num_kv, heads.size), first_rows, axis=-2)
        values = op.TensorScatter(past.value, _split(op, value, heads.num_kv, heads.size), first_rows, axis=-2)
        rows = CacheRows(keys, values)
        return self._attention_over(op, query, rows, lengths, heads, bias), rows

    def attention_over(
        self, op: OpBuilder, query: ir.Value, rows: CacheRows, lengths: Lengths, heads: Heads
    ) -> ir.Value:
        """Return attention by the standard Attention."""
        return self._attention_over(op, query, rows, lengths, heads, None)

    def _attention_over(
        self, op: OpBuilder, query: ir.Value, rows: CacheRows, lengths: Lengths, heads: Heads, bias: ir.Value | None
    ) -> ir.Value:
        _, seen = lengths.values
        mask = seen if bias is None else op.Where(seen, bias, MASKED)
        queries = _split(op, query, heads.num, heads.size)
        capped = {"softcap": heads.softcap} if heads.softcap else {}
        attended = op.Attention(queries, rows.key, rows.value, mask, scale=heads.scale, **capped)
        return op.Reshape(op.Transpose(attended, perm=[0, 2, 1, 3]), [0, 0, heads.num * heads.size])

    def rows(self, op: OpBuilder, lengths: Lengths, cache: ir.Value) -> ir.Value:
        """Return the numbers of all rows that the cache has room for."""
        return op.Range(0, op.Squeeze(op.Shape(cache, start=2, end=3), [0]), 1)


def _split(op: OpBuilder, x: ir.Value, num_heads: int, size: int) -> ir.Value:
    """Return [B, heads, T, C] from [B, T, heads*C]."""
    return op.Transpose(op.Reshape(x, [0, 0, num_heads, size]), perm=[0, 2, 1, 3])
