"""How a variant of a cross-encoder scores beside its parent: the order of documents, and the scores themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundle.errors import QuantizationError
from bundle.report import PairScores
from quant.quality.evaluation import Caption, Evaluation, Measured, Passage, Progress
from quant.quality.measures import CLEAR_RATIO, Float64
from runtime.pair_encoder import fits
from runtime.pair_runner import PairRunner
from runtime.rank_runner import RankRunner

PairScorer = PairRunner | RankRunner
_DOCUMENTS = 12
"""That each query is held against at most, its own among them."""


@dataclass(frozen=True)
class Asked:
    """A query and what it is held against.

    Attributes:
        query: A text.
        beside: Its own document, and those of the queries behind it.
    """

    query: str
    beside: Sequence[Caption | Passage]

    @property
    def documents(self) -> list[str | Image.Image]:
        """The documents; images are opened now."""
        return [each.document if isinstance(each, Passage) else each.image for each in self.beside]


def asked_of(evaluation: Evaluation, *, sees: bool) -> list[Asked]:
    """Return what a cross-encoder is asked of samples.

    Args:
        evaluation: With captions for a model that `sees`, else with passages.
        sees: The model reads a text and an image, else two texts.

    Raises:
        QuantizationError: They are of the other kind.
    """
    samples: Sequence[Caption | Passage] = evaluation.captions if sees else evaluation.passages
    if not samples:
        wanted = "captions of images" if sees else "questions with a text that answers each"
        raise QuantizationError(f"{evaluation.source} holds no {wanted}, which this cross-encoder is measured on")
    most = min(_DOCUMENTS, len(samples))
    return [
        Asked(_query(own), [samples[(at + by) % len(samples)] for by in range(most)]) for at, own in enumerate(samples)
    ]


def measure_pairs(
    parent: PairScorer, variant: PairScorer, evaluation: Evaluation, progress: Progress, *, sees: bool
) -> Measured:
    """Return how a variant scores beside its parent.

    Raises:
        QuantizationError: The samples are of the other kind.
    """
    asked = asked_of(evaluation, sees=sees)
    progress(f"scoring {sum(len(each.beside) for each in asked)} pairs twice")
    scored = [_scored(parent, variant, each) for each in asked]
    ranks = [found for pair in scored if (found := rank_correlation(*pair)) is not None]
    differences = np.concatenate([np.abs(fits(own).astype(np.float64) - fits(its)) for own, its in scored])
    kept = np.concatenate([clear_orders(*pair) for pair in scored])
    same = [own.argmax() == its.argmax() for own, its in scored]
    return Measured(
        pairs=PairScores(
            num_queries=len(scored),
            num_pairs=differences.size,
            num_ranked=len(ranks),
            rank_correlation=float(np.mean(ranks)) if ranks else None,
            num_clear=kept.size,
            clear_order=float(kept.mean()) if kept.size else None,
            score_difference=float(differences.mean()),
            score_difference_p99=float(np.percentile(differences, 99)),
            same_first=float(np.mean(same)),
        )
    )


def clear_orders(expected: Float64, found: Float64) -> NDArray[np.bool_]:
    """Return whether two documents [n] still stand in their order, of each two that the parent clearly tells apart.

    A score is the logarithm of odds: one document is clearly preferred where its odds are `CLEAR_RATIO` times as great.
    Between documents that are nearly as good, any rounding chooses.
    """
    own, its = (np.subtract.outer(scores, scores) for scores in (expected, found))
    kept: NDArray[np.bool_] = its[own >= math.log(CLEAR_RATIO)] > 0
    return kept


def rank_correlation(expected: Float64, found: Float64) -> float | None:
    """Return Spearman's rank correlation of two scores of the same documents [n], equals sharing their mean rank.

    Args:
        expected: The parent's.
        found: The variant's; 0 is returned where they are all the same.
    Returns:
        None where the parent's are all the same.
    """
    own, its = (_ranks(scores) - (len(scores) - 1) / 2 for scores in (expected, found))
    if not own.any():
        return None
    return float(own @ its / np.sqrt((own @ own) * (its @ its))) if its.any() else 0.0


def _ranks(scores: Float64) -> Float64:
    """Return [n] how many scores are smaller, equals counted half."""
    smaller, equal = scores[None] < scores[:, None], scores[None] == scores[:, None]
    ranks: Float64 = smaller.sum(axis=1) + (equal.sum(axis=1) - 1) / 2
    return ranks


def _query(sample: Caption | Passage) -> str:
    return sample.query if isinstance(sample, Passage) else sample.caption


def _scored(parent: PairScorer, variant: PairScorer, asked: Asked) -> tuple[Float64, Float64]:
    documents = asked.documents
    return parent.scores(asked.query, documents), variant.scores(asked.query, documents)


def feeds_asked(asked: Sequence[Asked]) -> Iterator[tuple[str, str | Image.Image]]:
    """Yield a query with its own document, and with the next one's: what calibration runs."""
    for each in asked:
        for sample in each.beside[:2]:
            yield each.query, sample.document if isinstance(sample, Passage) else sample.image
