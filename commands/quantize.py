"""`pocketvlm quantize`: bundle to smaller bundle, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from commands.options import BundleArgument, JsonOption, OutputOption, OverwriteOption
from commands.terminal import EXIT_MISSED, console, print_json, print_manifest, progress

if TYPE_CHECKING:
    from quant.planning.draft import Draft
    from quant.quality.evaluation import Evaluation

WEIGHTS_HELP = (
    "NAME[,component=NAME...]. Names: int8, int8-static, int4, int4-hqq, int4-gptq, int4-awq, nf4, fp4, fp16, fp32; "
    "experimental: int2, int2-gptq, ternary, ternary-mean, ternary-planes, ternary-gptq."
)
_CALIBRATION_SAMPLES = 8
"""Per task of a shipped model, which has 12: more than calibration takes in all."""


def quantize(
    bundle: BundleArgument,
    output: OutputOption,
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP, show_default=False)],
    block_size: Annotated[
        int | None, typer.Option(help="Weights per scale: 32, 64 or 128. Default: chosen per layer.")
    ] = None,
    profile: Annotated[
        Literal["latency", "memory", "dual"] | None,
        typer.Option(help="How the decoder runs. Default: latency for int8, memory for fewer bits."),
    ] = None,
    target: Annotated[
        Literal["cpu", "cuda", "tensorrt"], typer.Option(help="Execution provider that will run it.")
    ] = "cpu",
    calibration: Annotated[
        Path | None, typer.Option(help="JSONL of samples that weights are fitted to; as --eval.", show_default=False)
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            help="JSONL of samples that quality is measured on: {image, question, answer}; for an encoder {image, "
            "caption} or {image, label}. The shipped models have held-out ones.",
            show_default=False,
        ),
    ] = None,
    evaluate: Annotated[bool, typer.Option(help="Measure quality; without it the variant is ungated.")] = True,
    samples: Annotated[int, typer.Option(min=1, help="Held-out samples per task of the shipped models.")] = 50,
    limit: Annotated[
        list[str] | None, typer.Option(help="A gate's limit, MEASURE=VALUE such as kl_mean=0.1; may be repeated.")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Of all weights: decoder layers get more bits while they fit.")
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Predicted mean KL of the decoder's layers, in nats: they get more bits until it is kept. "
            "Towers, tables and experts come on top.",
        ),
    ] = None,
    tune: Annotated[bool, typer.Option(help="Time the layers on this machine, once; else a built-in table.")] = True,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a smaller bundle and measure what it costs."""
    from quant.planning.draft import Options
    from quant.quality.gate import parse_limits
    from quant.quantizer import quantize_bundle

    manifest = quantize_bundle(
        bundle,
        output,
        weights=weights,
        options=Options(
            block_size=block_size, profile=profile, target=target, tune=tune, max_bytes=max_bytes, max_kl=max_kl
        ),
        calibration=_calibration(bundle, calibration),
        evaluation=_evaluation(bundle, evaluation, samples) if evaluate else None,
        limits=parse_limits(limit or ()),
        overwrite=overwrite,
        progress=progress,
        show=None if as_json else _print_draft,
    )
    if as_json:
        print_json(json.loads((output / "report.json").read_text(encoding="utf-8")))
    else:
        print_manifest(output, manifest)
    if manifest.has_failed_gate:
        raise typer.Exit(EXIT_MISSED)


def _print_draft(draft: Draft) -> None:
    from quant.planning.draft_tables import tables

    for item in tables(draft):
        console.print(item)


def _evaluation(bundle: Path, file: Path | None, samples: int) -> Evaluation | None:
    if file is not None:
        return _read_samples(bundle, file)
    from commands.shipped import shipped_name

    name = shipped_name(bundle)
    if name is None:
        return None
    from reference.held_out import evaluation_of

    return evaluation_of(name, samples)


def _calibration(bundle: Path, file: Path | None) -> Evaluation | None:
    if file is not None:
        return _read_samples(bundle, file)
    from commands.shipped import shipped_name

    name = shipped_name(bundle)
    if name is None:
        return None
    from reference.held_out import calibration_of

    return calibration_of(name, _CALIBRATION_SAMPLES)


def _read_samples(bundle: Path, file: Path) -> Evaluation:
    from bundle.directory import read_manifest
    from quant.quality.samples import read_samples

    return read_samples(file, read_manifest(bundle))
