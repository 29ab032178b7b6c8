"""Matrices that a checkpoint keeps in one, under the names of each (InternLM2; towers whose projections are packed)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.errors import CheckpointError
from export.checkpoint import StoredTensor, WeightTensor
from export.config import DecoderConfig
from export.quantized.method import QuantizationMethod, refuse_codes

Rows = npt.NDArray[np.int64]
"""Numbers of rows, in order."""


@dataclass(frozen=True)
class PackedRows:
    """Some rows of a stored tensor, a projection of their own.

    Attributes:
        packed: [rows of all three, ...].
        rows: Their numbers, in order.
    """

    packed: StoredTensor
    rows: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the projection."""
        return (len(self.rows), *self.packed.shape[1:])

    def read(self) -> npt.NDArray[np.float32]:
        """Return the rows."""
        self.packed.require_numbers()
        return self.packed.mapped()[self.rows].astype(np.float32)


class PackedProjections(QuantizationMethod):
    """A checkpoint in full precision in which some modules' rows stand in one tensor.

    Args:
        packed: What a packed module's name ends with, e.g. "attention.qkv", and in it: modules beside it in the tree,
            each with the numbers of its rows.
    """

    def __init__(self, packed: Mapping[str, Mapping[str, Rows]]) -> None:
        super().__init__({})
        self._packed = packed

    def restored(self, stored: Mapping[str, StoredTensor], linears: AbstractSet[str]) -> dict[str, WeightTensor]:
        """Return the tensors themselves, but of packed modules the single ones.

        Raises:
            CheckpointError: One has other rows than its modules want.
        """
        refuse_codes(stored, "packed matrices are read in full precision alone")
        return {name: weight for key, tensor in stored.items() for name, weight in self._parts(key, tensor)}

    def _parts(self, key: str, tensor: StoredTensor) -> Iterator[tuple[str, WeightTensor]]:
        module, _, kind = key.rpartition(".")
        ends = [end for end in self._packed if module.endswith(f".{end}")]
        if not ends:
            yield key, tensor
            return
        parts = self._packed[ends[0]]
        wanted = sum(len(rows) for rows in parts.values())
        if tensor.shape[0] != wanted:
            raise CheckpointError(
                f"{key} has {tensor.shape[0]} rows; {', '.join(parts)} in it want {wanted} by the config"
            )
        for part, rows in parts.items():
            yield f"{module.rpartition('.')[0]}.{part}.{kind}", PackedRows(tensor, rows)


def one_after_another(**modules: int) -> Mapping[str, Rows]:
    """Return modules with so many rows each, one behind another."""
    ends = np.cumsum(list(modules.values()))
    return {name: np.arange(end - modules[name], end) for name, end in zip(modules, ends, strict=True)}


def by_shared_heads(config: DecoderConfig, after: str = "") -> Mapping[str, Rows]:
    """Return InternLM2's projections: heads of queries that share a key, that key, that value, and so on.

    Args:
        config: Heads of the decoder.
        after: Behind the projections' names.
    """
    shared = config.num_heads // config.num_kv_heads
    heads = np.arange(config.num_kv_heads * (shared + 2) * config.head_size)
    groups = heads.reshape(config.num_kv_heads, shared + 2, config.head_size)
    parts = {"q": groups[:, :shared], "k": groups[:, shared], "v": groups[:, shared + 1]}
    return {f"{letter}_proj{after}": rows.reshape(-1) for letter, rows in parts.items()}
