"""The limits that a variant's quality must keep, and the verdict on what was measured.

KL divergence and top-1 agreement are held over answer positions with the right answer fed (teacher forcing). Likeness
and image sensitivity catch an encoder that no longer tells inputs apart, whatever accuracy says.

Accuracy has two gates over the 95 % interval of the loss. Its low end is the loss that is proved, and keeps the target:
the loss itself moves by more than the target from one held-out set of a few hundred samples to the next. Its high end
is the loss that is not excluded, and keeps a wider limit: too few samples exclude little, so they cannot pass. Why, and
what was measured: docs/decisions/0005-two-ends-of-an-interval.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from bundle.directory import Bundle
from bundle.errors import QuantizationError
from bundle.gates import CANARY, Gate, Unmeasured, canary_gate
from bundle.manifest import ComponentName, Manifest, Phase, Role, graph_name
from bundle.report import Likenesses, PairScores
from bundle.tensors import IMAGE_FEATURES
from quant.quality.answers import measure_answers
from quant.quality.embeddings import image_runner_of, measure_embeddings, measure_images, runner_of
from quant.quality.evaluation import (
    ALL_TASKS,
    Evaluation,
    Measured,
    Progress,
    fewest_verdicts,
    points_excluded,
    require_kind,
)
from quant.quality.pairs import measure_pairs
from quant.quality.parity import Parity
from runtime.one_request import VisionLanguageRunner
from runtime.rank_runner import runner_of_pairs
from runtime.settings import RuntimeSettings

MIXED = "mixed"
"""The row of `LIMITS` for what no single name asked for."""

ACCURACY = "accuracy_loss_points"
_NAN = float("nan")
_NO_IMAGE = "no sample has an image"


@dataclass(frozen=True)
class Limit:
    """A threshold.

    Attributes:
        value: Where it lies.
        direction: "min": the measured value must be at least this; "max": at most.
    """

    value: float
    direction: Literal["min", "max"]


_ANY_SCHEME = {
    CANARY: Limit(0.95, "min"),
    "cosine_mean": Limit(0.99, "min"),
    "cosine_p1": Limit(0.97, "min"),
    "correlation": Limit(0.98, "min"),
    "spread": Limit(0.9, "min"),
    "image_sensitivity": Limit(0.8, "min"),
    "clear_order": Limit(0.98, "min"),
    "score_difference": Limit(0.03, "max"),
}
"""Encoders are W8A8 under every recipe unless asked for by name, and then they are held to no less."""


_W8A8_DECODER_CANARY = 0.8


def _decoder(canary: float, kl_mean: float, clear: float, proved: float, possible: float) -> dict[str, Limit]:
    """Return a row of `LIMITS`: what a decoder's bits may cost."""
    return {
        **_ANY_SCHEME,
        canary_gate(graph_name("decoder")): Limit(canary, "min"),
        canary_gate(graph_name("decoder", "prompt")): Limit(_W8A8_DECODER_CANARY, "min"),
        "kl_mean": Limit(kl_mean, "max"),
        "clear_agreement": Limit(clear, "min"),
        f"{ACCURACY}/low": Limit(proved, "max"),
        f"{ACCURACY}/high": Limit(possible, "max"),
    }


_EIGHT_BITS = _decoder(canary=_W8A8_DECODER_CANARY, kl_mean=0.02, clear=0.98, proved=0.5, possible=3.0)
_FOUR_BITS = _decoder(canary=0.3, kl_mean=0.05, clear=0.96, proved=1.0, possible=4.0)
_TWO_BITS = _decoder(canary=0.1, kl_mean=0.1, clear=0.95, proved=2.0, possible=6.0)

