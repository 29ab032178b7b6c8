"""A task vector made of demonstrations: heads averaged behind some of them, and those found that answer the others.

The paper draws sets of heads at random and learns by REINFORCE which to draw (arXiv 2406.15334, section 3.3), some
thousand runs. Here every head is changed alone, from its own output to the average or back, and then the best 1, 2, 4,
8, ... changes are made together, until none of these helps: a few runs for each head and demonstration, and the same
result every time (docs/decisions/0045).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.errors import ParameterError
from bundle.manifest import Manifest
from runtime.cache_shape import cache_shape
from runtime.chunks import chunks
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import HeadValues, TokenRun
from runtime.filled_prompt import FilledPrompt, positions_from
from runtime.settings import DEFAULT_CHUNK_TOKENS
from runtime.task_vector import HeadShape

MOST_SHOTS = 4
"""Demonstrations that stand before one whose heads are read."""
_MOST_ROUNDS = 6
"""Of changes; on the shipped model the third or fourth finds nothing more."""
_SLOT = 0

Mask = npt.NDArray[np.bool_]
Check = Callable[[], None]


@dataclass(frozen=True)
class Demonstration:
    """One demonstration, as it is read.

    Attributes:
        shown: Others, and then its question.
        alone: Its question.
        answer_ids: Of its answer and its end.
    """

    shown: FilledPrompt
    alone: FilledPrompt
    answer_ids: Sequence[int]

    @property
    def num_rows(self) -> int:
        """Rows that a cache needs for it."""
        return max(self.shown.num_tokens, self.alone.num_tokens + len(self.answer_ids))


@dataclass(frozen=True)
class Found:
    """What the search came to.

    Attributes:
        heads: The values, and the heads that are replaced.
        loss: Mean over demonstrations of -log p of their answers' tokens with those heads replaced, in nats.
        loss_alone: The same with none.
    """

    heads: HeadValues
    loss: float
    loss_alone: float


def behind_others(number: int, num_all: int) -> list[int]:
    """Return which demonstrations stand before one whose heads are read: the next ones, round and round."""
    return [(number + step) % num_all for step in range(1, min(MOST_SHOTS, num_all - 1) + 1)]


def find_task_vector(
    graphs: TokenGraphs, manifest: Manifest, demonstrations: Sequence[Demonstration], check: Check
) -> Found:
    """Return the heads that answer demonstrations best when they give what they gave behind others, on average.

    Args:
        graphs: Of a bundle with open heads; the search has a cache of its own, of one slot.
        manifest: Of the bundle.
        demonstrations: Two or more, each within what the model holds.
        check: Called between runs; what it raises ends the search.

    Raises:
        ParameterError: No set of heads that is tried lowers the loss of the answers.
    """
    shape, longest = HeadShape.of(manifest), max(each.num_rows for each in demonstrations)
    trial = _Trial(Decoder(graphs, cache_shape(manifest, 1, longest)), shape, demonstrations, check)
    mask = np.zeros(shape.num_layers * shape.num_heads, np.bool_)
    loss = loss_alone = float(trial.losses([mask])[0])
    for _ in range(_MOST_ROUNDS):
        better, found = _improved(trial, mask)
        if not found < loss:
            break
        mask, loss = better, found
    if not mask.any():
        raise ParameterError(
            f"no heads answer these demonstrations better than the model does alone ({loss_alone:.3f} nats a token, "
            f"{found:.3f} at best): they teach it nothing that a task vector could hold; make the prefix with "
            "method plain or fused",
            "messages",
        )
    return Found(HeadValues(trial.values, mask), loss, loss_alone)


def _improved(trial: _Trial, mask: Mask) -> tuple[Mask, float]:
    """Return the best of what the best 1, 2, 4, ... changes of single heads make of a choice of heads, and its loss."""
    of_single = trial.losses([mask ^ single for single in np.eye(len(mask), dtype=np.bool_)])
    order = np.argsort(of_single, kind="stable")
    changed = [mask ^ _of(order[:size], len(mask)) for size in _sizes(len(mask))]
    losses = trial.losses(changed)
    best = int(np.argmin(losses))
    return changed[best], float(losses[best])


class _Trial:
    """Demonstrations that are answered again and again, each time with other heads replaced.

    Args:
        decoder: With a slot of its own.
        shape: Of its heads.
        demonstrations: That are answered.
        check: Called between runs.

    Attributes:
        values: [L, H*C] float32, the mean of what heads gave at the ends of the prompts.
    """

    def __init__(
        self, decoder: Decoder, shape: HeadShape, demonstrations: Sequence[Demonstration], check: Check
    ) -> None:
        self._decoder = decoder
        self._shape = shape
        self._demonstrations = demonstrations
        self._check = check
        ends = [self._ends(each.shown) for each in demonstrations]
        self.values = np.asarray(np.mean(ends, axis=0), np.float32)

    def losses(self, masks: Sequence[Mask]) -> npt.NDArray[np.float64]:
        """Return the mean loss of all answers under each choice of heads."""
        of_each = [list(self._of_one(each, masks)) for each in self._demonstrations]
        return np.asarray(np.mean(of_each, axis=0), np.float64)

    def _ends(self, prompt: FilledPrompt) -> npt.NDArray[np.float32]:
        """Return [L, H*C]: what the heads give at the last token of a prompt."""
        *before, (start, end) = chunks(prompt.num_tokens, DEFAULT_CHUNK_TOKENS, prompt.prompt.seen)
        self._read(prompt, before)
        run = prompt.run(start, end, self._lengths(start), [end - start - 1])
        _, found = self._decoder.run_with(self._shape.outputs, "prompt", _SLOT, [run])
        return np.stack([found[name][0, 0] for name in self._shape.outputs])

    def _of_one(self, one: Demonstration, masks: Sequence[Mask]) -> Iterator[float]:
        """Yield the loss of one answer under each choice of heads; what stands before the last token is read once."""
        prompt = one.alone
        last = prompt.num_tokens - 1
        seen = None if prompt.prompt.seen is None else prompt.prompt.seen[:, :last]
        self._read(prompt, list(chunks(last, DEFAULT_CHUNK_TOKENS, seen)))
        end = prompt.run(last, last + 1, self._lengths(last), ())
        behind = positions_from(prompt.prompt.next_position, len(one.answer_ids) - 1, end.positions)
        ids = np.concatenate([end.ids, np.array(one.answer_ids[:-1], np.int64)])
        places = np.concatenate([end.positions, behind], axis=-1)
        for mask in masks:
            self._check()
            heads = HeadValues(self.values, mask)
            run = TokenRun(ids, places, end.lengths, range(len(ids)), end.features, heads=heads, adapter=prompt.adapter)
            yield _loss(self._decoder.run("prompt", _SLOT, [run])[0], one.answer_ids)

    def _read(self, prompt: FilledPrompt, stretches: Sequence[tuple[int, int]]) -> None:
        self._decoder.states.clear(_SLOT)
        for start, end in stretches:
            self._check()
            self._decoder.run("prompt", _SLOT, [prompt.run(start, end, self._lengths(start), [end - start - 1])])

    def _lengths(self, num_rows: int) -> list[int]:
        return [num_rows] * self._decoder.graphs.num_length_groups


def _loss(logits: npt.NDArray[np.float32], answer_ids: Sequence[int]) -> float:
    """Return the mean of -log p over an answer's tokens, given logits [N, V]."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_p = shifted[np.arange(len(answer_ids)), list(answer_ids)] - np.log(np.exp(shifted).sum(axis=-1))
    return float(-log_p.mean())


def _sizes(num_all: int) -> list[int]:
    """Return 1, 2, 4, ... and all."""
    sizes = [1]
    while 2 * sizes[-1] < num_all:
        sizes.append(2 * sizes[-1])
    return [*sizes, num_all]


def _of(numbers: npt.NDArray[np.int64], num_all: int) -> Mask:
    mask = np.zeros(num_all, np.bool_)
    mask[numbers] = True
    return mask
