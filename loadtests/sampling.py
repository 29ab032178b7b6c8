"""What the choice of tokens costs a step: `python -m loadtests.sampling`.

Each case is the engine's sampler over a whole batch beside the plain way, row by row with every row sorted, in turns
in one process, by the thread's own time, so that waiting for a core does not count. Logits are random with the spread
of a language model's; what may follow in a structured answer is computed beside the model's step, so that only its
application is in a step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from bundle.errors import PocketVLMError
from bundle.machine import cpu_name
from runtime.turns import Quartiles, Turns, thread_milliseconds_of
from serving.engine.sampling.constraint import Constraint
from serving.engine.sampling.sampler import Sampler
from serving.engine.sampling.state import SamplingState
from serving.protocol import SamplingParams

_PROMPT_TOKENS = 512
_SPREAD = 3.0
"""Standard deviation of the logits; a nucleus of 0.9 then holds some hundred of 49,280 tokens."""
_NUCLEUS: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9}
_PENALTIES: dict[str, Any] = {"repetition_penalty": 1.1, "frequency_penalty": 0.1, "presence_penalty": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.7},
    "top_k 50": {"temperature": 0.7, "top_k": 50},
    "top_p 0.9": _NUCLEUS,
    "top_p 0.9, penalties": {**_NUCLEUS, **_PENALTIES},
    "top_p 0.9, penalties, 5 logprobs": {**_NUCLEUS, **_PENALTIES, "top_logprobs": 5},
}
"""Name -> sampling parameters."""
_MASKED = "top_p 0.9, penalties, 5 logprobs, a structure"


@dataclass(frozen=True)
class Cost:
    """What a step of one case costs, in milliseconds."""

    sampler_ms: Quartiles
    row_by_row_ms: Quartiles


class _HalfAllowed(Constraint):
    """A structure that allows every second token, for ever."""

    def __init__(self, vocab_size: int) -> None:
        self._half = np.full(-(-vocab_size // 8), 0b01010101, np.uint8)

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        return np.unpackbits(self._half, count=vocab_size, bitorder="little").view(np.bool_)

    def take(self, token_id: int) -> None:
        pass


def costs(batch: int, vocab_size: int, turns: Turns) -> dict[str, Cost]:
    """Return the cost of every case at one batch size."""
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((batch, vocab_size)) * _SPREAD).astype(np.float32)
    works: dict[tuple[str, bool], Callable[[], float]] = {}
    for name, sampling in {**CASES, _MASKED: CASES[list(CASES)[-1]]}.items():
        for is_plain in (False, True):
            states = [_state(seed, vocab_size, sampling, name == _MASKED) for seed in range(batch)]
            works[name, is_plain] = partial(_time, _row_by_row if is_plain else _together, logits, states)
    told = turns.run(works)
    return {
        name: Cost(Quartiles.of(told[name, False]), Quartiles.of(told[name, True]))
        for name, is_plain in works
        if not is_plain
    }


def _state(seed: int, vocab_size: int, sampling: dict[str, Any], is_masked: bool) -> SamplingState:
    prompt_ids = np.random.default_rng(seed).integers(0, vocab_size, _PROMPT_TOKENS).tolist()
    constraint = _HalfAllowed(vocab_size) if is_masked else None
    return SamplingState(SamplingParams(seed=seed, **sampling), prompt_ids, (0,), constraint)


def _time(
    choose: Callable[[npt.NDArray[np.float32], list[SamplingState]], None],
    logits: npt.NDArray[np.float32],
    states: list[SamplingState],
) -> float:
    fresh = logits.copy()  # as the decoder would have made them
    return thread_milliseconds_of(lambda: choose(fresh, states))


def _together(logits: npt.NDArray[np.float32], states: list[SamplingState]) -> None:
    for choice in Sampler().choose(logits, states):
        if isinstance(choice, PocketVLMError):
            raise choice


def _row_by_row(logits: npt.NDArray[np.float32], states: list[SamplingState]) -> None:
    """Choose as the definitions read: each row by itself, its vocabulary sorted."""
    for row, state in zip(logits, states, strict=True):
        if state.num_logprobs is not None:
            logprobs = row - row.max()
            logprobs -= np.log(np.exp(logprobs).sum())
            np.argsort(-logprobs)[: state.num_logprobs]
        state.change(row)
        state.take(_plain_choice(row, state))


def _plain_choice(scores: npt.NDArray[np.float32], state: SamplingState) -> int:
    if not state.temperature:
        return int(scores.argmax())
    ids = np.argsort(-scores, kind="stable")[: state.top_k or None]
    weights = np.exp((scores[ids] - scores[ids[0]]).astype(np.float64) / state.temperature)
    running = np.cumsum(weights)
    count = int(np.searchsorted(running, state.top_p * running[-1])) + 1
    return int(ids[min(int(np.searchsorted(running[:count], state.drawn * running[:count][-1])), count - 1)])


def _print(found: dict[str, Cost], batch: int, vocab_size: int) -> None:
    table = Table("per step", "sampler, ms", "sorted rows, ms", "ratio")
    for name, cost in found.items():
        ratio = cost.row_by_row_ms.median / cost.sampler_ms.median
        table.add_row(name, str(cost.sampler_ms), str(cost.row_by_row_ms), f"{ratio:.1f}")
    console = Console(width=120)
    console.print(f"Batch {batch}, {vocab_size} tokens, median (quartiles); {cpu_name()}")
    console.print(table)


def main() -> None:
    """Measure, print a table, and write the figures where asked."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.sampling", description=__doc__)
    parser.add_argument("--batch", type=int, default=8, help="rows of logits (8)")
    parser.add_argument("--vocab", type=int, default=49_280, help="tokens of the vocabulary (49280)")
    parser.add_argument("--repeats", type=int, default=40, help="rounds that count (40)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    if given.batch < 1 or given.vocab < 2:
        sys.exit(f"error: a batch of {given.batch} over {given.vocab} tokens cannot be sampled: 1 and 2 at least")
    found = costs(given.batch, given.vocab, Turns(3, given.repeats))
    _print(found, given.batch, given.vocab)
    if given.json:
        given.json.write_text(json.dumps({name: asdict(cost) for name, cost in found.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
