"""Learned queries that look at the patches of an image once; how many do depends on the image (Aria)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import TowerConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear, PackedLinear, activation
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.patches import Grid
from export.nn.vit import tower_heads

_EPS = 1e-5
_PACKED = ("in_proj_weight", "in_proj_bias")


class _PackedLook(Module):
    """Attention with queries of their own, its three matrices in one of the checkpoint."""

    def __init__(self, tower: TowerConfig, dialect: Dialect, *, rows: int, image_rows: int) -> None:
        super().__init__()
        size, of_each = tower.hidden_size, (rows, image_rows, image_rows)
        self.query, self.key, self.value = (
            PackedLinear(size, part, f"in_proj_{name}", _PACKED, rows=num)
            for part, (name, num) in enumerate(zip("qkv", of_each, strict=True))
        )
        self.out_proj = Linear(size, size, rows=rows)
        self.heads, self.dialect = tower_heads(tower), dialect

    def forward(self, op: OpBuilder, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        """Return [I, P, D] from queries [I, P, D], keys and values [I, N, D]."""
        parts = self.query(op, query), self.key(op, key), self.value(op, value)
        return self.out_proj(op, self.dialect.attention(op, *parts, self.heads, None))


class _Look(Module):
    def __init__(self, tower: TowerConfig, dialect: Dialect, *, rows: int, image_rows: int) -> None:
        super().__init__()
        size = tower.hidden_size
        self.layer_norm, self.layer_norm_kv = LayerNorm(size, _EPS), LayerNorm(size, _EPS)
        self.q_proj = Linear(size, size, rows=rows, bias=False)
        self.k_proj = Linear(size, size, rows=image_rows, bias=False)
        self.v_proj = Linear(size, size, rows=image_rows, bias=False)
        self.multihead_attn = _PackedLook(tower, dialect, rows=rows, image_rows=image_rows)
        self.linear = Linear(size, size, rows=rows)

    def forward(self, op: OpBuilder, queries: ir.Value, patches: ir.Value) -> ir.Value:
        query, seen = self.q_proj(op, self.layer_norm(op, queries)), self.layer_norm_kv(op, patches)
        return self.linear(op, self.multihead_attn(op, query, self.k_proj(op, seen), self.v_proj(op, seen)))


class _FeedForward(Module):
    def __init__(self, in_size: int, size: int, *, rows: int) -> None:
        super().__init__()
        self.linear_in = Linear(in_size, size, rows=rows, bias=False)
        self.linear_out = Linear(size, size, rows=rows, bias=False)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.linear_out(op, activation(op, "gelu_new", self.linear_in(op, x)))


class CrossedQueries(Module):
    """Patches to rows of the decoder's width, as many as the image's longer side calls for (arXiv 2410.05993, 2.2).

    Args:
        tower: Of the patches.
        size: The decoder's width.
        queries: Rows of an image by the patches of its longer side.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self, tower: TowerConfig, size: int, queries: Mapping[int, int], dialect: Dialect, *, name: str
    ) -> None:
        super().__init__(name)
        most, image_rows = max(queries.values()), max(queries) ** 2
        self.query = Weight(most, tower.hidden_size)
        self.cross_attn = _Look(tower, dialect, rows=most, image_rows=image_rows)
        self.layer_norm = LayerNorm(tower.hidden_size, _EPS)
        self.feed_forward = _FeedForward(tower.hidden_size, size, rows=most)
        self.num_of_side = np.array([queries.get(side, 0) for side in range(max(queries) + 1)], np.int64)

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return [I, P, size] of patches x [I, N, D] in their grid."""
        counts = op.initializer(ir.tensor(self.num_of_side), "queries_of_side")
        num = op.Gather(counts, op.Max(grid.height, grid.width), axis=0)
        queries = op.Unsqueeze(op.Slice(self.query, [0], num, [0]), [0])
        shape = op.Concat(op.Shape(x, start=0, end=1), [1, 1], axis=0)
        return self.feed_forward(op, self.layer_norm(op, self.cross_attn(op, op.Expand(queries, shape), x)))
