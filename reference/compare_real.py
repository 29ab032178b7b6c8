"""Hold variants of the real model against their fp32 bundle on held-out pictures: `python -m reference.compare_real`.

    python -m reference.compare_real .demo/real .demo/real-int8 --n 20

The variant and its parent are fed the same right answers (KL, first choices) and answer freely (right replies), by the
gates' own code; the texts of `pocketvlm quantize` say nothing of what a variant sees.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from bundle.directory import open_bundle
from bundle.errors import PocketVLMError
from quant.quality.answers import measure_answers
from quant.quality.evaluation import ALL_TASKS, Measured
from reference.real.held_out import KINDS, Question, held_out
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings

SEEN = ("colour", "shape", "count", "describe", "photograph")
"""Kinds that the model answers more often than not."""
HEAD = f"| weights | KL mean | 95 % interval | top-1 | tokens | right, fp32 | right | n |\n|{'---|' * 8}"


def questions_of(kinds: Sequence[str], n: int) -> list[Question]:
    """Return n held-out questions of each kind."""
    return [question for kind in kinds for question in held_out(kind, n)]


def compare(
    parent: VisionLanguageRunner, variant: pathlib.Path, questions: Sequence[Question], threads: int
) -> Measured:
    """Return how a variant answers beside its parent.

    Raises:
        BundleError: The variant is not whole.
    """
    runner = VisionLanguageRunner(open_bundle(variant, allow_ungated=True), RuntimeSettings(intra_threads=threads))
    return measure_answers(parent, runner, questions, lambda line: print(line, file=sys.stderr, flush=True))


def line(name: str, measured: Measured) -> str:
    """Return one row of a Markdown table."""
    forced, right = measured.teacher_forced, measured.tasks[ALL_TASKS]
    if forced is None:
        return f"| {name} | | | | | {right.fp32:.1%} | {right.quantized:.1%} | {right.n} |"
    low, high = forced.kl_interval or (forced.kl_mean, forced.kl_mean)
    return (
        f"| {name} | {forced.kl_mean:.4f} | {low:.4f} - {high:.4f} | {forced.top1_agreement:.1%} | {forced.num_tokens} "
        f"| {right.fp32:.1%} | {right.quantized:.1%} | {right.n} |"
    )


def main(argv: list[str] | None = None) -> int:
    """Print a Markdown table, and write the numbers as JSON when asked; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp32", type=pathlib.Path, help="the real model's fp32 bundle")
    parser.add_argument("variants", type=pathlib.Path, nargs="+", help="bundles made of it")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(SEEN))
    parser.add_argument("--n", type=int, default=20, help="questions a kind")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    args = parser.parse_args(argv)
    questions = questions_of(args.kinds, args.n)
    found = {}
    try:
        parent = VisionLanguageRunner(open_bundle(args.fp32), RuntimeSettings(intra_threads=args.threads))
        print(HEAD, flush=True)
        for variant in args.variants:
            measured = compare(parent, variant, questions, args.threads)
            print(line(variant.name, measured), flush=True)
            tasks = {name: task.model_dump() for name, task in measured.tasks.items()}
            found[variant.name] = {
                "tasks": tasks,
                "forced": measured.teacher_forced and measured.teacher_forced.model_dump(),
            }
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
