"""How well a ranking finds what is relevant: recall and normalized discounted cumulative gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def recall_at(ranking: Sequence[str], relevant: Mapping[str, float], k: int) -> float:
    """Return the share of what is relevant that is among the first k.

    Args:
        ranking: Names, the best first.
        relevant: Names and grades, at least one above 0.
        k: At least 1.
    """
    wanted = {name for name, grade in relevant.items() if grade > 0}
    return len(wanted.intersection(ranking[:k])) / len(wanted)


def hit_at(ranking: Sequence[str], relevant: Mapping[str, float], k: int) -> float:
    """Return 1 where anything relevant is among the first k, else 0: "recall@k" of image and caption search."""
    return float(any(relevant.get(name, 0) > 0 for name in ranking[:k]))


def ndcg_at(ranking: Sequence[str], relevant: Mapping[str, float], k: int) -> float:
    """Return DCG@k over that of the best ranking; a grade counts as it is (Järvelin and Kekäläinen 2002, section 2.2).

    The discount is log2 of the rank plus one, as is common, so that the second place counts less than the first.
    """
    best = sorted((grade for grade in relevant.values() if grade > 0), reverse=True)
    return _gain([relevant.get(name, 0.0) for name in ranking[:k]]) / _gain(best[:k])


def _gain(grades: Sequence[float]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1))
