"""Queries, keys and values that a checkpoint keeps in one matrix, under the names of three (InternLM2)."""

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
