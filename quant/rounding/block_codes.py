"""Codes in blocks along the input axis, and the packing that ONNX Runtime's operators read.

A block of `block_size` consecutive weights of one output shares a scale: weight = (code - zero point) * scale. The zero
point is 2^(bits-1) unless the block stores its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.layers import Float32

UInt8 = NDArray[np.uint8]


def zero_code(bits: int) -> int:
    """Return the code that stands for the weight 0."""
    return 1 << (bits - 1)


@dataclass(frozen=True)
class BlockCodes:
    """A matrix [N, K] in codes.

    Attributes:
        codes: [N, blocks * block_size] uint8, one per byte; the last block is filled up with codes of 0.
        scales: [N, blocks] float32.
        bits: Per code: 2, 4 or 8.
        zero_points: [N, blocks] uint8; None: 2^(bits-1) everywhere.
        offsets: [N, blocks] float32 added to every weight of a block; None: nothing is.
    """

    codes: UInt8
    scales: Float32
    bits: int
    zero_points: UInt8 | None = None
    offsets: Float32 | None = None

    @property
    def block_size(self) -> int:
        """Return the weights per scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def weights(self, num_inputs: int) -> Float32:
        """Return the matrix [N, K] float32 that the codes stand for; K is `num_inputs`."""
        zeros = zero_code(self.bits) if self.zero_points is None else self.zero_points[:, :, None]
        steps = self.codes.reshape(*self.scales.shape, -1).astype(np.float32) - np.asarray(zeros, np.float32)
        blocks = steps * self.scales[:, :, None]
        if self.offsets is not None:
            blocks = blocks + self.offsets[:, :, None]
        return blocks.reshape(len(blocks), -1)[:, :num_inputs]


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


def pad(rows: Float32, block_size: int) -> Float32:
    """Return rows [N, K] with zeros after them up to a whole number of blocks."""
    missing = -rows.shape[1] % block_size
    return np.pad(rows, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(rows)
