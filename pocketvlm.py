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
from rich.table import Table

from bundle.errors import MachineError, PocketVLMError

EXIT_FAILED = 1
EXIT_MISSED = 3
EXIT_INTERRUPTED = 130

_EXTRA_OF_MODULE = {
    "onnxruntime": "cpu",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "huggingface_hub": "export",
    "ml_dtypes": "export",
    "fastapi": "serve",
    "uvicorn": "serve",
    "httpx": "serve",
    "prometheus_client": "serve",
    "ray": "ray",
    "locust": "loadtests",
    "matplotlib": "loadtests",
    "sklearn": "reference",
}

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


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _progress(line: str) -> None:
    progress_console.print(f"[dim]{line}[/dim]")


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A local folder or a hub id.", show_default=False)],
    output: OutputOption,
    name: Annotated[str | None, typer.Option(help="Model id to serve it under; the folder's name if absent.")] = None,
    dialect: Annotated[Literal["contrib", "portable"], typer.Option(help="Operator set of the graphs.")] = "contrib",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint as a bundle of fp32 ONNX graphs."""
    from export.exporter import export_checkpoint

    manifest = export_checkpoint(
        checkpoint, output, name=name, dialect=dialect, overwrite=overwrite, progress=_progress
    )
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
    else:
        console.print(f"{output}: {manifest.name}, {_megabytes(manifest.weight_bytes)} of weights")


@app.command()
def quantize(
    bundle: BundleArgument,
    output: OutputOption,
    weights: Annotated[str, typer.Option(help="Weight scheme: int8 or int4.", show_default=False)],
    evaluate: Annotated[
        bool | None,
        typer.Option(
            help="Measure task accuracy on the reference scenes. "
            "Default: only for bundles of the shipped reference models, which alone were trained on them.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Held-out samples per task.")] = 50,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a smaller bundle and measure what it costs."""
    from quant.quantizer import quantize_bundle
    from reference.bundles import held_out_samples, is_reference

    wanted = is_reference(bundle) if evaluate is None else evaluate
    evaluation = held_out_samples(bundle, samples) if wanted else None
    manifest = quantize_bundle(
        bundle, output, weights=weights, evaluation=evaluation, overwrite=overwrite, progress=_progress
    )
    if as_json:
        _print_json(json.loads((output / "report.json").read_text(encoding="utf-8")))
    else:
        _print_manifest(output, manifest)
    if manifest.has_failed_gate:
        raise typer.Exit(EXIT_MISSED)


@app.command()
def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Verify a bundle and show what it holds."""
    from bundle.directory import open_bundle

    manifest = open_bundle(bundle, allow_failed_gate=True)
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
    else:
        _print_manifest(bundle, manifest)


def _print_manifest(bundle: Path, manifest: Any) -> None:
    console.print(f"[bold]{manifest.name}[/bold]  {manifest.model_type}, {manifest.task}, {manifest.dialect} dialect")
    console.print(f"from {manifest.source}, in {bundle}")
    table = Table("component", "scheme", "weights", "choice")
    for component_name, component in manifest.components.items():
        table.add_row(component_name, component.scheme, _megabytes(component.weight_bytes), component.detail)
    console.print(table)
    if manifest.decoder:
        kv_bytes = manifest.decoder.kv_bytes_per_token
        console.print(f"context {manifest.decoder.max_positions} tokens, cache {kv_bytes / 1024:.1f} KiB per token")
    if manifest.gates:
        gates = Table("gate", "measured", "limit", "n", "verdict")
        for gate in manifest.gates:
            sign = ">=" if gate.direction == "min" else "<="
            verdict = "passed" if gate.passed else "[red]failed[/red]"
            gates.add_row(gate.name, f"{gate.value:.4f}", f"{sign} {gate.limit:g}", str(gate.n), verdict)
        console.print(gates)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


@app.command()
def run(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    image: Annotated[list[Path] | None, typer.Option(help="An image file; may be repeated.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus mass.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Likeliest tokens kept; 0 keeps all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Repeats a sampled answer.")] = None,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer one question about images, in this process."""
    from serving.engine.protocol import GenerateRequest, ImagePart, Message, SamplingParams, TextPart

    parts = (*(ImagePart(_read_image(path)) for path in image or ()), TextPart(prompt))
    sampling = SamplingParams(max_tokens, temperature, top_p, top_k, seed)
    request = GenerateRequest("run", bundle.name, (Message("user", parts),), sampling)
    answer = asyncio.run(_answer(bundle, request, threads, stream=not as_json))
    if as_json:
        _print_json(answer)


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}") from error


