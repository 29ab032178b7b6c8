"""Matrices that a checkpoint keeps in one, under the names of each (InternLM2; towers whose projections are packed)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.errors import CheckpointError
from export.checkpoint import StoredTensor, WeightTensor
from export.config import DecoderConfig
from export.quantized.method import QuantizationMethod, refuse_codes

_PACKED = re.compile(r"(.*)\.wqkv(_ve)?\.(weight|bias)")
"""The latter for tokens of images (Mono-InternVL)."""


@dataclass(frozen=True)
class PackedRows:
    """Some rows of a stored tensor, a projection of their own.

    Attributes:
        packed: [rows of all three, ...].
        rows: Their numbers, in order.
    """

    packed: StoredTensor
    rows: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the projection."""
        return (len(self.rows), *self.packed.shape[1:])

    def read(self) -> npt.NDArray[np.float32]:
        """Return the rows."""
        self.packed.require_numbers()
        return self.packed.mapped()[self.rows].astype(np.float32)


class PackedProjections(QuantizationMethod):
    """A checkpoint in full precision with `wqkv`: heads of queries that share a key, that key, that value, and so on.

    Args:
        config: Heads of the decoder.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__({})
        shared = config.num_heads // config.num_kv_heads
        heads = np.arange(config.num_kv_heads * (shared + 2) * config.head_size)
        groups = heads.reshape(config.num_kv_heads, shared + 2, config.head_size)
        self._rows = {"q": groups[:, :shared], "k": groups[:, shared], "v": groups[:, shared + 1]}
        self._num_rows = heads.size

    def restored(self, stored: Mapping[str, StoredTensor], linears: AbstractSet[str]) -> dict[str, WeightTensor]:
        """Return the tensors themselves, but `wqkv` as `q_proj`, `k_proj` and `v_proj`.

        Raises:
            CheckpointError: It has other rows than the heads want.
        """
        refuse_codes(stored, "packed projections are read in full precision alone")
        return {name: weight for key, tensor in stored.items() for name, weight in self._parts(key, tensor)}

    def _parts(self, key: str, tensor: StoredTensor) -> Iterator[tuple[str, WeightTensor]]:
        found = _PACKED.fullmatch(key)
        if found is None:
            yield key, tensor
            return
        before, kind, after = found.groups(default="")
        if tensor.shape[0] != self._num_rows:
            raise CheckpointError(f"{key} has {tensor.shape[0]} rows; the config's heads want {self._num_rows}")
        for part, rows in self._rows.items():
            yield f"{before}.{part}_proj{kind}.{after}", PackedRows(tensor, rows.reshape(-1))


class SplitRows(QuantizationMethod):
    """A checkpoint in full precision in which some modules' rows stand in one tensor, one module after another.

    Args:
        packed: What a packed module's name ends with, e.g. "attention.qkv", and in it: modules, each with its rows.
    """

    def __init__(self, packed: Mapping[str, Mapping[str, int]]) -> None:
        super().__init__({})
        self._packed = packed

    def restored(self, stored: Mapping[str, StoredTensor], linears: AbstractSet[str]) -> dict[str, WeightTensor]:
        """Return the tensors themselves, but of packed modules the single ones, beside each other in the tree.

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
        if tensor.shape[0] != sum(parts.values()):
            raise CheckpointError(
                f"{key} has {tensor.shape[0]} rows; {', '.join(parts)} in it want {sum(parts.values())} by the config"
            )
        start = 0
        for part, rows in parts.items():
            yield f"{module.rpartition('.')[0]}.{part}.{kind}", PackedRows(tensor, np.arange(start, start + rows))
            start += rows
