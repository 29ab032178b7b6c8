"""Windows of a grid of patches, each pooled by attention that its mean asks, and a gated feed-forward (Molmo 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.dialect import MASKED
from export.nn.linear import Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.patches import Grid


@dataclass(frozen=True)
class PoolSizes:
    """Sizes of the connector; a `GatedSizes` of its feed-forward.

    Attributes:
        in_size: F, of a patch.
        pooled_size: Of what attention makes of a window.
        num_heads: H.
        head_size: C.
        intermediate_size: Of the feed-forward.
        hidden_act: Of its gate.
        hidden_size: D, the decoder's.
        mlp_bias: Its matrices have none.
    """

    in_size: int
    pooled_size: int
    num_heads: int
    head_size: int
    intermediate_size: int
    hidden_act: str
    hidden_size: int
    mlp_bias: bool = False


class _Attention(Module):
    """One query a window, the mean of its patches, over these."""

    def __init__(self, sizes: PoolSizes, rows: tuple[int, int]) -> None:
        super().__init__()
        inner = sizes.num_heads * sizes.head_size
        self.q_proj = Linear(sizes.in_size, inner, rows=rows[0])
        self.k_proj, self.v_proj = (Linear(sizes.in_size, inner, rows=rows[1]) for _ in range(2))
        self.o_proj = Linear(inner, sizes.pooled_size, rows=rows[0])
        self.sizes = sizes

    def forward(self, op: OpBuilder, patches: ir.Value, cuts: Sequence[_Cut]) -> ir.Value:
        """Return [I, N, pooled] of patches [I, height, width, F], the windows of one cut behind those of another."""
        inner = self.sizes.num_heads * self.sizes.head_size
        keys, values = self.k_proj(op, patches), self.v_proj(op, patches)
        means = [cut.mean(op, patches, self.sizes.in_size) for cut in cuts]
        queries = self.q_proj(op, _joined(op, means))
        start: ir.Value | list[int] = [0]
        read = []
        for cut in cuts:
            end = op.Add(start, cut.count)
            asked = op.Slice(queries, start, end, [1])
            read.append(self._read(op, asked, cut.windows(op, keys, inner), cut.windows(op, values, inner), cut.bias))
            start = end
        return self.o_proj(op, _joined(op, read))

    def _read(self, op: OpBuilder, asked: ir.Value, keys: ir.Value, values: ir.Value, bias: ir.Value) -> ir.Value:
        """Return [I, n, H*C] of queries [I, n, H*C], keys and values [I, n, K, H*C]; bias [1, n, K, 1] is added."""
        heads, size = self.sizes.num_heads, self.sizes.head_size
        asked = op.Reshape(asked, [0, 0, 1, heads, size])
        keys, values = (op.Reshape(each, [0, 0, 0, heads, size]) for each in (keys, values))
        scores = op.Mul(op.ReduceSum(op.Mul(asked, keys), [-1], keepdims=0), float(size) ** -0.5)
        shares = op.Softmax(op.Add(scores, bias), axis=2)
        read = op.ReduceSum(op.Mul(op.Unsqueeze(shares, [-1]), values), [2], keepdims=0)
        return op.Reshape(read, [0, 0, heads * size])


def _joined(op: OpBuilder, parts: list[ir.Value]) -> ir.Value:
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=1)


class PooledWindows(Module):
    """Patches of a grid to rows of the decoder's width, one for each window, row by row.

    A grid that is no whole number of windows is taken to have a margin, the smaller half of it before the first patch;
    windows at its edges hold fewer patches.

    Args:
        sizes: Of its parts.
        pools: Height and width of a window in patches; of each, all windows are given, behind those of the one before.
        rows: Windows of the first, and patches, of one crop.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, sizes: PoolSizes, pools: Sequence[tuple[int, int]], rows: tuple[int, int], name: str) -> None:
        super().__init__(name)
        self.image_pooling_2d = _Attention(sizes, rows)
        self.image_projector = GatedMLP(sizes, rows=rows[0], in_size=sizes.pooled_size)
        self.pools = tuple(pools)

    def forward(self, op: OpBuilder, patches: ir.Value, grid: Grid) -> ir.Value:
        """Return [I, N, D] of patches [I, height, width, F]."""
        cuts = [_Cut(op, grid, pool) for pool in self.pools]
        return self.image_projector(op, self.image_pooling_2d(op, patches, cuts))


class _Cut:
    """A grid cut into windows of one size.

    Args:
        op: The builder.
        grid: Its sides.
        pool: Height and width of a window.

    Attributes:
        count: [1] int64, windows.
        bias: [1, N, K, 1] added to scores, where a window reaches into the margin.
    """

    def __init__(self, op: OpBuilder, grid: Grid, pool: tuple[int, int]) -> None:
        sides = zip((grid.height, grid.width), pool, strict=True)
        self._down, self._across = (_Windows(op, length, side) for length, side in sides)
        self._pool = pool
        self.count = op.Mul(self._down.num, self._across.num)
        ones = op.Expand(op.Constant(value_float=1.0), op.Concat([1], grid.height, grid.width, [1], axis=0))
        inside = self.windows(op, ones, 1)
        self._held = op.ReduceSum(inside, [2], keepdims=0)
        self.bias = op.Mul(op.Sub(1.0, inside), MASKED)

    def mean(self, op: OpBuilder, x: ir.Value, size: int) -> ir.Value:
        """Return [I, N, size] the means of what windows hold of x [I, height, width, size]."""
        return op.Div(op.ReduceSum(self.windows(op, x, size), [2], keepdims=0), self._held)

    def windows(self, op: OpBuilder, x: ir.Value, size: int) -> ir.Value:
        """Return [I, N, K, size] of x [I, height, width, size], zero in the margin."""
        down, across = self._down, self._across
        rows, cols = self._pool
        pads = op.Concat([0], down.before, across.before, [0, 0], down.behind, across.behind, [0], axis=0)
        split = op.Reshape(op.Pad(x, pads), op.Concat([-1], down.num, [rows], across.num, [cols, size], axis=0))
        shape = op.Concat([-1], self.count, [rows * cols, size], axis=0)
        return op.Reshape(op.Transpose(split, perm=[0, 1, 3, 2, 4, 5]), shape)


class _Windows:
    """How one axis of a grid is cut into windows; [1] int64 each.

    Args:
        op: The builder.
        length: [1] int64, patches along the axis.
        side: Of a window.

    Attributes:
        num: Windows.
        before: Margin before the first patch.
        behind: Behind the last one.
    """

    def __init__(self, op: OpBuilder, length: ir.Value, side: int) -> None:
        self.num = op.Div(op.Add(length, side - 1), side)
        margin = op.Sub(op.Mul(self.num, side), length)
        self.before = op.Div(margin, 2)
        self.behind = op.Sub(margin, self.before)
