"""What a variant's quality is measured by, and the limits that it must keep.

The limits on KL divergence and top-1 agreement hold over answer positions with the right answer fed (teacher forcing).
An accuracy gate compares the low end of the 95 % interval of the loss: with a few hundred samples the loss itself moves
by more than the limit from one held-out set to the next, so the gate fails when the loss is proved, and the report
prints loss and interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bundle.errors import QuantizationError
from bundle.manifest import Gate

Float64 = NDArray[np.float64]


CANARY = "canary_cosine"
"""The measure that is taken on the recorded run, not on samples."""


@dataclass(frozen=True)
class Limit:
    """A threshold.

    Attributes:
        value: Where it lies.
        direction: "min": the measured value must be at least this; "max": at most.
    """

    value: float
    direction: Literal["min", "max"]


LIMITS: dict[str, dict[str, Limit]] = {
    "int8": {
        "canary_cosine": Limit(0.95, "min"),
        "canary_cosine/decoder": Limit(0.8, "min"),
        "kl_mean": Limit(0.02, "max"),
        "top1_agreement": Limit(0.98, "min"),
        "cosine_mean": Limit(0.99, "min"),
        "cosine_p1": Limit(0.97, "min"),
        "accuracy_loss_points": Limit(0.5, "max"),
    },
    "int4": {
        "canary_cosine": Limit(0.95, "min"),
        "canary_cosine/decoder": Limit(0.3, "min"),
        "kl_mean": Limit(0.05, "max"),
        "top1_agreement": Limit(0.96, "min"),
        "cosine_mean": Limit(0.99, "min"),
        "cosine_p1": Limit(0.97, "min"),
        "accuracy_loss_points": Limit(2.0, "max"),
    },
}
"""By the `--weights` asked for, then by measure, or by "measure/of" where one part has its own.

An encoder is W8A8 under both, so its limits are the same.

The canary is one run on nonsense: it tells a broken graph from a working one and says little of quality. Through 30
decoder layers of random weights with gain 2, which multiply any rounding, right graphs kept a cosine of 0.90 (int8) and
0.51 (int4); the same weights with nibbles or rows exchanged fell to 0.00.
"""


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


def judge(measure: str, value: float, n: int, weights: str, of: str = "") -> Gate:
    """Return the verdict on one measured value.

    Args:
        measure: A name in `LIMITS`.
        value: What was measured; NaN fails.
        n: Samples behind it.
        weights: The `--weights` asked for.
        of: What was measured, such as a component; becomes part of the gate's name.

    Raises:
        QuantizationError: No limit is set for this measure or these weights.
    """
    limits, name = LIMITS.get(weights, {}), f"{measure}/{of}" if of else measure
    limit = limits.get(name, limits.get(measure))
    if limit is None:
        raise QuantizationError(f"no limit is set for {measure} of {weights}; set one in quant/gate.py")
    passed = value >= limit.value if limit.direction == "min" else value <= limit.value
    return Gate(
        name=name,
        value=value,
        limit=limit.value,
        direction=limit.direction,
        n=n,
        passed=bool(passed),
        basis="canary" if measure == CANARY else "samples",
    )


def kl_divergences(reference_logits: ArrayLike, logits: ArrayLike) -> Float64:
    """Return KL(reference || variant) in nats at each position: [A] from two [A, V]."""
    expected, found = _log_softmax(reference_logits), _log_softmax(logits)
    divergences: Float64 = np.sum(np.exp(expected) * (expected - found), axis=-1)
    return divergences


def top1_agreements(reference_logits: ArrayLike, logits: ArrayLike) -> Float64:
    """Return 1 where both would choose the same token, else 0: [A] from two [A, V]."""
    same = np.asarray(reference_logits).argmax(axis=-1) == np.asarray(logits).argmax(axis=-1)
    return np.asarray(same, np.float64)


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
    drawn = np.random.default_rng(seed).integers(0, array.size, (resamples, array.size))
    low, high = np.percentile(array[drawn].mean(axis=1), [2.5, 97.5])
    return Interval(float(array.mean()), float(low), float(high), int(array.size))


def _log_softmax(logits: ArrayLike) -> Float64:
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    result: Float64 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
