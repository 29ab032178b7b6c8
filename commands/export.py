"""`pocketvlm export`: checkpoint to bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.options import JsonOption, OutputOption, OverwriteOption
from commands.terminal import print_json, print_manifest, progress


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
        progress=progress,
    )
    if as_json:
        print_json(manifest.model_dump(mode="json"))
    else:
        print_manifest(output, manifest)
