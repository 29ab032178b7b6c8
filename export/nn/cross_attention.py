"""Attention over a memory of images, whose keys and values are made once, beside the vision tower."""

from __future__ import annotations

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
    """

    def __init__(
        self, config: DecoderConfig, *, rows: int, name: str, norm: Module | None = None, bias: bool = False
    ) -> None:
        super().__init__(name)
        self.size, self.num = config.head_size, config.num_kv_heads
        self.k_proj = Linear(config.hidden_size, self.num * self.size, rows=rows, bias=bias)
        self.v_proj = Linear(config.hidden_size, self.num * self.size, rows=rows, bias=bias)
        self.k_norm = norm

    def forward(self, op: OpBuilder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return keys and values [I, R, K*C] of features [I, R, D]."""
        if self.k_norm is None:
            return self.k_proj(op, x), self.v_proj(op, x)
        heads = op.Reshape(self.k_proj(op, x), [0, 0, self.num, self.size])
        return op.Reshape(self.k_norm(op, heads), [0, 0, self.num * self.size]), self.v_proj(op, x)


class MemoryAttention(Module):
    """Queries over keys [B, K, C, M] and values [B, K, M, C] of a memory, of which a token sees a range of rows.

    Nothing is turned, repeated or written back: keys lie as the product wants them, and the queries that share a key
    head are rows of one product, so that a step reads keys and values once, where they lie.

    Args:
        config: Of the decoder.
        norm: Of queries, each over the numbers of one head; None: they are not normed.
        bias: Whether its matrices have biases.
        out_name: How the checkpoint names the output projection.
    """

    def __init__(
        self, config: DecoderConfig, norm: Module | None = None, *, bias: bool = False, out_name: str = "o_proj"
    ) -> None:
        super().__init__()
        size, num, num_kv = config.head_size, config.num_heads, config.num_kv_heads
        self.q_proj = Linear(config.hidden_size, num * size, rows=None, bias=bias)
        self.o_proj = Linear(num * size, config.hidden_size, rows=None, bias=bias, name=out_name)
        self.q_norm = norm
        self.heads = Heads(num, num_kv, size, float(size) ** -0.5)

    def forward(self, op: OpBuilder, x: ir.Value, keys: ir.Value, values: ir.Value, seen: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D]; `seen` as `bundle.tensors.MEMORY_SEEN`, and 0 where it is an empty range."""
        heads = self.heads
        shared = heads.num // heads.num_kv
        query = op.Reshape(self.q_proj(op, x), [0, 0, heads.num, heads.size])
        query = query if self.q_norm is None else self.q_norm(op, query)
        grouped = op.Transpose(op.Reshape(query, [0, 0, heads.num_kv, shared, heads.size]), perm=[0, 2, 1, 3, 4])
        rows = op.Reshape(grouped, [0, heads.num_kv, -1, heads.size])
        scores = op.Mul(op.MatMul(rows, keys), heads.scale)
        weights = op.Softmax(op.Add(scores, _bias(op, seen, keys, shared)), axis=-1)
        attended = op.Reshape(op.MatMul(weights, values), [0, heads.num_kv, -1, shared, heads.size])
        merged = op.Reshape(op.Transpose(attended, perm=[0, 2, 1, 3, 4]), [0, 0, heads.num * heads.size])
        return op.Mul(self.o_proj(op, merged), _sees_some(op, seen))


def _bias(op: OpBuilder, seen: ir.Value, keys: ir.Value, shared: int) -> ir.Value:
    """Return [B, 1, T*shared, M]: 0 where a token sees a row, very negative where it does not."""
    row = op.Range(0, op.Squeeze(op.Shape(keys, start=3, end=4), [0]), 1)
    first, end = (op.Slice(seen, [at], [at + 1], [2]) for at in (0, 1))
    is_seen = op.And(op.GreaterOrEqual(row, first), op.Less(row, end))
    bias = op.Unsqueeze(op.Where(is_seen, 0.0, MASKED), [2])
    tokens, memory = op.Shape(bias, start=0, end=2), op.Shape(bias, start=3, end=4)
    wide = op.Expand(bias, op.Concat(tokens, [shared], memory, axis=0))
    images, behind = op.Shape(seen, start=0, end=1), op.Concat([1, -1], memory, axis=0)
    return op.Reshape(wide, op.Concat(images, behind, axis=0))


def _sees_some(op: OpBuilder, seen: ir.Value) -> ir.Value:
    """Return [B, T, 1]: 1.0 where a token sees any row, 0.0 where the range is empty."""
    first, end = (op.Slice(seen, [at], [at + 1], [2]) for at in (0, 1))
    return op.Cast(op.Less(first, end), to=ir.DataType.FLOAT)
