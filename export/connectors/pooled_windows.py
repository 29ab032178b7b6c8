"""Windows of a grid of patches, each pooled by attention that its mean asks, and a gated feed-forward (Molmo 2)."""

from __future__ import annotations

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

    def forward(self, op: OpBuilder, query: ir.Value, patches: ir.Value, bias: ir.Value) -> ir.Value:
        """Return [I, N, pooled] of queries [I, N, F] over patches [I, N, K, F]; bias [N, K, 1] is added to scores."""
        heads, size = self.sizes.num_heads, self.sizes.head_size
        asked = op.Reshape(self.q_proj(op, query), [0, 0, 1, heads, size])
        keys, values = (op.Reshape(each(op, patches), [0, 0, 0, heads, size]) for each in (self.k_proj, self.v_proj))
        scores = op.Mul(op.ReduceSum(op.Mul(asked, keys), [-1], keepdims=0), float(size) ** -0.5)
        shares = op.Softmax(op.Add(scores, bias), axis=2)
        read = op.ReduceSum(op.Mul(op.Unsqueeze(shares, [-1]), values), [2], keepdims=0)
        return self.o_proj(op, op.Reshape(read, [0, 0, heads * size]))


class PooledWindows(Module):
    """Patches of a grid to rows of the decoder's width, one for each window of `pool` patches, row by row.

    A grid that is no whole number of windows is taken to have a margin, the smaller half of it before the first patch;
    windows at its edges hold fewer patches.

    Args:
        sizes: Of its parts.
        pool: Height and width of a window in patches.
        rows: Windows, and patches, of one crop.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, sizes: PoolSizes, pool: tuple[int, int], rows: tuple[int, int], name: str) -> None:
        super().__init__(name)
        self.image_pooling_2d = _Attention(sizes, rows)
        self.image_projector = GatedMLP(sizes, rows=rows[0], in_size=sizes.pooled_size)
        self.pool, self.size = pool, sizes.in_size

    def forward(self, op: OpBuilder, patches: ir.Value, grid: Grid) -> ir.Value:
        """Return [I, N, D] of patches [I, height, width, F]."""
        axes = [_Windows(op, length, side) for length, side in zip((grid.height, grid.width), self.pool, strict=True)]
        windows = self._windows(op, patches, axes, self.size)
        shape = op.Concat([1], grid.height, grid.width, [1], axis=0)
        inside = self._windows(op, op.Expand(op.Constant(value_float=1.0), shape), axes, 1)
        mean = op.Div(op.ReduceSum(windows, [2], keepdims=0), op.ReduceSum(inside, [2], keepdims=0))
        bias = op.Mul(op.Sub(1.0, inside), MASKED)
        return self.image_projector(op, self.image_pooling_2d(op, mean, windows, bias))

    def _windows(self, op: OpBuilder, x: ir.Value, axes: list[_Windows], size: int) -> ir.Value:
        """Return [I, N, K, size] of x [I, height, width, size], zero in the margin."""
        down, across = axes
        rows, cols = self.pool
        pads = op.Concat([0], down.before, across.before, [0, 0], down.behind, across.behind, [0], axis=0)
        padded = op.Pad(x, pads)
        split = op.Reshape(padded, op.Concat([-1], down.num, [rows], across.num, [cols, size], axis=0))
        count = op.Mul(down.num, across.num)
        return op.Reshape(
            op.Transpose(split, perm=[0, 1, 3, 2, 4, 5]), op.Concat([-1], count, [rows * cols, size], axis=0)
        )


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
