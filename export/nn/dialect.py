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

from bundle.errors import UnsupportedConfigError
from export.nn.recurrence import ByOperators, ByScan, Recurrence
from graphs.causal import note_window
from graphs.store import CONTRIB

MASKED = -1e30
"""Added to the score of a row that is not seen: exp of it is 0, and no sum with a score overflows."""
_GROUP_QUERY_HEAD_MULTIPLE = 8
"""Of head sizes, refused otherwise when the graph runs (ONNX Runtime 1.31, group_query_attention_helper)."""


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
    """

    window: int | None = None
    around: ir.Value | None = None


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
        is_seen = _is_seen(op, op.Range(0, most, 1), own, sight)
        return Lengths((last_rows, longest, op.Where(is_seen, 0.0, MASKED)), sight)

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
        return Lengths((past_lengths, _is_seen(op, rows, own, sight)), sight)

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
        _, is_seen = lengths.values
        mask = is_seen if bias is None else op.Where(is_seen, bias, MASKED)
        queries = _split(op, query, heads.num, heads.size)
        capped = {"softcap": heads.softcap} if heads.softcap else {}
        attended = op.Attention(queries, rows.key, rows.value, mask, scale=heads.scale, **capped)
        return op.Reshape(op.Transpose(attended, perm=[0, 2, 1, 3]), [0, 0, heads.num * heads.size])

    def rows(self, op: OpBuilder, lengths: Lengths, cache: ir.Value) -> ir.Value:
        """Return the numbers of all rows that the cache has room for."""
        return op.Range(0, op.Squeeze(op.Shape(cache, start=2, end=3), [0]), 1)


def _own_mask(sight: Sight) -> dict[str, int]:
    """Return GroupQueryAttention's attributes of its own mask, which is causal where tokens do not look forward."""
    if sight.around is not None:
        return {"causal": 0}
    return {} if sight.window is None else {"local_window_size": sight.window}


def _is_seen(op: OpBuilder, rows: ir.Value, own: ir.Value, sight: Sight) -> ir.Value:
    """Return which rows each new token sees, [B, 1, T, n] bool.

    Args:
        op: The builder.
        rows: [n] int64, numbers of rows from 0 on.
        own: [B, T] int64, the row of each token.
        sight: How far it sees.
    """
    is_seen = _in_window(op, rows, own, sight.window)
    if sight.around is None:
        return is_seen
    first, last = op.Sub(own, op.Gather(sight.around, 0, axis=0)), op.Add(own, op.Gather(sight.around, 1, axis=0))
    is_around = op.And(op.GreaterOrEqual(rows, _by_row(op, first)), op.LessOrEqual(rows, _by_row(op, last)))
    return op.Or(is_seen, is_around)


def _in_window(op: OpBuilder, rows: ir.Value, own: ir.Value, window: int | None) -> ir.Value:
    """Return [B, 1, T, n] which rows are a token's own or before it, and not before its window."""
    is_before = op.LessOrEqual(rows, _by_row(op, own))
    if window is None:
        return is_before
    return op.And(is_before, op.Greater(rows, _by_row(op, op.Sub(own, window))))


def _by_row(op: OpBuilder, of_tokens: ir.Value) -> ir.Value:
    """Return [B, 1, T, 1] of [B, T]."""
    return op.Unsqueeze(of_tokens, [1, 3])


def _split(op: OpBuilder, x: ir.Value, num_heads: int, size: int) -> ir.Value:
    """Return [B, heads, T, C] from [B, T, heads*C]."""
    return op.Transpose(op.Reshape(x, [0, 0, num_heads, size]), perm=[0, 2, 1, 3])


DIALECTS: Mapping[str, type[Dialect]] = {"contrib": Contrib, "portable": Portable}
