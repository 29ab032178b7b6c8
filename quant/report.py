"""What `report.json` says: a variant's size and quality beside its fp32 parent's."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from bundle.manifest import ComponentName, Gate, Scheme

REPORT = "report.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class ComponentReport(_Frozen):
    """One graph.

    Attributes:
        scheme: How its weights are stored.
        choices: One line per distinct choice of the planner.
        fp32_bytes: Of the parent's weights.
        weight_bytes: Of this variant's.
        canary_cosine: Lowest cosine of an output of the canary run with the parent's.
        canary_max_abs: Largest absolute difference of an output of the canary run.
    """

    scheme: Scheme
    choices: tuple[str, ...]
    fp32_bytes: int = Field(ge=0)
    weight_bytes: int = Field(ge=0)
    canary_cosine: float
    canary_max_abs: float


class TeacherForced(_Frozen):
    """Next-token distributions with the right answers fed.

    Attributes:
        num_samples: Questions.
        num_tokens: Answer positions over all of them.
        kl_mean: KL(parent || variant) in nats.
        kl_p99: 99th percentile over positions.
        top1_agreement: Share of positions at which both choose the same token.
    """

    num_samples: int
    num_tokens: int
    kl_mean: float
    kl_p99: float
    top1_agreement: float


class Embeddings(_Frozen):
    """One kind of embedding, variant against parent.

    Attributes:
        n: Embeddings compared.
        cosine_mean: Over all.
        cosine_p1: First percentile.
    """

    n: int
    cosine_mean: float
    cosine_p1: float


class TaskAccuracy(_Frozen):
    """Accuracy on one task, on the same samples.

    Attributes:
        n: Samples.
        fp32: The parent's accuracy, 0 to 1.
        quantized: This variant's.
        loss_points: fp32 - quantized, in percentage points.
        loss_low: Low end of its 95 % bootstrap interval over pairs.
        loss_high: High end.
    """

    n: int
    fp32: float
    quantized: float
    loss_points: float
    loss_low: float
    loss_high: float


class Report(_Frozen):
    """All that was measured, and what was not.

    Attributes:
        parent: Name of the fp32 bundle.
        parent_sha256: Its source digest.
        weights: The `--weights` asked for.
        fp32_bytes: Weights of the parent.
        weight_bytes: Weights of this variant.
        components: By name.
        teacher_forced: Vision-language models with an evaluation.
        embeddings: Dual encoders with an evaluation: "image" and "text".
        tasks: By task; "all" over every task.
        gates: As in the manifest.
        not_measured: What a reader might expect here and why it is absent.
        machine: Where it was measured.
        runtime: ONNX Runtime's version.
        seconds: Quantizing and measuring together.
    """

    parent: str
    parent_sha256: str
    weights: str
    fp32_bytes: int
    weight_bytes: int
    components: dict[ComponentName, ComponentReport]
    teacher_forced: TeacherForced | None = None
    embeddings: dict[str, Embeddings] = Field(default_factory=dict)
    tasks: dict[str, TaskAccuracy] = Field(default_factory=dict)
    gates: tuple[Gate, ...]
    not_measured: tuple[str, ...] = ()
    machine: str
    runtime: str
    seconds: float


def write_report(report: Report, directory: Path) -> None:
    """Write `report.json` into a bundle that is being made."""
    (directory / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
