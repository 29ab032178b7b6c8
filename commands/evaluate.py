"""`pocketvlm evaluate`: a bundle or an endpoint on a file of samples."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundle.errors import ModelNotFoundError, ParameterError, SettingsError
from commands.options import AdapterOption, JsonOption, ThreadsOption
from commands.respondents import Endpoint, KeyOption, NameOption, is_url, respondent_of
from commands.terminal import console, print_json, progress

if TYPE_CHECKING:
    from quant.evaluation.report import EvaluationReport
    from serving.respondents.in_process import Cheaper


def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="URL|BUNDLE", help="A bundle, or an endpoint's URL up to /v1.", show_default=False)
    ],
    file: Annotated[
        Path,
        typer.Argument(
            help="Samples: JSON Lines, CSV, TSV, or a public layout (docs/evaluation.md).", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page; its figures (.json) and replies go beside it.")
    ] = Path("evaluation.html"),
    images: Annotated[Path | None, typer.Option(help="The folder of the images. Default: the file's own.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="VQA v2's file of answers. Default: none.")] = None,
    split: Annotated[str, typer.Option(help="Which part of a file that holds several is read.")] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most samples, evenly spread over the file. Default: all.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a reply.")] = 64,
    instruction: Annotated[
        str | None, typer.Option(help="Said behind every question. Default: what the format wants.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help='A text for labels, "{}" for the label; several are averaged; clip-80 names a published set. '
            "Default: the model's own."
        ),
    ] = None,
    name: NameOption = None,
    embeds: Annotated[
        bool | None, typer.Option(help="The endpoint's model makes vectors. Default: as its /v1/models says.")
    ] = None,
    key_env: KeyOption = "OPENAI_API_KEY",
    at_once: Annotated[int, typer.Option(min=1, max=256, help="Questions that are asked at a time.")] = 4,
    vision_method: Annotated[
        str | None, typer.Option(help="Which image tokens are read, with --vision-keep. Default: uniform.")
    ] = None,
    vision_keep: Annotated[float | None, typer.Option(help="Share of image tokens that is read. Default: 1.")] = None,
    kv_policy: Annotated[
        str | None, typer.Option(help="Which rows of prompts stay, with --kv-budget. Default: snapkv.")
    ] = None,
    kv_budget: Annotated[float | None, typer.Option(help="Share of a prompt's rows that stays. Default: 1.")] = None,
    adapter: AdapterOption = "",
    threads: ThreadsOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Ask anew what was asked before.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score a model on a file of questions, captions, labels or searches; a run that was stopped goes on."""
    from commands.run import check_shares
    from pages.file import write_whole
    from quant.evaluation.evaluating import Options
    from quant.evaluation.evaluating import evaluate as evaluate_file
    from quant.evaluation.layouts import Beside
    from quant.evaluation.page import evaluation_page
    from quant.evaluation.reading import read_file

    check_shares(vision_method, vision_keep, kv_policy, kv_budget)
    cheaper, told = _cheaper(vision_method, vision_keep, kv_policy, kv_budget)
    if told and is_url(target):
        raise typer.BadParameter("--vision-keep and --kv-budget are for bundles; an endpoint has settings of its own")
    told |= {"adapter": adapter} if adapter else {}
    replies = output.with_name(f"{output.stem}.replies.jsonl")
    options = Options(max_tokens, at_once, instruction, tuple(template or ()), told)
    samples = read_file(file, Beside(images, annotations, split), limit)
    if overwrite:
        replies.unlink(missing_ok=True)

    async def run() -> EvaluationReport:
        async with respondent_of(
            target, Endpoint(name, key_env, embeds), threads, at_once, cheaper, adapter
        ) as respondent:
            return await evaluate_file(samples, respondent, options, replies, target, progress)

    try:
        found = asyncio.run(run())
    except (SettingsError, ParameterError, ModelNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    write_whole(output, evaluation_page(found).encode())
    write_whole(output.with_suffix(".json"), found.model_dump_json(indent=2).encode())
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _print_figures(found, output)


def _cheaper(
    method: str | None, keep: float | None, policy: str | None, budget: float | None
) -> tuple[Cheaper, dict[str, str | float | None]]:
    """Return what is left out of prompts, and how a report tells it."""
    from serving.protocol import KVCompression, VisionReduction
    from serving.respondents.in_process import Cheaper

    vision = VisionReduction(method or "uniform", keep) if keep is not None else None
    kv = KVCompression(policy or "snapkv", budget) if budget is not None else None
    told: dict[str, str | float | None] = {}
    if vision:
        told |= {"vision_method": vision.method, "vision_keep": vision.keep}
    if kv:
        told |= {"kv_policy": kv.policy, "kv_budget": kv.budget}
    return Cheaper(vision, kv), told


def _print_figures(report: EvaluationReport, page: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("task", "measure", "n", "mean", "95 % interval")
    for task, figures in report.tasks.items():
        for metric, each in figures.items():
            interval = f"{each.low:.3f} - {each.high:.3f}"
            table.add_row(escape(task), metric, str(each.n), f"{each.mean:.3f}", interval)
    console.print(table)
    if report.num_refused:
        progress(f"{report.num_refused} questions were not taken by the model, and count as wrong; the page has them")
    console.print(str(page), soft_wrap=True)
