"""Codes in blocks along the input axis, and the packing that ONNX Runtime's operators read.

A block of `block_size` consecutive weights of one output shares a scale: weight = (code - zero point) * scale. The zero
point is 2^(bits-1) unless the block stores its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from graphs.layers import Float32

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
        rest: A second matrix of the same shape that is added to this one; None: there is none.
        steps: [N, 1] float32 of which each scale of a row is 1 to 255; None: scales are any numbers.
    """

    codes: UInt8
    scales: Float32
    bits: int
    zero_points: UInt8 | None = None
    offsets: Float32 | None = None
    rest: BlockCodes | None = None
    steps: Float32 | None = None

    @property
    def scale_codes(self) -> UInt8:
        """Return how many steps each scale is, [N, blocks] uint8, where there are steps."""
        return np.asarray(np.rint(self.scales / np.asarray(self.steps)), np.uint8)

    @property
    def block_size(self) -> int:
        """Return the weights per scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    @property
    def planes(self) -> tuple[BlockCodes, ...]:
        """Return the matrices whose sum this is, each without a rest."""
        rest = () if self.rest is None else self.rest.planes
        return (replace(self, rest=None), *rest)

    def weights(self, num_inputs: int) -> Float32:
        """Return the matrix [N, K] float32 that the codes stand for; K is `num_inputs`."""
        zeros = zero_code(self.bits) if self.zero_points is None else self.zero_points[:, :, None]
        steps = self.codes.reshape(*self.scales.shape, -1).astype(np.float32) - np.asarray(zeros, np.float32)
        blocks = steps * self.scales[:, :, None]
        if self.offsets is not None:
            blocks = blocks + self.offsets[:, :, None]
        rows: Float32 = blocks.reshape(len(blocks), -1)[:, :num_inputs]
        return rows if self.rest is None else rows + self.rest.weights(num_inputs)

    def map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> BlockCodes:
        """Return the codes with every array put through `change`: a reshape, a selection of rows."""
        arrays = (self.codes, self.scales, self.zero_points, self.offsets)
        codes, scales, zero_points, offsets = (None if each is None else change(each) for each in arrays)
        rest = None if self.rest is None else self.rest.map(change)
        return BlockCodes(cast(UInt8, codes), cast(Float32, scales), self.bits, zero_points, offsets, rest)

    def padded(self, block_size: int) -> BlockCodes:
        """Return one block per row, [N, n <= block_size], filled up to a whole block with codes of 0."""
        missing = block_size - self.codes.shape[1]
        codes = np.pad(self.codes, ((0, 0), (0, missing)), constant_values=zero_code(self.bits))
        return replace(self, codes=codes, rest=None if self.rest is None else self.rest.padded(block_size))


def joined(parts: Sequence[BlockCodes], axis: int) -> BlockCodes:
    """Return parts of one matrix put together: along its rows (axis 0) or along its blocks (axis 1)."""

    def all_of(field: str) -> NDArray[Any] | None:
        arrays = [getattr(part, field) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays, axis)

    rests = [part.rest for part in parts if part.rest is not None]
    return BlockCodes(
        cast(UInt8, all_of("codes")),
        cast(Float32, all_of("scales")),
        parts[0].bits,
        all_of("zero_points"),
        all_of("offsets"),
        joined(rests, axis) if rests else None,
    )


def pack(codes: UInt8, bits: int) -> UInt8:
    """Return codes [..., n] packed into bytes [..., n * bits / 8], the first code in the lowest bits."""
    per_byte = 8 // bits
    lanes = codes.reshape(*codes.shape[:-1], -1, per_byte)
    packed = np.zeros(lanes.shape[:-1], np.uint8)
    for lane in range(per_byte):
        packed |= lanes[..., lane] << np.uint8(lane * bits)
    return packed