async def _answer(bundle: Path, request: Any, threads: int, *, stream: bool) -> dict[str, Any]:
    from dataclasses import asdict, replace

    from serving.engine.client import LocalClient
    from serving.engine.protocol import FinishedEvent
    from serving.engine.settings import EngineSettings

    text, token_ids = "", []
    async with LocalClient([bundle], EngineSettings(max_sequences=1, intra_threads=threads)) as client:
        model = (await client.models())[0].name
        async for event in client.generate(replace(request, model=model)):
            if isinstance(event, FinishedEvent):
                finished = event
                continue
            text += event.text
            token_ids += event.token_ids
            if stream:
                console.file.write(event.text)
                console.file.flush()
    if stream:
        console.print()
        progress_console.print(f"[dim]{_speed(finished)}[/dim]")
    return {
        "text": text,
        "token_ids": token_ids,
        "finish_reason": finished.reason,
        "usage": asdict(finished.usage),
        "timings": asdict(finished.timings),
    }


def _speed(finished: Any) -> str:
    usage, timings = finished.usage, finished.timings
    decode_s = timings.total_s - timings.first_token_s
    rate = f", {(usage.completion_tokens - 1) / decode_s:.0f} tokens/s" if usage.completion_tokens > 1 else ""
    return (
        f"{usage.prompt_tokens} prompt tokens ({usage.image_tokens} of images), first token "
        f"{timings.first_token_s * 1e3:.0f} ms, {usage.completion_tokens} tokens{rate}"
    )


@app.command()
def embed(
    bundle: BundleArgument,
    image: Annotated[list[Path] | None, typer.Option(help="An image file; may be repeated.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be repeated.")] = None,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Embed images and texts, and show how alike they are."""
    from serving.engine.protocol import EmbedRequest, ImagePart, TextPart

    names = [*(str(path) for path in image or ()), *(text or ())]
    if not names:
        raise typer.BadParameter("give at least one --image or --text")
    inputs = (*(ImagePart(_read_image(path)) for path in image or ()), *(TextPart(t) for t in text or ()))
    result = asyncio.run(_embed(bundle, EmbedRequest("embed", bundle.name, inputs), threads))
    if as_json:
        _print_json({"inputs": names, "embeddings": result.embeddings.tolist(), "prompt_tokens": result.prompt_tokens})
        return
    table = Table("cosine", *(str(i + 1) for i in range(len(names))))
    for i, (name, row) in enumerate(zip(names, result.embeddings @ result.embeddings.T, strict=True)):
        table.add_row(f"{i + 1} {name}", *(f"{value:.3f}" for value in row))
    console.print(table)


async def _embed(bundle: Path, request: Any, threads: int) -> Any:
    from dataclasses import replace

    from serving.engine.client import LocalClient
    from serving.engine.settings import EngineSettings

    async with LocalClient([bundle], EngineSettings(intra_threads=threads)) as client:
        return await client.embed(replace(request, model=(await client.models())[0].name))


BundlesArgument = Annotated[
    list[Path] | None,
    typer.Argument(help="Bundle directories. None: the shipped reference models, exported on first use."),
]
HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 picks a free one.")]
ConfigOption = Annotated[Path | None, typer.Option(help="A TOML file of settings; flags win over it.")]


def main() -> None:
    """Run the command; turn deliberate errors and missing packages into one line."""
    try:
        app()
    except PocketVLMError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF_MODULE.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(f"this command needs {error.name}. Install it with: pip install 'pocketvlm[{extra}]'")
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _fail(message: str) -> None:
    progress_console.print(f"[red]error:[/red] {message}", markup=True, soft_wrap=True)
    sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
