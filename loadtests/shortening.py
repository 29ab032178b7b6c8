"""What shorter prompts and smaller caches save: `python -m loadtests.shortening BUNDLE -o costs.json`.

    python tests/checkpoints.py CK --preset smolvlm-256m --one-tile && pocketvlm export CK -o fp32
    pocketvlm quantize fp32 -o int4 --weights int4
    python -m loadtests.shortening int4 --allow-ungated -o costs.json
    pocketvlm compression --answers ANSWERS.json --costs costs.json -o page.html

First tokens of a message of images by what of them is read, and the decode speed of several answers at once by what of
their prompts' rows stays in the cache; everything takes turns. Weights may be random: times do not depend on them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ByteSize

from bundle.directory import Bundle, open_bundle
from bundle.errors import PocketVLMError, SettingsError
from bundle.machine import cpu_name, num_usable_cores
from loadtests.visual_tokens import Asked, Line, measure
from quant.kv.table import POLICIES
from quant.shortening.costs import Cost, Costs, write_costs
from quant.visual_tokens.table import METHODS, RESIZE
from runtime.turns import Quartiles, Turns
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
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

_CONTEXT_SHARE = 1.25
"""Of a slot's rows over a prompt's: room for its answer, and for what the words count more than they were meant to."""
_ANSWER_TOKENS = 200
"""Enough that the first answer has not ended when the last one begins."""


_PROBED = 3
"""Words of the text that tells how many tokens a word takes."""


@dataclass(frozen=True)
class Crowd:
    """Answers at once.

    Attributes:
        size: How many.
        prompt_tokens: Of each prompt, about.
        policy: Of the cache's rows.
        budgets: Shares of them below 1.
    """

    size: int = 8
    prompt_tokens: int = 1200
    policy: str = "snapkv"
    budgets: tuple[float, ...] = (0.5, 0.2)


def first_token_costs(bundle: Bundle, asked: Asked) -> Costs:
    """Return first tokens by what is read of images.

    Raises:
        PocketVLMError: The bundle cannot be served, or does not do what is asked.
    """
    lines = measure(bundle.directory, asked)
    pictures = f"{asked.images} image{'s' if asked.images > 1 else ''} of {asked.image_px} px"
    costs = [_cost_of(line, bundle.manifest.state_bytes_per_token) for line in lines]
    return Costs(_named(bundle), f"first token about {pictures}", _machine(), tuple(costs))


def _cost_of(line: Line, bytes_per_token: int) -> Cost:
    new, known = (Quartiles.of([each.first_token_ms for each in firsts]) for firsts in (line.new, line.kept))
    way = line.method if line.keep < 1 else "all tokens"
    return Cost(way, line.keep, new, known, line.prompt_tokens, line.prompt_tokens * bytes_per_token)


def decode_costs(bundle: Bundle, crowd: Crowd, turns: Turns, threads: int, *, allow_ungated: bool) -> Costs:
    """Return decode speeds of a crowd by what of their prompts stays in the cache.

    Raises:
        PocketVLMError: The bundle cannot be served, or does not do what is asked.
    """
    context = round(crowd.prompt_tokens * _CONTEXT_SHARE) + _ANSWER_TOKENS
    settings = EngineSettings(
        max_sequences=crowd.size,
        context_tokens=context,
        kv_memory_bytes=ByteSize(crowd.size * context * bundle.manifest.state_bytes_per_token),  # so that nobody waits
        intra_threads=threads,
        allow_ungated=allow_ungated,
    )
    with started(bundle, settings) as model:
        costs = asyncio.run(_decoded(model, bundle, crowd, turns))
    asked = f"decode speed of {crowd.size} answers behind {crowd.prompt_tokens:,} tokens each"
    return Costs(_named(bundle), asked, _machine(), tuple(costs))


@contextmanager
def started(bundle: Bundle, settings: EngineSettings) -> Iterator[GenerativeModel]:
    """Serve a bundle for as long as the block runs."""
    pool = PreprocessPool(settings)
    try:
        model = GenerativeModel(bundle, settings, pool)
        model.start()
        try:
            yield model
        finally:
            model.close()
    finally:
        pool.close()


async def _decoded(model: GenerativeModel, bundle: Bundle, crowd: Crowd, turns: Turns) -> list[Cost]:
    words = await words_of(model, crowd.prompt_tokens)
    ways = [None, *(KVCompression(crowd.policy, budget) for budget in crowd.budgets)]
    rates: dict[KVCompression | None, list[float]] = {way: [] for way in ways}
    rows: dict[KVCompression | None, int] = {}
    for counts in turns.rounds():
        for way in ways:
            model.clear_prefixes()
            asked = [_request(model, f"{at} {words}", way) for at in range(crowd.size)]
            told = await asyncio.gather(*(_answered(model, request) for request in asked))
            rows[way] = told[0].rows
            if counts:
                rates[way].append(_rate([each.sampled_s for each in told]))
    each_row = bundle.manifest.state_bytes_per_token
    return [
        Cost(
            "all rows" if way is None else way.policy,
            1.0 if way is None else way.budget,
            prompt_tokens=rows[None],
            cache_bytes=rows[way] * each_row,
            decode_tokens_s=Quartiles.of(rates[way]),
        )
        for way in ways
    ]


async def words_of(model: GenerativeModel, num_tokens: int) -> str:
    """Return a text that makes a prompt of about so many tokens."""
    one, several = [
        (await _answered(model, _request(model, "word " * count, None, max_tokens=1))).rows for count in (1, _PROBED)
    ]
    of_word = (several - one) / (_PROBED - 1)
    return "word " * max(round((num_tokens - one) / of_word), 1)


def _request(
    model: GenerativeModel, text: str, way: KVCompression | None, max_tokens: int = _ANSWER_TOKENS
) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=max_tokens, ignores_eos=True)
    return GenerateRequest(text[:8], model.card.name, (Message("user", (TextPart(text),)),), sampling, kv=way)


@dataclass(frozen=True)
class _Answer:
    """When an answer's tokens came, and the rows that its prompt kept."""

    sampled_s: list[float]
    rows: int


