"""What a KV policy is: scores of one layer's rows in, kept (and merged) rows out. Plain numpy.

Sizes: K key/value heads, H = K * g query heads of which g share one of K, L rows, W last tokens whose queries are
known, C per head. Keys and queries are rotated already: what is kept keeps its position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

WINDOW_TOKENS = 32
"""W: tokens at the end of a prompt whose queries graphs give to whoever asks. SnapKV's window."""

Float32 = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Budget:
    """What a policy has to do with one prompt.

    Attributes:
        num_rows: L.
        num_kept: n, rows that each layer keeps on average, at least 1.
        num_queries: W, or L where that is less; 0 for a policy that needs no queries.
    """

    num_rows: int
    num_kept: int
    num_queries: int


@dataclass(frozen=True)
class LayerRows:
    """One layer of one sequence whose prompt was read.

    Attributes:
        index: Of the layer.
        keys: [K, L, C], as attention reads them.
        values: [K, L, C].
        queries: [H, W, C] of the last min(W, L) tokens; no row for a policy that needs none.
        is_image: [L] True where a row is an image token's.
        seed: Of the prompt's content.
    """

    index: int
    keys: Float32
    values: Float32
    queries: Float32
    is_image: npt.NDArray[np.bool_]
    seed: int

    @property
    def num_rows(self) -> int:
        """L."""
        return int(self.keys.shape[1])


@dataclass(frozen=True)
class Merged:
    """Keys and values [K, n, C] that take the place of those that are kept."""

    keys: Float32
    values: Float32


class Policy(ABC):
    """Chooses the rows of one prompt, layer by layer.

    Class attributes:
        weighs_layers: `counts` wants what `weight` says of each layer.
    """

    weighs_layers: ClassVar[bool] = False

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def weight(self, layer: LayerRows) -> float:
        """Return how much of the budget a layer should get beside the others."""
        return 1.0

    def counts(self, weights: Sequence[float]) -> list[int]:
        """Return how many rows each layer keeps: the same number, unless a policy has layer budgets.

        Args:
            weights: Of each layer, as `weight` says; 1 where nobody asked.
        """
        return [self.budget.num_kept] * len(weights)

    @abstractmethod
    def kept(self, layer: LayerRows, num_kept: int) -> Rows:
        """Return [K, n] numbers of rows that stay, ascending, each head's own."""

    def merged(self, layer: LayerRows, kept: Rows) -> Merged | None:
        """Return what becomes of the kept rows where the others leave something in them; None where they stay."""
        return None


class ScorePolicy(Policy):
    """A policy that keeps the rows of the highest scores."""

    @abstractmethod
    def score(self, layer: LayerRows, num_kept: int) -> Scores:
        """Return [K, L] scores; infinite where a row stays whatever the others are."""

    def kept(self, layer: LayerRows, num_kept: int) -> Rows:
        """Return the rows of the highest scores."""
        return top_rows(self.score(layer, num_kept), num_kept)


def top_rows(scores: Scores, num_kept: int) -> Rows:
    """Return [K, n] numbers of each head's highest scores [K, L], ascending; of equal ones the newer stays."""
    num_rows = scores.shape[1]
    order = np.argsort(-scores[:, ::-1], axis=1, kind="stable")[:, :num_kept]
    rows: Rows = np.sort(num_rows - 1 - order, axis=1).astype(np.int64)
    return rows


def of_all_heads(rows: Rows, num_heads: int) -> Rows:
    """Return [K, n] of rows [n] that every head keeps."""
    return np.broadcast_to(rows.astype(np.int64), (num_heads, len(rows)))


def attention(layer: LayerRows, window: int) -> Float32:
    """Return the attention [H, w, L] of the last w tokens, each over the rows up to its own.

    Args:
        layer: With the queries of at least w tokens.
        window: w, at least 1.
    """
    num_kv, num_rows, size = layer.keys.shape
    queries = layer.queries[:, -window:]
    num_heads, window, _ = queries.shape
    grouped = np.ascontiguousarray(queries).reshape(num_kv, -1, size)
    scores = (grouped @ layer.keys.transpose(0, 2, 1)).reshape(num_heads, window, num_rows) * np.float32(size**-0.5)
    scores[..., num_rows - window :] += np.triu(np.full((window, window), -np.inf, np.float32), 1)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    found: Float32 = scores
    return found


def by_kv_head(of_heads: Float32, num_kv: int) -> Float32:
    """Return the mean [K, L] over the query heads of each key/value head, of [H, L]."""
    mean: Float32 = of_heads.reshape(num_kv, -1, of_heads.shape[-1]).mean(axis=1)
    return mean
