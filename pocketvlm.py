"""The `pocketvlm` command: one subcommand per job, each importing its package only when called.

Exit codes: 0 done; 1 it could not be done (one line on stderr says why); 2 the command line is wrong;
3 a measured objective or quality gate was missed; 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bundle.errors import MachineError, PocketVLMError
from bundle.extras import extra_of, install_line

EXIT_FAILED = 1
EXIT_MISSED = 3
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="pocketvlm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compact vision-language models from checkpoint to endpoint: export, compress, measure, serve.",
)
console = Console(highlight=False)
progress_console = Console(stderr=True, highlight=False)

BundleArgument = Annotated[Path, typer.Argument(help="A bundle directory.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.", show_default=False)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Threads per operator; 0 means one per physical core.")]

_OWN = "Default: the model's own."


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _progress(line: str) -> None:
    progress_console.print(line, style="dim", markup=False)


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A local folder or a hub id.", show_default=False)],
    output: OutputOption,
    name: Annotated[str | None, typer.Option(help="Model id to serve it under; the folder's name if absent.")] = None,
    dialect: Annotated[Literal["contrib", "portable"], typer.Option(help="Operator set of the graphs.")] = "contrib",
    decoder_gguf: Annotated[
        Path | None, typer.Option(help="llama.cpp file that replaces the checkpoint's decoder.", show_default=False)
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint as a bundle of fp32 ONNX graphs."""
    from export.exporter import export_checkpoint

    manifest = export_checkpoint(
        checkpoint,
        output,
        name=name,
        dialect=dialect,
        decoder_gguf=decoder_gguf,
        overwrite=overwrite,
        progress=_progress,
    )
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
    else:
        _print_manifest(output, manifest)


WEIGHTS_HELP = (
    "NAME[,component=NAME...]. Names: int8, int8-static, int4, int4-hqq, int4-gptq, int4-awq, nf4, fp4, fp16, fp32; "
    "experimental: int2, int2-gptq, ternary, ternary-mean, ternary-planes, ternary-gptq."
)


@app.command()
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
        progress=_progress,
        show=None if as_json else _print_draft,
    )
    if as_json:
        _print_json(json.loads((output / "report.json").read_text(encoding="utf-8")))
    else:
        _print_manifest(output, manifest)
    if manifest.has_failed_gate:
        raise typer.Exit(EXIT_MISSED)


def _print_draft(draft: Any) -> None:
    from quant.planning.draft_tables import tables

    for item in tables(draft):
        console.print(item)


def _evaluation(bundle: Path, file: Path | None, samples: int) -> Any:
    from reference.bundles import reference_name
    from reference.held_out import evaluation_of

    if file is not None:
        return _read_samples(bundle, file)
    name = reference_name(bundle)
    return evaluation_of(name, samples) if name else None


_CALIBRATION_SAMPLES = 8
"""Per task of a shipped model, which has 12: more than calibration takes in all."""


def _calibration(bundle: Path, file: Path | None) -> Any:
    from reference.bundles import reference_name
    from reference.held_out import calibration_of

    if file is not None:
        return _read_samples(bundle, file)
    name = reference_name(bundle)
    return calibration_of(name, _CALIBRATION_SAMPLES) if name else None


def _read_samples(bundle: Path, file: Path) -> Any:
    from bundle.directory import read_manifest
    from quant.quality.samples import read_samples

    return read_samples(file, read_manifest(bundle))


