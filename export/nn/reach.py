"""Attention that looks a bounded way to both sides."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.vit import MASKED


def within_reach(op: OpBuilder, position_ids: ir.Value, bias: ir.Value, reach: int) -> ir.Value:
    """Return a bias [B, 1, T, T] by which a token sees `reach` tokens to each side, of those that it may see.

    Args:
        op: The builder.
        position_ids: [B, T].
        bias: [B, 1, T, T] added to scores: 0 where a token may look, very negative elsewhere.
        reach: Tokens to each side, the last one seen.
    """
    places = op.Range(0, op.Squeeze(op.Shape(position_ids, start=1, end=2), [0]), 1)
    distance = op.Abs(op.Sub(op.Unsqueeze(places, [0]), op.Unsqueeze(places, [1])))
    return op.Where(op.LessOrEqual(distance, reach), bias, MASKED)
