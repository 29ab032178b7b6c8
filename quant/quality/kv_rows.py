"""One request under a KV policy, teacher-forced: what a policy costs in answers is measured by it.

whole = runner.forced_logits(runner.prefill(prompt, room), answer_ids)
small = runner.forced_logits(runner.prefill(prompt, room, choose_rows=PolicyRows(manifest, "snapkv", 0.2)), answer_ids)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.errors import ParameterError
from bundle.manifest import Manifest
from bundle.states import layers_of
from quant.kv.compressing import Compressing, Compression, LastQueries, ReadPrompt
from quant.kv.compression import num_kept_rows
from quant.kv.needs import missing
from quant.kv.table import entry_of
from quant.quality.answers import MOST_EXTRA_TOKENS, Answered, AnswerFigures
from quant.quality.evaluation import Measured, Progress, Question, turns_of
from runtime.filled_prompt import FilledPrompt
from runtime.graph import Array
from runtime.one_request import VisionLanguageRunner
from runtime.states import StateBuffers


class PolicyRows:
    """Chooses a prompt's rows as the engine does, for `VisionLanguageRunner.prefill`.

    Args:
        manifest: Of the bundle.
        policy: A name of `quant.kv.table.POLICIES`.
        budget: The share of the prompt's rows that stays, in (0, 1]; 1 keeps all.

    Attributes:
        policy: As given.
        budget: As given.
        outputs: Of the graph for prompts, that the policy needs.
        rows: [G] rows that stayed of the prompt that was read last.

    Raises:
        ParameterError: The policy is unknown, the budget out of range, or the bundle lacks what the policy needs.
    """

    def __init__(self, manifest: Manifest, policy: str, budget: float) -> None:
        needs_queries = entry_of(policy).needs_queries
        if not 0 < budget <= 1:
            raise ParameterError(f"the budget is {budget}; it must be above 0 and at most 1", "kv.budget")
        if reason := missing(policy, manifest):
            raise ParameterError(f"{policy}: {reason}", "kv.policy")
        self.policy = policy
        self.budget = budget
        self._layers = layers_of(manifest.states)
        self._num_groups = manifest.num_length_groups
        count = len(self._layers) if needs_queries and budget < 1 else 0
        self.outputs = tuple(f"{tensors.LAST_QUERIES}{layer}" for layer in range(count))
        self.rows: Sequence[int] = ()

    def __call__(
        self, states: StateBuffers, slot: int, prompt: FilledPrompt, told: Sequence[Mapping[str, Array]]
    ) -> Sequence[int]:
        """Drop rows of a slot and return [G] how many stay.

        Raises:
            ParameterError: The budget keeps no row of so short a prompt.
        """
        num_rows = prompt.num_tokens
        num_kept = num_kept_rows(num_rows, self.budget)
        if not num_kept:
            raise ParameterError(f"a budget of {self.budget} keeps no row of {num_rows}", "kv.budget")
        self.rows = [num_rows] * self._num_groups
        if num_kept < num_rows:
            self.rows = self._chosen(num_kept, states, slot, prompt, told)
        return self.rows

    def _chosen(
        self, num_kept: int, states: StateBuffers, slot: int, prompt: FilledPrompt, told: Sequence[Mapping[str, Array]]
    ) -> Sequence[int]:
        queries = LastQueries()
        for found in told:
            queries.add(found)
        read = ReadPrompt(slot, prompt.num_tokens, queries, _is_image(prompt), _seed(prompt))
        work = Compressing(Compression(self.policy, num_kept), states, self._layers, read)
        stayed = work.advance(math.inf)
        if stayed is None:
            raise ValueError(f"{self.policy} chose no rows of some layers")
        return stayed.rows


def measure_policies(
    model: VisionLanguageRunner,
    questions: Sequence[Question],
    policies: Sequence[PolicyRows],
    progress: Progress,
    *,
    has_accuracy: bool = True,
) -> list[Measured]:
    """Return, of each policy and budget, how the model answers beside itself with all rows.

    Every image is encoded once, and every question answered once with all rows; accuracy is told of both, in pairs
    (`fp32` is the model with all rows, `quantized` the one with fewer). The first token of an answer is the same under
    every policy: it follows the whole prompt.

    Args:
        model: Any variant.
        questions: At least one.
        policies: Of the same bundle.
        progress: Called with a line now and then.
        has_accuracy: Whether a reply can be right; else no question is answered freely.

    Raises:
        ContextLengthError: A question does not fit the model's context.
        ParameterError: A budget keeps no row of a question.
    """
    figures = [AnswerFigures(model.text_of, has_accuracy=has_accuracy) for _ in policies]
    for at, question in enumerate(questions):
        if at % 50 == 0:
            progress(f"evaluating question {at + 1} of {len(questions)} under {len(policies)} policies")
        prompt, ids = model.prompt(turns_of(question), question.images), model.answer_ids(question.answer)
        whole = _answered(model, prompt, ids, has_accuracy)
        for rows, found in zip(policies, figures, strict=True):
            found.add(question, ids, whole, _answered(model, prompt, ids, has_accuracy, rows))
    return [found.measured() for found in figures]


def _answered(
    model: VisionLanguageRunner, prompt: FilledPrompt, ids: Sequence[int], replies: bool, rows: PolicyRows | None = None
) -> Answered:
    room = len(ids) + MOST_EXTRA_TOKENS
    prefilled = model.prefill(prompt, room, choose_rows=rows)
    reply = model.reply_ids(prefilled, room) if replies else None
    return Answered(model.forced_logits(prefilled, ids), reply)


def _is_image(prompt: FilledPrompt) -> npt.NDArray[np.bool_]:
    marked = np.zeros(prompt.num_tokens, np.bool_)
    for placed in prompt.placed:
        marked[placed.start : placed.start + len(placed.rows)] = True
    return marked


def _seed(prompt: FilledPrompt) -> int:
    """Return a number of a prompt's content, features included."""
    digest = blake2b(prompt.prompt.token_ids.tobytes(), digest_size=8)
    for placed in prompt.placed:
        digest.update(np.ascontiguousarray(placed.rows).tobytes())
    return int.from_bytes(digest.digest(), "little")
