"""Experts whose matrices a checkpoint keeps in one tensor for all of a layer (Aria), under the names of single ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.checkpoint import StoredTensor, WeightTensor
from export.quantized.method import QuantizationMethod, refuse_codes

_STACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")
_RANK = 3


@dataclass(frozen=True)
class ExpertMatrix:
    """One matrix of one expert; nothing else of the tensor is read.

    Attributes:
        stacked: [E, K, columns], as x @ W wants it.
        expert: Its number.
        columns: Half-open range that is the matrix.
    """

    stacked: StoredTensor
    expert: int
    columns: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K], as a layer of its own is stored."""
        return (self.columns[1] - self.columns[0], self.stacked.shape[1])

    def read(self) -> npt.NDArray[np.float32]:
        """Return [N, K]."""
        self.stacked.require_numbers()
        return self.stacked.mapped()[self.expert, :, slice(*self.columns)].astype(np.float32).T


class StackedExperts(QuantizationMethod):
    """A checkpoint in full precision with `experts.gate_up_proj` [E, D, 2I] and `experts.down_proj` [E, I, D]."""

    def restored(self, stored: Mapping[str, StoredTensor], linears: AbstractSet[str]) -> dict[str, WeightTensor]:
        """Return the tensors themselves, but experts one by one, as `experts.{e}.gate_proj.weight` and so on."""
        refuse_codes(stored, "experts in one tensor are read in full precision alone")
        return {name: weight for key, tensor in stored.items() for name, weight in _parts(key, tensor)}


def _parts(key: str, tensor: StoredTensor) -> Iterator[tuple[str, WeightTensor]]:
    found = _STACKED.fullmatch(key)
    if found is None or len(tensor.shape) != _RANK:
        yield key, tensor
        return
    experts, part = found.groups()
    num, _, width = tensor.shape
    half = width // 2
    ranges = {"down_proj": (0, width)} if part == "down_proj" else {"gate_proj": (0, half), "up_proj": (half, width)}
    for expert in range(num):
        for name, columns in ranges.items():
            yield f"{experts}.{expert}.{name}.weight", ExpertMatrix(tensor, expert, columns)
