"""Round to nearest: the grid of a block is set by its weight of largest magnitude, and nothing is calibrated.

The scale is that weight, sign kept, over -2^(bits-1): it lands on code 0 exactly and no code is wasted. ONNX Runtime's
own quantizer does the same.
"""

from __future__ import annotations

import numpy as np

from quant.calibration import InputStatistics
from quant.layers import Float32
from quant.rounding.block_codes import BlockCodes, UInt8, pad, zero_code

_SLAB_WEIGHTS = 1 << 18  # 1 MiB at a time: the steps then stay in the cache, and a large matrix needs no large copies


def round_to_nearest(rows: Float32, bits: int, block_size: int, inputs: InputStatistics | None = None) -> BlockCodes:
    """Return each weight on the nearest step of its block's grid.

    Args:
        rows: [N, K] float32; where K does not fill the last block, zeros do.
        bits: 2, 4 or 8.
        block_size: Weights per scale.
        inputs: Not read.
    """
    num_blocks = -(-rows.shape[1] // block_size)
    codes = np.empty((len(rows), num_blocks, block_size), np.uint8)
    scales = np.empty((len(rows), num_blocks, 1), np.float32)
    slab = max(1, _SLAB_WEIGHTS // max(1, rows.shape[1]))
    for start in range(0, len(rows), slab):
        part = slice(start, start + slab)
        blocks = pad(rows[part], block_size).reshape(-1, num_blocks, block_size)
        codes[part], scales[part] = _quantize_slab(blocks, zero_code(bits))
    return BlockCodes(codes.reshape(len(rows), -1), scales[:, :, 0], bits)


def _quantize_slab(blocks: Float32, zero: int) -> tuple[UInt8, Float32]:
    """Return codes as `blocks`, and scales with a last axis of 1."""
    peak_at = np.abs(blocks).argmax(axis=2)[:, :, None]
    scales = np.take_along_axis(blocks, peak_at, axis=2) / np.float32(-zero)
    steps = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales != 0)
    return np.clip(np.rint(steps) + zero, 0, 2 * zero - 1).astype(np.uint8), scales