@app.command()
def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Verify a bundle and show what it holds."""
    from bundle.directory import open_bundle

    manifest = open_bundle(bundle, allow_ungated=True)
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
    else:
        _print_manifest(bundle, manifest)


def _print_manifest(bundle: Path, manifest: Any) -> None:
    from bundle.summary import summary

    for item in summary(bundle, manifest):
        console.print(item)


@app.command()
def report(
    bundles: Annotated[
        list[Path], typer.Argument(help="Quantized bundles, and their fp32 parent for its speed.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page; its charts go beside it as PNG files.")
    ] = Path("report.html"),
    speed: Annotated[bool, typer.Option(help="Time the variants in turns on this machine.")] = True,
) -> None:
    """Compare variants on one HTML page: accuracy against size and speed, gates, tasks, layers."""
    from quant.comparison.comparison import compare_bundles
    from quant.comparison.page import verdict_sentence

    families, written = compare_bundles(bundles, output, with_speed=speed, progress=_progress)
    for family in families:
        console.print(verdict_sentence(family), style="bold", markup=False)
    for path in written:
        console.print(str(path), soft_wrap=True)


@app.command()
def run(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    image: Annotated[list[Path] | None, typer.Option(help="An image file; may be repeated.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 128,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help=f"0: the likeliest token. {_OWN}")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help=f"Nucleus mass. {_OWN}")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help=f"Likeliest tokens kept; 0 keeps all. {_OWN}")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats a sampled answer.")] = None,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer one question about images, in this process."""
    from dataclasses import asdict

    from serving.oneshot import answer, speed
    from serving.protocol import ImagePart, Message, SamplingParams, TextPart

    images = [ImagePart(_read_image(path)) for path in image or ()]
    parts: tuple[TextPart | ImagePart, ...] = (*images, TextPart(prompt))
    sampling = SamplingParams(max_tokens, temperature, top_p, top_k, seed)
    answered = asyncio.run(answer(bundle, Message("user", parts), sampling, threads, None if as_json else _write))
    if as_json:
        _print_json(asdict(answered))
    else:
        console.print()
        progress_console.print(speed(answered), style="dim", markup=False)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}") from error


