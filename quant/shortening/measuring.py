"""Questions answered under every way to shorten a prompt, and with all of it: what a page is drawn of."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from bundle.directory import Bundle
from quant.quality.answers import Answered
from quant.quality.evaluation import Evaluation, Progress, Question, turns_of
from quant.quality.measures import kl_divergences, top1_agreements
from quant.shortening.record import Answers, Record
from quant.shortening.ways import Answerer
from quant.visual_tokens.table import METHODS as BEFORE
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings

_FEWEST_QUESTIONS = 2
"""An interval wants two."""


def measure_shortening(
    bundle: Bundle,
    evaluation: Evaluation,
    shares: Sequence[float],
    settings: RuntimeSettings,
    progress: Progress,
    most_s: float = math.inf,
) -> Record:
    """Return how a bundle answers under every way that it can do, at each share.

    Every image is encoded once, and every question answered once with all of its prompt. A way that leaves out image
    tokens is not asked about a question without images.

    Args:
        bundle: A vision-language one.
        evaluation: Its questions.
        shares: Below 1.
        settings: Provider and threads.
        progress: Called with a line now and then.
        most_s: No question is begun after so long, but two are asked in any case.

    Raises:
        ContextLengthError: A question does not fit the model's context.
    """
    runner = VisionLanguageRunner(bundle, settings, whole_answers=bundle.manifest.is_as_exported)
    answerer = Answerer(bundle, runner)
    ways, lacking = answerer.ways(shares)
    has_accuracy = not evaluation.no_accuracy
    found = {way: Answers(way) for way in ways}
    whole = Answers(None)
    with_tower = any(way.method in BEFORE and way.stage == "before" and BEFORE[way.method].needs_tower for way in ways)
    deadline_s = time.monotonic() + most_s
    for at, question in enumerate(evaluation.questions):
        if at >= _FEWEST_QUESTIONS and time.monotonic() >= deadline_s:
            progress(f"{at} of {len(evaluation.questions)} questions were asked in {most_s / 60:g} minutes")
            break
        if at % 10 == 0:
            progress(f"question {at + 1} of {len(evaluation.questions)}, in {len(ways)} ways")
        seen = runner.see(question.images, with_tower=with_tower)
        turns, ids = turns_of(question), runner.answer_ids(question.answer)
        expected = answerer.answer(None, turns, seen, ids, replies=has_accuracy)
        _add(whole, at, question, runner, expected, expected)
        for way, answers in found.items():
            if seen.layouts or way.stage == "after":
                answer = answerer.answer(way, turns, seen, ids, replies=has_accuracy)
                _add(answers, at, question, runner, expected, answer)
    return Record(
        model=bundle.manifest.name,
        source=evaluation.source,
        tasks=[question.task for question in evaluation.questions[: len(whole.questions)]],
        whole=whole,
        ways=list(found.values()),
        lacking=lacking,
    )


def _add(
    answers: Answers,
    at: int,
    question: Question,
    runner: VisionLanguageRunner,
    expected: Answered,
    found: Answered,
) -> None:
    answers.questions.append(at)
    answers.num_tokens.append(len(found.logits))
    answers.kl.append(float(np.mean(kl_divergences(expected.logits, found.logits))))
    answers.top1.append(float(np.mean(top1_agreements(expected.logits, found.logits))))
    if found.reply is not None:
        answers.right.append(question.is_right(runner.text_of(found.reply)))