LIMITS: dict[str, dict[str, Limit]] = {
    "fp16": _EIGHT_BITS,
    "int8": _EIGHT_BITS,
    "int8-rtn": _EIGHT_BITS,
    "int8-static": _EIGHT_BITS,
    "int4": _FOUR_BITS,
    "int4-rtn": _FOUR_BITS,
    "int4-hqq": _FOUR_BITS,
    "int4-gptq": _FOUR_BITS,
    "int4-awq": _FOUR_BITS,
    "nf4": _FOUR_BITS,
    "fp4": _FOUR_BITS,
    MIXED: _FOUR_BITS,
    "int2": _TWO_BITS,
    "int2-gptq": _TWO_BITS,
    "ternary": _TWO_BITS,
    "ternary-mean": _TWO_BITS,
    "ternary-planes": _TWO_BITS,
    "ternary-gptq": _TWO_BITS,
}
"""By recipe (`quant.quantizer.limits_row` says which), then by measure, or by "measure/of" where one part has its own.

Two bits have the widest limits that a user might still call the same model; rounding a finished model to two bits
mostly misses them.

The canary is one run on nonsense: it tells a broken graph from a working one and says little of quality. Through 30
decoder layers of random weights with gain 2, which multiply any rounding, right graphs kept a cosine of 0.90 (int8) and
0.51 (int4); the same weights with nibbles or rows exchanged fell to 0.00.
"""


_EMBEDDINGS = ("image", "text")
_KINDS = (*_EMBEDDINGS, IMAGE_FEATURES)
_PARTS: dict[str, tuple[str, ...]] = {
    CANARY: tuple(dict.fromkeys(graph_name(*each) for each in product(get_args(Role), get_args(Phase)))),
    "cosine_mean": _KINDS,
    "cosine_p1": _KINDS,
    "correlation": _KINDS,
    "spread": _KINDS,
    "image_sensitivity": (),
    "clear_order": (),
    "score_difference": (),
    "kl_mean": (),
    "clear_agreement": (),
    ACCURACY: ("low", "high"),
}
"""What a measure may be of, as gates are named: "measure/of"."""


def parse_limits(options: Iterable[str]) -> dict[str, float]:
    """Return limits that a user sets, by measure or "measure/of", from "MEASURE=VALUE" each.

    Raises:
        QuantizationError: Not of that form, no number, or no such measure.
    """
    known = list(dict.fromkeys(name.split("/")[0] for limits in LIMITS.values() for name in limits))
    found: dict[str, float] = {}
    for option in options:
        name, equals, text = option.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = _NAN
        if not equals or not math.isfinite(value):
            raise QuantizationError(f"--limit {option!r} is not MEASURE=NUMBER, such as kl_mean=0.1")
        measure, _, of = name.partition("/")
        if measure not in known:
            raise QuantizationError(f"--limit {option!r}: no gate measures {name}; known: {', '.join(known)}")
        if of and of not in _PARTS[measure]:
            parts = ", ".join(f"{measure}/{part}" for part in _PARTS[measure]) or f"{measure} alone"
            raise QuantizationError(f"--limit {option!r}: no gate is named {name}; known: {parts}")
        found[name] = value
    return found


def judge(
    measure: str, value: float, n: int, weights: str, of: str = "", overrides: Mapping[str, float] | None = None
) -> Gate:
    """Return the verdict on one measured value.

    Args:
        measure: A name in `LIMITS`.
        value: What was measured; NaN fails.
        n: Samples behind it.
        weights: The `--weights` asked for.
        of: What was measured, such as a component; becomes part of the gate's name.
        overrides: Limits that the user set instead, by measure or "measure/of".

    Raises:
        QuantizationError: No limit is set for this measure or these weights.
    """
    limits, own = LIMITS.get(weights, {}), overrides or {}
    name = _name(measure, of)
    limit = limits.get(name, limits.get(measure))
    if limit is None:
        raise QuantizationError(f"no limit is set for {measure} of {weights}; set one in quant/quality/gate.py")
    threshold = own.get(name, own.get(measure, limit.value))
    passed = value >= threshold if limit.direction == "min" else value <= threshold
    return Gate(
        name=name,
        value=value,
        limit=threshold,
        direction=limit.direction,
        n=n,
        passed=bool(passed),
        basis="canary" if measure == CANARY else "samples",
        is_overridden=name in own or measure in own,
    )


