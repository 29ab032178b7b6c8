"""`pocketvlm compile`: bundle to TensorRT engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from commands.options import BundleArgument, JsonOption, read_size, usage_errors
from commands.terminal import console, print_json, progress

if TYPE_CHECKING:
    from bundle.manifest import Manifest
    from runtime.tensorrt.compiler import Form
    from runtime.tensorrt.library import Flavour

_CACHE_ROWS = 1024
_PROMPT_TOKENS = 512
_BATCH, _IMAGES = 4, 8


def compile_engines(
    bundle: BundleArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder of the engines; made if absent.", show_default=False)
    ],
    target: Annotated[
        Literal["tensorrt", "tensorrt-rtx"],
        typer.Option(help="tensorrt builds for the card that it runs on, tensorrt-rtx without one."),
    ] = "tensorrt-rtx",
    cache_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Tokens of a sequence, prompt and answer. Default: {_CACHE_ROWS}, or the model's context if less.",
        ),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=1024, help=f"Sequences or texts in one run. Default: {_BATCH}.")
    ] = None,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help=f"Tokens of a prompt in one run. Default: {_PROMPT_TOKENS}, or --cache-rows if less."),
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(min=1, max=1024, help=f"Images or tiles in one run. Default: {_IMAGES}.")
    ] = None,
    max_image_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PX",
            help="Longest side of an image, for models whose images keep their shape; longer ones are refused. "
            "Default: twice the side of the model's largest square, 2048 at most.",
            show_default=False,
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X.Y",
            help="Cards that engines of TensorRT-RTX are for: 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; may be repeated. "
            "Default: 8.0 and newer, finished on the card.",
        ),
    ] = None,
    tensorrt_version: Annotated[
        str | None,
        typer.Option(
            metavar="X.Y",
            help="Write graphs for the parser of this TensorRT: before 10.15 (JetPack 6 has 10.3) in operators of "
            "opset 20. Default: the installed one's.",
            show_default=False,
        ),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory that a server may take on the device, such as 6GiB: a cache beyond it is refused before "
            "anything is built. Default: not asked.",
            show_default=False,
        ),
    ] = None,
    allow_ungated: Annotated[
        bool, typer.Option("--allow-ungated", help="Compile a variant whose quality gate failed or was never measured.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the TensorRT engines of a bundle of the portable dialect."""
    from bundle.directory import open_bundle
    from graphs.dialect import portable_where_standard
    from runtime.tensorrt.builder import read_capability
    from runtime.tensorrt.compiler import Job, compile_bundle
    from runtime.tensorrt.fitting import check_fit
    from runtime.tensorrt.image_sizes import try_image_sizes
    from runtime.tensorrt.profiles import Limits, check_asked

    opened = portable_where_standard(open_bundle(bundle, allow_ungated=allow_ungated))
    decoder = opened.manifest.decoder
    rows = cache_rows or min(_CACHE_ROWS, decoder.max_positions if decoder else _CACHE_ROWS)
    sequences = max_batch or _BATCH
    asked = {
        "cache_rows": cache_rows,
        "max_batch": max_batch,
        "max_prompt_tokens": max_prompt_tokens,
        "max_images": max_images,
    }
    with usage_errors():
        job = Job(
            bundle=opened,
            folder=output,
            flavour=target,
            form=_form(target, tensorrt_version),
            limits=Limits(
                rows,
                sequences,
                max_prompt_tokens or min(_PROMPT_TOKENS, rows),
                max_images or _IMAGES,
                try_image_sizes(opened, max_image_side),
            ),
            capabilities=tuple(map(read_capability, compute_capability or ())),
        )
        check_asked(opened.manifest, job.limits, [name for name, value in asked.items() if value is not None])
        if device_memory is not None:
            check_fit(opened.manifest, job.limits, read_size(device_memory, "--device-memory"))
        _tell_build(opened.manifest, target)
        index = compile_bundle(job, progress)
    if as_json:
        print_json(index.model_dump(mode="json"))
        return
    for name, record in index.engines.items():
        console.print(f"{name:20} {record.contents.size_bytes / 1e6:8.1f} MB  {output / record.file}", soft_wrap=True)
    cache_bytes = rows * sequences * opened.manifest.state_bytes_per_token
    if cache_bytes:
        console.print(
            f"{'cache':20} {cache_bytes / 1e6:8.1f} MB  on the device, {sequences} x {rows} rows", soft_wrap=True
        )
    console.print(f"Engines are under {index.licence}.", soft_wrap=True)


def _tell_build(manifest: Manifest, target: Flavour) -> None:
    """Say before an engine is built where building it may take more memory than is free."""
    from runtime.room import budget_of, free_for, mib

    free = free_for("cuda" if target == "tensorrt" else "cpu")
    needed = budget_of(manifest, None, "cuda").build_bytes
    if free is not None and needed > free:
        progress(
            f"building takes about {mib(needed)} of memory, and {mib(free)} are free: it may be swapped or ended. Stop "
            "what else runs, add swap, or build on a larger machine"
        )


def _form(target: Flavour, version: str | None) -> Form:
    """Return how graphs are written: as they are, or for parsers before 10.15 in operators of opset 20."""
    from functools import partial

    from bundle.engines import FORMS
    from graphs.lowering.tensorrt import engine_graph, unread_inputs
    from graphs.lowering.tensorrt_operators import STANDARD_FROM, read_version
    from runtime.tensorrt.compiler import Form
    from runtime.tensorrt.library import open_library

    standard, plain = FORMS
    if version is None and target == "tensorrt":
        version = open_library(target).version
    if version is not None and read_version(version) < STANDARD_FROM:
        return Form(plain, partial(engine_graph, is_plain=True), unread_inputs)
    return Form(standard, engine_graph, unread_inputs)
