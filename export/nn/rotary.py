"""Rotary embedding, computed from positions at run time and applied outside attention."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import RopeConfig


@dataclass(frozen=True)
class Angles:
    """cos and sin [B, T, C/2] of every token's place; one pair for all layers."""

    cos: ir.Value
    sin: ir.Value


def rotary_angles(op: OpBuilder, position_ids: ir.Value, rope: RopeConfig, head_size: int) -> Angles:
    """Return the angles of tokens at `position_ids` [B, T] int64.

    There is no table, so there is no longest position: a table would cost max_positions * C * 4 bytes.
    """
    frequencies = op.initializer(ir.tensor(rope.inverse_frequencies(head_size)), "rotary_inverse_frequencies")
    places = op.Unsqueeze(op.Cast(position_ids, to=ir.DataType.FLOAT), [2])
    turned = op.Mul(places, frequencies)
    return Angles(op.Cos(turned), op.Sin(turned))