@app.command()
def embed(
    bundle: BundleArgument,
    image: Annotated[list[Path] | None, typer.Option(help="An image file; may be repeated.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be repeated.")] = None,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Embed images and texts, and show how alike they are."""
    from serving import oneshot
    from serving.protocol import ImagePart, TextPart

    names = [*(str(path) for path in image or ()), *(text or ())]
    if not names:
        raise typer.BadParameter("give at least one --image or --text")
    images: list[TextPart | ImagePart] = [ImagePart(_read_image(path)) for path in image or ()]
    inputs = (*images, *(TextPart(words) for words in text or ()))
    result = asyncio.run(oneshot.embed(bundle, inputs, threads))
    if as_json:
        _print_json({"inputs": names, "embeddings": result.embeddings.tolist(), "prompt_tokens": result.prompt_tokens})
        return
    table = Table("cosine", *(str(i + 1) for i in range(len(names))))
    for i, (name, row) in enumerate(zip(names, result.embeddings @ result.embeddings.T, strict=True)):
        table.add_row(f"{i + 1} {name}", *(f"{value:.3f}" for value in row))
    console.print(table)


BundlesArgument = Annotated[
    list[Path] | None,
    typer.Argument(help="Bundle directories. None: the shipped reference models, exported on first use."),
]
ConfigOption = Annotated[
    Path | None, typer.Option(help="A TOML file of settings (docs/architecture.md); flags win over it.")
]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all. Default: 127.0.0.1.")]
PortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one. Default: 8000.")]
SequencesOption = Annotated[
    int | None, typer.Option(min=1, max=256, help="Sequences decoded together, per model. Default: 4.")
]
ContextOption = Annotated[
    int | None, typer.Option(min=2, help="Tokens per sequence. Default: the model's own, at most 4096.")
]
ServeThreadsOption = Annotated[
    int | None, typer.Option(min=0, help="Threads per operator. Default: 0, one per physical core.")
]
UngatedOption = Annotated[
    bool | None,
    typer.Option("--allow-ungated", help="Serve a variant whose quality gate failed or was never measured."),
]


@app.command("serve", help="Serve bundles over HTTP from this one process (OpenAI-compatible; docs at /docs).")
@app.command("deploy", help="Serve the same application as autoscaled Ray Serve deployments.")
def serve(
    context: typer.Context,
    bundles: BundlesArgument = None,
    host: HostOption = None,
    port: PortOption = None,
    max_sequences: SequencesOption = None,
    context_tokens: ContextOption = None,
    threads: ServeThreadsOption = None,
    allow_ungated: UngatedOption = None,
    config: ConfigOption = None,
) -> None:
    """Serve until a signal comes, on Ray where the command is `deploy`."""
    settings = _settings(config, host, port, max_sequences, context_tokens, threads, allow_ungated)
    if context.info_name == "deploy":
        from serving.cluster.deploy import deploy

        deploy(_served(bundles), settings)
    else:
        from serving import edge

        edge.serve(_served(bundles), settings)


def _settings(
    config: Path | None,
    host: str | None,
    port: int | None,
    max_sequences: int | None,
    context_tokens: int | None,
    threads: int | None,
    allow_ungated: bool | None,
) -> Any:
    import os

    from serving.settings import load_settings

    flags = {
        "host": host,
        "port": port,
        "engine.max_sequences": max_sequences,
        "engine.context_tokens": context_tokens,
        "engine.intra_threads": threads,
        "engine.allow_ungated": allow_ungated or None,
    }
    return load_settings(config, os.environ, flags)


def _served(bundles: list[Path] | None) -> list[Path]:
    if bundles:
        return bundles
    from reference.bundles import cache_folder, reference_bundles

    return reference_bundles(cache_folder(), _progress)


@app.command()
def bench(
    bundle: BundleArgument,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Sequences or images; may be repeated. [default: 1, 8]")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prefill, and cached before decoding.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Tokens of an answer, at most.")] = 32,
    image_px: Annotated[int, typer.Option(help="Width and height of the image before the first token, pixels.")] = 512,
    repeats: Annotated[int, typer.Option(help="Counted runs of each measurement, at most; 10 warm it up.")] = 30,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure latency, throughput and memory of a bundle on this machine."""
    from loadtests.latency import BenchmarkPlan, print_benchmark, run_benchmark

    plan = BenchmarkPlan(
        batch_sizes=tuple(batch_size or (1, 8)),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        image_px=image_px,
        repeats=repeats,
        threads=threads,
        allow_ungated=True,
    )
    report = run_benchmark(bundle, plan, progress=_progress)
    if as_json:
        _print_json(report.to_json())
    else:
        print_benchmark(report, console)


@app.command()
def loadtest(
    url: Annotated[str, typer.Argument(help="Base URL, e.g. http://127.0.0.1:8000", show_default=False)],
    users: Annotated[int, typer.Option(help="Requests in flight.")] = 4,
    duration_s: Annotated[float, typer.Option(help="Seconds measured, after 2 s of warm-up.")] = 30.0,
    mix: Annotated[str, typer.Option(help="Users of each kind relative to the others.")] = "chat=2,embed=1,classify=1",
    objective: Annotated[
        list[str] | None, typer.Option(help="e.g. ttft_p95_ms<500; a missed one is exit code 3; may be repeated.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for report.html and CSV files.")] = None,
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Load a machine other than this one.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Load a server with Locust and hold objectives against what it measured."""
    from loadtests.plan import LoadPlan
    from loadtests.run import run_load_test

    plan = LoadPlan(users=users, duration_s=duration_s, mix=mix)
    code = run_load_test(
        url, plan, objectives=objective or (), output=output, allow_remote=allow_remote, as_json=as_json
    )
    raise typer.Exit(code)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Show what this machine can run; exit code 1 where it cannot serve."""
    from dataclasses import asdict

    from serving.doctor import diagnose, lines

    found = diagnose()
    if as_json:
        _print_json({**asdict(found), "can_serve": found.can_serve})
    else:
        for item in lines(found):
            console.print(item)
    if not found.can_serve:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where bundles and the server's log go.")] = Path(".demo"),
    samples: Annotated[int, typer.Option(min=1, help="Held-out questions per task when a variant is measured.")] = 20,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running.")] = False,
) -> None:
    """Export, compress, serve and ask the shipped models, end to end."""
    from reference.demo import run_demo

    run_demo(folder, samples=samples, keep=keep, console=console)


def main() -> None:
    """Run the command; turn deliberate errors and missing packages into one line."""
    try:
        app()
    except PocketVLMError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        _fail(f"this command needs {error.name}. Install it with: {install_line(extra)}")
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _fail(message: str) -> None:
    progress_console.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
