"""`pocketvlm report`: variants side by side on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.terminal import console, progress


def report(
    bundles: Annotated[
        list[Path], typer.Argument(help="Quantized bundles, and their fp32 parent for its speed.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The page; its folder is made, and its charts go beside it as PNG files."),
    ] = Path("report.html"),
    rivals: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file of another system's figures on the same weights, by python -m loadtests.llama_cpp; may be "
            "repeated. Default: none."
        ),
    ] = None,
    speed: Annotated[bool, typer.Option(help="Time the variants in turns on this machine.")] = True,
) -> None:
    """Compare variants on one HTML page: loss and accuracy against size and speed, gates, tasks, layers."""
    from quant.comparison.comparison import compare_bundles
    from quant.comparison.page import verdict_sentence

    groups, written = compare_bundles(bundles, output, with_speed=speed, progress=progress, rivals=rivals or [])
    for siblings in groups:
        console.print(verdict_sentence(siblings), style="bold", markup=False)
    for path in written:
        console.print(str(path), soft_wrap=True)
