"""How image tokens are missed, by where and how they were dropped: `python -m reference.evaluate_inside`.

Right answers to held-out questions with a share of the image tokens, chosen before the decoder (uniformly over the
image), or behind its first layers by each method of `quant.visual_tokens.inside`, and there by lot and uniformly as
well. Beside each accuracy stands how far it is from that of the uniform choice before the decoder, on the same
questions, with the 95 % interval of a bootstrap, and the share of layers x image tokens that were run.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bundle.directory import Bundle, open_bundle
from bundle.prompt import Prompt
from export.exporter import export_checkpoint
from quant.quality.evaluation import Question, turns_of
from quant.visual_tokens.inside.aim_pruning import AimPruning
from quant.visual_tokens.inside.fastv import FastV
from quant.visual_tokens.inside.ranking import num_kept
from quant.visual_tokens.inside.table import InsideMethods
from reference.evaluate import CHECKPOINTS
from reference.scenes import TASKS, held_out
from runtime.feeds import Placed
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import VisionLanguageRunner
from runtime.segmented_prompt import Choose, Cut
from runtime.settings import RuntimeSettings

_MOST_TOKENS = 64
_DRAWS = 2000
_BEFORE = "uniform, before"

Int64 = npt.NDArray[np.int64]


def spread(rows: Int64, num: int) -> Int64:
    """Return so many rows at even distances."""
    return rows[np.arange(num) * len(rows) // num]


@dataclass(frozen=True)
class Uniform:
    """Keeps image tokens at even distances behind the first cut."""

    keep: float

    def __call__(self, cut: Cut) -> Int64:
        """Return the image tokens that go on."""
        return cut.image_rows if cut.number else spread(cut.image_rows, num_kept(cut.num_image_tokens, self.keep))


@dataclass(frozen=True)
class ByLot:
    """Keeps image tokens drawn by lot behind the first cut."""

    keep: float

    def __call__(self, cut: Cut) -> Int64:
        """Return the image tokens that go on."""
        if cut.number:
            return cut.image_rows
        drawn = np.random.default_rng(0).permutation(cut.image_rows)
        return np.sort(drawn[: num_kept(cut.num_image_tokens, self.keep)])


def before(prompt: FilledPrompt, keep: float) -> FilledPrompt:
    """Return a prompt with some of each image's tokens alone, in their places."""
    stays = np.ones(prompt.num_tokens, np.bool_)
    for placed in prompt.placed:
        stays[placed.start : placed.start + len(placed.rows)] = False
        stays[placed.start + spread(np.arange(len(placed.rows)), num_kept(len(placed.rows), keep))] = True
    whole, place = prompt.prompt, np.cumsum(stays) - 1
    placed_rows = [
        Placed(int(place[at]), placed.rows[at - placed.start][None])
        for placed in prompt.placed
        for at in range(placed.start, placed.start + len(placed.rows))
        if stays[at]
    ]
    less = Prompt(whole.token_ids[stays], (), whole.positions[..., stays], whole.next_position, whole.num_images)
    return FilledPrompt(less, tuple(placed_rows))


@dataclass
class Found:
    """What came of one way to drop image tokens.

    Attributes:
        is_right: Of each question.
        shares: Of each question, of all layers x image tokens those that ran.
    """

    is_right: list[bool] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)


def ways_of(bundle: Bundle, keeps: Sequence[float]) -> dict[tuple[str, float], Callable[[float], Choose] | None]:
    """Return every way and share that is tried, and what chooses inside; None: before the decoder, or nothing."""
    methods = InsideMethods(bundle)
    inside: dict[str, Callable[[float], Choose] | None] = {
        _BEFORE: None,
        "by lot": ByLot,
        "uniform": Uniform,
        "fastv": FastV,
        "aim-pruning": AimPruning,
        "dyvte": lambda keep: methods.choice("dyvte", keep),
    }
    return {("all", 1.0): None} | {(name, keep): inside[name] for keep in keeps for name in inside}


