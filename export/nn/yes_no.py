"""Which of two tokens a decoder would say: the difference of their scores, by a row of the output matrix each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module, Weight


class _Difference(Weight):
    """The row of one token less that of another, [D], of the output matrix [V, D]."""

    def __init__(self, size: int, tokens: tuple[int, int]) -> None:
        super().__init__(size, name="yes_less_no", source="weight")
        self._tokens = tokens

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape has both rows."""
        return len(stored) == 2 and stored[1] == int(self.shape[0]) and max(self._tokens) < stored[0]

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [D]."""
        (stored,) = parts
        yes, no = self._tokens
        return np.ascontiguousarray(stored[yes] - stored[no])


class YesNo(Module):
    """[B, N, D] -> [B, N, 1]: the logarithm of the odds of one token against another.

    One vector, multiplied number by number, so that no variant rounds what the whole answer hangs on.

    Args:
        size: D.
        tokens: The ids of yes and of no.
    """

    def __init__(self, size: int, tokens: tuple[int, int]) -> None:
        super().__init__("lm_head")
        self.weight = _Difference(size, tokens)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return the scores' difference."""
        return op.ReduceSum(op.Mul(x, self.weight), [2], keepdims=1)
