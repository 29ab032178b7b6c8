"""Shapes of patches that are put together by squares, whose number a graph may count itself."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder


def squares_shape(op: OpBuilder, grid: int | ir.Value, factor: int, behind: list[int]) -> list[int] | ir.Value:
    """Return the shape [I, side, factor, side, *behind] of patches by square, `behind` beginning with the columns."""
    if isinstance(grid, int):
        return [-1, grid // factor, factor, grid // factor, *behind]
    side = op.Div(grid, [factor])
    return op.Concat([-1], side, [factor], side, *([behind] if behind else []), axis=0)


def tokens_shape(op: OpBuilder, grid: int | ir.Value, factor: int, behind: list[int]) -> list[int] | ir.Value:
    """Return the shape [I, side * side, *behind] of one token a square."""
    if isinstance(grid, int):
        return [-1, (grid // factor) ** 2, *behind]
    side = op.Div(grid, [factor])
    return op.Concat([-1], op.Mul(side, side), *([behind] if behind else []), axis=0)