def judge_all(
    parity: Mapping[ComponentName, Parity],
    measured: Measured | None,
    weights: str,
    overrides: Mapping[str, float] | None = None,
) -> tuple[Gate, ...]:
    """Return the verdicts on everything that was measured.

    Args:
        parity: Of each graph on its canary.
        measured: None where no samples were given; the variant is then ungated.
        weights: A name in `LIMITS`.
        overrides: Limits that the user set instead.
    """
    values = [_Value(CANARY, name, each.cosine, 1) for name, each in parity.items()]
    values += _values(measured) if measured else []
    return tuple(
        judge(each.measure, each.value, each.n, weights, each.of, overrides)
        for each in values
        if each.value is not None
    )


def unmeasured_gates(measured: Measured | None, no_accuracy: str = "") -> tuple[Unmeasured, ...]:
    """Return the gates that samples were there for and could not tell of, and why.

    Args:
        measured: None where no samples were given.
        no_accuracy: `Evaluation.no_accuracy`.
    """
    values = _values(measured, no_accuracy) if measured else []
    return tuple(Unmeasured(name=_name(it.measure, it.of), reason=it.lack) for it in values if it.value is None)


def foreign_samples(measured: Measured | None, manifest: Manifest) -> str:
    """Return what is to be said where the parent foretells the answers no better than by guessing; else nothing.

    Texts that a model was never made for show how far its variant is off where nobody uses it.
    """
    forced = measured.teacher_forced if measured else None
    if manifest.decoder is None or forced is None or forced.parent_nll is None:
        return ""
    guessed = math.log(manifest.decoder.vocab_size)
    if forced.parent_nll < guessed:
        return ""
    return (
        "quality on what this model is for: the answers of these samples are foreign to fp32 itself, "
        f"{forced.parent_nll:.1f} nats a token where guessing costs {guessed:.1f}. Measure on samples of its own: "
        "--eval FILE.jsonl"
    )


def require_measurable(
    evaluation: Evaluation,
    weights: str,
    *,
    is_dual: bool,
    overrides: Mapping[str, float] | None = None,
    has_limits: bool = True,
) -> None:
    """Check, before anything is computed, that samples can pass.

    Args:
        evaluation: To be measured on.
        weights: A name in `LIMITS`.
        is_dual: Whether they are for a dual encoder, else for a vision-language model.
        overrides: Limits that the user set instead.
        has_limits: They can be set, as `quantize` lets a user.

    Raises:
        QuantizationError: The samples are of the other kind, or too few to exclude the loss that is not allowed.
    """
    require_kind(evaluation, is_dual=is_dual)
    name, num = f"{ACCURACY}/high", evaluation.num_verdicts
    own = overrides or {}
    points = own.get(name, own.get(ACCURACY, LIMITS[weights][name].value))
    if evaluation.no_accuracy or num >= (fewest := fewest_verdicts(points)):
        return
    own_limit = f", accept what {num} can show (--limit {name}={points_excluded(num):g})" if num and has_limits else ""
    more = "--eval, or --samples of a shipped model" if has_limits else "--eval"
    raise QuantizationError(
        f"{evaluation.source} gives {num} answers to judge, and no fewer than {fewest:g} can pass: n answers without a "
        f"single loss still allow a loss of 300 / n points, and {name} allows {points:g} under {weights}. Give more "
        f"({more}){own_limit}, leave {'both' if has_limits else 'it'} out for the usual ones, or measure nothing "
        "(--no-evaluate)"
    )


