"""The values that the weights of a block may take, apart from how they were found and from the weights that take them.

Rounding a block is two steps: a `Fit` looks at its weights and answers with a `Grid`, and the grid gives codes to
weights. They are apart because error feedback moves the weights after the grid of their block was found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from graphs.layers import Float32
from quant.rounding.block_codes import BlockCodes, UInt8, zero_code


class Grid(Protocol):
    """The values of R blocks."""

    def encode(self, weights: Float32) -> BlockCodes:
        """Return the codes of the nearest values, as R rows of one block.

        Args:
            weights: [R, n] float32: n weights of each block, be it all of them or one column.
        """


Fit = Callable[[Float32, int], Grid]
"""(blocks [R, n] float32, bits) -> the grid of each block."""


@dataclass(frozen=True)
class StepGrid:
    """Equal steps: weight = (code - zero point) * scale + offset.

    Attributes:
        scales: [R, 1] float32, of any sign; where it is 0 the block holds nothing but its offset.
        bits: Per code.
        zero_points: [R, 1] uint8; None: 2^(bits-1).
        offsets: [R, 1] float32; None: 0.
        lowest: The smallest code that is used: 1 for ternary, which leaves a code of its two bits free.
    """

    scales: Float32
    bits: int
    zero_points: UInt8 | None = None
    offsets: Float32 | None = None
    lowest: int = 0

    def encode(self, weights: Float32) -> BlockCodes:
        """Return the codes of the nearest values, as R rows of one block."""
        centred = weights if self.offsets is None else weights - self.offsets
        steps = np.divide(centred, self.scales, out=np.zeros_like(centred), where=self.scales != 0)
        np.rint(steps, out=steps)
        steps += np.float32(zero_code(self.bits)) if self.zero_points is None else self.zero_points
        np.clip(steps, self.lowest, (1 << self.bits) - 1, out=steps)
        return BlockCodes(steps.astype(np.uint8), self.scales, self.bits, self.zero_points, self.offsets)
