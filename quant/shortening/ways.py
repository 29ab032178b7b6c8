"""The ways to let a decoder read or keep less of a prompt, and how one of them answers a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bundle.directory import Bundle
from bundle.errors import ParameterError
from bundle.prompt import Turn
from quant.kv.needs import missing
from quant.kv.table import POLICIES
from quant.quality.answers import MOST_EXTRA_TOKENS, Answered
from quant.quality.kv_rows import PolicyRows
from quant.visual_tokens.inside.table import MERGING, InsideMethods
from quant.visual_tokens.inside.table import METHODS as INSIDE
from quant.visual_tokens.reduction import Reduction
from quant.visual_tokens.resize import Resize
from quant.visual_tokens.resize import missing as resize_missing
from quant.visual_tokens.skipping import missing as skipping_missing
from quant.visual_tokens.skipping import num_skipped
from quant.visual_tokens.table import METHODS as BEFORE
from quant.visual_tokens.table import RESIZE, SKIPPING
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import SeenImages, VisionLanguageRunner

Stage = Literal["before", "inside", "after"]

STAGES: Mapping[Stage, str] = {
    "before": "Fewer visual tokens before the decoder",
    "inside": "Fewer visual tokens inside the decoder",
    "after": "Fewer rows in the cache once the prompt was read",
}
BASELINES = ("uniform", "random")
"""What every method has to beat: it spends no thought."""


@dataclass(frozen=True)
class Way:
    """One way, at one share.

    Attributes:
        stage: Where something is left out.
        method: By the name that a request gives.
        share: Of the image tokens, or of the prompt's rows, that stays.
    """

    stage: Stage
    method: str
    share: float


@dataclass(frozen=True)
class Lacking:
    """A method that a bundle cannot do, and why."""

    stage: Stage
    method: str
    reason: str


@dataclass(frozen=True)
class _Whole:
    """The whole prompt of a question, and what it was made of."""

    turns: Sequence[Turn]
    seen: SeenImages
    prompt: FilledPrompt


class Answerer:
    """One bundle that answers under every way.

    Args:
        bundle: Opened.
        runner: Of the same bundle.
    """

    def __init__(self, bundle: Bundle, runner: VisionLanguageRunner) -> None:
        self._manifest = bundle.manifest
        self._inside = InsideMethods(bundle)
        self._runner = runner
        self._whole: _Whole | None = None

    def ways(self, shares: Sequence[float]) -> tuple[list[Way], list[Lacking]]:
        """Return what can be done at each share, and what cannot and why."""
        found, lacking = list[Way](), list[Lacking]()
        for stage, method in _methods():
            if reason := self._missing(stage, method):
                lacking.append(Lacking(stage, method, reason))
            else:
                found += [Way(stage, method, share) for share in shares]
        return found, lacking

    def _missing(self, stage: Stage, method: str) -> str:
        if stage == "after":
            return missing(method, self._manifest)
        if method == RESIZE:
            return resize_missing(self._manifest)
        if method == SKIPPING:
            return skipping_missing(self._manifest)
        if stage == "before":
            has_all = self._runner.gives_tower or not BEFORE[method].needs_tower
            return "" if has_all else "the bundle's vision encoder does not tell its attention; export it again"
        try:
            self._inside.choice(method, 0.5)
        except ParameterError as error:
            return str(error)
        return ""

    def answer(
        self, way: Way | None, turns: Sequence[Turn], seen: SeenImages, ids: Sequence[int], *, replies: bool
    ) -> Answered:
        """Return how a question is answered.

        Args:
            way: None leaves out nothing.
            turns: Of the question.
            seen: Its images, with what the tower's attention says of them where a way wants that.
            ids: Of the right answer.
            replies: Whether it is answered freely as well.

        Raises:
            ContextLengthError: The question does not fit the model's context.
            ParameterError: So small a share leaves nothing.
        """
        runner, room = self._runner, len(ids) + MOST_EXTRA_TOKENS
        choose, rows, reduction, num_layers = None, None, None, 0
        if way is not None and way.stage == "before":
            reduction = Resize(way.share) if way.method == RESIZE else Reduction(way.method, way.share)
        elif way is not None and way.method == SKIPPING:
            num_layers = num_skipped(self._manifest, way.share)
        elif way is not None and way.stage == "inside":
            merged = INSIDE[way.method].merged_before(way.share)
            reduction = Reduction(MERGING, merged) if merged < 1 else None
            choose = self._inside.choice(way.method, way.share)
        elif way is not None:
            rows = PolicyRows(self._manifest, way.method, way.share)
        prompt = self._prompt(turns, seen, reduction)
        prefilled = runner.prefill(prompt.skipping(num_layers) if num_layers else prompt, room, choose, rows)
        reply = runner.reply_ids(prefilled, room) if replies else None
        return Answered(runner.forced_logits(prefilled, ids), reply)

    def _prompt(self, turns: Sequence[Turn], seen: SeenImages, reduction: Reduction | Resize | None) -> FilledPrompt:
        """Return a prompt; the whole one of the same images is the same object, which a runner runs once."""
        if reduction is not None:
            return self._runner.prompt_about(turns, seen, reduction)
        known = self._whole
        if known is None or known.turns is not turns or known.seen is not seen:
            known = self._whole = _Whole(turns, seen, self._runner.prompt_about(turns, seen))
        return known.prompt


def _methods() -> list[tuple[Stage, str]]:
    named: tuple[tuple[Stage, Sequence[str]], ...] = (
        ("before", (*BEFORE, RESIZE)),
        ("inside", (*INSIDE, SKIPPING)),
        ("after", tuple(POLICIES)),
    )
    return [(stage, method) for stage, methods in named for method in methods]
