"""What the cache really takes, by budget: `python -m loadtests.cache_memory BUNDLE`.

Several answers are under way at once behind prompts of one length; once each of them has chosen which of its rows stay,
the kernel is asked how many pages of the cache are resident. Beside it stands what a formula says: rows that stay,
times the bytes of a row. Prompts are not kept for others here, whose copies would be counted.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from pydantic import ByteSize

from bundle.directory import Bundle, open_bundle
from bundle.errors import PocketVLMError
from loadtests.shortening import started, words_of
from quant.kv.table import POLICIES
from serving.models.generative import GenerativeModel
from serving.protocol import (
    FinishedEvent,
    GenerateRequest,
    KVCompression,
    Message,
    SamplingParams,
    TextPart,
    TokenEvent,
)
from serving.settings import EngineSettings

_ANSWER_TOKENS = 64
_LOOKED_AT = 8
"""Tokens of every answer behind which the cache is looked at: all have chosen by then, and none has ended."""
_CONTEXT_SHARE = 1.25


@dataclass(frozen=True)
class Taken:
    """What the cache took at one budget.

    Attributes:
        budget: Share of a prompt's rows that stays.
        rows: Of each prompt, that stayed.
        formula_bytes: Of these rows and those of the answers so far, over all answers.
        resident_bytes: As the kernel counts pages.
    """

    budget: float
    rows: int
    formula_bytes: int
    resident_bytes: int


def measure(
    bundle: Bundle, num_answers: int, prompt_tokens: int, policy: str, budgets: Sequence[float], threads: int
) -> list[Taken]:
    """Return what the cache takes at each budget.

    Raises:
        PocketVLMError: The bundle cannot be served, or has not what the policy needs.
        OSError: This system does not tell what is resident.
    """
    context, each_row = round(prompt_tokens * _CONTEXT_SHARE) + _ANSWER_TOKENS, bundle.manifest.state_bytes_per_token
    settings = EngineSettings(
        max_sequences=num_answers,
        context_tokens=context,
        kv_memory_bytes=ByteSize(num_answers * context * each_row),
        intra_threads=threads,
        allow_ungated=True,
        prefix_cache=False,
    )
    with started(bundle, settings) as model:
        return asyncio.run(_measured(model, num_answers, prompt_tokens, policy, budgets, each_row))


async def _measured(
    model: GenerativeModel, num_answers: int, prompt_tokens: int, policy: str, budgets: Sequence[float], each_row: int
) -> list[Taken]:
    words = await words_of(model, prompt_tokens)
    found = []
    for budget in budgets:
        looked = _Looked(model, num_answers)
        kv = KVCompression(policy, budget)
        rows = await asyncio.gather(*(_answered(model, f"{at} {words}", kv, looked) for at in range(num_answers)))
        formula = each_row * (sum(rows) + looked.num_tokens)
        found.append(Taken(budget, rows[0], formula, looked.resident_bytes))
    return found


class _Looked:
    """The cache once, when every answer has so many tokens.

    Attributes:
        num_tokens: Of the answers together, then.
        resident_bytes: Of the cache, then.
    """

    def __init__(self, model: GenerativeModel, num_answers: int) -> None:
        self._model = model
        self._lengths = [0] * num_answers
        self.num_tokens = self.resident_bytes = 0

    def told(self, answer: int, num_tokens: int) -> None:
        """Count tokens of an answer."""
        self._lengths[answer] += num_tokens
        if not self.resident_bytes and min(self._lengths) >= _LOOKED_AT:
            self.resident_bytes, self.num_tokens = self._model.cache_resident_bytes, sum(self._lengths)


async def _answered(model: GenerativeModel, text: str, kv: KVCompression, looked: _Looked) -> int:
    """Return how many rows of its prompt an answer kept."""
    answer = int(text.split()[0])
    sampling, rows = SamplingParams(max_tokens=_ANSWER_TOKENS, ignores_eos=True), 0
    request = GenerateRequest(text[:8], model.card.name, (Message("user", (TextPart(text),)),), sampling, kv=kv)
    async with aclosing(model.generate(request)) as events:
        async for event in events:
            if isinstance(event, FinishedEvent):
                rows = event.usage.cache_rows_after
            elif isinstance(event, TokenEvent):
                looked.told(answer, len(event.token_ids))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        found = measure(
            open_bundle(options.bundle, allow_ungated=True),
            options.answers,
            options.prompt_tokens,
            options.policy,
            [1.0, *options.budgets],
            options.threads,
        )
    except (PocketVLMError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"| {options.policy} | rows of a prompt | by the formula, MB | resident, MB | of budget 1 |")
    print("|---|---|---|---|---|")
    for each in found:
        share = each.resident_bytes / found[0].resident_bytes
        sizes = f"{each.formula_bytes / 1e6:.1f} | {each.resident_bytes / 1e6:.1f}"
        print(f"| {each.budget:g} | {each.rows} | {sizes} | {share:.2f} |")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.cache_memory",
        description="What the cache really takes, by budget.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="a bundle directory")
    parser.add_argument("--answers", type=int, default=4, help="at once")
    parser.add_argument("--prompt-tokens", type=int, default=1200, help="of each answer's prompt, about")
    parser.add_argument("--policy", choices=POLICIES, default="snapkv", help="of the cache's rows")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.2, 0.1], help="shares of rows, below 1")
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    return parser


if __name__ == "__main__":
    sys.exit(main())
