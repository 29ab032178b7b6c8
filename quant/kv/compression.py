"""A prompt's rows chosen layer by layer, in pieces between which whoever runs them may do something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quant.kv.policy import LayerRows, Merged, Policy, Rows

_ROUNDING = 1e-9
"""0.29 of 100 rows is 29, though 0.29 * 100 is a little less."""


@dataclass(frozen=True)
class KeptLayer:
    """What stays of a layer.

    Attributes:
        index: Of the layer.
        rows: [K, n] numbers, ascending.
        merged: What takes their place; None where they stay as they are.
    """

    index: int
    rows: Rows
    merged: Merged | None = None


def num_kept_rows(num_rows: int, budget: float) -> int:
    """Return n: how many of a prompt's rows a budget keeps, rounded down."""
    return math.floor(num_rows * budget + _ROUNDING)


def compress(policy: Policy, groups: Sequence[int], read: Callable[[int], LayerRows]) -> Iterator[KeptLayer | None]:
    """Yield what stays of each layer, and None after every other piece of work.

    Layers of one length group keep as many rows as one another, the mean of what the policy gives them.

    Args:
        policy: Chooses.
        groups: The length group of each layer.
        read: Returns a layer's rows, twice where the policy weighs layers; what was yielded of a layer may be done to
            it before the next is read.
    """
    weights = [1.0] * len(groups)
    if policy.weighs_layers:
        for index in range(len(groups)):
            weights[index] = policy.weight(read(index))
            yield None
    counts = _of_groups(policy.counts(weights), groups)
    for index, count in enumerate(counts):
        layer = read(index)
        rows = policy.kept(layer, count)
        yield KeptLayer(index, rows, policy.merged(layer, rows))


def _of_groups(counts: Sequence[int], groups: Sequence[int]) -> list[int]:
    """Return each layer's rows where those of one group are equal: their mean, rounded down."""
    totals, sizes = [0] * (max(groups) + 1), [0] * (max(groups) + 1)
    for count, group in zip(counts, groups, strict=True):
        totals[group] += count
        sizes[group] += 1
    return [totals[group] // sizes[group] for group in groups]
