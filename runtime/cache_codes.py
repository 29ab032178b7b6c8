"""Rows of a cache as codes and back: the arithmetic of GroupQueryAttention's quantized cache, in numpy.

A code is round(x / scale), halves to even, kept within -128 ... 127 or -8 ... 7. Codes of 4 bits are stored with 8
added, two in a byte, that of the even channel in the lower half (ONNX Runtime 1.31, docs/contrib_ops/cpu/gqa.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.states import CacheScheme

Float32 = npt.NDArray[np.float32]
Codes = npt.NDArray[Any]

MOST: dict[CacheScheme, int] = {"int8": 127, "int4": 7}
"""The largest code; the smallest is one further from zero."""
_OFFSET = 8
"""Of a code of 4 bits in its half of a byte."""


def encode(rows: Float32, scales: Float32, scheme: CacheScheme) -> Codes:
    """Return codes of numbers.

    Args:
        rows: [..., C].
        scales: Of their channels, as they broadcast.
        scheme: "int8" or "int4".
    Returns:
        [..., C] int8, or [..., C/2] uint8.
    """
    codes: Codes = np.clip(np.rint(rows / scales), -MOST[scheme] - 1, MOST[scheme]).astype(np.int8)
    if scheme == "int8":
        return codes
    halves = (codes + _OFFSET).astype(np.uint8)
    packed: Codes = halves[..., 0::2] | halves[..., 1::2] << 4
    return packed


def decode(codes: Codes, scales: Float32, scheme: CacheScheme) -> Float32:
    """Return the numbers that codes stand for: [..., C] float32."""
    if scheme == "int4":
        halves = np.stack([codes & 15, codes >> 4], axis=-1).astype(np.int8) - _OFFSET
        codes = halves.reshape(*codes.shape[:-1], 2 * codes.shape[-1])
    return np.asarray(codes * scales, np.float32)
