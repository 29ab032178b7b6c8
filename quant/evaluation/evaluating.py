"""A model on a file of samples, from the first question to the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import QuantizationError
from bundle.machine import own_version
from bundle.zero_shot import spelled_out
from quant.evaluation.asking import Respondent, conversation_of, require_askable
from quant.evaluation.embedding import embedded_marks
from quant.evaluation.formats import SEARCHED
from quant.evaluation.reading import SampleFile
from quant.evaluation.replies import Asking, Reply, ReplyFile, replies_to
from quant.evaluation.report import EvaluationReport, Marks, Shortfall, marks_of, shortfalls_of, tasks_of
from quant.evaluation.sample import Sample
from quant.evaluation.scorers.captions import require_cider

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How a model is asked.

    Attributes:
        max_tokens: Of an answer.
        at_once: Questions at a time.
        instruction: Said behind every question; None: the format's own.
        templates: Texts that a label stands in, of a model that embeds; none: the model's own.
        reductions: What was set on the model to make it cheaper, for the report.
    """

    max_tokens: int = 64
    at_once: int = 4
    instruction: str | None = None
    templates: tuple[str, ...] = ()
    reductions: Mapping[str, str | float | None] | None = None

    def told(self) -> dict[str, str | int | float | list[str] | None]:
        """Return what figures depend on."""
        told: dict[str, str | int | float | list[str] | None] = {
            "max_tokens": self.max_tokens,
            "instruction": self.instruction,
        }
        if self.templates:
            told["templates"] = list(self.templates)
        return told | dict(self.reductions or {})


async def evaluate(
    file: SampleFile,
    respondent: Respondent,
    options: Options,
    replies: Path,
    target: str,
    progress: Progress,
) -> EvaluationReport:
    """Ask a model everything, and return what it got.

    Args:
        file: The samples.
        respondent: The model.
        options: How it is asked.
        replies: Where replies are kept, and found again by the next run.
        target: What is asked, for the report.
        progress: Called with a line now and then.

    Raises:
        QuantizationError: The samples are not for this model, or the replies are another run's.
        PocketVLMError: The model cannot be asked; what it said until then is kept.
    """
    start = time.perf_counter()
    if respondent.embeds and (not respondent.answers or file.samples[0].format in SEARCHED):
        templates = spelled_out(options.templates) or (respondent.template,)
        marks = await embedded_marks(file, respondent, templates, progress)
        num_refused = 0
        shortfalls: tuple[Shortfall, ...] = ()
    else:
        marks, num_refused, shortfalls = await _asked(file, respondent, options, replies, progress)
    return EvaluationReport(
        model=respondent.name,
        target=target,
        file=file.path.name,
        file_sha256=file.digest(),
        format=file.format,
        num_rows=file.num_rows,
        num_samples=len(file.samples),
        num_refused=num_refused,
        options=options.told(),
        seconds=round(time.perf_counter() - start, 3),
        made_by=own_version(),
        tasks=tasks_of(marks),
        shortfalls=shortfalls,
    )


async def _asked(
    file: SampleFile, respondent: Respondent, options: Options, replies: Path, progress: Progress
) -> tuple[list[Marks], int, tuple[Shortfall, ...]]:
    samples = file.samples
    require_askable(samples)
    if file.format == "caption":
        require_cider()  # before hours of asking
    asking = Asking(
        lambda sample: conversation_of(sample, file.labels, options.instruction), options.max_tokens, options.at_once
    )
    depends = {
        "file_sha256": file.digest(),
        "model": respondent.name,
        "identity": respondent.identity,
        **options.told(),
    }
    found = await replies_to(samples, respondent, asking, ReplyFile(replies, depends), progress)
    marks = marks_of(samples, found)
    refused = sum(bool(reply.refused) for reply in found)
    _require_an_answer(samples, found, refused)
    return marks, refused, shortfalls_of(samples, found, marks)


def _require_an_answer(samples: Sequence[Sample], replies: Sequence[Reply], refused: int) -> None:
    if refused == len(samples):
        raise QuantizationError(
            f"the model took none of {refused} questions; of the first it said: {replies[0].refused}"
        )
