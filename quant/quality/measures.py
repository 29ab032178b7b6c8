"""How far a variant's outputs lie from its parent's: pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bundle.errors import QuantizationError
from bundle.report import Likenesses

Float64 = NDArray[np.float64]

CLEAR_RATIO = 1.5
"""How much likelier than its second a model's first choice must be to count as one. Between two tokens that are nearly
as likely, any rounding chooses: an open answer of a small model has one such position in six."""
_INDICES_AT_ONCE = 1 << 22
"""Of resamples: 32 MB."""
_NO_SPREAD = 1e-10
"""Share of the squared length below which what rows differ by is rounding: sums of squares in float64 keep 1e-15."""


@dataclass(frozen=True)
class Interval:
    """A mean and the 95 % interval around it.

    Attributes:
        mean: Of the values.
        low: 2.5th percentile of the means of resamples.
        high: 97.5th percentile.
        n: How many values.
    """

    mean: float
    low: float
    high: float
    n: int


def kl_divergences(reference_logits: ArrayLike, logits: ArrayLike) -> Float64:
    """Return KL(reference || variant) in nats at each position: [A] from two [A, V]."""
    expected, found = _log_softmax(reference_logits), _log_softmax(logits)
    divergences: Float64 = np.sum(np.exp(expected) * (expected - found), axis=-1)
    return divergences


def top1_agreements(reference_logits: ArrayLike, logits: ArrayLike) -> Float64:
    """Return 1 where both would choose the same token, else 0: [A] from two [A, V]."""
    same = np.asarray(reference_logits).argmax(axis=-1) == np.asarray(logits).argmax(axis=-1)
    return np.asarray(same, np.float64)


def clear_choices(logits: ArrayLike) -> NDArray[np.bool_]:
    """Return where the first choice is at least `CLEAR_RATIO` times as likely as the second: [A] from [A, V]."""
    second, first = np.partition(np.asarray(logits, np.float64), -2, axis=-1)[..., -2:].T
    clear: NDArray[np.bool_] = first - second >= math.log(CLEAR_RATIO)
    return clear


def negative_log_likelihoods(logits: ArrayLike, token_ids: Sequence[int]) -> Float64:
    """Return -log p of the given token in nats at each position: [A] from [A, V] and A ids."""
    chosen: Float64 = -_log_softmax(logits)[np.arange(len(token_ids)), list(token_ids)]
    return chosen


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """Return the index of the first token that differs, an end counting as one; None for equal sequences."""
    if list(expected) == list(found):
        return None
    pairs = enumerate(zip(expected, found, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(expected), len(found)))


def cosines(reference: ArrayLike, found: ArrayLike) -> Float64:
    """Return the cosine of each pair of rows: [n] from two [n, E]; 0 where a row is all zeros."""
    a, b = np.asarray(reference, np.float64), np.asarray(found, np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    products: Float64 = np.sum(a * b, axis=-1)
    return np.asarray(np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0))


def bootstrap(values: ArrayLike, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of values and its 95 % percentile interval (Efron, 1979).

    Args:
        values: [n], one per sample. For a loss pass the differences of pairs: what both variants get right or wrong
            alike then adds no width.
        resamples: How many.
        seed: Of the resampling.

    Raises:
        QuantizationError: There are no values.
    """
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise QuantizationError("an interval needs at least one sample; the evaluation gave none")
    means = np.concatenate([array[drawn].mean(axis=1) for drawn in _resamples(array.size, resamples, seed)])
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(array.mean()), float(low), float(high), int(array.size))


