"""How long a first token takes where image tokens leave or skip layers inside: `python -m loadtests.inside BUNDLE`.

A made-up prompt, text around so many image tokens of random features, runs through a bundle's decoder in turns: whole,
without the dropped tokens from the start (uniformly chosen, as a reducer before the decoder would leave it), and by
each method inside that the bundle was exported for. Features are random, so this tells times and nothing of quality.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bundle.directory import Bundle, open_bundle
from bundle.errors import SettingsError
from bundle.prompt import Prompt, Span
from quant.visual_tokens.inside.aim_pruning import AimPruning
from quant.visual_tokens.inside.fastv import FastV
from quant.visual_tokens.skipping import num_skippable, num_skipped
from runtime.cache_shape import cache_shape
from runtime.chunks import chunks
from runtime.decoder import Decoder, TokenGraphs
from runtime.filled_prompt import FilledPrompt
from runtime.segmented_prompt import Choose, Layers, SegmentedPrompt
from runtime.segments import read_segments
from runtime.settings import DEFAULT_CHUNK_TOKENS, RuntimeSettings
from runtime.turns import Quartiles, Turns, milliseconds_of

_FEATURE_SCALE = 0.02
"""About that of a checkpoint's embeddings before training."""
_METHODS: dict[str, Callable[[float], Choose]] = {"fastv": FastV, "aim-pruning": AimPruning}


class FirstToken:
    """A bundle's decoder and prompts for it.

    Args:
        bundle: Exported in segments, or with layers that image tokens may skip.
        settings: Threads.
        num_text_tokens: Half of them on either side of the image.
        num_image_tokens: Before any is dropped.
    """

    def __init__(self, bundle: Bundle, settings: RuntimeSettings, num_text_tokens: int, num_image_tokens: int) -> None:
        self.has_segments, self._manifest = bool(bundle.manifest.segments), bundle.manifest
        if bundle.manifest.decoder is None or not (self.has_segments or num_skippable(bundle.manifest)):
            raise SettingsError(
                f"{bundle.directory} drops and skips nothing inside its decoder; export it with --decoder-segments "
                "LAYERS or --skip-visual LAYERS"
            )
        num_tokens = num_text_tokens + num_image_tokens
        self._decoder = Decoder(TokenGraphs(bundle, settings), cache_shape(bundle.manifest, 1, num_tokens + 1))
        self._layers = Layers.of(bundle.manifest) if self.has_segments else None
        self._groups = bundle.manifest.num_length_groups
        self._width, self._vocab = bundle.manifest.decoder.hidden_size, bundle.manifest.decoder.vocab_size
        self._text = num_text_tokens

    def prompt(self, num_image_tokens: int) -> FilledPrompt:
        """Return a prompt whose image is of so many tokens."""
        rng, num_tokens = np.random.default_rng(0), self._text + num_image_tokens
        span = Span(self._text // 2, self._text // 2 + num_image_tokens, 0, 0)
        ids = rng.integers(0, self._vocab, num_tokens)
        features = rng.normal(size=(num_image_tokens, self._width), scale=_FEATURE_SCALE).astype(np.float32)
        return FilledPrompt.of(Prompt(ids, (span,), np.arange(num_tokens), num_tokens, 1), [features])

    def whole(self, prompt: FilledPrompt) -> None:
        """Run a prompt through the whole decoder."""
        for start, end in chunks(prompt.num_tokens, DEFAULT_CHUNK_TOKENS):
            run = prompt.run(start, end, [start] * self._groups, [end - start - 1])
            self._decoder.run("prompt", 0, [run])

    def skipping(self, prompt: FilledPrompt, keep: float) -> FilledPrompt:
        """Return a prompt whose image tokens run through a share of the layers that they may skip."""
        return prompt.skipping(num_skipped(self._manifest, keep))

    def inside(self, prompt: FilledPrompt, choose: Choose) -> None:
        """Run a prompt segment by segment."""
        if self._layers is None:
            raise ValueError("a bundle that was not cut has no segments to run")
        read_segments(self._decoder, 0, SegmentedPrompt(prompt, self._layers, choose), DEFAULT_CHUNK_TOKENS)


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Return how long one call takes, by the wall and of the processor's time on all threads, in milliseconds."""
    began_s = time.process_time()
    wall_ms = milliseconds_of(work)
    return wall_ms, (time.process_time() - began_s) * 1e3


def works(bench: FirstToken, num_image_tokens: int, keeps: list[float]) -> dict[str, Callable[[], tuple[float, float]]]:
    """Return what is timed, by name."""
    whole = bench.prompt(num_image_tokens)
    timed: dict[str, Callable[[], None]] = {"whole": lambda: bench.whole(whole)}
    if bench.has_segments:
        timed["segments, all kept"] = lambda: bench.inside(whole, lambda cut: cut.image_rows)
    for keep in keeps:
        less = bench.prompt(round(num_image_tokens * keep))
        timed[f"before the decoder, keep {keep:g}"] = lambda less=less: bench.whole(less)  # type: ignore[misc]
        if not bench.has_segments:
            skipping = bench.skipping(whole, keep)
            timed[f"ima, keep {keep:g}"] = lambda skipping=skipping: bench.whole(skipping)  # type: ignore[misc]
            continue
        for name, method in _METHODS.items():
            choose = method(keep)
            timed[f"{name}, keep {keep:g}"] = lambda choose=choose: bench.inside(whole, choose)  # type: ignore[misc]
    return {name: lambda work=work: measured(work) for name, work in timed.items()}  # type: ignore[misc]


def main(argv: list[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="exported with --decoder-segments or --skip-visual")
    parser.add_argument("--image-tokens", type=int, default=1088, help="default: 1088, 17 tiles of 64")
    parser.add_argument("--text-tokens", type=int, default=120, help="default: 120")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25], help="default: 0.5 0.25")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    args = parser.parse_args(argv)
    bundle = open_bundle(args.bundle, allow_ungated=True)
    bench = FirstToken(bundle, RuntimeSettings(intra_threads=args.threads), args.text_tokens, args.image_tokens)
    told = Turns(1, args.rounds).run(works(bench, args.image_tokens, args.keep))
    print("| prompt | ms, median | of whole (quartiles) | processor's ms | of whole |\n|---|---|---|---|---|")
    for name, found in told.items():
        walls, processor = ([each[kind] for each in found] for kind in (0, 1))
        ratios = [
            Quartiles.of_ratios(of, [each[kind] for each in told["whole"]])
            for kind, of in enumerate((walls, processor))
        ]
        medians = [Quartiles.of(of).median for of in (walls, processor)]
        print(f"| {name} | {medians[0]:.0f} | {ratios[0]} | {medians[1]:.0f} | {ratios[1]} |")


if __name__ == "__main__":
    main()
