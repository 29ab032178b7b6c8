"""Attention over a memory of images, whose keys and values are made once, beside the vision tower."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.dialect import Heads
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.vit import MASKED


class MemoryProjection(Module):
    """Features of images to the keys and values of one layer.

    Args:
        config: Of the decoder.
        rows: Features of one image.
        name: Where the checkpoint keeps the layer's attention.
        norm: Of keys, each over the numbers of one head; None: they are not normed.
        bias: Whether its matrices have biases.
        in_size: Width of the features; the decoder's by default.
        names: How the checkpoint names the matrices of keys and of values.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rows: int,
        name: str,
        norm: Module | None = None,
        bias: bool = False,
        in_size: int | None = None,
        names: tuple[str, str] = ("k_proj", "v_proj"),
    ) -> None:
        super().__init__(name)
        self.size, self.num = config.head_size, config.num_kv_heads
        width, out = in_size or config.hidden_size, self.num * self.size
        self.k_proj, self.v_proj = (Linear(width, out, rows=rows, bias=bias, name=each) for each in names)
        self.k_norm = norm

    def forward(self, op: OpBuilder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return keys and values [I, R, K*C] of features [I, R, D]."""
        if self.k_norm is None:
            return self.k_proj(op, x), self.v_proj(op, x)
        heads = op.Reshape(self.k_proj(op, x), [0, 0, self.num, self.size])
        return op.Reshape(self.k_norm(op, heads), [0, 0, self.num * self.size]), self.v_proj(op, x)


class MemoryProjections(Module):
    """Features of images to the keys and values of all layers, side by side as states of kind "memory" hold them.

    Args:
        num_layers: Of the decoder.
        of_layer: The projection of one, under the name that the checkpoint gives it.
    """

    def __init__(self, num_layers: int, of_layer: Callable[[int], MemoryProjection]) -> None:
        super().__init__("")
        self.num_layers = num_layers
        for number in range(num_layers):  # each under its own name: a list would number them anew
            setattr(self, f"layer_{number}", of_layer(number))

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, R, 2 * layers * K * C] of features [I, R, D]."""
        layers = [getattr(self, f"layer_{number}") for number in range(self.num_layers)]
        return op.Concat(*(part for layer in layers for part in layer(op, x)), axis=2)


class MemoryAttention(Module):
    """Queries over keys [B, K, C, M] and values [B, K, M, C] of a memory, of which a token sees a range of rows.

    Nothing is turned, repeated or written back: keys lie as the product wants them, and the queries that share a key
    head are rows of one product, so that a step reads keys and values once, where they lie.

    Args:
        config: Of the decoder.
        norm: Of queries, each over the numbers of one head; None: they are not normed.
        bias: Whether its matrices have biases.
        out_name: How the checkpoint names the output projection.
        scale: Of scores; None: 1 / sqrt(C).
        out_norm: Of all heads together, before the output projection; None: they are not normed.
    """

    def __init__(
        self,
        config: DecoderConfig,
        norm: Module | None = None,
        *,
        bias: bool = False,
        out_name: str = "o_proj",
        scale: float | None = None,
        out_norm: Module | None = None,
    ) -> None:
        super().__init__()
        size, num, num_kv = config.head_size, config.num_heads, config.num_kv_heads
        self.q_proj = Linear(config.hidden_size, num * size, rows=None, bias=bias)
        self.o_proj = Linear(num * size, config.hidden_size, rows=None, bias=bias, name=out_name)
        self.q_norm = norm
        self.out_norm = out_norm
        self.heads = Heads(num, num_kv, size, float(size) ** -0.5 if scale is None else scale)

    def forward(
        self,
        op: OpBuilder,
        x: ir.Value,
        keys: ir.Value,
        values: ir.Value,
        seen: ir.Value,
        placed: ir.Value | None = None,
    ) -> ir.Value:
        """Return [B, T, D] from [B, T, D].

        Args:
            op: The builder.
            x: [B, T, D].
            keys: [B, K, C, M]; [B, K, 2 * C, M] where there is `placed`.
            values: [B, K, M, C].
            seen: As `bundle.tensors.MEMORY_SEEN`; the result is 0 where it is an empty range.
            placed: [B, T, H*C] what stands behind the numbers of queries, as in keys; None: nothing.
        """
        heads = self.heads
        shared = heads.num // heads.num_kv
        query = op.Reshape(self.q_proj(op, x), [0, 0, heads.num, heads.size])
        query = query if self.q_norm is None else self.q_norm(op, query)
        size = heads.size
        if placed is not None:
            query = op.Concat(query, op.Reshape(placed, [0, 0, heads.num, -1]), axis=3)
            size *= 2
        grouped = op.Transpose(op.Reshape(query, [0, 0, heads.num_kv, shared, size]), perm=[0, 2, 1, 3, 4])
        rows = op.Reshape(grouped, [0, heads.num_kv, -1, size])
        scores = op.Mul(op.MatMul(rows, keys), heads.scale)
        weights = op.Softmax(op.Add(scores, memory_bias(op, seen, keys, shared)), axis=-1)
        attended = op.Reshape(op.MatMul(weights, values), [0, heads.num_kv, -1, shared, heads.size])
        merged = op.Reshape(op.Transpose(attended, perm=[0, 2, 1, 3, 4]), [0, 0, heads.num * heads.size])
        merged = merged if self.out_norm is None else self.out_norm(op, merged)
        return op.Mul(self.o_proj(op, merged), _sees_some(op, seen))


def memory_bias(op: OpBuilder, seen: ir.Value, keys: ir.Value, shared: int) -> ir.Value:
    """Return [B, 1, T*shared, M]: 0 where a token sees a row, very negative where it does not."""
    row = op.Range(0, op.Squeeze(op.Shape(keys, start=3, end=4), [0]), 1)
    first, end = (op.Slice(seen, [at], [at + 1], [2]) for at in (0, 1))
    is_seen = op.And(op.GreaterOrEqual(row, first), op.Less(row, end))
    return by_query(op, op.Where(is_seen, 0.0, MASKED), shared)


def by_query(op: OpBuilder, bias: ir.Value, shared: int) -> ir.Value:
    """Return [B, 1, T*shared, N] of what tokens have [B, T, N], for each of the queries that share a head."""
    tokens, rows = op.Shape(bias, start=0, end=2), op.Shape(bias, start=2, end=3)
    wide = op.Expand(op.Unsqueeze(bias, [2]), op.Concat(tokens, [shared], rows, axis=0))
    batch, behind = op.Shape(bias, start=0, end=1), op.Concat([1, -1], rows, axis=0)
    return op.Reshape(wide, op.Concat(batch, behind, axis=0))


def _sees_some(op: OpBuilder, seen: ir.Value) -> ir.Value:
    """Return [B, T, 1]: 1.0 where a token sees any row, 0.0 where the range is empty."""
    first, end = (op.Slice(seen, [at], [at + 1], [2]) for at in (0, 1))
    return op.Cast(op.Less(first, end), to=ir.DataType.FLOAT)
