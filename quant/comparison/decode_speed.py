"""How fast the variants of one checkpoint run on this machine, measured in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from quant.comparison.variants import Variant
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import DualEncoderRunner, VisionLanguageRunner
from runtime.settings import RuntimeSettings
from runtime.turns import Quartiles, Turns, milliseconds_of

_ROUNDS = 25
_WARMUP_ROUNDS = 3
_PROMPT_TOKENS = 64
_TOKENS_PER_ROUND = 8

HOW = (
    f"One sequence. Decoding: {_TOKENS_PER_ROUND} tokens behind a prompt of "
    f"{_PROMPT_TOKENS}; images: one at a time. All variants in turns in one process, {_ROUNDS} rounds: the median, and "
    "for a ratio the median of the rounds' own. A server batches requests on top: measure it with pocketvlm bench."
)


@dataclass(frozen=True)
class _Work:
    """Something to be timed: it does `items` things."""

    label: str
    items: int
    run: Callable[[], object]

    def rate(self) -> float:
        """Run it once and return how many things a second it did."""
        return self.items / milliseconds_of(self.run) * 1e3


def measure_speeds(
    variants: Sequence[Variant], progress: Callable[[str], None], threads: int = 0
) -> tuple[dict[str, Quartiles], dict[str, Quartiles]]:
    """Return tokens decoded (images embedded, for a dual encoder) per second by label, and ratios to the first variant.

    Both are the median and quartiles of the rounds; a ratio is taken within each round.

    Every variant is open at once, and a round runs each of them once: what else the machine does then meets all alike.

    Args:
        variants: Of one checkpoint.
        progress: Called with a line.
        threads: Of each; 0 means one per physical core.
    """
    settings = RuntimeSettings(intra_threads=threads)
    works = [_work(variant, settings) for variant in variants]
    progress(f"timing {', '.join(work.label for work in works)} in turns")
    rates = Turns(_WARMUP_ROUNDS, _ROUNDS).run({work.label: work.rate for work in works})
    first = rates[works[0].label]
    ratios = {label: Quartiles.of_ratios(values, first) for label, values in rates.items()}
    return {label: Quartiles.of(values) for label, values in rates.items()}, ratios


def _work(variant: Variant, settings: RuntimeSettings) -> _Work:
    bundle = variant.bundle
    if bundle.manifest.embeds:
        encoder = DualEncoderRunner(bundle, settings)
        image = Image.new("RGB", (256, 256), (90, 120, 40))
        return _Work(variant.label, 1, lambda: encoder.embed_images([image]))
    runner = VisionLanguageRunner(bundle, settings)
    vocab_size = bundle.manifest.decoder.vocab_size if bundle.manifest.decoder else 1
    ids = np.random.default_rng(0).integers(0, vocab_size, _PROMPT_TOKENS, np.int64)
    prompt = runner.prefill(FilledPrompt.of_ids(ids), _TOKENS_PER_ROUND)
    # the first token comes with the prompt; each further one is a step
    return _Work(
        variant.label, _TOKENS_PER_ROUND, lambda: list(islice(runner.greedy_tokens(prompt), _TOKENS_PER_ROUND + 1))
    )
