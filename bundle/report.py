"""What `report.json` says: a variant's size and quality beside its fp32 parent's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundle.directory import Bundle
from bundle.errors import BundleFileError, BundleFormatError
from bundle.form import Form
from bundle.gates import Gate, Unmeasured
from bundle.machine import Machine
from bundle.manifest import ComponentName, Scheme
from bundle.states import CacheScheme

REPORT = "report.json"

LossMeasure = Literal["kl", "cosine_distance"]
"""Mean KL(parent || variant) in nats over answer positions, for decoders; mean of 1 - cosine, for encoders."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class FormTime(_Frozen):
    """What a form takes, of one layer or of several together, on one thread.

    Attributes:
        form: Operator, bits, block and rounding.
        least_ms: The least that was seen.
        usual_ms: What is usually the least; the same where a table was taken instead of measured times.
    """

    form: str
    least_ms: float
    usual_ms: float


class ShapeTimes(_Frozen):
    """What the forms of one size of layer take.

    Attributes:
        num_inputs: K.
        num_outputs: N.
        rows: That meet the layer.
        num_layers: Of this size.
        forms: The default first.
    """

    num_inputs: int
    num_outputs: int
    rows: float
    num_layers: int
    forms: tuple[FormTime, ...]


class FormDecision(_Frozen):
    """What layers of a kind became, and the times by which that was decided for all of them.

    Attributes:
        kind: Of the layers.
        num_layers: Decided together.
        forms: All layers in their default, then in each other form that they can hold.
        chosen: One of `forms`.
        doubt: What noise left open, for people; "" where nothing was.
        shapes: One by one.
    """

    kind: str
    num_layers: int
    forms: tuple[FormTime, ...]
    chosen: str
    doubt: str = ""
    shapes: tuple[ShapeTimes, ...] = ()


class ComponentReport(_Frozen):
    """One graph.

    Attributes:
        scheme: How its weights are stored.
        choices: One line per distinct choice of the planner.
        decisions: Of the planner, where it had a choice between forms.
        fp32_bytes: Of the parent's weights.
        weight_bytes: Of this variant's.
        canary_cosine: Lowest cosine of an output of the canary run with the parent's.
        canary_max_abs: Largest absolute difference of an output of the canary run.
    """

    scheme: Scheme
    choices: tuple[str, ...]
    decisions: tuple[FormDecision, ...] = ()
    fp32_bytes: int = Field(ge=0)
    weight_bytes: int = Field(ge=0)
    canary_cosine: float
    canary_max_abs: float


class EvaluationFacts(_Frozen):
    """What quality was measured on.

    Attributes:
        source: A file's name, or which held-out set.
        num_samples: Questions, or captioned and labelled images.
    """

    source: str
    num_samples: int


class CalibrationFacts(_Frozen):
    """What the weights were fitted to.

    Attributes:
        source: A file's name, or which set.
        num_samples: Questions or images run through the fp32 parent.
        unseen_share: Of the evaluation's text tokens, those that no calibration sample holds; None without evaluation.
    """

    source: str
    num_samples: int
    unseen_share: float | None = None


class CacheReport(_Frozen):
    """A cache of codes.

    Attributes:
        scheme: "int8" or "int4", a scale per channel.
        fp32_bytes_per_token: Of the parent's rows.
        bytes_per_token: Of this variant's.
    """

    scheme: CacheScheme
    fp32_bytes_per_token: int = Field(ge=0)
    bytes_per_token: int = Field(ge=0)


class TeacherForced(_Frozen):
    """Next-token distributions with the right answers fed.

    Attributes:
        num_samples: Questions.
        num_tokens: Answer positions over all of them.
        kl_mean: KL(parent || variant) in nats.
        kl_interval: The 95 % interval of that mean, by resampling questions: tokens of one answer go together. None of
            one question alone.
        kl_p99: 99th percentile over positions.
        top1_agreement: Share of positions at which both choose the same token.
        top1_interval: The 95 % interval of that share, by the same resamples.
        num_clear_tokens: Positions at which the parent's choice is at least 1.5 times as likely as its second.
        clear_agreement: Share of those at which both choose the same token; None where there are none.
        clear_interval: The 95 % interval of that share, by resampling questions.
        delta_nll: Mean rise of -log p of the right token, in nats per token; below 0 the variant is the surer one.
        parent_nll: Mean -log p of those tokens to the parent, in nats: how much at home it is in the samples.
    """

    num_samples: int
    num_tokens: int
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    delta_nll: float
    parent_nll: float | None = None
    kl_interval: tuple[float, float] | None = None
    top1_interval: tuple[float, float] | None = None
    num_clear_tokens: int = 0
    clear_agreement: float | None = None
    clear_interval: tuple[float, float] | None = None


class Replies(_Frozen):
    """Greedy replies beside the parent's.

    Attributes:
        n: Questions.
        identical: Share whose tokens are all the same.
        first_divergence: Mean index of the first token that differs, over the replies that differ; None for none.
    """

    n: int
    identical: float
    first_divergence: float | None


class Likenesses(_Frozen):
    """What two models make of the same inputs.

    Attributes:
        n: Inputs compared.
        cosine_mean: Over all.
        cosine_p1: First percentile.
        correlation: Cosine of what sets the inputs apart: near 0 where the variant says the same of every input, or
            something unrelated. None where the parent says the same of all, as it does of one input alone.
        spread: How far the variant's outputs lie apart, over the parent's; None in the same case.
    """

    n: int
    cosine_mean: float
    cosine_p1: float
    correlation: float | None
    spread: float | None


