"""Learned queries that look at an image and at themselves, once (KOSMOS-2)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear
from export.nn.module import Module, Weight

_EPS = 1e-12


class LatentQueries(Module):
    """Normalised patches to a fixed number of rows of the decoder's width (KOSMOS-1, arXiv 2302.14045, section 2.2).

    Args:
        in_size: Width of a patch.
        out_size: The decoder's.
        num_queries: Rows that an image becomes.
        num_heads: Of the attention.
        image_rows: Patches of an image, a class token among them.
        dialect: How attention and norms are written.
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        num_queries: int,
        num_heads: int,
        *,
        image_rows: int,
        dialect: Dialect,
        name: str,
    ) -> None:
        super().__init__(name)
        self.dense = Linear(in_size, out_size, rows=image_rows)
        self.latent_query = Weight(num_queries, out_size)
        self.x_attn = _Look(out_size, num_heads, num_queries, image_rows + num_queries, dialect)
        self.in_size, self.dialect = in_size, dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, num_queries, out_size] from [I, N, in_size]."""
        # of length 1: what divides by the root of the mean square, divided by the root of the width
        shares = op.initializer(ir.tensor(np.full(self.in_size, self.in_size**-0.5, np.float32)), "length_of_one")
        seen = self.dense(op, self.dialect.rms_norm(op, x, shares, _EPS))
        shape = op.Concat(op.Shape(seen, start=0, end=1), [1, 1], axis=0)
        queries = op.Expand(op.Unsqueeze(self.latent_query, [0]), shape)
        return self.x_attn(op, queries, op.Concat(seen, queries, axis=1))


class _Look(Module):
    def __init__(self, size: int, num_heads: int, rows: int, seen_rows: int, dialect: Dialect) -> None:
        super().__init__()
        self.q_proj = Linear(size, size, rows=rows)
        self.k_proj = Linear(size, size, rows=seen_rows)
        self.v_proj = Linear(size, size, rows=seen_rows)
        self.out_proj = Linear(size, size, rows=rows)
        head = size // num_heads
        self.heads = Heads(num_heads, num_heads, head, float(head) ** -0.5)
        self.dialect = dialect

    def forward(self, op: OpBuilder, queries: ir.Value, seen: ir.Value) -> ir.Value:
        query, key, value = self.q_proj(op, queries), self.k_proj(op, seen), self.v_proj(op, seen)
        return self.out_proj(op, self.dialect.attention(op, query, key, value, self.heads, None))
