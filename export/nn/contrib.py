"""The dialect of ONNX Runtime's own operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.nn.dialect import MASKED, CacheRows, Dialect, Heads, Lengths, Sight
from export.nn.recurrence import ByOperators, Recurrence
from export.nn.seen_rows import is_seen
from graphs.causal import note_far_rows, note_window
from graphs.store import CONTRIB

_GROUP_QUERY_HEAD_MULTIPLE = 8
"""Of head sizes, refused otherwise when the graph runs (ONNX Runtime 1.31, group_query_attention_helper)."""


class Contrib(Dialect):
    """ONNX Runtime's operators: MultiHeadAttention, GroupQueryAttention."""

    name = "contrib"
    opset_imports: ClassVar[Mapping[str, int]] = {"": 23, CONTRIB: 1}
    recurrence: ClassVar[Recurrence] = ByOperators()

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

    def by_kind(
        self,
        op: OpBuilder,
        x: ir.Value,
        is_image: ir.Value,
        of_text: Callable[[ir.Value], ir.Value],
        of_image: Callable[[ir.Value], ir.Value],
    ) -> ir.Value:
        """Return [B, T, N], each row made by the function of its token's kind and by no other.

        A sampled token is text: weights that only images meet are not read then, for a product of no rows reads none.
        """
        marks, rows = op.Reshape(is_image, [-1]), op.Flatten(x, axis=2)
        numbers = [op.Transpose(op.NonZero(each)) for each in (op.Not(marks), marks)]
        functions = (of_text, of_image)
        made = op.Concat(*(f(op.GatherND(rows, own)) for f, own in zip(functions, numbers, strict=True)), axis=0)
        placed = op.ScatterND(made, op.Concat(*numbers, axis=0), made)
        return op.Reshape(placed, op.Concat(op.Shape(x, start=0, end=2), [-1], axis=0))

    def by_expert(
        self, op: OpBuilder, x: ir.Value, weights: ir.Value, experts: Sequence[Callable[[ir.Value], ir.Value]]
    ) -> ir.Value:
        """Return [B, T, D], the sum of what experts make of the rows that meet them, each times its weight."""
        rows = op.Flatten(x, axis=2)
        total, of_experts = op.Mul(rows, 0.0), op.Transpose(op.Flatten(weights, axis=2))
        for number, expert in enumerate(experts):
            own = op.Gather(of_experts, number, axis=0)
            numbers = op.Transpose(op.NonZero(own))
            made = op.Mul(expert(op.GatherND(rows, numbers)), op.Unsqueeze(op.GatherND(own, numbers), [1]))
            total = op.ScatterND(total, numbers, made, reduction="add")
        return op.Reshape(total, op.Shape(x))

    def lengths(
        self, op: OpBuilder, inputs_embeds: ir.Value, past_lengths: ir.Value, cache: ir.Value, sight: Sight
    ) -> Lengths:
        """Return seqlens_k [B] (last valid row of each sequence) and total_sequence_length [] as int32.

        Where tokens look forward, what is added to scores [B, 1, T, total] as well: the operator's own mask is causal.
        """
        num_tokens = op.Shape(inputs_embeds, start=1, end=2)
        totals = op.Add(past_lengths, num_tokens)
        last_rows = op.Cast(op.Sub(totals, 1), to=ir.DataType.INT32)
        most = op.ReduceMax(totals, keepdims=0)
        longest = op.Cast(most, to=ir.DataType.INT32)
        if sight.around is None:
            return Lengths((last_rows, longest), sight)
        tokens = op.Range(0, op.Squeeze(num_tokens, [0]), 1)
        own = op.Add(op.Unsqueeze(past_lengths, [1]), tokens)
        seen = is_seen(op, op.Range(0, most, 1), own, sight)
        return Lengths((last_rows, longest, op.Where(seen, 0.0, MASKED)), sight)

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
        """Return attention by com.microsoft.GroupQueryAttention, which writes the cache itself."""
        if heads.size % _GROUP_QUERY_HEAD_MULTIPLE:
            raise UnsupportedConfigError(
                f"head size {heads.size}: ONNX Runtime's GroupQueryAttention takes multiples of "
                f"{_GROUP_QUERY_HEAD_MULTIPLE}, so the contrib dialect cannot express this decoder"
            )
        last_rows, longest, *masks = lengths.values
        if masks and bias is not None:
            raise UnsupportedConfigError(
                "a bias on scores beside attention that looks forward is not built: graphs for steps drop what is added"
            )
        added = masks if bias is None else [bias]
        attended, present_key, present_value = op.GroupQueryAttention(
            query,
            key,
            value,
            past.key,
            past.value,
            last_rows,
            longest,
            *([None, None, None, *added] if added else []),
            num_heads=heads.num,
            kv_num_heads=heads.num_kv,
            scale=heads.scale,
            do_rotary=0,
            **_own_mask(lengths.sight),
            **({"softcap": heads.softcap} if heads.softcap else {}),
            _domain=CONTRIB,
            _version=1,
            _outputs=3,
        )
        if masks and lengths.sight.window is not None:
            note_window(attended.producer(), lengths.sight.window)
        if lengths.sight.is_behind:
            note_far_rows(attended.producer())
        return attended, CacheRows(present_key, present_value)

    def attention_over(
        self, op: OpBuilder, query: ir.Value, rows: CacheRows, lengths: Lengths, heads: Heads
    ) -> ir.Value:
        """Return attention by com.microsoft.GroupQueryAttention, given no new keys and values and asked for no cache.

        With a cache to give back it would copy all of it (ONNX Runtime 1.31): 2 ms a layer of 8192 rows, not 50 us.
        """
        last_rows, longest, *bias = lengths.values
        nothing = op.Slice(query, [0, 0], [0, heads.num_kv * heads.size], [1, 2])
        attended = op.GroupQueryAttention(
            query,
            nothing,
            nothing,
            rows.key,
            rows.value,
            last_rows,
            longest,
            *([None, None, None, *bias] if bias else []),
            num_heads=heads.num,
            kv_num_heads=heads.num_kv,
            scale=heads.scale,
            do_rotary=0,
            **_own_mask(lengths.sight),
            **({"softcap": heads.softcap} if heads.softcap else {}),
            _domain=CONTRIB,
            _version=1,
        )
        if bias and lengths.sight.window is not None:
            note_window(attended.producer(), lengths.sight.window)
        return attended

    def rows(self, op: OpBuilder, lengths: Lengths, cache: ir.Value) -> ir.Value:
        """Return the numbers of the rows that some sequence has."""
        return op.Range(0, op.Cast(lengths.values[1], to=ir.DataType.INT64), 1)


def _own_mask(sight: Sight) -> dict[str, int]:
    """Return GroupQueryAttention's attributes of its own mask, which is causal where tokens do not look forward."""
    if sight.around is not None:
        return {"causal": 0}
    return {} if sight.window is None else {"local_window_size": sight.window}
