"""`pocketvlm compression`: what shorter prompts and smaller caches cost in answers, on one page."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import ThreadsOption, usage_errors
from commands.terminal import console, progress

if TYPE_CHECKING:
    from quant.quality.evaluation import Evaluation, Question

_SHARES = "0.75,0.5,0.25,0.1"
_KINDS = ("colour", "shape", "count", "describe")
"""Of questions about drawings: those that the real model answers best."""


def compression(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Vision-language bundles to measure. Default: none; the page is drawn of files alone.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The page; its charts and the answers of each bundle go beside it."),
    ] = Path("compression.html"),
    shares: Annotated[str, typer.Option(help="Shares of image tokens, or of cache rows, that stay.")] = _SHARES,
    samples: Annotated[int, typer.Option(min=2, help="Questions per task of a shipped model's held-out scenes.")] = 20,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval", help="A JSONL file of questions. Default: a shipped model's own, else built-in samples."
        ),
    ] = None,
    drawings: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ask about held-out drawings in plain English instead, so many questions of each kind: what the real "
            "model was trained to tell. Default: none.",
        ),
    ] = None,
    answers: Annotated[
        list[Path] | None, typer.Option(help="Answers measured before; may be repeated. Default: none.")
    ] = None,
    costs: Annotated[
        list[Path] | None,
        typer.Option(help="Times by python -m loadtests.shortening; may be repeated. Default: none."),
    ] = None,
    replies: Annotated[
        bool,
        typer.Option(
            help="Answer freely as well, and count what is right. Without: only distributions over the right answers' "
            "tokens are compared, several times as quick."
        ),
    ] = True,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Begin no further question of a bundle after so long; tasks take turns then. Default: ask them all.",
        ),
    ] = None,
    threads: ThreadsOption = 0,
) -> None:
    """Measure every visual-token reducer and KV policy against the share that stays, and draw a page of it."""
    from bundle.directory import open_bundle
    from commands.quantize import evaluation_of
    from quant.shortening.costs import read_costs
    from quant.shortening.measuring import measure_shortening
    from quant.shortening.page import sentences_of, write_page
    from quant.shortening.record import Record
    from runtime.settings import RuntimeSettings

    settings = RuntimeSettings(intra_threads=threads)
    with usage_errors():
        wanted = _shares(shares)
        records = [Record.read(path) for path in answers or ()]
        timed = [each for path in costs or () for each in read_costs(path)]
        if not (bundles or records):
            raise typer.BadParameter("give at least one bundle, or --answers of one measured before")
        for path in bundles or ():
            found = evaluation_of(path, evaluation, samples) if drawings is None else _drawings(drawings)
            bundle = open_bundle(path, allow_ungated=True)
            most_s = math.inf if minutes is None else 60 * minutes
            asked = _asked(found, replies=replies, in_turns=minutes is not None)
            records.append(measure_shortening(bundle, asked, wanted, settings, progress, most_s))
            records[-1].write(output.with_name(f"{output.stem}-{bundle.manifest.name}.json"))
    for record in records:
        console.print(record.model, style="bold", markup=False)
        for sentence in sentences_of(record):
            console.print(f"  {sentence}.", markup=False, soft_wrap=True)
    for written in write_page(output, records, timed):
        console.print(str(written), soft_wrap=True)


def _drawings(num: int) -> Evaluation:
    from quant.quality.evaluation import Evaluation
    from reference.real.held_out import held_out

    questions = [question for kind in _KINDS for question in held_out(kind, num)]
    return Evaluation(questions=questions, source="held-out drawings, in plain English")


def _asked(evaluation: Evaluation, *, replies: bool, in_turns: bool) -> Evaluation:
    """Return an evaluation without free answers where none are wanted; in turns, its tasks one after another."""
    found = evaluation if replies else replace(evaluation, no_accuracy="no free answers were asked for")
    if not in_turns:
        return found
    by_task: dict[str, list[Question]] = {}
    for question in found.questions:
        by_task.setdefault(question.task, []).append(question)
    rounds = zip_longest(*by_task.values())
    return replace(found, questions=[question for each in rounds for question in each if question is not None])


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < 1 for share in shares):
        raise typer.BadParameter(f"--shares {text!r}: give numbers above 0 and below 1, such as {_SHARES}")
    return shares
