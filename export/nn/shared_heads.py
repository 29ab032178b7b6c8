"""Keys and values that several queries share, for attention that wants one of each for every query."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder


def for_each_query(op: OpBuilder, x: ir.Value, num: int, num_kv: int, size: int) -> ir.Value:
    """Return [B, T, num*C] from [B, T, num_kv*C], each head as often as queries share it (Ainslie, arXiv 2305.13245).

    Args:
        op: The builder.
        x: Keys or values.
        num: Heads of queries.
        num_kv: Heads of keys; divides `num`.
        size: C.
    """
    if num == num_kv:
        return x
    apart = op.Reshape(x, [0, 0, num_kv, 1, size])
    return op.Reshape(op.Expand(apart, [1, 1, 1, num // num_kv, 1]), [0, 0, num * size])
