"""Round-to-nearest codes in blocks along the input axis, and the packing that ONNX Runtime's operators read.

A block of `block_size` consecutive weights shares one scale; the code that means 0 is 2^(bits-1). The scale is the
weight of largest magnitude, sign kept, over -2^(bits-1): that weight lands on code 0 exactly and no code is wasted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.layers import Float32

UInt8 = NDArray[np.uint8]

_SLAB_WEIGHTS = 1 << 18  # 1 MiB at a time: the steps then stay in the cache, and a large matrix needs no large copies


def zero_code(bits: int) -> int:
    """Return the code that stands for the weight 0."""
    return 1 << (bits - 1)


def quantize_blocks(rows: Float32, bits: int, block_size: int) -> tuple[UInt8, Float32]:
    """Return codes [N, blocks * block_size] uint8, one per byte, and scales [N, blocks] float32.

    Args:
        rows: [N, K] float32; where K does not fill the last block, zeros do.
        bits: 2, 4 or 8.
        block_size: Weights per scale.
    """
    num_blocks = -(-rows.shape[1] // block_size)
    codes = np.empty((len(rows), num_blocks, block_size), np.uint8)
    scales = np.empty((len(rows), num_blocks, 1), np.float32)
    slab = max(1, _SLAB_WEIGHTS // max(1, rows.shape[1]))
    for start in range(0, len(rows), slab):
        part = slice(start, start + slab)
        blocks = _pad(rows[part], block_size).reshape(-1, num_blocks, block_size)
        codes[part], scales[part] = _quantize_slab(blocks, zero_code(bits))
    return codes.reshape(len(rows), -1), scales[:, :, 0]


def _quantize_slab(blocks: Float32, zero: int) -> tuple[UInt8, Float32]:
    """Return codes as `blocks`, and scales with a last axis of 1."""
    peak_at = np.abs(blocks).argmax(axis=2)[:, :, None]
    scales = np.take_along_axis(blocks, peak_at, axis=2) / np.float32(-zero)
    steps = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales != 0)
    return np.clip(np.rint(steps) + zero, 0, 2 * zero - 1).astype(np.uint8), scales


def dequantize_blocks(codes: UInt8, scales: Float32, bits: int, num_inputs: int) -> Float32:
    """Return the weights [N, K] float32 that codes and scales stand for; K is `num_inputs`."""
    num_rows, num_blocks = scales.shape
    steps = codes.reshape(num_rows, num_blocks, -1).astype(np.float32) - np.float32(zero_code(bits))
    return (steps * scales[:, :, None]).reshape(num_rows, -1)[:, :num_inputs]


def pack(codes: UInt8, bits: int) -> UInt8:
    """Return codes [..., n] packed into bytes [..., n * bits / 8], the first code in the lowest bits."""
    per_byte = 8 // bits
    lanes = codes.reshape(*codes.shape[:-1], -1, per_byte)
    packed = np.zeros(lanes.shape[:-1], np.uint8)
    for lane in range(per_byte):
        packed |= lanes[..., lane] << np.uint8(lane * bits)
    return packed


def unpack(packed: UInt8, bits: int) -> UInt8:
    """Return the codes that `pack` took, one per byte."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    lanes = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return lanes.reshape(*packed.shape[:-1], -1)


def _pad(rows: Float32, block_size: int) -> Float32:
    missing = -rows.shape[1] % block_size
    return np.pad(rows, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(rows)
