"""How fast the variants of one checkpoint run on this machine, and the energy that they take, measured in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from PIL import Image

from devices.energy.account import EnergyAccount, FoundMeters, spent_joules
from quant.comparison.variants import Variant
from quant.quality.embeddings import image_runner_of
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import VisionLanguageRunner
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

HOW_METERED = "Energy: all that this machine's own meters told during those runs, idling included."


@dataclass(frozen=True)
class _Work:
    """Something to be timed: it does `items` things."""

    label: str
    items: int
    run: Callable[[], object]

    def told(self, account: EnergyAccount) -> _Told:
        """Run it once and return what it took."""
        before = account.entries()
        rate = self.items / milliseconds_of(self.run) * 1e3
        return _Told(rate, spent_joules(before, account.entries()))


@dataclass(frozen=True)
class _Told:
    """What one run took: things a second, and all of its energy, None where no meter told it."""

    rate: float
    joules: float | None


@dataclass(frozen=True)
class Speeds:
    """What variants took, by label.

    Attributes:
        rates: Tokens decoded (images embedded, for a dual encoder) per second: median and quartiles of the rounds.
        ratios: To the first variant's, within each round.
        per_joule: Tokens or images, over all rounds; idling is counted in. Empty where no meter told of all of them.
    """

    rates: Mapping[str, Quartiles]
    ratios: Mapping[str, Quartiles]
    per_joule: Mapping[str, float]


def measure_speeds(
    variants: Sequence[Variant],
    progress: Callable[[str], None],
    threads: int = 0,
    meters: FoundMeters | None = None,
) -> Speeds:
    """Return what variants take, the first of them being what the others are compared with.

    Every variant is open at once, and a round runs each of them once: what else the machine does then meets all alike.

    Args:
        variants: Of one checkpoint.
        progress: Called with a line.
        threads: Of each; 0 means one per physical core.
        meters: Of energy; None: those of this machine.
    """
    settings = RuntimeSettings(intra_threads=threads)
    works = [_work(variant, settings) for variant in variants]
    progress(f"timing {', '.join(work.label for work in works)} in turns")
    with EnergyAccount(meters) as account:
        told = Turns(_WARMUP_ROUNDS, _ROUNDS).run({work.label: partial(work.told, account) for work in works})
    rates = {label: [each.rate for each in rounds] for label, rounds in told.items()}
    first = rates[works[0].label]
    return Speeds(
        rates={label: Quartiles.of(values) for label, values in rates.items()},
        ratios={label: Quartiles.of_ratios(values, first) for label, values in rates.items()},
        per_joule=_per_joule(works, told),
    )


def _per_joule(works: Sequence[_Work], told: Mapping[str, Sequence[_Told]]) -> dict[str, float]:
    """Return things a joule by label; nothing where a meter failed meanwhile, or there is none."""
    joules = {label: [each.joules for each in rounds] for label, rounds in told.items()}
    if any(each is None for rounds in joules.values() for each in rounds):
        return {}
    sums = {label: sum(each or 0.0 for each in rounds) for label, rounds in joules.items()}
    return {work.label: work.items * len(told[work.label]) / sums[work.label] for work in works if sums[work.label]}


def _work(variant: Variant, settings: RuntimeSettings) -> _Work:
    bundle = variant.bundle
    if bundle.manifest.embeds:
        encoder = image_runner_of(bundle, settings)
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
