"""How feed-forwards are missed that image tokens skip, by layer: `python -m reference.evaluate_skipping`.

Right answers to held-out questions where image tokens skip the feed-forwards of some layers (`export --skip-visual`,
`vision.method` ima), beside how far that is from skipping none on the same questions, with the 95 % interval of a
bootstrap.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bundle.directory import open_bundle
from export.exporter import export_checkpoint
from export.skipping import listed_layers
from quant.quality.evaluation import Question, turns_of
from reference.evaluate import CHECKPOINTS
from reference.evaluate_inside import Found, loss
from reference.scenes import TASKS, held_out
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings

_MOST_TOKENS = 64


def is_right(runner: VisionLanguageRunner, question: Question, prompt: FilledPrompt) -> bool:
    """Return whether a question is answered rightly."""
    prefilled = runner.prefill(prompt, _MOST_TOKENS)
    return question.is_right(runner.text_of(runner.reply_ids(prefilled, _MOST_TOKENS)).strip())


def measure(checkpoint: Path, choices: Sequence[str], questions: Sequence[Question], threads: int) -> dict[str, Found]:
    """Return what came of each choice of layers, and of skipping none."""
    found = {"none": Found()} | {layers: Found() for layers in choices}
    for layers in choices:
        print(f"{len(questions)} questions, skipping {layers}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            export_checkpoint(checkpoint, bundle, skip_visual=listed_layers(layers))
            runner = VisionLanguageRunner(open_bundle(bundle), RuntimeSettings(intra_threads=threads))
            for question in questions:
                prompt = runner.prompt(turns_of(question), question.images)
                if layers == choices[0]:
                    found["none"].is_right.append(is_right(runner, question, prompt))
                skipping = prompt.skipping(len(listed_layers(layers)))
                found[layers].is_right.append(is_right(runner, question, skipping))
    return found


def main(argv: list[str] | None = None) -> None:
    """Print a Markdown table over all tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINTS / "vlm", help="folder (default: vlm)")
    parser.add_argument(
        "--layers", nargs="+", default=["3", "2-3", "1-3", "0-3"], help="what is skipped (default: 3 2-3 1-3 0-3)"
    )
    parser.add_argument("--n", type=int, default=100, help="questions a task (default: 100)")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    args = parser.parse_args(argv)
    questions = [question for task in TASKS for question in held_out(task, args.n)]
    found = measure(args.checkpoint, args.layers, questions, args.threads)
    print("| skipped for image tokens | right | against none |\n|---|---|---|")
    for layers, of in found.items():
        middle, low, high = loss(of, found["none"])
        print(f"| {layers} | {np.mean(of.is_right):.1%} | {middle:+.1f} ({low:+.1f} to {high:+.1f}) |")


if __name__ == "__main__":
    main()
