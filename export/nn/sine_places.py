"""Sines and cosines of places (Vaswani et al., arXiv 1706.03762, section 3.5), as tensor2tensor lays them out."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

_SLOWEST = 10_000.0
"""Wavelength of the slowest sine over that of the quickest (section 3.5)."""


def sine_places(op: OpBuilder, places: ir.Value, size: int) -> ir.Value:
    """Return [B, T, size] float32, all sines before all cosines, of places [B, T] int64; `size` is even."""
    half = size // 2
    frequencies = np.exp(-math.log(_SLOWEST) / (half - 1) * np.arange(half, dtype=np.float32)).astype(np.float32)
    known = op.initializer(ir.tensor(frequencies), "place_frequencies")
    turned = op.Mul(op.Unsqueeze(op.Cast(places, to=ir.DataType.FLOAT), [2]), known)
    return op.Concat(op.Sin(turned), op.Cos(turned), axis=2)
