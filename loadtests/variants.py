"""Many variants of one decoder on one page: `python -m loadtests.variants FP32 FOLDER`.

Each is quantized with the built-in table of times, so that every machine plans the same, fitted to one half of the
built-in samples and measured on texts of the other. What stands in the folder already, of this bundle and as many
texts, is not made again. Files of
llama.cpp's types that answered the same texts stand in the same charts:

    python -m loadtests.llama_cpp FP32 GGUF --threads 1 --json rivals.json
    python -m loadtests.variants FP32 FOLDER --rivals rivals.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from bundle.directory import MANIFEST, Bundle, is_of_this_format, open_bundle
from bundle.errors import PocketVLMError
from bundle.report import REPORT, read_report
from quant.calibration.feeds import spread
from quant.comparison.comparison import compare_bundles
from quant.planning.draft import Options
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from quant.samples.built_in import MOST_TEXTS, built_in_samples, built_in_texts

PAGE = "report.html"
MOST_FITTED = 108
"""Texts and photographs in each half."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """How a variant is made.

    Attributes:
        weights: As `pocketvlm quantize --weights` takes them.
        block_size: Weights per scale; None: chosen.
        profile: Of the decoder; None: the one of the weights.
    """

    weights: str
    block_size: int | None = None
    profile: str | None = None

    @property
    def options(self) -> Options:
        """The quantizer's, with the built-in table of times."""
        return Options(block_size=self.block_size, profile=self.profile)


RECIPES = {
    "int8-memory": Recipe("int8", profile="memory"),
    "int8": Recipe("int8"),
    "int8-rtn": Recipe("int8-rtn"),
    "int4": Recipe("int4"),
    "int4-b32": Recipe("int4", block_size=32),
    "int4-gptq-b32": Recipe("int4-gptq", block_size=32),
    "nf4": Recipe("nf4"),
    "int4-hqq": Recipe("int4-hqq"),
    "int4-rtn": Recipe("int4-rtn"),
    "int4-rtn-b32": Recipe("int4-rtn", block_size=32),
    "int2": Recipe("int2"),
    "int2-gptq": Recipe("int2-gptq"),
    "ternary": Recipe("ternary"),
    "ternary-gptq": Recipe("ternary-gptq"),
}
"""By the name of the variant's folder."""


@dataclass(frozen=True)
class Samples:
    """How many of the built-in samples are taken, over all kinds.

    Attributes:
        fitted: Texts and photographs that weights are fitted to.
        measured: Texts that loss is measured on.
    """

    fitted: int = MOST_FITTED
    measured: int = MOST_TEXTS

    def calibration(self, bundle: Bundle) -> Evaluation:
        """Return what weights are fitted to."""
        every = built_in_samples(bundle, "calibration")
        return replace(every, questions=spread(every.questions, self.fitted))


def make_variant(parent: Path, folder: Path, recipe: Recipe, samples: Samples, say: Say) -> Path:
    """Return a variant's folder, made where none of this parent and these samples stands there.

    Raises:
        QuantizationError: The parent is no fp32 bundle of a language model.
        BundleError: The parent is not whole.
    """
    bundle = open_bundle(parent, verify=False, allow_ungated=True)
    reason = _why_made(bundle, folder, samples)
    if reason is None:
        say(f"{folder.name} is there; delete {folder} to have it made by newer code")
    else:
        say(f"making {folder.name}{reason}")
        quantize_bundle(
            parent,
            folder,
            weights=recipe.weights,
            options=recipe.options,
            calibration=samples.calibration(bundle),
            evaluation=built_in_texts(bundle, "evaluation", samples.measured),
            overwrite=True,
            progress=say,
        )
    return folder


def _why_made(parent: Bundle, folder: Path, samples: Samples) -> str | None:
    """Return why a variant is made, in words that go on from its name; None: what stands there is of this parent."""
    if not (folder / MANIFEST).is_file() or not is_of_this_format(folder):
        return ""
    kept = open_bundle(folder, verify=False, allow_ungated=True)
    if kept.manifest.source_sha256 != parent.manifest.source_sha256:
        return " anew: the one that is there is of another checkpoint"
    wanted = built_in_texts(parent, "evaluation", samples.measured).num_samples
    facts = read_report(kept).evaluation if REPORT in kept.manifest.files else None
    if facts is None or facts.num_samples != wanted:
        return f" anew: the one that is there was not measured on {wanted} texts"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's own command line; return the exit code."""
    options = _parser().parse_args(arguments)
    told = Console(stderr=True, highlight=False)
    samples = Samples(options.fitted, options.texts)
    try:
        variants = [
            make_variant(options.bundle, options.folder / name, RECIPES[name], samples, told.print)
            for name in options.variants
        ]
        _, written = compare_bundles(
            [options.bundle, *variants],
            options.folder / PAGE,
            with_speed=options.speed,
            progress=told.print,
            rivals=options.rivals,
        )
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.variants",
        description="Variants of an fp32 bundle, made where they are not there yet, and the page that compares them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", type=Path, help="fp32 bundle of a language model, such as .demo/real of make demo-real")
    add("folder", type=Path, help="keeps the variants and the page")
    add("--variants", nargs="+", choices=RECIPES, default=list(RECIPES), help="which")
    add("--fitted", type=int, default=MOST_FITTED, help="texts and photographs that weights are fitted to")
    add("--texts", type=int, default=MOST_TEXTS, help="on which each variant is measured, of every kind some")
    add("--rivals", nargs="*", type=Path, default=[], help="files of python -m loadtests.llama_cpp")
    add("--speed", action=argparse.BooleanOptionalAction, default=True, help="time the variants in turns")
    return parser


if __name__ == "__main__":
    sys.exit(main())
