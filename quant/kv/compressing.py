"""One sequence's rows in a cache on their way to fewer, in pieces between which something else may be done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.states import LayerStates, State
from quant.kv.compression import KeptLayer, compress
from quant.kv.policy import WINDOW_TOKENS, Budget, Float32, LayerRows, Rows
from quant.kv.table import entry_of, load_policy


class Cache(Protocol):
    """Rows of every slot and state, where policies choose among them."""

    def rows_as_float(self, state: State, slot: int, num_rows: int) -> Float32:
        """Return the first rows of a layer's keys or values as numbers, [K, num_rows, C]; a new array."""
        ...

    def write_rows(self, state: State, slot: int, rows: Float32) -> None:
        """Let a layer's keys or values begin with rows [K, n, C]."""
        ...

    def keep_rows(self, state: State, slot: int, kept: Rows) -> None:
        """Drop all rows of a layer's keys or values but [K, n], which move to the front."""
        ...


@dataclass(frozen=True)
class Compression:
    """What is to become of a prompt's rows once it was read.

    Attributes:
        policy: A name of `quant.kv.table.POLICIES`.
        num_kept: Rows that stay of each layer on average; fewer than the prompt has, and at least 1.
    """

    policy: str
    num_kept: int

    @property
    def num_fresh_tokens(self) -> int:
        """Tokens at the end of a prompt that have to be run for their queries, whatever rows are here."""
        return WINDOW_TOKENS if entry_of(self.policy).needs_queries else 0


class LastQueries:
    """The queries of a prompt's last tokens, of every layer, as runs give them."""

    def __init__(self) -> None:
        self._of_layer: dict[int, Float32] = {}

    def add(self, found: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add what a run gave, [1, w, H*C] by output name; what is older than the last W tokens goes."""
        for name, array in found.items():
            layer = int(name.removeprefix(tensors.LAST_QUERIES))
            known = self._of_layer.get(layer, array[0, :0])
            self._of_layer[layer] = np.concatenate([known, array[0]])[-WINDOW_TOKENS:]

    def of(self, layer: int, head_size: int) -> Float32:
        """Return [H, w, C] of a layer; no row where nobody asked."""
        known = self._of_layer.get(layer)
        if known is None:
            return np.zeros((1, 0, head_size), np.float32)
        return np.ascontiguousarray(known.reshape(len(known), -1, head_size).transpose(1, 0, 2))


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt whose rows are all in a slot.

    Attributes:
        slot: That they are in.
        num_rows: L.
        queries: Of its last tokens, where the policy needs them.
        is_image: [L] True where a token is an image's.
        seed: Of its content.
    """

    slot: int
    num_rows: int
    queries: LastQueries
    is_image: npt.NDArray[np.bool_]
    seed: int


@dataclass(frozen=True)
class Stayed:
    """What a choice left of a prompt.

    Attributes:
        rows: [G] of each length group.
        mean_rows: Of a layer.
    """

    rows: tuple[int, ...]
    mean_rows: int


class Compressing:
    """A prompt whose rows are being chosen; some layers have lost theirs and some have not.

    Args:
        compression: What is wanted.
        cache: That they are in.
        layers: Its keys and values.
        prompt: Whose rows they are.

    """

    def __init__(
        self, compression: Compression, cache: Cache, layers: Sequence[LayerStates], prompt: ReadPrompt
    ) -> None:
        self._cache = cache
        self._layers = layers
        self._prompt = prompt
        num_queries = min(compression.num_fresh_tokens, prompt.num_rows)
        policy = load_policy(compression.policy)(Budget(prompt.num_rows, compression.num_kept, num_queries))
        self._pieces = compress(policy, [layer.group for layer in layers], self._read)
        self._rows: list[int] = []

    def advance(self, until_s: float) -> Stayed | None:
        """Choose rows of some layers, at least of one, and return what stayed once those of all are chosen.

        Args:
            until_s: Monotonic time after which no further layer is begun.
        """
        for piece in self._pieces:
            if piece is not None:
                self._keep(piece)
            if time.monotonic() >= until_s:
                break
        if len(self._rows) < len(self._layers):
            return None
        of_group = dict(zip((layer.group for layer in self._layers), self._rows, strict=True))
        return Stayed(tuple(of_group[group] for group in sorted(of_group)), round(sum(self._rows) / len(self._rows)))

    def _read(self, index: int) -> LayerRows:
        prompt, layer = self._prompt, self._layers[index]
        keys, values = (
            self._cache.rows_as_float(state, prompt.slot, prompt.num_rows) for state in (layer.key, layer.value)
        )
        queries = prompt.queries.of(index, keys.shape[-1])
        return LayerRows(index, keys, values, queries, prompt.is_image, prompt.seed)

    def _keep(self, kept: KeptLayer) -> None:
        layer, slot = self._layers[kept.index], self._prompt.slot
        if kept.merged is not None:
            self._cache.write_rows(layer.key, slot, kept.merged.keys)
            self._cache.write_rows(layer.value, slot, kept.merged.values)
        else:
            for state in (layer.key, layer.value):
                self._cache.keep_rows(state, slot, kept.rows)
        self._rows.append(kept.rows.shape[1])