def measure(
    parent: Bundle, variant: Bundle, evaluation: Evaluation, progress: Progress, settings: RuntimeSettings
) -> Measured:
    """Return what a variant's results on samples are beside its parent's.

    Args:
        parent: The fp32 bundle.
        variant: What was made from it.
        evaluation: Of the kind that the task wants.
        progress: Called with a line at each step.
        settings: Provider and threads, those of where the variant will serve; a decoder's parent runs on the CPU.

    Raises:
        QuantizationError: The samples are of the other kind.
    """
    if parent.manifest.image_vectors is not None:
        seeing = image_runner_of(parent, settings), image_runner_of(variant, settings)
        return measure_images(*seeing, evaluation, progress)
    if parent.manifest.reads_pairs:
        runners = runner_of_pairs(parent, settings), runner_of_pairs(variant, settings)
        return measure_pairs(*runners, evaluation, progress, sees=parent.manifest.sees)
    require_kind(evaluation, is_dual=parent.manifest.embeds)
    if parent.manifest.embeds:
        return measure_embeddings(runner_of(parent, settings), runner_of(variant, settings), evaluation, progress)
    # A float32 decoder has no attention on CUDA, and is the reference wherever it runs.
    on_host = settings.model_copy(update={"provider": "cpu"})
    models = VisionLanguageRunner(parent, on_host, whole_answers=True), VisionLanguageRunner(variant, settings)
    return measure_answers(*models, evaluation.questions, progress, has_accuracy=not evaluation.no_accuracy)


@dataclass(frozen=True)
class _Value:
    """What a gate is held over.

    Attributes:
        measure: A name in `LIMITS`.
        of: What was measured.
        value: None where it could not be measured.
        n: Samples behind it.
        lack: Why it could not be.
    """

    measure: str
    of: str
    value: float | None
    n: int
    lack: str = ""


def _name(measure: str, of: str) -> str:
    return f"{measure}/{of}" if of else measure


def _values(measured: Measured, no_accuracy: str = "") -> list[_Value]:
    if measured.pairs is not None:
        return _pair_values(measured.pairs)
    is_dual = measured.teacher_forced is None
    kinds = _EMBEDDINGS if is_dual else (IMAGE_FEATURES,)
    found = [value for kind in kinds for value in _likeness_values(kind, measured.likenesses.get(kind), is_dual)]
    found += [] if is_dual else [_sensitivity_value(measured)]
    return [*found, *_forced_values(measured), *_accuracy_values(measured, no_accuracy)]


def _pair_values(found: PairScores) -> list[_Value]:
    lack = "the parent clearly prefers no document of these samples to another"
    return [
        _Value("clear_order", "", found.clear_order, found.num_clear, lack),
        _Value("score_difference", "", found.score_difference, found.num_pairs),
    ]


def _likeness_values(kind: str, found: Likenesses | None, is_dual: bool) -> Iterable[_Value]:
    nouns = "texts" if kind == "text" else "images"
    n, lack = found.n if found else 0, f"the samples have no two {nouns} that the parent tells apart"
    if found is None:
        lack = "no text was embedded" if kind == "text" else _NO_IMAGE
    if is_dual:  # a decoder takes features of any length; an embedding is compared by angle
        yield _Value("cosine_mean", kind, found.cosine_mean if found else None, n, lack)
        yield _Value("cosine_p1", kind, found.cosine_p1 if found else None, n, lack)
    yield _Value("correlation", kind, found.correlation if found else None, n, lack)
    yield _Value("spread", kind, found.spread if found else None, n, lack)


def _sensitivity_value(measured: Measured) -> _Value:
    if (found := measured.image_sensitivity) is not None:
        lack = "the parent's answers do not depend on the images of these samples"
        return _Value("image_sensitivity", "", found.ratio, found.n, lack)
    has_images = IMAGE_FEATURES in measured.likenesses
    lack = "no two questions show different images, equally many" if has_images else _NO_IMAGE
    return _Value("image_sensitivity", "", None, 0, lack)


def _forced_values(measured: Measured) -> Iterable[_Value]:
    if forced := measured.teacher_forced:
        yield _Value("kl_mean", "", forced.kl_mean, forced.num_tokens)
        lack = "the parent is sure of no token of these answers"
        yield _Value("clear_agreement", "", forced.clear_agreement, forced.num_clear_tokens, lack)


def _accuracy_values(measured: Measured, no_accuracy: str) -> Iterable[_Value]:
    total = measured.tasks.get(ALL_TASKS)
    n, lack = total.n if total else 0, no_accuracy or "no answer of the samples is right or wrong"
    yield _Value(ACCURACY, "low", total.loss_low if total else None, n, lack)
    yield _Value(ACCURACY, "high", total.loss_high if total else None, n, lack)
