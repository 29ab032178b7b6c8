"""Tables of tokens that a checkpoint keeps in two parts, beside matrices that it keeps in one (Molmo 2)."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.errors import CheckpointError
from export.checkpoint import StoredTensor, WeightTensor
from export.quantized.packed_projections import PackedProjections, Rows


@dataclass(frozen=True)
class JoinedRows:
    """Two tensors, the rows of one behind those of the other.

    Attributes:
        first: [n, ...].
        second: [m, ...].
    """

    first: WeightTensor
    second: WeightTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[n + m, ...]."""
        return (self.first.shape[0] + self.second.shape[0], *self.first.shape[1:])

    def read(self) -> npt.NDArray[np.float32]:
        """Return the rows of both."""
        return np.concatenate([self.first.read(), self.second.read()])


class JoinedTables(PackedProjections):
    """As `PackedProjections`, with a table in two tensors.

    Args:
        packed: As of that.
        table: The table's name in the graphs.
        parts: Names of its two tensors, by their order.
    """

    def __init__(self, packed: Mapping[str, Mapping[str, Rows]], table: str, parts: tuple[str, str]) -> None:
        super().__init__(packed)
        self._table, self._table_parts = table, parts

    def restored(self, stored: Mapping[str, StoredTensor], linears: AbstractSet[str]) -> dict[str, WeightTensor]:
        """Return the tensors themselves, but of packed modules the single ones, and the table as one.

        Raises:
            CheckpointError: One part of the table is missing, or as wide as another, or a packed tensor has other rows.
        """
        found = super().restored(stored, linears)
        parts = [found.pop(name) for name in self._table_parts if name in found]
        if not parts:
            return found
        first, second = self._table_parts
        if len(parts) != len(self._table_parts) or parts[0].shape[1:] != parts[1].shape[1:]:
            raise CheckpointError(
                f"{first} and {second} are the table of tokens together; found are {[part.shape for part in parts]}"
            )
        return {**found, self._table: JoinedRows(*parts)}
