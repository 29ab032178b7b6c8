"""From a vision tower's width to the decoder's."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.linear import Linear, activation
from export.nn.module import Module


def pixel_shuffle(op: OpBuilder, x: ir.Value, grid: int, size: int, factor: int) -> ir.Value:
    """Return [I, (grid/factor)^2, size*factor^2]: each factor x factor square of patches becomes one longer vector.

    Args:
        op: The builder.
        x: [I, grid*grid, size], row by row.
        grid: Patches along one side, a multiple of `factor`.
        size: Width of a patch.
        factor: Side of the square.
    """
    side = grid // factor
    squares = op.Reshape(x, [-1, side, factor, side, factor * size])
    gathered = op.Transpose(squares, perm=[0, 1, 3, 2, 4])
    return op.Reshape(gathered, [-1, side * side, factor * factor * size])


class Projector(Module):
    """Two matrices with an activation between (LLaVA-1.5, arXiv 2310.03744).

    Args:
        in_size: Width of a feature.
        out_size: The decoder's.
        hidden_act: Of the activation.
        rows: Features of one image.
        bias: Whether both add one.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, in_size: int, out_size: int, hidden_act: str, *, rows: int, bias: bool, name: str) -> None:
        super().__init__(name)
        self.linear_1 = Linear(in_size, out_size, rows=rows, bias=bias)
        self.linear_2 = Linear(out_size, out_size, rows=rows, bias=bias)
        self.hidden_act = hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., out_size] from [..., in_size]."""
        return self.linear_2(op, activation(op, self.hidden_act, self.linear_1(op, x)))
