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
    return op.Or(within, is_around)


def _in_window(op: OpBuilder, rows: ir.Value, own: ir.Value, window: int | None) -> ir.Value:
    """Return [B, 1, T, n] which rows are a token's own or before it, and not before its window."""
    is_before = op.LessOrEqual(rows, _by_row(op, own))
    if window is None:
        return is_before
    return op.And(is_before, op.Greater(rows, _by_row(op, op.Sub(own, window))))


def _by_row(op: OpBuilder, of_tokens: ir.Value) -> ir.Value:
    """Return [B, 1, T, 1] of [B, T]."""
    return op.Unsqueeze(of_tokens, [1, 3])
