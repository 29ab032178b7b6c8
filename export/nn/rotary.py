"""Rotary embedding, computed from positions at run time and applied outside attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.rope import RopeConfig


@dataclass(frozen=True)
class Angles:
    """cos and sin [B, T, C/2] of every token's place; one pair for all layers."""

    cos: ir.Value
    sin: ir.Value


_FREQUENCIES = "rotary_inverse_frequencies"


def rotary_angles(
    op: OpBuilder, position_ids: ir.Value, rope: RopeConfig, head_size: int, name: str = _FREQUENCIES
) -> Angles:
    """Return the angles of tokens at `position_ids` [B, T] int64; `name` is the frequencies'.

    There is no table, so there is no longest position: a table would cost max_positions * C * 4 bytes.
    """
    frequencies = op.initializer(ir.tensor(rope.inverse_frequencies(head_size)), name)
    places = op.Unsqueeze(op.Cast(position_ids, to=ir.DataType.FLOAT), [2])
    return _angles(op, op.Mul(places, frequencies), rope.scales(head_size))


def rotary_angles_by_axis(
    op: OpBuilder, position_ids: ir.Value, rope: RopeConfig, head_size: int, axes: npt.NDArray[np.int64]
) -> Angles:
    """Return the angles of tokens that stand on several axes (Wang et al., arXiv 2409.12191, section 2.1).

    Args:
        op: The builder.
        position_ids: [axes, B, T] int64.
        rope: Frequencies.
        head_size: C.
        axes: [C/2] the axis by which each pair of a head turns.
    """
    frequencies = op.initializer(ir.tensor(rope.inverse_frequencies(head_size)), _FREQUENCIES)
    of_pair = op.Gather(op.Cast(position_ids, to=ir.DataType.FLOAT), axes.tolist(), axis=0)
    return _angles(op, op.Mul(op.Transpose(of_pair, perm=[1, 2, 0]), frequencies), rope.scales(head_size))


def _angles(op: OpBuilder, turned: ir.Value, scales: float | npt.NDArray[np.float32]) -> Angles:
    cos, sin = op.Cos(turned), op.Sin(turned)
    if isinstance(scales, np.ndarray):
        of_pairs = op.Constant(value=ir.tensor(scales))
        return Angles(op.Mul(cos, of_pairs), op.Mul(sin, of_pairs))
    return Angles(cos, sin) if scales == 1.0 else Angles(op.Mul(cos, scales), op.Mul(sin, scales))
