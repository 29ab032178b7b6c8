"""EVE's patch embedding layer (arXiv 2406.11832): squares of patches, one row of all, an end to each line."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.connectors.patch_merger import merged_squares
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, PackedLinear
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.patches import Grid, StillPatches

_EPS = 1e-5
"""Of PyTorch's LayerNorm, which no config changes."""
NUM_HEADS = 8
"""Fixed in the authors' `vision_tokenizer.py`, as the scale is: by the root of the whole width, not of a head's."""


class _Look(Module):
    """Projections of one attention, each side behind a norm of its own, and the matrix behind it."""

    def __init__(self, size: int, *, rows: int, seen_rows: int, name: str) -> None:
        super().__init__(name)
        self.query_norm, self.seen_norm = (LayerNorm(size, _EPS, name=f"{part}.0") for part in ("q", "kv"))
        self.query = Linear(size, size, rows=rows, bias=False, name="q.1")
        self.key, self.value = (
            PackedLinear(size, part, f"{each}_proj", ("kv.1.weight", None), rows=seen_rows)
            for part, each in enumerate("kv")
        )
        self.proj = Linear(size, size, rows=rows)
        self.heads = Heads(NUM_HEADS, NUM_HEADS, size // NUM_HEADS, float(size) ** -0.5)

    def projected(self, op: OpBuilder, x: ir.Value, seen: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return queries of x, keys and values of what they see, each as wide as those."""
        normed = self.seen_norm(op, seen)
        return self.query(op, self.query_norm(op, x)), self.key(op, normed), self.value(op, normed)


class _Squares(_Look):
    """Each square of patches as its mean, which looks at them."""

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid, factor: int) -> ir.Value:
        """Return [I, N / factor^2, D] from [I, N, D]."""
        count, heads = factor**2, self.heads
        size = heads.num * heads.size
        squares = op.Reshape(merged_squares(op, x, grid, size, factor), [0, 0, count, size])
        means = op.ReduceMean(squares, [2], keepdims=0)
        query, key, value = self.projected(op, means, squares)
        query = op.Reshape(query, [0, 0, 1, heads.num, heads.size])
        key, value = (op.Reshape(each, [0, 0, count, heads.num, heads.size]) for each in (key, value))
        scores = op.Mul(op.ReduceSum(op.Mul(query, key), [4], keepdims=1), heads.scale)
        looked = op.ReduceSum(op.Mul(op.Softmax(scores, axis=2), value), [2], keepdims=0)
        return op.Add(means, self.proj(op, op.Reshape(looked, [0, 0, size])))


class _Whole(_Look):
    """A learned row, which looks at all squares of an image."""

    def forward(self, op: OpBuilder, row: ir.Value, x: ir.Value, dialect: Dialect) -> ir.Value:
        """Return [I, 1, D] from a row [D] and [I, N, D]."""
        shape = op.Concat(op.Shape(x, start=0, end=1), [1, self.heads.num * self.heads.size], axis=0)
        rows = op.Expand(row, shape)
        query, key, value = self.projected(op, rows, x)
        return op.Add(rows, self.proj(op, dialect.attention(op, query, key, value, self.heads, None)))


class EveEmbedding(Module):
    """Pixels to rows: one of the whole image, then its squares line by line, each line ended.

    Args:
        size: D.
        side: Of a patch in pixels.
        factor: Side of a square, in patches.
        dialect: How attention is written.
        rows: Squares of a usual image.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, size: int, side: int, factor: int, dialect: Dialect, *, rows: int, name: str) -> None:
        super().__init__(name)
        self.patch_embedding = StillPatches(size, side, bias=False)
        self.class_embedding, self.split_embedding = Weight(size), Weight(size)
        self.local_attention = _Squares(size, rows=rows, seen_rows=rows * factor**2, name="local_attention")
        self.global_attention = _Whole(size, rows=1, seen_rows=rows, name="global_attention")
        self.size, self.factor, self.dialect = size, factor, dialect

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, 1 + h * (w + 1), D] of h x w squares from [I, 3, height, width]."""
        patches, grid = self.patch_embedding(op, pixel_values)
        squares = self.local_attention(op, patches, grid, self.factor)
        whole = self.global_attention(op, self.class_embedding, squares, self.dialect)
        images, size = op.Shape(squares, start=0, end=1), self.size
        down, across = op.Div(grid.height, self.factor), op.Div(grid.width, self.factor)
        lines = op.Reshape(squares, op.Concat(images, down, across, [size], axis=0))
        ends = op.Expand(self.split_embedding, op.Concat(images, down, [1, size], axis=0))
        ended = op.Reshape(op.Concat(lines, ends, axis=2), op.Concat(images, [-1, size], axis=0))
        return op.Concat(whole, ended, axis=1)
