"""How a model answers where it reads fewer tokens of its images, beside itself where it reads all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from bundle.errors import QuantizationError
from bundle.image_tokens import ImageReducer
from bundle.prompt import Turn
from quant.quality.answers import MOST_EXTRA_TOKENS, Answered, AnswerFigures
from quant.quality.evaluation import Measured, Progress, Question, turns_of
from quant.visual_tokens.reduction import Reduction
from runtime.decoder import Logits
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import Prefilled, SeenImages


class ReducingModel(Protocol):
    """What is asked of a model; `runtime.one_request.VisionLanguageRunner` does it."""

    @property
    def gives_tower(self) -> bool:
        """Return whether `see` can tell what some reducers read of the vision tower."""

    def see(self, images: Sequence[Image.Image], *, with_tower: bool = False) -> SeenImages:
        """Return what the vision encoder makes of images."""

    def prompt_about(
        self, turns: Sequence[Turn], seen: SeenImages, reducer: ImageReducer | None = None
    ) -> FilledPrompt:
        """Return the prompt of a conversation about images that were seen, or of what a reducer leaves of them."""

    def prefill(self, prompt: FilledPrompt, room_tokens: int) -> Prefilled:
        """Return the state after a prompt, valid until the next one is run."""

    def answer_ids(self, answer: str) -> list[int]:
        """Return the ids of an answer and of the token that ends it."""

    def forced_logits(self, prompt: Prefilled, answer_ids: Sequence[int]) -> Logits:
        """Return the logits from which each token of a given answer would be chosen."""

    def reply_ids(self, prompt: Prefilled, max_tokens: int) -> list[int]:
        """Return the greedy reply."""

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return a reply as a reader sees it."""


def measure_reductions(
    model: ReducingModel,
    questions: Sequence[Question],
    reductions: Sequence[Reduction],
    progress: Progress,
    *,
    has_accuracy: bool = True,
) -> dict[Reduction, Measured]:
    """Return, of each reduction, how the model answers beside itself with all tokens.

    Every image is encoded once, and every question answered once with all of its tokens; accuracy is told of both, in
    pairs (`fp32` is the model with all tokens, `quantized` the one with fewer).

    Args:
        model: Any variant.
        questions: At least one; those without images measure nothing.
        reductions: Methods and shares.
        progress: Called with a line now and then.
        has_accuracy: Whether a reply can be right; else no question is answered freely.

    Raises:
        QuantizationError: The bundle does not give what a method reads of the tower; the message names it.
        ContextLengthError: A question does not fit the model's context.
    """
    lacking = [each.method for each in reductions if each.needs_tower and not model.gives_tower]
    if lacking:
        raise QuantizationError(
            f"{', '.join(dict.fromkeys(lacking))}: the bundle's vision encoder does not tell its attention. Leave the "
            "method out; towers like LLaVA's tell it, in bundles that were exported since it is read"
        )
    with_tower = any(each.needs_tower and not each.is_whole for each in reductions)
    figures = {each: AnswerFigures(model.text_of, has_accuracy=has_accuracy) for each in reductions}
    for at, question in enumerate(questions):
        if at % 50 == 0:
            progress(f"evaluating question {at + 1} of {len(questions)} under {len(reductions)} reductions")
        seen = model.see(question.images, with_tower=with_tower)
        turns, ids = turns_of(question), model.answer_ids(question.answer)
        whole = _answered(model, model.prompt_about(turns, seen), ids, has_accuracy)
        for reduction, found in figures.items():
            fewer = _answered(model, model.prompt_about(turns, seen, reduction), ids, has_accuracy)
            found.add(question, ids, whole, fewer)
    return {reduction: found.measured() for reduction, found in figures.items()}


def _answered(model: ReducingModel, prompt: FilledPrompt, ids: Sequence[int], replies: bool) -> Answered:
    room = len(ids) + MOST_EXTRA_TOKENS
    prefilled = model.prefill(prompt, room)
    reply = model.reply_ids(prefilled, room) if replies else None
    return Answered(model.forced_logits(prefilled, ids), reply)