async def _answered(model: GenerativeModel, request: GenerateRequest) -> _Answer:
    sampled_s, rows = list[float](), 0
    async with aclosing(model.generate(request)) as events:
        async for event in events:
            if isinstance(event, FinishedEvent):
                rows = event.usage.cache_rows_after
            elif isinstance(event, TokenEvent):
                sampled_s += [event.sampled_s] * len(event.token_ids)
    return _Answer(sampled_s, rows)


def _rate(times_s: Sequence[Sequence[float]]) -> float:
    """Return tokens per second while all answers were being written."""
    start_s, end_s = max(each[0] for each in times_s), min(each[-1] for each in times_s)
    if end_s <= start_s:
        raise SettingsError(
            f"the first of {len(times_s)} answers ended before the last one began: nothing was decoded together. Ask "
            "for fewer --answers or shorter --prompt-tokens"
        )
    num_tokens = sum(start_s < at_s <= end_s for each in times_s for at_s in each)
    return num_tokens / (end_s - start_s)


def _named(bundle: Bundle) -> str:
    manifest = bundle.manifest
    return f"{manifest.name} (decoder {manifest.scheme_of('decoder', 'step')}, cache {manifest.cache_scheme})"


def _machine() -> str:
    return f"{cpu_name()}, {num_usable_cores()} cores"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        bundle = open_bundle(options.bundle, allow_ungated=options.allow_ungated)
        asked = Asked(
            tuple(options.methods),
            tuple(options.keeps),
            options.images,
            options.image_px,
            options.turns,
            options.threads,
            allow_ungated=options.allow_ungated,
        )
        found = [] if options.images == 0 else [first_token_costs(bundle, asked)]
        if options.answers:
            crowd = Crowd(options.answers, options.prompt_tokens, options.policy, tuple(options.budgets))
            turns = Turns(warmup=1, repeats=options.turns)
            found.append(decode_costs(bundle, crowd, turns, options.threads, allow_ungated=options.allow_ungated))
        write_costs(options.output, found)
    except (PocketVLMError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for costs in found:
        print(costs.asked)
        for cost in costs.costs:
            told = (cost.first_token_ms, cost.known_first_token_ms, cost.decode_tokens_s)
            print(
                f"  {cost.way} {cost.share:g}",
                cost.prompt_tokens,
                cost.cache_bytes,
                *(str(each) for each in told if each),
            )
    return 0


def _parser() -> argparse.ArgumentParser:
    crowd = Crowd()
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.shortening",
        description="What shorter prompts and smaller caches save.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="a bundle directory")
    parser.add_argument("-o", "--output", type=Path, default=Path("costs.json"), help="the file to write")
    parser.add_argument(
        "--methods", nargs="+", choices=(*METHODS, RESIZE), default=["uniform", "dart"], help="reducers"
    )
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.5, 0.25, 0.1], help="shares, above 0 and below 1")
    parser.add_argument("--images", type=int, default=4, help="in the one message; 0 times no first tokens")
    parser.add_argument("--image-px", type=int, default=512, help="width and height of each, pixels")
    parser.add_argument("--answers", type=int, default=crowd.size, help="at once; 0 times no decoding")
    parser.add_argument("--prompt-tokens", type=int, default=crowd.prompt_tokens, help="of each answer's prompt, about")
    parser.add_argument("--policy", choices=POLICIES, default=crowd.policy, help="of the cache's rows")
    parser.add_argument("--budgets", type=float, nargs="+", default=crowd.budgets, help="shares of rows, below 1")
    parser.add_argument("--turns", type=int, default=5, help="rounds that count, at least 3")
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    parser.add_argument("--allow-ungated", action="store_true", help="measure a variant that failed its gate")
    return parser


if __name__ == "__main__":
    sys.exit(main())
