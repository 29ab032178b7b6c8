"""Changes of matrices by products of two narrow ones, as of adapters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from export.nn.module import Weight
from graphs.labels import Label

Floats = npt.NDArray[np.float32]


class SecondMatrix(Weight):
    """The second matrix of one low-rank change, [r, D], from the one tensor that holds all of them [1, changes, D * r].

    Args:
        shape: (D, r).
        number: Among the changes.
        scale: That it is multiplied by, alpha / r.
        key: The tensor's name in the checkpoint, as the modules are named.
        name: Of the initializer.
    """

    def __init__(self, shape: tuple[int, int], number: int, scale: float, key: str, name: str) -> None:
        super().__init__(shape[1], shape[0], name=name, label=Label("linear"))
        self._columns, self._number, self._scale, self._key = shape, number, scale, key

    @property
    def source_keys(self) -> tuple[str, ...]:
        """The tensor of all changes."""
        return (self._key,)

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a tensor has this change among others."""
        size, rank = self._columns
        return len(stored) == 3 and stored[0] == 1 and self._number < stored[1] and stored[2] == size * rank

    def from_stored(self, parts: Sequence[Floats]) -> Floats:
        """Return [r, D], scaled."""
        (stored,) = parts
        return np.ascontiguousarray(stored[0, self._number].reshape(self._columns).T) * np.float32(self._scale)