class PairScores(_Frozen):
    """What a cross-encoder makes of queries and documents, beside its parent.

    Attributes:
        num_queries: Each held against several documents, its own among them.
        num_pairs: Over all of them.
        num_ranked: Queries whose documents the parent tells apart.
        rank_correlation: Spearman's, the mean over those; None where there are none.
        num_clear: Pairs of a query's documents of which the parent clearly prefers one: by odds 1.5 times as great.
        clear_order: Share of those that stand in the same order; None where there are none.
        score_difference: Mean absolute difference of scores, which lie between 0 and 1.
        score_difference_p99: 99th percentile over pairs.
        same_first: Share of queries for which both put the same document first.
    """

    num_queries: int
    num_pairs: int
    num_ranked: int
    rank_correlation: float | None
    num_clear: int
    clear_order: float | None
    score_difference: float
    score_difference_p99: float
    same_first: float


class ImageSensitivity(_Frozen):
    """How much answers hang on the image: KL in nats between a question's own image and another's, answers fed.

    Attributes:
        n: Questions asked about another question's images.
        fp32: The parent's mean.
        quantized: This variant's.
        ratio: quantized / fp32; None where the parent does not look at images.
    """

    n: int
    fp32: float
    quantized: float
    ratio: float | None


class TaskAccuracy(_Frozen):
    """Accuracy on one task, on the same samples.

    Attributes:
        n: Samples.
        fp32: The parent's accuracy, 0 to 1.
        quantized: This variant's.
        loss_points: fp32 - quantized, in percentage points.
        loss_low: Low end of its 95 % bootstrap interval over pairs.
        loss_high: High end, and never below 300 / n: n samples without a loss exclude no smaller one (rule of three).
    """

    n: int
    fp32: float
    quantized: float
    loss_points: float
    loss_low: float
    loss_high: float


class LayerSensitivity(_Frozen):
    """What one layer in one form costs, every other layer in float32.

    Attributes:
        component: The graph.
        layer: The weight's name.
        form: Bits, block and rounding.
        measure: What `loss` is.
        loss: Mean over all positions of the samples.
        num_samples: Questions, tiles of images or captions.
        weight_bytes: The layer in this form, scales and zero points included.
        fp32_bytes: The layer in float32.
    """

    component: ComponentName
    layer: str
    form: Form
    measure: LossMeasure
    loss: float = Field(ge=0)
    num_samples: int = Field(gt=0)
    weight_bytes: int = Field(gt=0)
    fp32_bytes: int = Field(gt=0)


class DecoderProfile(_Frozen):
    """One way to run the decoder, predicted from layer times on one thread of the machine of the report.

    Attributes:
        name: "latency": W8A8; "memory": few bits; "dual": a W8A8 prefill graph beside a few-bit decode graph.
        is_chosen: What this bundle holds.
        first_token_ms: Of the prompt in `note`.
        inter_token_ms: One sequence.
        weight_bytes: Of the whole bundle.
        kv_bytes_per_token: Of the cache, per sequence.
        note: The prompt that was assumed.
    """

    name: Literal["latency", "memory", "dual"]
    is_chosen: bool
    first_token_ms: float
    inter_token_ms: float
    weight_bytes: int
    kv_bytes_per_token: int
    note: str = ""


class Report(_Frozen):
    """All that was measured, and what was not.

    Attributes:
        parent: Name of the fp32 bundle.
        parent_sha256: Its source digest.
        weights: The `--weights` asked for.
        fp32_bytes: Weights of the parent.
        weight_bytes: Weights of this variant.
        components: By name.
        calibration: None where nothing was fitted to data.
        evaluation: None where no samples were given.
        teacher_forced: Vision-language models with an evaluation.
        replies: The same.
        image_sensitivity: The same, where two questions show different images.
        likenesses: "image_features" of a vision-language model that was shown images; "image" and "text" embeddings of
            a dual encoder.
        pairs: Cross-encoders.
        tasks: By task; "all" over every task.
        kv_cache: Of a variant whose cache holds codes.
        profiles: Of a decoder: the ways to run it, the chosen one among them.
        sensitivity: Where a search was made: one row per layer and form tried.
        gates: As in the manifest.
        unmeasured: As in the manifest.
        not_measured: What a reader might expect here and why it is absent.
        machine: Where it was measured.
        seconds: Quantizing and measuring together.
    """

    parent: str
    parent_sha256: str
    weights: str
    fp32_bytes: int
    weight_bytes: int
    components: dict[ComponentName, ComponentReport]
    calibration: CalibrationFacts | None = None
    evaluation: EvaluationFacts | None = None
    teacher_forced: TeacherForced | None = None
    replies: Replies | None = None
    image_sensitivity: ImageSensitivity | None = None
    likenesses: dict[str, Likenesses] = Field(default_factory=dict)
    pairs: PairScores | None = None
    tasks: dict[str, TaskAccuracy] = Field(default_factory=dict)
    kv_cache: CacheReport | None = None
    profiles: tuple[DecoderProfile, ...] = ()
    sensitivity: tuple[LayerSensitivity, ...] = ()
    gates: tuple[Gate, ...]
    unmeasured: tuple[Unmeasured, ...] = ()
    not_measured: tuple[str, ...] = ()
    machine: Machine
    seconds: float


def write_report(report: Report, directory: Path) -> None:
    """Write `report.json` into a bundle that is being made."""
    (directory / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_report(bundle: Bundle) -> Report:
    """Return the report of a quantized bundle.

    Raises:
        BundleFormatError: It has none, or one of another form.
        BundleFileError: The file is gone.
    """
    if REPORT not in bundle.manifest.files:
        raise BundleFormatError(f"{bundle.directory} has no {REPORT}: only what pocketvlm quantize wrote has one")
    path = bundle.path(REPORT)
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BundleFileError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleFormatError(f"{path}: {where}: {first['msg']}. Quantize the fp32 bundle again.") from error