def answer(
    runner: VisionLanguageRunner,
    layers: Sequence[int],
    question: Question,
    prompt: FilledPrompt,
    keep: float,
    of: Callable[[float], Choose] | None,
) -> tuple[bool, float]:
    """Return whether a question is answered rightly, and which share of layers x image tokens was run for it."""
    read = before(prompt, keep) if of is None and keep < 1 else prompt
    prefilled = runner.prefill(read, _MOST_TOKENS, None if of is None else of(keep))
    reply = runner.text_of(runner.reply_ids(prefilled, _MOST_TOKENS)).strip()
    num_images = sum(len(placed.rows) for placed in prompt.placed)
    num_text = prompt.num_tokens - num_images
    run = sum(num * (rows - num_text) for num, rows in zip(layers, prefilled.rows, strict=True))
    return question.is_right(reply), run / (num_images * sum(layers))


def measure(
    bundle: Bundle, questions: Sequence[Question], keeps: Sequence[float], threads: int
) -> dict[tuple[str, float], Found]:
    """Return what came of every way."""
    runner = VisionLanguageRunner(bundle, RuntimeSettings(intra_threads=threads))
    layers = [part.end_layer - part.first_layer for part in bundle.manifest.segments]
    ways = ways_of(bundle, keeps)
    found = {way: Found() for way in ways}
    for at, question in enumerate(questions):
        prompt = runner.prompt(turns_of(question), question.images)
        for (name, keep), of in ways.items():
            is_right, share = answer(runner, layers, question, prompt, keep, of)
            found[name, keep].is_right.append(is_right)
            found[name, keep].shares.append(share)
        if at % 100 == 0:
            print(f"{at} of {len(questions)} questions", flush=True)
    return found


def loss(found: Found, other: Found) -> tuple[float, float, float]:
    """Return how much better one way is than another on the same questions, and the 95 % interval, in points."""
    each = np.array(found.is_right, float) - np.array(other.is_right, float)
    drawn = np.random.default_rng(0).integers(0, len(each), (_DRAWS, len(each)))
    low, high = np.percentile(each[drawn].mean(axis=1), [2.5, 97.5])
    return 100 * each.mean(), 100 * low, 100 * high


def table(found: Mapping[tuple[str, float], Found]) -> str:
    """Return a Markdown table."""
    lines = ["| chosen | keep | run | right | against all | against uniform before |", "|---|---|---|---|---|---|"]
    for (name, keep), of in found.items():
        against = [loss(of, found["all", 1.0])]
        if keep < 1:
            against.append(loss(of, found[_BEFORE, keep]))
        told = [f"{middle:+.1f} ({low:+.1f} to {high:+.1f})" for middle, low, high in against]
        cells = [name, f"{keep:g}", f"{np.mean(of.shares):.2f}", f"{np.mean(of.is_right):.1%}", *told]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print a Markdown table over all tasks, and write right answers by task as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, default=CHECKPOINTS / "vlm", help="folder (default: vlm)")
    parser.add_argument(
        "--cuts", type=int, nargs="+", default=[1, 2, 3], help="layers before which to cut (default: 1 2 3)"
    )
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25], help="default: 0.5 0.25")
    parser.add_argument("--n", type=int, default=100, help="questions a task (default: 100)")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    args = parser.parse_args(argv)
    questions = [question for task in TASKS for question in held_out(task, args.n)]
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(args.checkpoint, pathlib.Path(folder) / "cut", segments=args.cuts)
        found = measure(open_bundle(pathlib.Path(folder) / "cut"), questions, args.keep, args.threads)
    print(table(found))
    if args.json:
        of_task = {
            f"{name} {keep:g}": {
                task: int(np.sum(np.array(of.is_right)[[question.task == task for question in questions]]))
                for task in TASKS
            }
            for (name, keep), of in found.items()
        }
        args.json.write_text(json.dumps({"n": args.n, "cuts": args.cuts, "right": of_task}, indent=1) + "\n")


if __name__ == "__main__":
    main()
