"""`pocketvlm quantize`: bundle to smaller bundle, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from commands.options import BundleArgument, JsonOption, OutputOption, OverwriteOption, usage_errors
from commands.terminal import EXIT_MISSED, console, print_json, print_manifest, progress

if TYPE_CHECKING:
    from quant.planning.draft import Draft
    from quant.quality.evaluation import Evaluation
    from quant.samples.built_in import Half

WEIGHTS_HELP = (
    "NAME[,component=NAME...]. Names: int8, int8-rtn, int8-static, int4, int4-rtn, int4-hqq, int4-gptq, int4-awq, nf4, "
    "fp4, fp16, fp32; experimental: int2, int2-gptq, ternary, ternary-mean, ternary-planes, ternary-gptq."
)
_CALIBRATION_SAMPLES = 8
"""Per task of a shipped model, which has 12 or 15: more than calibration takes in all."""


def quantize(
    bundle: BundleArgument,
    output: OutputOption,
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP, show_default=False)] = "fp32",
    kv_cache: Annotated[
        Literal["int8", "int4"] | None,
        typer.Option(
            help="Keys and values as codes with a scale per channel, fitted to --calibration. Default: floats."
        ),
    ] = None,
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
        Path | None,
        typer.Option(
            help="JSONL of samples that weights are fitted to, as --eval. Default: scenes of the training data for a "
            "shipped model, else built-in texts and photographs.",
            show_default=False,
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            help="JSONL of samples that quality is measured on: {image, question, answer}; for an encoder {image, "
            "caption} or {image, label}. Default: held-out scenes for a shipped model, else built-in texts and "
            "photographs, others than those of --calibration.",
            show_default=False,
        ),
    ] = None,
    evaluate: Annotated[bool, typer.Option(help="Measure quality; without it the variant is ungated.")] = True,
    samples: Annotated[int, typer.Option(min=1, help="Held-out samples per task of the shipped models.")] = 50,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="A gate's limit, MEASURE=VALUE such as kl_mean=0.1; may be repeated. Default: see docs/quality.md."
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Bytes of all weights: decoder layers get more bits while they fit. Default: no search."
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Predicted mean KL of the decoder's layers, in nats: they get more bits until it is kept. "
            "Towers, tables and experts come on top. Default: no search.",
        ),
    ] = None,
    encoder_runtime: Annotated[
        Literal["onnxruntime", "openvino"],
        typer.Option(help="What runs encoders where quality is measured, on a CPU; openvino needs its extra."),
    ] = "onnxruntime",
    tune: Annotated[bool, typer.Option(help="Time the layers on this machine, once; else a built-in table.")] = True,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a smaller bundle and measure what it costs."""
    from bundle.directory import read_manifest
    from quant.planning.draft import Options
    from quant.planning.recipes import read_weights
    from quant.quality.gate import parse_limits
    from quant.quantizer import quantize_bundle

    parent = read_manifest(bundle)
    with usage_errors():
        limits = parse_limits(limit or ())
        read_weights(weights, parent, may_keep_all=kv_cache is not None)
    fitted_to = _calibration(bundle, calibration)
    measured_on = evaluation_of(bundle, evaluation, samples) if evaluate else None
    _tell_samples(bundle, fitted_to, measured_on)
    manifest = quantize_bundle(
        bundle,
        output,
        weights=weights,
        options=Options(
            block_size=block_size,
            profile=profile,
            target=target,
            tune=tune,
            max_bytes=max_bytes,
            max_kl=max_kl,
            encoder_runtime=encoder_runtime,
            kv_cache=kv_cache,
        ),
        calibration=fitted_to,
        evaluation=measured_on,
        limits=limits,
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


def _tell_samples(bundle: Path, fitted_to: Evaluation, measured_on: Evaluation | None) -> None:
    """Say which samples are used, and where those that weights are fitted to hardly resemble those of the test."""
    from bundle.directory import open_bundle
    from quant.calibration.coverage import unlike

    progress(f"weights that are fitted to samples: to {fitted_to.num_samples}, {fitted_to.source}")
    if measured_on:
        progress(f"quality: on {measured_on.num_samples}, {measured_on.source}")
        parent = open_bundle(bundle, verify=False, allow_ungated=True)
        if warning := unlike(parent, fitted_to, measured_on):
            progress(warning)


def evaluation_of(bundle: Path, file: Path | None, samples: int) -> Evaluation:
    """Return what quality is measured on: a user's file, a shipped model's held-out scenes, or built-in samples."""
    if file is not None:
        return _read_samples(bundle, file)
    from commands.shipped import shipped_name

    name = shipped_name(bundle)
    if name is None:
        return _built_in(bundle, "evaluation")
    from reference import held_out

    return held_out.evaluation_of(name, samples)


def _calibration(bundle: Path, file: Path | None) -> Evaluation:
    """Return what weights are fitted to, from the same places; never the samples that they are measured on."""
    if file is not None:
        return _read_samples(bundle, file)
    from commands.shipped import shipped_name

    name = shipped_name(bundle)
    if name is None:
        return _built_in(bundle, "calibration")
    from reference.held_out import calibration_of

    return calibration_of(name, _CALIBRATION_SAMPLES)


def _built_in(bundle: Path, half: Half) -> Evaluation:
    from bundle.directory import open_bundle
    from quant.samples.built_in import built_in_samples

    return built_in_samples(open_bundle(bundle, verify=False, allow_ungated=True), half)


def _read_samples(bundle: Path, file: Path) -> Evaluation:
    from bundle.directory import read_manifest
    from quant.evaluation.gate_samples import read_samples

    return read_samples(file, read_manifest(bundle))
