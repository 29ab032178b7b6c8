"""Which rows of a cache a new token sees, as a mask."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.dialect import Sight


def is_seen(op: OpBuilder, rows: ir.Value, own: ir.Value, sight: Sight) -> ir.Value:
    """Return which rows each new token sees, [B, 1, T, n] bool.

    Args:
        op: The builder.
        rows: [n] int64, numbers of rows from 0 on.
        own: [B, T] int64, the row of each token.
        sight: How far it sees.
    """
    within = _in_window(op, rows, own, sight.window)
    if sight.around is None:
        return within
    first, last = op.Sub(own, op.Gather(sight.around, 0, axis=0)), op.Add(own, op.Gather(sight.around, 1, axis=0))
    is_around = op.And(op.GreaterOrEqual(rows, _by_row(op, first)), op.LessOrEqual(rows, _by_row(op, last)))
    if sight.skips_text:
        is_around = op.And(is_around, _see_around(op, rows, own, sight.around))
    return op.Or(within, is_around)


def _see_around(op: OpBuilder, rows: ir.Value, own: ir.Value, around: ir.Value) -> ir.Value:
    """Return which rows are of new tokens that see more than is before them, [B, 1, 1, n] bool."""
    marks = op.Greater(op.ReduceSum(around, [0], keepdims=0), 0)
    tokens = op.Sub(rows, op.Slice(own, [0], [1], [1]))
    last = op.Squeeze(op.Sub(op.Shape(own, start=1, end=2), 1), [0])
    nearest = op.Min(op.Max(tokens, 0), last)
    is_new = op.And(op.GreaterOrEqual(tokens, 0), op.LessOrEqual(tokens, last))
    return op.Unsqueeze(op.And(is_new, op.GatherElements(marks, nearest, axis=1)), [1, 2])


def _in_window(op: OpBuilder, rows: ir.Value, own: ir.Value, window: int | None) -> ir.Value:
    """Return [B, 1, T, n] which rows are a token's own or before it, and not before its window."""
    is_before = op.LessOrEqual(rows, _by_row(op, own))
    if window is None:
        return is_before
    return op.And(is_before, op.Greater(rows, _by_row(op, op.Sub(own, window))))


def _by_row(op: OpBuilder, of_tokens: ir.Value) -> ir.Value:
    """Return [B, 1, T, 1] of [B, T]."""
    return op.Unsqueeze(of_tokens, [1, 3])