def grouped_bootstrap(groups: Sequence[Float64], resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean over the values of all groups, and its 95 % percentile interval where whole groups are drawn.

    Values of one group lie together (the tokens of one answer): drawn one by one they would seem to tell more than they
    do (the cluster bootstrap; Davison and Hinkley, Bootstrap Methods, 1997, section 3.8).

    Args:
        groups: [values] each, none empty.
        resamples: How many.
        seed: Of the resampling; the same for equal numbers of groups, so that two measures are drawn alike.

    Raises:
        QuantizationError: There are no groups.
    """
    if not groups:
        raise QuantizationError("an interval needs at least one sample; the evaluation gave none")
    sums, sizes = np.array([group.sum() for group in groups]), np.array([group.size for group in groups])
    pieces = _resamples(len(groups), resamples, seed)
    means = np.concatenate([sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) for drawn in pieces])
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high), len(groups))


def _resamples(num: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield indices [some, num] of all resamples, in pieces: of a large file they would take gigabytes at once."""
    random, at_once = np.random.default_rng(seed), max(_INDICES_AT_ONCE // num, 1)
    for start in range(0, resamples, at_once):
        yield random.integers(0, num, (min(at_once, resamples - start), num))


class Likeness:
    """How alike two models see many inputs: each pair of vectors, and what sets the inputs apart.

    Cosines alone are blind to a model that says the same of every input: where the parent's vectors share a large
    mean, that mean is near all of them. So the mean is taken off: `correlation` is the cosine of what is left, over all
    inputs as one vector, and `spread` the ratio of its lengths. Sums are kept, never the vectors. Inputs of different
    numbers of rows, as images in their own shapes are, have no mean of whole vectors: there it is each input's mean row
    that is set apart.
    """

    def __init__(self) -> None:
        self._cosines: list[float] = []
        self._whole: _Sums | None = _Sums()
        self._mean_rows = _Sums()

    def add(self, expected: ArrayLike, found: ArrayLike) -> None:
        """Take in what parent and variant made of one input: two of one shape, [D] or [rows, D], D always the same."""
        rows = tuple(np.atleast_2d(np.asarray(each, np.float64)) for each in (expected, found))
        a, b = (each.ravel() for each in rows)
        self._cosines.append(float(cosines(a, b)))
        self._mean_rows.add(*(each.mean(axis=0) for each in rows))
        if self._whole is not None and self._whole.fits(a):
            self._whole.add(a, b)
        else:
            self._whole = None

    @property
    def cosines(self) -> Float64:
        """The cosine of each pair: [n]."""
        return np.array(self._cosines)

    @property
    def correlation(self) -> float | None:
        """The cosine after the means are taken off; 0 where the variant alone has no spread, None where the parent."""
        parent, variant, both = self._centred()
        if parent == 0:
            return None
        return 0.0 if variant == 0 else both / float(np.sqrt(parent * variant))

    @property
    def spread(self) -> float | None:
        """The variant's root mean square distance from its mean over the parent's; None where the parent has none."""
        parent, variant, _ = self._centred()
        return None if parent == 0 else float(np.sqrt(variant / parent))

    def _centred(self) -> tuple[float, float, float]:
        return (self._mean_rows if self._whole is None else self._whole).centred()


class _Sums:
    """Of pairs of vectors of one length: what tells how they lie about their means."""

    def __init__(self) -> None:
        self._num = 0
        self._sums: tuple[Float64, Float64] | None = None
        self._products = np.zeros(3)  # parent with parent, variant with variant, parent with variant

    def fits(self, vector: Float64) -> bool:
        """Return whether a vector is as long as those before it."""
        return self._sums is None or vector.size == self._sums[0].size

    def add(self, a: Float64, b: Float64) -> None:
        """Take in a pair."""
        self._num += 1
        self._sums = (a, b) if self._sums is None else (self._sums[0] + a, self._sums[1] + b)
        self._products += (a @ a, b @ b, a @ b)

    def centred(self) -> tuple[float, float, float]:
        """Return the products, as `_products` has them, after the means are taken off."""
        if self._sums is None:
            return 0.0, 0.0, 0.0
        a, b = self._sums
        centred = self._products - np.array([a @ a, b @ b, a @ b]) / self._num
        parent, variant = (
            float(value) if value > _NO_SPREAD * whole else 0.0
            for value, whole in zip(centred[:2], self._products[:2], strict=True)
        )
        return parent, variant, float(centred[2])


def likenesses_of(likenesses: Mapping[str, Likeness]) -> dict[str, Likenesses]:
    """Return the figures of each comparison, those of nothing left out."""
    found = {}
    for kind, likeness in likenesses.items():
        if (values := likeness.cosines).size:
            found[kind] = Likenesses(
                n=values.size,
                cosine_mean=float(values.mean()),
                cosine_p1=float(np.percentile(values, 1)),
                correlation=likeness.correlation,
                spread=likeness.spread,
            )
    return found


def _log_softmax(logits: ArrayLike) -> Float64:
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    result: Float64 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
